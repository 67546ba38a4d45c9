"""What training does to ECGs: parts of them stretched, or their order changed.

svthapa/MoRE, utils/ecg_augmentations.py. One of three, each as likely: of four segments of equal length, two are
stretched by 1.25 and the others shrunk by 0.75, and what then lacks or is too much is cut from, or filled by, the last;
the segments change places; or nothing is done.

Departure: all leads are treated alike. The released code draws anew for each, so that leads no longer show the same
heart beat at the same time (`independent=True`).

Shape legend: C leads, T samples of a lead.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import interpolate

from collimate.data.preparation import Augmentation

SEGMENTS, STRETCHED = 4, 2  # utils/ecg_augmentations.py, as the next line
STRETCH, SHRINK = 1.25, 0.75


class ECGAugmentation(Augmentation):
    """Time warp, permutation or nothing, of an ECG that the processor made.

    Args:
        warp, permute: the probabilities of the two.
        independent: whether each lead gets a draw of its own.
    """

    def __init__(self, warp: float = 1 / 3, permute: float = 1 / 3, independent: bool = False) -> None:
        if warp < 0 or permute < 0 or warp + permute > 1:
            raise ValueError(f"warp and permute are probabilities, together at most 1; got {warp:g} and {permute:g}.")
        self.warp, self.permute, self.independent = warp, permute, independent

    def __call__(self, raw: Any, processor: Any) -> Float[Tensor, "C T"]:
        signal = processor(raw)
        draw = float(torch.rand(()))
        if draw >= self.warp + self.permute:
            return signal
        orders = torch.stack([torch.randperm(SEGMENTS) for _ in range(len(signal) if self.independent else 1)])
        orders = orders.expand(len(signal), -1)
        return warped(signal, orders[:, :STRETCHED]) if draw < self.warp else permuted(signal, orders)


def warped(signal: Float[Tensor, "C T"], stretched: Int[Tensor, "C s"]) -> Float[Tensor, "C T"]:
    """Each lead with these of its segments stretched, and the others shrunk.

    Args:
        stretched: numbers of segments, from 0.
    """
    return torch.stack([_warped(lead, set(numbers)) for lead, numbers in zip(signal, stretched.tolist(), strict=True)])


def permuted(signal: Float[Tensor, "C T"], orders: Int[Tensor, "C segments"]) -> Float[Tensor, "C T"]:
    """Each lead with its segments in this order."""
    several = [(lead.tensor_split(SEGMENTS), order) for lead, order in zip(signal, orders.tolist(), strict=True)]
    return torch.stack([torch.cat([segments[place] for place in order]) for segments, order in several])


def _warped(lead: Float[Tensor, " T"], stretched: set[int]) -> Float[Tensor, " T"]:
    pieces, left = [], len(lead)
    for number, segment in enumerate(lead.tensor_split(SEGMENTS)):
        length = round(len(segment) * (STRETCH if number in stretched else SHRINK))
        length = left if number == SEGMENTS - 1 else min(length, left)
        pieces.append(interpolate(segment[None, None], length, mode="linear", align_corners=True)[0, 0])
        left -= length
    return torch.cat(pieces)
