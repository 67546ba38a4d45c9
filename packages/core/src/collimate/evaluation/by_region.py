"""Evaluation by region: what is in a box, which box is meant, where is it; and, beside it, retrieval of whole pictures.

A method that gives vectors of regions defines

    prompt(image: Encoding, boxes) -> (N, M, D)

for N pictures as its `encode` gives them with their tokens, and M boxes in each; and, if it finds the boxes of texts,
`ground(image, text: Encoding) -> (N, T, 4)`. For any other method, and to compare with, each box is cut out of its
picture and encoded as a picture of its own. All are compared with texts by cosine.

*Classification*: given boxes, classes by their bare names, and the mean over classes of what is right (CLOC, arXiv
2410.02746, section 5). Retrieval, referring and grounding: see `collimate.evaluation.region_metrics`. A region
counts if a pixel of it is seen in the processed picture.

Shape legend: N pictures, M boxes of a picture, T texts, R regions of all pictures, D width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn.functional import normalize

from collimate.data import EvalLoader, Sample, Source, class_names
from collimate.data.decoding import extensions_of, value_of
from collimate.data.loading import Batch
from collimate.data.regions import REGIONS, clipped, is_seen, placed_box, regions_of
from collimate.encoding import Encoding
from collimate.evaluation.bootstrap import Statistic, confidence_intervals, evaluate
from collimate.evaluation.features import (
    Features,
    Precision,
    autocast,
    encode_all,
    encode_here,
    evaluating,
    extract,
    in_order,
    is_cosine,
    other_modality,
    place,
    placing_processor,
    rows_of,
    settings_of,
    stream,
)
from collimate.evaluation.metrics import RECALLS, classification_statistic
from collimate.evaluation.region_metrics import (
    Choice,
    grounding_statistic,
    referred,
    referring_statistic,
    region_ranks,
    region_retrieval_statistic,
)
from collimate.evaluation.region_result import NamedRegions, RegionResult, SeenRegion
from collimate.evaluation.result import Result
from collimate.evaluation.retrieval import evaluate_retrieval
from collimate.evaluation.zero_shot import class_vectors
from collimate.processing import Processor
from collimate.processing.image import open_image
from collimate.training import Method


@runtime_checkable
class RegionEncoder(Protocol):
    """A method with vectors of regions."""

    def prompt(self, image: Encoding, prompts: Float[Tensor, "N M 4"], /) -> Float[Tensor, "N M D"]:
        """The vectors of boxes, in the space of texts; x0, y0, x1, y1 as shares, 0 to 1, of the processed picture."""
        ...


@runtime_checkable
class Grounder(Protocol):
    """A method that finds the box of a text."""

    box_head: Any
    """None where this one has not learnt to."""

    def ground(self, image: Encoding, texts: Encoding, /) -> Float[Tensor, "N T 4"]:
        """In each picture the box that each text speaks of, in shares of the processed picture."""
        ...


def evaluate_regions(
    method: Method,
    data: Source,
    classes: str | Sequence[str] | Mapping[str, Sequence[str]] | None = None,
    templates: str | Sequence[str] = "name",
    by: Literal["auto", "prompts", "crops"] = "auto",
    recalls: Sequence[int] = RECALLS,
    modality: str | None = None,
    batch_size: int = 64,
    num_workers: int = 0,
    device: str = "auto",
    precision: Precision = "float32",
    limit: int | None = None,
    resamples: int = 1000,
) -> RegionResult:
    """Classify, retrieve, refer to and find the regions of pictures.

    Args:
        method: encodes pictures and text, and ranks by their cosine.
        data: samples with regions; see `collimate.data.regions`. Where they have captions, pictures and captions are
            retrieved too.
        classes: names, a file of names, or class -> full texts; those that the data know if None: of the source, or all
            that occur in regions. Without at least two there is no classification.
        templates: what class names are put into; see `collimate.evaluation.prompts`.
        by: how a region gets its vector: the method's own `prompts`, `crops` of the picture, or `auto`, prompts where
            the method has them.
        recalls: the k of the recalls.
        modality: of the pictures; the method's first that is not text unless given. Its processor says by `placement`
            where boxes come to lie.
        batch_size: of each rank.
        num_workers: processes that read and decode.
        device: `auto` is the first GPU where there is one, else the CPU.
        precision: of the encoders.
        limit: at most so many samples, spread over the data.
        resamples: of the bootstrap intervals; pictures are drawn, with all their regions.

    Raises:
        ValueError: there are no regions, or the method cannot be evaluated so; says why.
    """
    modality = modality or other_modality(method)
    look = _Look(method, placing_processor(method, modality), _prompted(method, by), place(method, device), precision)
    source = _WithRegions(data)
    seen = _seen(look, source, modality, batch_size, num_workers, limit)
    regions = [region for each in seen for region in each.regions]
    if not regions:
        raise ValueError(f"{data.name}: no region is in view. Samples need `{REGIONS}`: see `collimate data inspect`.")
    if not look.prompted:
        crops = extract(
            method, _Crops(source, regions), [modality], [], False, batch_size, num_workers, device, precision
        )
        vectors = crops.encodings[modality].pooled
        regions = [replace(regions[at], vector=row) for at, row in zip(crops.index.tolist(), vectors, strict=True)]

    def encoded(texts: Sequence[str]) -> Float[Tensor, "T D"]:
        return encode_all(method, "text", texts, device=device, precision=precision).pooled

    phrases = list(dict.fromkeys(region.phrase for region in regions))
    numbers = torch.tensor([phrases.index(region.phrase) for region in regions])
    vectors, texts = torch.stack([region.vector for region in regions]), encoded(phrases)[numbers]
    found = _Numbers(resamples)
    named = NamedRegions.of(regions, classes, templates, class_names(data))
    scores = None
    if named is not None:
        scores = _class_scores(vectors[named.rows], named, encoded)
        found.add(_classification(scores, named.labels), [regions[row].sample for row in named.rows])
    samples = [region.sample for region in regions]
    ranks = region_ranks(vectors, texts, numbers)
    found.add(
        region_retrieval_statistic(ranks, region_ranks(vectors, texts, torch.arange(len(regions))), recalls), samples
    )
    choices = _choices(regions, texts)
    if choices:
        found.add(referring_statistic([choice for _, choice in choices]), [rows[0].sample for rows, _ in choices])
    grounded = [region for region in regions if region.found is not None]
    if grounded:
        boxes = torch.tensor([region.box for region in grounded])
        answers = torch.stack([region.found for region in grounded])  # type: ignore[misc]
        found.add(grounding_statistic(answers, boxes), [region.sample for region in grounded])
    pictures = _pictures(seen, source, modality, settings_of(method, [modality], data, len(seen), limit, precision))
    if "captions" in pictures.extras:
        found.take(evaluate_retrieval(method, pictures, modality=modality, device=device, resamples=resamples))
    hidden, having = sum(each.hidden for each in seen), sum(bool(each.regions) for each in seen)
    protocol = {
        **pictures.settings,
        "regions": f"{len(regions)} in view, of {having} pictures; {hidden} not",
        "phrases": f"{len(phrases)} different",
        "vectors": f"{type(method).__name__}.prompt" if look.prompted else "of crops of the picture, each a picture",
        "classification": "none" if named is None else f"{len(named.texts)} classes, {len(named.rows)} regions",
        "referring": f"{len(choices)} phrases, among the boxes of their picture",
        "grounding": f"{len(grounded)} phrases that one box of their picture bears" if grounded else "none",
        "intervals": f"95 %, {resamples} bootstrap resamples of pictures with their regions",
    }
    return RegionResult(
        "Regions", found.metrics, found.intervals, protocol, regions, choices, ranks, named, scores, data,
        look.processor, modality,
    )  # fmt: skip


class _Seen(NamedTuple):
    """What one sample gives."""

    sample: int
    key: str
    regions: list[SeenRegion]
    hidden: int  # regions of which nothing is seen
    pooled: Float[Tensor, " D"]
    captions: list[str] | None


# Going through the pictures -----------------------------------------------------------------------------------------


def _seen(
    look: _Look, source: Source, modality: str, batch_size: int, num_workers: int, limit: int | None
) -> list[_Seen]:
    """All samples, on all ranks."""
    captioned = any(key in source.read(0) for key in extensions_of("text"))
    loader = EvalLoader(
        source,
        {modality: look.processor, "size": _SizeOf()},
        batch_size,
        num_workers,
        [REGIONS, *(["captions"] if captioned else [])],
        {"size": extensions_of(modality)},
        limit=limit,
    )
    rows: list[_Seen] = []
    index: list[int] = []
    for encodings, batch in stream(look.method, loader, [modality], look.prompted, look.device, look.precision):
        index += batch["index"].tolist()
        rows += look(encodings[modality], batch, batch[modality].shape[-2:])
    return in_order(rows, torch.tensor(index, dtype=torch.int64))


class _Look:
    """Looks at one batch of pictures after the other."""

    def __init__(
        self, method: Method, processor: Any, prompted: bool, device: torch.device, precision: Precision
    ) -> None:
        self.method, self.processor, self.prompted, self.device = method, processor, prompted, device
        self.precision: Precision = precision
        self.grounds = prompted and isinstance(method, Grounder) and method.box_head is not None

    def __call__(self, image: Encoding, batch: Batch, size: tuple[int, int]) -> list[_Seen]:
        found = []
        for row, sample in enumerate(batch["index"].tolist()):
            boxed, hidden = self.in_view(sample, batch[REGIONS][row], tuple(batch["size"][row].tolist()), size)
            boxed = self.prompt(rows_of(image, slice(row, row + 1)), boxed) if self.prompted and boxed else boxed
            captions = batch["captions"][row] if "captions" in batch else None
            found.append(_Seen(sample, batch["key"][row], boxed, hidden, image.pooled[row], captions))
        return found

    def in_view(
        self, sample: int, value: Any, stored: tuple[int, int], size: tuple[int, int]
    ) -> tuple[list[SeenRegion], int]:
        """The regions of which a pixel is seen, without vectors; and how many others there are."""
        regions, found = regions_of(value, stored), []
        placement, (height, width) = self.processor.placement(*stored), size
        for region in regions:
            cut = clipped(region.box, *stored)
            box = clipped(placed_box(cut, placement), width, height)
            if is_seen(box):
                share = (box[0] / width, box[1] / height, box[2] / width, box[3] / height)
                found.append(SeenRegion(sample, region.phrase, region.name, share, cut, torch.empty(0), None))
        return found, len(regions) - len(found)

    def prompt(self, image: Encoding, regions: list[SeenRegion]) -> list[SeenRegion]:
        """The regions of a picture with their vectors and, where the method finds boxes, what it finds."""
        method: Any = self.method
        image = image.to(self.device)
        boxes = torch.tensor([[region.box for region in regions]], device=self.device)
        phrases = [region.phrase for region in regions]
        alone = [number for number, phrase in enumerate(phrases) if phrases.count(phrase) == 1] if self.grounds else []
        with torch.inference_mode(), evaluating(method), autocast(self.device, self.precision):
            vectors = method.prompt(image, boxes)[0].float().cpu()
            found: dict[int, Tensor] = {}
            if alone:
                asked = [phrases[number] for number in alone]
                texts = encode_here(method, "text", asked, False, self.device, self.precision).to(self.device)
                found = dict(zip(alone, method.ground(image, texts)[0].float().cpu(), strict=True))
        return [
            replace(region, vector=vector, found=found.get(place))
            for place, (region, vector) in enumerate(zip(regions, vectors, strict=True))
        ]


class _SizeOf(Processor):
    """A picture to its width and height."""

    def __call__(self, raw: Any) -> Int64[Tensor, " 2"]:
        return torch.tensor(open_image(raw).size)


class _WithRegions(Source):
    """A source whose samples have a list of regions each, which may be empty."""

    def __init__(self, source: Source) -> None:
        self.source, self.name = source, source.name

    def __len__(self) -> int:
        return len(self.source)

    def read(self, index: int) -> Sample:
        return {REGIONS: [], **self.source.read(index)}


class _Crops(Source):
    """Each region a picture of its own."""

    def __init__(self, source: Source, regions: Sequence[SeenRegion]) -> None:
        self.source, self.name = source, f"the regions of {source.name}"
        self.cuts = [(region.sample, region.cut) for region in regions]

    def __len__(self) -> int:
        return len(self.cuts)

    def read(self, index: int) -> Sample:
        sample, (x0, y0, x1, y1) = self.cuts[index]
        picture = open_image(value_of(self.source.read(sample), extensions_of("image")))
        corner = (min(math.floor(x0), picture.width - 1), min(math.floor(y0), picture.height - 1))
        whole = (*corner, max(math.ceil(x1), corner[0] + 1), max(math.ceil(y1), corner[1] + 1))
        return {"__key__": f"{sample}.{index}", "__source__": self.name, "png": picture.crop(whole)}


def _pictures(seen: Sequence[_Seen], source: Source, modality: str, settings: dict[str, Any]) -> Features:
    """The whole pictures, with their captions where they have any."""
    captions = [each.captions for each in seen]
    return Features(
        {modality: Encoding(torch.stack([each.pooled for each in seen]))},
        torch.tensor([each.sample for each in seen]),
        [each.key for each in seen],
        {"captions": captions} if captions[0] is not None else {},
        source,
        settings,
    )


def _prompted(method: Method, by: str) -> bool:
    if not is_cosine(method):
        raise ValueError(f"{type(method).__name__} has a score of its own, and regions are compared by cosine.")
    if by == "prompts" and not isinstance(method, RegionEncoder):
        raise ValueError(f"{type(method).__name__} has no `prompt` for regions: evaluate it by `crops`.")
    return by != "crops" and isinstance(method, RegionEncoder)


# Numbers ------------------------------------------------------------------------------------------------------------


class _Numbers:
    """Metrics with their intervals, of one task after the other."""

    def __init__(self, resamples: int) -> None:
        self.resamples = resamples
        self.metrics: dict[str, float] = {}
        self.intervals: dict[str, tuple[float, float]] = {}

    def add(self, statistic: Statistic, samples: Sequence[int]) -> None:
        """A statistic of things, each of a sample; samples are drawn."""
        self.metrics |= evaluate(statistic, len(samples))
        groups = torch.tensor(samples)
        self.intervals |= confidence_intervals(statistic, len(samples), groups, resamples=self.resamples)

    def take(self, result: Result) -> None:
        self.metrics |= result.metrics
        self.intervals |= result.intervals


def _class_scores(vectors: Float[Tensor, "r D"], named: NamedRegions, encoded: Any) -> Float[Tensor, "r C"]:
    flat = [text for several in named.texts.values() for text in several]
    owner = [number for number, several in enumerate(named.texts.values()) for _ in several]
    return normalize(vectors, dim=-1) @ class_vectors(encoded(flat), owner, len(named.texts)).T


def _classification(scores: Float[Tensor, "r C"], labels: Int64[Tensor, " r"]) -> Statistic:
    whole = classification_statistic(scores, labels)

    def statistic(weights: Float[Tensor, "R r"]) -> dict[str, Tensor]:
        found = whole(weights)
        return {"region_accuracy": found["acc1"], "region_mean_per_class_accuracy": found["mean_per_class_recall"]}

    return statistic


def _choices(regions: Sequence[SeenRegion], texts: Float[Tensor, "R D"]) -> list[tuple[list[SeenRegion], Choice]]:
    """For each picture and phrase that can be asked there, the picture's regions, and which was chosen."""
    own: dict[int, list[int]] = {}
    for row, region in enumerate(regions):
        own.setdefault(region.sample, []).append(row)
    found = []
    for rows in own.values():
        some = [regions[row] for row in rows]
        vectors = torch.stack([region.vector for region in some])
        found += [(some, choice) for choice in referred(vectors, texts[rows], [region.phrase for region in some])]
    return found
