"""An index of samples of several modalities: written in pieces, searched by the inner product of unit vectors.

The folder holds `index.json`, and for each modality and data set a part, a folder with the embeddings as
`collimate.evaluation.write_embeddings` writes them, captions and names beside them, and `vectors.faiss`. Further data
become further parts; parts that are there are kept, and one that was interrupted goes on where it stopped. A preview is
no copy: the index keeps where a sample lies, and it is read again to be shown.

Shape legend: Q queries, D width, k best.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from collimate.data import CorruptSample, Sample, Source, open_source
from collimate.data.captions import captions_of
from collimate.data.decoding import Undecodable
from collimate.data.files import write_atomically
from collimate.evaluation.embedding import SAMPLES_PER_FILE, write_embeddings
from collimate.evaluation.features import Precision
from collimate.evaluation.index import EmbeddingIndex
from collimate.evaluation.modalities import Exhibit, exhibit_in
from collimate.search.hit import Hit
from collimate.search.space import Space

CONTENTS, VECTORS, CAPTION = "index.json", "vectors.faiss", "caption"
FORMAT = 1
EXACT = "Flat"
TRAINED_ON = 100_000  # ours: vectors from which an approximate index learns its cells


@dataclass(frozen=True)
class Part:
    """One modality of one data set in an index.

    Attributes:
        folder: its name in the index.
        modality, source: what it holds, the source as `collimate.data.open_source` takes it.
        samples: how many it holds.
        skipped: how many more the source has, which are corrupt or lack the modality.
        model: the method's folder, as it was named.
        weights: the fingerprint of the method.
    """

    folder: str
    modality: str
    source: str
    samples: int
    skipped: int
    model: str
    weights: str


def write_index(
    space: Space,
    data: Mapping[str, str],
    output: str | PathLike[str],
    kind: str = EXACT,
    samples_per_file: int = SAMPLES_PER_FILE,
    batch_size: int = 64,
    num_workers: int = 0,
    precision: Precision = "float32",
    done: Callable[[Part], object] = lambda part: None,
) -> list[Part]:
    """Embed data by the models of a space and write an index, or add to one.

    In memory are the samples of one file, and the faiss index of one part: 4 D bytes a sample where it is exact.

    Args:
        space: whose models encode.
        data: modality -> data set, as `collimate.data.open_source` takes it.
        output: the folder.
        kind: of faiss index, by its factory's names: `Flat` is exact; `HNSW32`, `IVF4096,PQ32`, ... are not.
        samples_per_file: so many are embedded before they are written.
        batch_size, num_workers, precision: as for `collimate.evaluation.extract`.
        done: called with each part.

    Returns:
        all parts of the index, earlier ones too.

    Raises:
        ImportError: faiss is missing.
        ValueError: the folder holds an index of another space or kind, or there is nothing to index.
    """
    faiss = require_faiss()
    if not data:
        raise ValueError("There is nothing to index: name the data of at least one modality.")
    folder = Path(output)
    contents = _begun(folder, space, kind)
    parts = {part["folder"]: Part(**part) for part in contents["parts"]}
    for modality, source_name in data.items():
        method = space.method(modality)
        source = _WithCaption(open_source(source_name))
        name = f"{modality}-{blake2b(source_name.encode(), digest_size=6).hexdigest()}"
        written = write_embeddings(
            method,
            source,
            folder / name,
            [modality],
            samples_per_file=samples_per_file,
            batch_size=batch_size,
            num_workers=num_workers,
            device=str(space.device),
            precision=precision,
            identity={"source": source_name},
            also=[CAPTION],
        )
        embeddings = EmbeddingIndex(folder / name, modality)
        if not (folder / name / VECTORS).exists():
            _write_vectors(faiss, embeddings, kind, folder / name / VECTORS, samples_per_file)
        weights = embeddings.plan["weights"]
        skipped = len(source) - written
        parts[name] = Part(name, modality, source_name, written, skipped, space.names[modality], weights)
        contents["parts"] = [vars(part) for part in parts.values()]
        write_atomically(folder / CONTENTS, json.dumps(contents, indent=1).encode())
        done(parts[name])
    return list(parts.values())


class SearchIndex:
    """What `write_index` wrote, in memory: the vectors as faiss holds them, names and captions.

    Args:
        folder: the index.

    Attributes:
        parts: what it holds, in the order in which it was added.
        modalities: of the parts.
        space: the hash of the space.
        checkpoints: the model folders it was written with.

    Raises:
        ImportError: faiss is missing.
        FileNotFoundError: there is no index in the folder.
        ValueError: the index is empty, damaged, or from a later version.
    """

    def __init__(self, folder: str | PathLike[str]) -> None:
        faiss = require_faiss()
        self.folder = Path(folder)
        contents = _contents(self.folder)
        self.space: str = contents["space"]
        self.checkpoints: list[str] = contents["checkpoints"]
        self.parts = [Part(**part) for part in contents["parts"]]
        if not sum(part.samples for part in self.parts):
            raise ValueError(f"The index in {folder} is empty: add data with `collimate search index`.")
        self.modalities = tuple(dict.fromkeys(part.modality for part in self.parts))
        self._first = [0, *np.cumsum([part.samples for part in self.parts]).tolist()]
        self._vectors = [faiss.read_index(str(self.folder / part.folder / VECTORS)) for part in self.parts]
        embeddings = [EmbeddingIndex(self.folder / part.folder, part.modality) for part in self.parts]
        self._places = [each.places for each in embeddings]
        self._keys = [each.keys() for each in embeddings]
        self._captions = [each.beside(CAPTION) for each in embeddings]
        self._sources: dict[str, Source] = {}
        for part, vectors, places in zip(self.parts, self._vectors, self._places, strict=True):
            if not vectors.ntotal == len(places) == part.samples:
                raise ValueError(
                    f"{self.folder / part.folder} is damaged: of {part.samples} samples it holds {vectors.ntotal} "
                    f"vectors and {len(places)} places. Remove that folder and write the index again."
                )

    def __len__(self) -> int:
        return self._first[-1]

    def search(
        self, queries: Float[Tensor, "Q D"], k: int = 10, modalities: Sequence[str] | None = None
    ) -> list[list[Hit]]:
        """The k best samples of each query, the best one first; fewer where the index holds fewer.

        Args:
            queries: unit vectors.
            k: how many, of all modalities together.
            modalities: which may be found; all if None.

        Raises:
            ValueError: the index has no such modality, the width is another, or k is below 1.
        """
        if k < 1:
            raise ValueError(f"The number of samples to find is at least 1, not {k}.")
        if unknown := set(modalities or ()) - set(self.modalities):
            raise ValueError(f"The index holds {', '.join(self.modalities)}, and no {', '.join(sorted(unknown))}.")
        found: list[list[tuple[float, int]]] = [[] for _ in queries]
        for number, part in enumerate(self.parts):
            if part.samples and (modalities is None or part.modality in modalities):
                for own, best in zip(found, self._nearest(number, queries, k), strict=True):
                    own.extend(best)
        return [
            [self.hit(row, score) for score, row in sorted(own, key=lambda best: (-best[0], best[1]))[:k]]
            for own in found
        ]

    def hit(self, row: int, score: float = 1.0) -> Hit:
        """A sample by its number.

        Raises:
            IndexError: there is none.
        """
        number, place = self._where(row)
        part = self.parts[number]
        return Hit(
            row,
            score,
            part.modality,
            self._keys[number][place],
            part.source,
            int(self._places[number][place]),
            self._captions[number][place],
        )

    def exhibit(self, row: int) -> Exhibit | None:
        """What there is to see or to hear of a sample, read anew from its source; None where it has nothing to show.

        Raises:
            IndexError: there is no such sample.
            OSError, CorruptSample: its source is gone, or is damaged by now.
        """
        hit = self.hit(row)
        if hit.source not in self._sources:
            self._sources[hit.source] = open_source(hit.source)
        return exhibit_in(self._sources[hit.source].read(hit.place), hit.modality)

    def _where(self, row: int) -> tuple[int, int]:
        if not 0 <= row < len(self):
            raise IndexError(f"The index has {len(self)} samples; there is no sample {row}.")
        number = int(np.searchsorted(self._first, row, side="right")) - 1
        return number, row - self._first[number]

    def _nearest(self, number: int, queries: Tensor, k: int) -> list[list[tuple[float, int]]]:
        """Of one part: score and row of the best of each query."""
        vectors = self._vectors[number]
        if queries.shape[1] != vectors.d:
            raise ValueError(f"The index holds vectors of width {vectors.d}, and the query has {queries.shape[1]}.")
        scores, places = vectors.search(queries.float().contiguous().numpy(), min(k, vectors.ntotal))
        first = self._first[number]
        return [
            [(score, first + place) for score, place in zip(*both, strict=True) if place >= 0]  # -1: cells ran out
            for both in zip(scores.tolist(), places.tolist(), strict=True)
        ]


class _WithCaption(Source):
    """A source whose samples carry what is shown beneath them: their first caption, or the name of their class."""

    def __init__(self, source: Source) -> None:
        self.source, self.name = source, source.name
        self.class_names = getattr(source, "class_names", None)

    def __len__(self) -> int:
        return len(self.source)

    def read(self, index: int) -> Sample:
        sample = self.source.read(index)
        return {**sample, CAPTION: self._caption(sample)}

    def _caption(self, sample: Sample) -> str:
        try:
            return captions_of(sample)[0].text
        except (CorruptSample, Undecodable):  # a text that is missing or damaged leaves a picture to be found
            label = sample.get("cls")
            return self.class_names[int(label)] if self.class_names and label is not None else ""


def require_faiss() -> Any:
    """The module.

    Raises:
        ImportError: it is not installed; names the extra.
    """
    try:
        import faiss
    except ImportError as error:
        raise ImportError(
            "Search needs faiss: install the extra `collimate[index]` (`pip install 'collimate[index]'`)."
        ) from error
    return faiss


def _write_vectors(faiss: Any, embeddings: EmbeddingIndex, kind: str, path: Path, step: int) -> None:
    """Unit vectors into a faiss index, some at a time; the file appears whole or not at all."""

    def units(first: int, stop: int) -> np.ndarray:
        return normalize(embeddings.rows(slice(first, stop)).pooled, dim=1).numpy()

    width = embeddings.rows(slice(0, 1)).pooled.shape[1]
    try:
        vectors = faiss.index_factory(width, kind, faiss.METRIC_INNER_PRODUCT)
        if not vectors.is_trained:
            vectors.train(units(0, TRAINED_ON))
        for first in range(0, len(embeddings), step):
            vectors.add(units(first, first + step))
    except RuntimeError as error:  # faiss says in C++ where, which helps nobody here
        reason = str(error).strip().splitlines()[-1]
        raise ValueError(
            f"faiss cannot make {kind!r} of {len(embeddings)} vectors of width {width}: {reason}"
        ) from None
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        faiss.write_index(vectors, str(fresh))
        os.replace(fresh, path)
    finally:
        fresh.unlink(missing_ok=True)


def _begun(folder: Path, space: Space, kind: str) -> dict[str, Any]:
    """The contents of the index that is in the folder, or of an empty one."""
    own = list(dict.fromkeys(space.names.values()))
    if not (folder / CONTENTS).exists():
        return {"format": FORMAT, "space": space.hash, "kind": kind, "checkpoints": own, "parts": []}
    found = _contents(folder)
    if differing := [name for name, value in (("space", space.hash), ("kind", kind)) if found[name] != value]:
        raise ValueError(
            f"{folder} holds an index of another {' and '.join(differing)} ({', '.join(found['checkpoints'])}; "
            f"{found['kind']}): choose another output."
        )
    return {**found, "checkpoints": list(dict.fromkeys([*found["checkpoints"], *own]))}


def _contents(folder: Path) -> dict[str, Any]:
    try:
        contents = json.loads((folder / CONTENTS).read_text())
    except FileNotFoundError:
        raise FileNotFoundError(f"There is no index in {folder}: `collimate search index` writes one.") from None
    except ValueError as error:
        raise ValueError(f"{folder / CONTENTS} is damaged ({error}): write the index again.") from error
    if not isinstance(contents, dict) or not {"format", "space", "kind", "checkpoints", "parts"} <= contents.keys():
        raise ValueError(f"{folder / CONTENTS} is not the contents of an index.")
    if contents["format"] > FORMAT:
        raise ValueError(f"{folder / CONTENTS} is from a later Collimate: upgrade to read it.")
    return contents
