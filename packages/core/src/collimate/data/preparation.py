"""From a raw sample to the tensors of one row of a batch, and from rows to batches.

Processors do it, so that training, evaluation and a model folder share one raw-to-tensor step; in training an
augmentation may stand before, or in the place of, a modality's processor.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor

from collimate.data.captions import CaptionChoice, captions_of, listed
from collimate.data.classes import labels_of
from collimate.data.decoding import check_text, extensions_of, identity_of, missing, naming, value_of
from collimate.data.plan import Shape
from collimate.data.regions import REGIONS, Box, RegionChoice, clipped, is_seen, placed_box, regions_of
from collimate.data.source import Sample
from collimate.processing import Processor
from collimate.processing.image import open_image


class Augmentation:
    """What training puts in the place of a modality's processor. It draws from the global generators."""

    def __call__(self, raw: Any, processor: Any) -> Tensor:
        """From a decoded value to the tensor that the processor would have made, in its shape and dtype."""
        raise NotImplementedError

    def with_boxes(self, raw: Any, processor: Any, boxes: Sequence[Box]) -> tuple[Tensor, list[Box]]:
        """The same for a picture, and where boxes of it come to lie, in pixels of the result."""
        raise TypeError(f"{type(self).__name__} cannot say where boxes come to lie: it has no `with_boxes`.")


