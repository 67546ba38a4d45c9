"""From a raw sample to the tensors of one row of a batch, and from rows to batches.

Processors do it, so that training, evaluation and a model folder share one raw-to-tensor step; in training an
augmentation may stand before, or in the place of, a modality's processor.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from collimate.data.captions import CaptionChoice, captions_of, listed
from collimate.data.decoding import check_text, extensions_of, identity_of, naming, value_of
from collimate.data.source import Sample
from collimate.processing import Processor


class Augmentation:
    """What training puts in the place of a modality's processor. It draws from the global generators."""

    def __call__(self, raw: Any, processor: Any) -> Tensor:
        """From a decoded value to the tensor that the processor would have made, in its shape and dtype."""
        raise NotImplementedError


class Preparation:
    """What evaluation does to each sample: decode, then the modality's processor. The first caption counts.

    Args:
        processors: modality -> its raw-to-tensor step.
        fields: modality -> the keys of a sample in which it may lie, where they are not the registered ones.
        also: what rows carry beside: `label`, the sample's class; `id`, int64 (), equal for samples of one picture (or
            whatever the first of the modalities is), see `identity_of`; `captions`, all of them, a list of strings; or
            any key of the sample, decoded, such as `regions.json`.
        captions: key of the row -> which captions it holds, tokenized, (L,) or (K, L) for K of them. A key that is no
            modality is one more text. For an optional one, `<key>_given` says whether the sample has it, a bool ().
        views: key of the row -> the modality that it holds once more; where something is drawn, by a further draw.

    Raises:
        ValueError: a view of what is no modality.
    """

    def __init__(
        self,
        processors: Mapping[str, Processor],
        fields: Mapping[str, Sequence[str]] | None = None,
        also: Sequence[str] = (),
        captions: Mapping[str, CaptionChoice] | None = None,
        views: Mapping[str, str] | None = None,
    ) -> None:
        self.processors, self.also, self.captions = dict(processors), tuple(also), dict(captions or {})
        self.views = dict(views or {})
        if unknown := set(self.views.values()) - processors.keys():
            raise ValueError(f"There is no {min(unknown)!r} to view: the modalities are {', '.join(processors)}.")
        self.fields = {
            modality: tuple((fields or {}).get(modality, extensions_of(modality))) for modality in processors
        }

    def __call__(self, sample: Sample) -> dict[str, Any]:
        """One row: modality -> tensor, without the batch dimension.

        Raises:
            CorruptSample: something is missing, damaged or refused.
        """
        # The identity is that of the whole picture: augmentations may decode an opened one at a smaller scale.
        row: dict[str, Any] = {name: self.extra(name, sample) for name in self.also}
        row |= {
            modality: self.tensor(modality, sample) for modality in self.processors if modality not in self.captions
        }
        row |= {key: self.tensor(modality, sample) for key, modality in self.views.items()}
        return row | self.chosen(sample)

    def chosen(self, sample: Sample) -> dict[str, Tensor]:
        """The captions that were asked for one by one."""
        row: dict[str, Tensor] = {}
        for key, choice in self.captions.items():
            modality = key if key in self.processors else "text"
            with naming(sample, key):
                found = choice(captions_of(sample))
                several = [
                    self.process(modality, text) for text in (found if isinstance(found, list) else [found or ""])
                ]
            row[key] = torch.stack(several) if isinstance(found, list) else several[0]
            if choice.optional:
                row[f"{key}_given"] = torch.tensor(found is not None)
        return row

    def tensor(self, modality: str, sample: Sample) -> Tensor:
        """The tensor of one modality of a sample."""
        value = value_of(sample, self.fields[modality])
        with naming(sample, modality):
            return self.process(modality, self.choose(value) if modality == "text" else value)

    def extra(self, name: str, sample: Sample) -> Any:
        """What a row carries beside the modalities."""
        if name == "label":
            return torch.tensor(int(value_of(sample, extensions_of("label"))))
        if name == "id":
            with naming(sample, name):
                return torch.tensor(identity_of(sample, next(iter(self.fields.values()))))
        if name == "captions":
            value = value_of(sample, self.fields.get("text", extensions_of("text")))
            with naming(sample, name):
                return [check_text(caption.text) for caption in listed(value)]
        return value_of(sample, (name,))

    def process(self, modality: str, value: Any) -> Tensor:
        return self.processors[modality](value)

    def choose(self, captions: Any) -> str:
        """The one caption to use where a sample has several."""
        return check_text(listed(captions)[0].text)


class TrainingPreparation(Preparation):
    """What training does: a caption is drawn where there are several, and augmentations are applied, anew to each view.

    Args:
        augmentations: modality -> what is called with the decoded value and the processor, in the processor's place.
    """

    def __init__(
        self,
        processors: Mapping[str, Processor],
        fields: Mapping[str, Sequence[str]] | None = None,
        augmentations: Mapping[str, Augmentation] | None = None,
        also: Sequence[str] = (),
        captions: Mapping[str, CaptionChoice] | None = None,
        views: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(processors, fields, also, captions, views)
        self.augmentations = dict(augmentations or {})

    def process(self, modality: str, value: Any) -> Tensor:
        if modality in self.augmentations:
            return self.augmentations[modality](value, self.processors[modality])
        return super().process(modality, value)

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
