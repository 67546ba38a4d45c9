"""Localization: the pointing game at phrases, and segmentation by class names; see `collimate.evaluation.maps`.

What is known of a pixel's class is told by instance masks where the data have them, else by boxes, the smallest one on
top.

Shape legend: N boxes, T texts, h w the grid of a picture's tokens, H W pixels of the processed picture.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn.functional import normalize

from collimate.data import EvalLoader, Source, class_names
from collimate.data.captions import captions_of
from collimate.data.decoding import extensions_of, value_of
from collimate.data.loading import Batch
from collimate.data.regions import Placement, Region, regions_of
from collimate.encoding import Encoding
from collimate.evaluation.bootstrap import confidence_intervals, evaluate
from collimate.evaluation.embedding import Part
from collimate.evaluation.features import (
    Precision,
    encode_here,
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
from collimate.evaluation.maps import (
    Localizer,
    Point,
    best_class,
    localization_map,
    pixel_counts,
    point,
    pointing_statistic,
    segmentation_statistic,
)
from collimate.evaluation.prompts import prompts, template_list
from collimate.evaluation.regions import inside, moved, numbered, placed
from collimate.evaluation.report import Report
from collimate.evaluation.result import Result, one_of_each_sample
from collimate.evaluation.result import number as shown
from collimate.evaluation.zero_shot import class_means, class_vectors
from collimate.processing import Processor
from collimate.processing.image import open_image
from collimate.training import Method

PICTURED = 6  # pictures that the report shows in whole
NAMES = 20  # names that a figure has room for
PER_NAME = ("pointing_accuracy", "mass_inside", "area_share")


def evaluate_localization(
    method: Method,
    data: Source,
    classes: str | Sequence[str] | Mapping[str, Sequence[str]] | None = None,
    templates: str | Sequence[str] = "name",
    modality: str | None = None,
    batch_size: int = 64,
    num_workers: int = 0,
    device: str = "auto",
    precision: Precision = "float32",
    limit: int | None = None,
    resamples: int = 1000,
) -> LocalizationResult:
    """Point at phrases, and segment by class names.

    Args:
        method: a method that encodes text and pictures whose tokens lie on a grid.
        data: samples with regions; see `collimate.data.regions`.
        classes: of the segmentation: names, a file of names, or class -> full texts. Those that the data know if None:
            of the source, or all that occur in regions. Without names there is no segmentation.
        templates: what phrases and names are put into; see `collimate.evaluation.prompts`.
        modality: what is looked at; the method's first that is not text unless given. Its processor says by
            `placement` where boxes come to lie.
        batch_size: of each rank.
        num_workers: processes that read and decode.
        device: `auto` is the first GPU where there is one, else the CPU.
        precision: of the encoders; maps are float32 always.
        limit: at most so many samples, spread over the data.
        resamples: of the bootstrap intervals; pictures are drawn, with all their phrases.

    Raises:
        ValueError: there are no regions, or the method's tokens cannot be compared with texts.
    """
    modality = modality or other_modality(method)
    processor = placing_processor(method, modality)
    read = extract(method, data, [], ["regions.json"], num_workers=num_workers, device=device, limit=limit)
    regions = [regions_of(value) for value in read.extras["regions.json"]]
    places = [int(at) for at, own in zip(read.index, regions, strict=True) if own]
    if not places:
        raise ValueError(f"{data.name}: no sample has a region.")
    names = sorted({region.name for own in regions for region in own if region.name is not None})
    known = class_names(data)
    known = known if known and set(names) <= set(known) else names
    texts = prompts(classes, templates, known) if classes or known else {}

    masks = "instances.png" in data.read(places[0])
    pictured = {places[number * len(places) // PICTURED] for number in range(PICTURED)}
    where = place(method, device)
    look = _Look(method, texts, template_list(templates), pictured, data, where, precision)
    loader = EvalLoader(
        Part(data, places),
        {modality: processor, "placement": _PlacementOf(processor)},
        batch_size,
        num_workers,
        ["regions.json", *(["instances.png"] if masks else [])],
        {"placement": extensions_of(modality)},
    )
    seen: list[_Seen] = []
    index: list[int] = []
    for encodings, batch in stream(method, loader, [modality], True, where, precision):
        samples = [places[number] for number in batch["index"].tolist()]
        index += samples
        seen += look(encodings[modality], batch, samples, batch[modality].shape[-2:])
    seen = in_order(seen, torch.tensor(index, dtype=torch.int64))

    pointed = [one for each in seen for one in each.pointed]
    if not pointed:
        raise ValueError(f"{data.name}: no region is in view once the pictures are processed.")
    statistic = pointing_statistic([one.found for one in pointed])
    groups = torch.tensor([one.sample for one in pointed])
    metrics = evaluate(statistic, len(pointed))
    intervals = confidence_intervals(statistic, len(pointed), groups, resamples=resamples)
    counts = [each.counts for each in seen if each.counts is not None]
    if counts:
        statistic = segmentation_statistic(torch.stack(counts))
        metrics |= evaluate(statistic, len(counts))
        intervals |= confidence_intervals(statistic, len(counts), resamples=resamples)
    unreadable = len(places) - len(seen)
    protocol = {
        **settings_of(method, [modality], data, len(read) - unreadable, limit, precision),
        "with regions": f"{len(seen)} samples, {len(pointed)} phrases in view, {sum(each.hidden for each in seen)} not",
        "templates": ", ".join(map(repr, look.templates[:3])) + (", ..." if len(look.templates) > 3 else ""),
        "map": _described(method),
        "grid": " x ".join(map(str, pointed[0].map.shape)),
        "segmentation": f"{len(texts)} classes, truth by {'masks' if masks else 'boxes'}" if counts else "none",
        "intervals": f"95 %, {resamples} bootstrap resamples of samples with their phrases",
    }
    return LocalizationResult(
        "Localization",
        metrics,
        intervals,
        protocol,
        pointed,
        [each.shown for each in seen if each.shown is not None],
        list(texts),
        data,
        processor,
        modality,
    )


@dataclass(frozen=True)
class Pointed:
    """A phrase in a picture, and where the method points.

    Attributes:
        sample: its place in the source.
        phrase, name: the words, and the class if it has one.
        boxes: in pixels of the processed picture, (N, 4).
        map: (h, w).
        found: what it is worth.
    """

    sample: int
    phrase: str
    name: str | None
    boxes: Float[Tensor, "N 4"]
    map: Float[Tensor, "h w"]
    found: Point


@dataclass(frozen=True)
class Shown:
    """A picture for the report.

    Attributes:
        sample: its place in the source.
        truth, predicted: the class of each pixel, -1 where it is not known, (H, W); None without segmentation.
        text: the sample's caption, or its phrases.
        words: the text's tokens, empty where they are none of its words.
        chosen: for each cell the token that fits it best, (h, w); None where the method has none to compare.
    """

    sample: int
    truth: Int64[Tensor, "H W"] | None
    predicted: Int64[Tensor, "H W"] | None
    text: str
    words: list[str]
    chosen: Int64[Tensor, "h w"] | None


class _Seen(NamedTuple):
    """What one sample gives."""

    pointed: list[Pointed]
    hidden: int  # phrases whose boxes are all out of view
    counts: Tensor | None
    shown: Shown | None


class _PlacementOf(Processor):
    """A picture to where its points come to lie in what another processor makes of it."""

    def __init__(self, processor: Any) -> None:
        self.processor = processor

    def __call__(self, raw: Any) -> Float[Tensor, " 4"]:
        return torch.tensor(self.processor.placement(*open_image(raw).size), dtype=torch.float64)


class _Look:
    """Looks at one batch of pictures after the other."""

    def __init__(
        self,
        method: Method,
        classes: Mapping[str, Sequence[str]],
        templates: list[str],
        pictured: Collection[int],
        data: Source,
        device: torch.device,
        precision: Precision,
    ) -> None:
        self.method, self.templates, self.pictured, self.data = method, templates, pictured, data
        self.device = device
        self.precision: Precision = precision
        self.numbers = {name: number for number, name in enumerate(classes)}
        self.classes = self.encoded(list(classes.values())) if classes else None

    def __call__(self, image: Encoding, batch: Batch, samples: Sequence[int], size: tuple[int, int]) -> list[_Seen]:
        if samples and (image.grid is None or len(image.grid) != 2):
            raise ValueError(f"{type(self.method).__name__}'s tokens do not lie on a grid of two dimensions.")
        regions = [regions_of(value) for value in batch["regions.json"]]
        phrases = list(dict.fromkeys(region.phrase for own in regions for region in own))
        queries = self.encoded([self.filled(phrase) for phrase in phrases]) if phrases else None
        found = []
        for row, (sample, own) in enumerate(zip(samples, regions, strict=True)):
            one = rows_of(image, slice(row, row + 1))
            placement = batch["placement"][row].tolist()
            boxes = placed(own, placement)
            in_view = self.in_view(own, boxes, size)
            pointed = []
            if in_view and queries is not None:
                maps = self.maps(one, queries.some([phrases.index(phrase) for phrase in in_view]))
                for (phrase, numbers), scores in zip(in_view.items(), maps, strict=True):
                    name, theirs = own[numbers[0]].name, boxes[numbers]
                    pointed.append(Pointed(sample, phrase, name, theirs, scores, point(scores, theirs, *size)))
            truth = predicted = counts = None
            if self.classes is not None:
                instances = batch["instances.png"][row] if "instances.png" in batch else None
                truth = self.truth(own, boxes, placement, instances, size)
                predicted = best_class(self.maps(one, self.classes), *size)
                counts = pixel_counts(predicted, truth, len(self.numbers))
            for_report = None
            if sample in self.pictured:
                for_report = Shown(sample, truth, predicted, *self.alignment(one, sample, list(in_view)))
            hidden = len({region.phrase for region in own}) - len(in_view)
            found.append(_Seen(pointed, hidden, counts, for_report))
        return found

    def filled(self, phrase: str) -> list[str]:
        """The phrase in each template."""
        return [form.replace("{c}", "{}").replace("{}", phrase) for form in self.templates]

    def in_view(self, regions: list[Region], boxes: Tensor, size: tuple[int, int]) -> dict[str, list[int]]:
        """phrase -> its boxes, of which a pixel at least is seen."""
        found: dict[str, list[int]] = {}
        for number, region in enumerate(regions):
            if inside(boxes[number : number + 1], *size).any():
                found.setdefault(region.phrase, []).append(number)
        return found

    def encoded(self, texts: Sequence[Sequence[str]]) -> _Queries:
        """One or several texts of each thing that maps are wanted of."""
        flat = [text for several in texts for text in several]
        owner = [number for number, several in enumerate(texts) for _ in several]
        needs_tokens = isinstance(self.method, Localizer) or not is_cosine(self.method)
        encoding = encode_here(self.method, "text", flat, needs_tokens, self.device, self.precision)
        if not needs_tokens:
            return _Queries(Encoding(class_vectors(encoding.pooled, owner, len(texts))), torch.arange(len(texts)))
        pieces = self.pieces(flat)
        return _Queries(encoding if pieces is None else _words_only(encoding, pieces), torch.tensor(owner))

    @torch.inference_mode()
    def maps(self, image: Encoding, queries: _Queries) -> Float[Tensor, "T h w"]:
        """The map of each thing in one picture: the mean over its texts."""
        texts = queries.texts.to(self.device)
        found = localization_map(self.method, image.to(self.device), texts)[0].float().cpu()
        things = int(queries.owner[-1]) + 1
        return class_means(found.T, queries.owner.tolist(), things).T.unflatten(1, image.grid)  # type: ignore[arg-type]

    def truth(
        self, regions: list[Region], boxes: Tensor, placement: Placement, instances: Any, size: tuple[int, int]
    ) -> Int64[Tensor, "H W"]:
        """The class of each pixel, -1 where none is known."""
        if instances is None:
            objects = numbered(boxes, *size)
        else:
            objects = moved(torch.from_numpy(np.array(instances, np.int64)), placement, *size)
        names = [-1, *(self.numbers.get(region.name or "", -1) for region in regions)]
        return torch.tensor(names)[objects]

    def alignment(
        self, image: Encoding, sample: int, phrases: list[str]
    ) -> tuple[str, list[str], Int64[Tensor, "h w"] | None]:
        """A text on the sample, its tokens, and for each cell the token that fits it best."""
        read = self.data.read(sample)
        text = captions_of(read)[0].text if "txt" in read or "captions.json" in read else ", ".join(phrases)
        pieces = self.pieces([text])
        if is_cosine(self.method) or pieces is None:
            return text, [], None
        found = encode_here(self.method, "text", [text], True, self.device, self.precision)
        if image.tokens is None or found.tokens is None or image.tokens.shape[2] != found.tokens.shape[2]:
            return text, [], None
        fits = normalize(image.tokens[0], dim=-1) @ normalize(found.tokens[0], dim=-1).T
        chosen = fits.masked_fill(~found.token_mask[0], -torch.inf).argmax(1)
        return text, pieces[0], chosen.unflatten(0, image.grid)  # type: ignore[arg-type]

    def pieces(self, texts: Sequence[str]) -> list[list[str]] | None:
        """The words that the tokens of each text stand for; None where the tokenizer cannot say."""
        tokenizer: Any = self.method.processors["text"]
        return [tokenizer.pieces(tokenizer(text)) for text in texts] if hasattr(tokenizer, "pieces") else None


class _Queries(NamedTuple):
    """Encoded texts, and the number of the thing that each is a text of."""

    texts: Encoding
    owner: Int64[Tensor, " T"]

    def some(self, things: list[int]) -> _Queries:
        """The texts of some things, which are numbered anew."""
        own = [(self.owner == thing).nonzero().flatten() for thing in things]
        order = torch.arange(len(things)).repeat_interleave(torch.tensor([len(rows) for rows in own]))
        return _Queries(rows_of(self.texts, torch.cat(own)), order)


def _words_only(encoding: Encoding, pieces: list[list[str]]) -> Encoding:
    """The encoding with start and end tokens masked: they are the same in all texts, or say nothing of their own."""
    if encoding.tokens is None:
        return encoding
    length = encoding.tokens.shape[1]
    words = torch.tensor([[bool(piece) for piece in own[:length]] for own in pieces])
    if words.shape[1] != length:
        return encoding
    words &= encoding.token_mask
    return encoding.replace(mask=torch.where(words.any(1, keepdim=True), words, encoding.token_mask))


def _described(method: Method) -> str:
    if isinstance(method, Localizer):
        return f"{type(method).__name__}.localization_map"
    return f"cosine of a cell with the text's {'vector' if is_cosine(method) else 'words, their mean'}"


@dataclass
class LocalizationResult(Result):
    """Where the method points for each phrase, beside the numbers."""

    pointed: list[Pointed]
    shown: list[Shown]
    names: list[str]
    data: Source
    processor: Processor
    modality: str = "image"

    def __post_init__(self) -> None:
        own: dict[str, list[Pointed]] = {}
        for one in self.pointed:
            own.setdefault(one.name or one.phrase, []).append(one)
        self.details["per_name"] = [
            {"name": name, "phrases": len(several)} | evaluate(pointing_statistic(points), len(several))
            for name, several in sorted(own.items(), key=lambda item: (-len(item[1]), item[0]))
            for points in [[one.found for one in several]]
        ]

    def add_to(self, report: Report) -> None:
        from collimate.evaluation import figures

        super().add_to(report)
        per_name = self.details["per_name"]
        bars = {each["name"]: (each["pointing_accuracy"], each["area_share"]) for each in per_name[:NAMES]}
        caption = "Pointing accuracy; the stroke is the share of the pictures that the boxes take, which is chance"
        report.add_figure(figures.shares(bars), f"{caption}. The {len(bars)} commonest names of {len(per_name)}.")
        best, worst = self.examples()
        report.add_images(best, "Surest hits: the map of a phrase, its boxes, and a cross at its maximum", "good large")
        report.add_images(worst, "Surest mistakes", "bad large")
        title = "The picture, the classes of its pixels where they are known, and those that are found there"
        report.add_images(self.segmentations(), title, "wide")
        report.add_images(self.alignments(), "The token of the caption that fits each cell best", "large")
        rows = [[each["name"], each["phrases"], *(shown(each[key]) for key in PER_NAME)] for each in per_name]
        report.add_table(["name", "phrases", *(key.replace("_", " ") for key in PER_NAME)], rows, "Per name")

    def examples(self, count: int = 6) -> tuple[list[tuple[Any, str]], list[tuple[Any, str]]]:
        """Maps over pictures: the best, and the worst, one of each picture; by how much of the map is inside."""
        from collimate.evaluation import pictures

        order = sorted(self.pointed, key=lambda one: one.found.area - one.found.mass)
        hits = one_of_each_sample(one for one in order if one.found.hit)
        misses = one_of_each_sample(one for one in reversed(order) if not one.found.hit)
        return tuple(  # type: ignore[return-value]
            [
                (pictures.heat(canvas, one.map, one.boxes, size, one.found.at), _caption(one))
                for one in several[:count]
                for canvas, size in [self._canvas(one.sample)]
            ]
            for several in (hits, misses)
        )

    def segmentations(self) -> list[tuple[Any, str]]:
        """The pictures that are shown in whole, with the true and the found classes."""
        from collimate.evaluation import pictures

        return [
            (
                pictures.segmented(
                    self._canvas(one.sample)[0],
                    one.truth,
                    torch.where(one.truth >= 0, one.predicted, -1),
                    self.names,
                ),
                "",
            )
            for one in self.shown
            if one.truth is not None and one.predicted is not None
        ]

    def alignments(self) -> list[tuple[Any, str]]:
        """The pictures that are shown in whole, with the token that each cell chooses, where the method has such."""
        from collimate.evaluation import pictures

        return [
            (pictures.worded(self._canvas(one.sample)[0], one.chosen, one.words), one.text)
            for one in self.shown
            if one.chosen is not None
        ]

    def _canvas(self, sample: int) -> tuple[Any, tuple[int, int]]:
        """The picture as the encoder sees it, large enough to draw on; and its height and width."""
        from collimate.evaluation import pictures

        processed = self.processor(value_of(self.data.read(sample), extensions_of(self.modality)))
        return pictures.canvas(processed), (processed.shape[-2], processed.shape[-1])


def _caption(one: Pointed) -> str:
    return f"{one.phrase}: {one.found.mass:.0%} of the map inside, {one.found.area:.0%} of the picture"