class Preparation:
    """What evaluation does to each sample: decode, then the modality's processor. The first caption counts.

    Args:
        processors: modality -> its raw-to-tensor step.
        fields: modality -> the keys of a sample in which it may lie, where they are not the registered ones.
        also: what rows carry beside: `label`, the sample's class; `labels`, a list of the names or numbers of all its
            classes; `id`, int64 (), equal for samples of one picture (or whatever the first of the modalities is), see
            `identity_of`; `captions`, all of them, a list of strings; or any key of the sample, decoded, such as
            `regions.json`.
        captions: key of the row -> which captions it holds, tokenized, (L,) or (K, L) for K of them. A key that is no
            modality is one more text. For an optional one, `<key>_given` says whether the sample has it, a bool ().
        views: key of the row -> the modality that it holds once more; where something is drawn, by a further draw.
        regions: which of a sample's regions the row holds; None for none. For M of them at most,

            `regions` (M, 4) float32: x0, y0, x1, y1 as shares, 0 to 1, of the processed picture, clipped to it;
            `region_text` (M, L): their phrases, tokenized;
            `region_given` (M,) bool: which rows are regions. The others hold the whole picture and an empty text;
            `regions_dropped` () int64: those of which less than a pixel of width or height is seen in the processed
            picture. They are never drawn.

            A sample without `regions.json` has no regions.
        optional: modalities that a sample may lack. `<modality>_given`, a bool (), says whether it has one; where not,
            zeros of the shape that the processor makes stand in the row. What is there and damaged is refused.

    Raises:
        ValueError: a view of what is no modality; or regions without a text, or without an image whose processor says
            where boxes come to lie; or an optional modality that is none, or whose processor gives no example.
    """

    def __init__(
        self,
        processors: Mapping[str, Processor],
        fields: Mapping[str, Sequence[str]] | None = None,
        also: Sequence[str] = (),
        captions: Mapping[str, CaptionChoice] | None = None,
        views: Mapping[str, str] | None = None,
        regions: RegionChoice | None = None,
        optional: Sequence[str] = (),
    ) -> None:
        self.processors, self.also, self.captions = dict(processors), tuple(also), dict(captions or {})
        self.views, self.regions = dict(views or {}), regions
        if regions is not None and not ("text" in processors and hasattr(processors.get("image"), "placement")):
            raise ValueError("Regions need a `text` processor, and an `image` processor that has a `placement`.")
        if unknown := set(self.views.values()) - processors.keys():
            raise ValueError(f"There is no {min(unknown)!r} to view: the modalities are {', '.join(processors)}.")
        self.fields = {
            modality: tuple((fields or {}).get(modality, extensions_of(modality))) for modality in processors
        }
        self.fillers = {modality: self._filler(modality) for modality in optional}

    def __call__(self, sample: Sample) -> dict[str, Any]:
        """One row: modality -> tensor, without the batch dimension.

        Raises:
            CorruptSample: something is missing, damaged or refused.
        """
        # The identity is that of the whole picture: augmentations may decode an opened one at a smaller scale.
        row: dict[str, Any] = {name: self.extra(name, sample) for name in self.also}
        done = {*self.captions, *(("image",) if self.regions else ())}
        plain = {modality: modality for modality in self.processors if modality not in done}
        row |= self.located(sample, self.regions) if self.regions else {}
        given = {modality: self.has(modality, sample) for modality in self.fillers}
        row |= {
            key: self.tensor(modality, sample, key) if given.get(modality, True) else self.fillers[modality]
            for key, modality in (plain | self.views).items()
        }
        row |= {f"{modality}_given": torch.tensor(there) for modality, there in given.items()}
        return row | self.chosen(sample)

    def shaped(self, shape: Shape) -> Self:
        """The same with inputs of another shape.

        Raises:
            ValueError: the shape is of what is no modality.
            TypeError: a processor makes inputs of one shape only.
        """
        if unknown := dict(shape).keys() - self.processors.keys():
            raise ValueError(f"There is no {min(unknown)!r} to shape: the modalities are {', '.join(self.processors)}.")
        shaped = copy.copy(self)
        others = {modality: self.processors[modality].shaped(value) for modality, value in shape}
        shaped.processors = {**self.processors, **others}
        shaped.fillers = {modality: shaped._filler(modality) for modality in self.fillers}
        return shaped

    def trimmed(self, batch: dict[str, Any]) -> dict[str, Any]:
        """A batch whose inputs end where the longest of them does, as far as their processors know an end."""
        modalities = {modality: modality for modality in self.processors} | self.views
        return batch | {key: self.processors[modality].trimmed(batch[key]) for key, modality in modalities.items()}

    def chosen(self, sample: Sample) -> dict[str, Tensor]:
        """The captions that were asked for one by one."""
        row: dict[str, Tensor] = {}
        for key, choice in self.captions.items():
            modality = key if key in self.processors else "text"
            with naming(sample, key):
                found = choice(captions_of(sample))
                texts = found if isinstance(found, list) else [found or ""]
                several = [self.process(modality, text, key) for text in texts]
            row[key] = torch.stack(several) if isinstance(found, list) else several[0]
            if choice.optional:
                row[f"{key}_given"] = torch.tensor(found is not None)
        return row

    def located(self, sample: Sample, choice: RegionChoice) -> dict[str, Tensor]:
        """The picture, and the regions that were chosen among those that are seen in it."""
        picture = value_of(sample, self.fields["image"])
        with naming(sample, "image"):
            size = open_image(picture).size
        with naming(sample, REGIONS):
            regions = regions_of(value_of(sample, (REGIONS,)) if REGIONS in sample else None, size)
        with naming(sample, "image"):
            pixels, boxes = self.process_with_boxes(picture, [clipped(region.box, *size) for region in regions])
        height, width = pixels.shape[-2:]
        seen = [
            (box, (region.phrase, *region.more))
            for box, region in zip((clipped(box, width, height) for box in boxes), regions, strict=True)
            if is_seen(box)
        ]
        rows = choice(seen)
        filled = rows + [((0.0, 0.0, width, height), ("",))] * (choice.max_regions - len(rows))
        return {
            "image": pixels,
            "regions": torch.tensor([box for box, _ in filled]) / torch.tensor([width, height] * 2),
            "region_text": torch.stack([self.process("text", random.choice(words)) for _, words in filled]),
            "region_given": torch.arange(choice.max_regions) < len(rows),
            "regions_dropped": torch.tensor(len(regions) - len(seen)),
        }

    def has(self, modality: str, sample: Sample) -> bool:
        """Whether a sample has a modality, damaged or not."""
        return any(key in sample for key in self.fields[modality])

    def tensor(self, modality: str, sample: Sample, key: str | None = None) -> Tensor:
        """The tensor of one modality of a sample, as it stands under a key of the row."""
        value = value_of(sample, self.fields[modality])
        with naming(sample, modality):
            return self.process(modality, self.raw(modality, value), key)

    def extra(self, name: str, sample: Sample) -> Any:
        """What a row carries beside the modalities."""
        if name == "label":
            return torch.tensor(int(value_of(sample, extensions_of("label"))))
        if name == "labels":
            with naming(sample, name):
                return labels_of(value_of(sample, extensions_of(name)))
        if name == "id":
            with naming(sample, name):
                return torch.tensor(identity_of(sample, next(iter(self.fields.values()))))
        if name == "captions":
            value = value_of(sample, self.fields.get("text", extensions_of("text")))
            with naming(sample, name):
                return [check_text(caption.text) for caption in listed(value)]
        return value_of(sample, (name,))

    def process(self, modality: str, value: Any, key: str | None = None) -> Tensor:
        return self.processors[modality](value)

    def process_with_boxes(self, picture: Any, boxes: Sequence[Box]) -> tuple[Tensor, list[Box]]:
        """A processed picture, and where boxes come to lie in it, in its pixels; they may reach beyond it."""
        processor: Any = self.processors["image"]
        placement = processor.placement(*open_image(picture).size)
        return processor(picture), [placed_box(box, placement) for box in boxes]

    def raw(self, modality: str, value: Any) -> Any:
        """What the processor is given: of captions one, of labels that a tokenizer reads their text."""
        if modality == "text":
            return self.choose(value)
        return ", ".join(map(str, labels_of(value))) if self.processors[modality].modality == "text" else value

    def choose(self, captions: Any) -> str:
        """The one caption to use where a sample has several."""
        return check_text(listed(captions)[0].text)

    def _filler(self, modality: str) -> Tensor:
        """What stands in the row of a sample that lacks a modality."""
        if modality not in self.processors or modality == "text" or (self.regions and modality == "image"):
            raise ValueError(
                f"{modality!r} cannot be optional: it is a modality other than text, whose captions have a choice of "
                "their own, and no image of which regions are read."
            )
        processor = self.processors[modality]
        if (example := processor.example()) is None:
            raise ValueError(f"{modality!r} cannot be optional: {type(processor).__name__} gives no `example()`.")
        return torch.zeros_like(processor(example))


