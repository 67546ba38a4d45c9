"""Search by anything: a text, a file, or a raw sample of any modality of a space.

Shape legend: Q queries, k best.
"""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from collimate.data.decoding import Undecodable, check_text, decode, extensions_of
from collimate.evaluation.embedding import fingerprint
from collimate.search.hit import Hit
from collimate.search.index import SearchIndex
from collimate.search.space import TEXT, NotOneSpace, Space, open_space


class Searcher:
    """An index with the models that encode queries.

    Args:
        space: the models.
        index: of the same space.

    Raises:
        NotOneSpace: the index was written with other models.
    """

    def __init__(self, space: Space, index: SearchIndex) -> None:
        if space.hash != index.space:
            raise NotOneSpace(
                f"{index.folder} was written with models whose texts have other vectors than those of "
                f"{', '.join(space.names.values())}: write the index again."
            )
        for part in index.parts:
            if part.modality in space.methods and fingerprint(space.methods[part.modality]) != part.weights:
                raise NotOneSpace(
                    f"{space.names[part.modality]} has changed since {index.folder} was written with it: write the "
                    "index again."
                )
        self.space, self.index = space, index

    def find(self, modality: str, raw: Any, k: int = 10, among: Sequence[str] | None = None) -> list[Hit]:
        """The samples that are nearest to one of a modality, the nearest first.

        Args:
            modality: of the query.
            raw: a picture, a text, a sound, ..., as the modality's processor takes it.
            k: how many, of all modalities together.
            among: the modalities that may be found; all of the index if None.

        Raises:
            ValueError: no model encodes the query, or the index has none of those modalities.
        """
        return self.index.search(self.space.encode(modality, [raw]), k, among)[0]

    def find_text(self, text: str, k: int = 10, among: Sequence[str] | None = None) -> list[Hit]:
        """`find` by a text.

        Raises:
            ValueError: it is empty.
        """
        return self.find(TEXT, check_text(text), k, among)

    def find_file(
        self, path: str | PathLike[str], k: int = 10, among: Sequence[str] | None = None, modality: str | None = None
    ) -> list[Hit]:
        """`find` by a file: a picture, a sound, a video, an ECG, ...

        Args:
            path: the file.
            modality: what it is, where its name does not tell: a WFDB record, or the sound of a video. It is then
                given to the processor as a path if its name is not one of the modality's.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: its name tells nothing, or it is damaged.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"There is no file {path}.")
        if modality is not None and _key_of(path.name, modality) is None:
            return self.find(modality, path, k, among)
        return self.find_bytes(path.name, path.read_bytes(), k, among, modality)

    def find_bytes(
        self,
        name: str,
        data: bytes,
        k: int = 10,
        among: Sequence[str] | None = None,
        modality: str | None = None,
    ) -> list[Hit]:
        """`find` by a file's bytes; its name tells by its ending what it is.

        Raises:
            ValueError: its name tells nothing, or it is damaged.
        """
        modality = modality or self.modality_of(name)
        key = _key_of(name, modality)
        if key is None:
            raise ValueError(f"{name} is no {modality}: its name ends in none of {', '.join(extensions_of(modality))}.")
        try:
            return self.find(modality, decode(key, data), k, among)
        except Undecodable as error:
            raise ValueError(f"{name}: {error}") from error
        except (OSError, SyntaxError, EOFError) as error:  # as libraries do on damaged files
            raise ValueError(f"{name} cannot be read: {error}") from error

    def modality_of(self, name: str) -> str:
        """What a file is by its name: the modality that has this ending nearest to the front of its list.

        Raises:
            ValueError: no model here encodes such files.
        """
        keys = {modality: _key_of(name, modality) for modality in self.space.modalities}
        places = {modality: extensions_of(modality).index(key) for modality, key in keys.items() if key is not None}
        if not places:
            known = "; ".join(f"{each}: {', '.join(extensions_of(each))}" for each in self.space.modalities)
            raise ValueError(f"{name}: its ending is of no modality here ({known}). Say which with --modality.")
        return min(places, key=places.__getitem__)


def open_searcher(
    folder: str | PathLike[str], checkpoints: Sequence[str | PathLike[str]] | None = None, device: str = "auto"
) -> Searcher:
    """An index with the models that it was written with.

    Args:
        folder: the index.
        checkpoints: where the models lie by now; where they lay when the index was written if None.
        device: `auto` is the first GPU where there is one, else the CPU.

    Raises:
        NotOneSpace: these are other models, or have changed.
        FileNotFoundError: there is no index.
    """
    index = SearchIndex(folder)
    return Searcher(open_space(checkpoints or index.checkpoints, device), index)


def _key_of(name: str, modality: str) -> str | None:
    """The key of the modality under which a file of this name would lie in a sample; the longest that fits."""
    fitting = [key for key in extensions_of(modality) if name.lower().endswith(f".{key}")]
    return max(fitting, key=len, default=None)
