"""What training draws, as a function of the samples' places in the stream.

So that a run that was stopped goes on with the draws that it would have made, and masks do not depend on the number of
ranks.

Shape legend: B clips.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from collimate.data.loading import position_seed


def noise_of(batch: Mapping[str, Any], seed: int, like: Tensor, *shape: int) -> Float[Tensor, "B ..."]:
    """Uniform draws for each clip: by its place in the stream of training, or in the set that is evaluated.

    Args:
        batch: as loaders make it; one of other making has neither place, and its draws are the global generator's.
        seed: of the draws.
        like: a tensor of B rows, on whose device they are wanted.
        shape: for each clip.
    """
    places = batch.get("position", batch.get("index"))
    if places is None:
        return torch.rand(len(like), *shape, device=like.device)
    generator = torch.Generator()
    rows = [torch.rand(shape, generator=generator.manual_seed(_seed(seed, place))) for place in places.tolist()]
    return torch.stack(rows).to(like.device)


def seed_step(batch: Mapping[str, Any], seed: int) -> None:
    """Seed torch's global generators, from which dropout and restarted codes are drawn, for one step of this rank."""
    if "position" in batch:
        torch.manual_seed(_seed(seed, int(batch["position"][0])))


def _seed(seed: int, place: int) -> int:
    return position_seed(seed, place) >> 1  # torch takes 63 bits and a sign