class TrainingPreparation(Preparation):
    """What training does: a caption is drawn where there are several, and augmentations are applied, anew to each view.

    A sample that has no modality but text teaches nothing and is refused.

    Args:
        augmentations: modality -> what is called with the decoded value and the processor, in the processor's place.
            A key of the row, such as a view's, may have another than its modality.
    """

    def __init__(
        self,
        processors: Mapping[str, Processor],
        fields: Mapping[str, Sequence[str]] | None = None,
        augmentations: Mapping[str, Augmentation] | None = None,
        also: Sequence[str] = (),
        captions: Mapping[str, CaptionChoice] | None = None,
        views: Mapping[str, str] | None = None,
        regions: RegionChoice | None = None,
        optional: Sequence[str] = (),
    ) -> None:
        super().__init__(processors, fields, also, captions, views, regions, optional)
        self.augmentations = dict(augmentations or {})

    def __call__(self, sample: Sample) -> dict[str, Any]:
        others = [modality for modality in self.processors if modality != "text"]
        if self.fillers and not any(self.has(modality, sample) for modality in others):
            raise missing(sample, [key for modality in others for key in self.fields[modality]])
        return super().__call__(sample)

    def process(self, modality: str, value: Any, key: str | None = None) -> Tensor:
        augmentation = self.augmentations.get(key or modality, self.augmentations.get(modality))
        if augmentation is not None:
            return augmentation(value, self.processors[modality])
        return super().process(modality, value)

    def process_with_boxes(self, picture: Any, boxes: Sequence[Box]) -> tuple[Tensor, list[Box]]:
        if "image" in self.augmentations:
            return self.augmentations["image"].with_boxes(picture, self.processors["image"], boxes)
        return super().process_with_boxes(picture, boxes)

    def choose(self, captions: Any) -> str:
        return check_text(random.choice(listed(captions)).text)


def collate(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Rows to a batch: tensors are stacked, anything else becomes a list. Memory formats are kept."""
    return {name: _stack([row[name] for row in rows]) for name in rows[0]}


def _stack(values: list[Any]) -> Any:
    first = values[0]
    if not isinstance(first, Tensor):
        return values
    if first.ndim == 3 and first.stride(0) == 1:  # a channels-last picture: stack it as it lies in memory
        return torch.stack([value.permute(1, 2, 0) for value in values]).permute(0, 3, 1, 2)
    return torch.stack(values)
