"""Momentum encoders: copies that follow the weights slowly and are never trained.

He et al. 2020, MoCo, arXiv 1911.05722, equation 2:

    θ̂ <- m θ̂ + (1 - m) θ        after every optimizer step

A method makes its copies with `momentum_copy`, runs them without gradient, and calls `follow` in
`after_optimizer_step`. That is once a step also where gradients are accumulated or the gradient cache cuts the batch;
and the features of a step come from weights that have seen all earlier steps, as in code that updates them at the
beginning of a step. Copies are ordinary submodules: they are saved, sharded and moved with the method, and the
optimizer and DDP pass over them, for they ask for no gradient.
"""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from collimate.training.sharding import reshard

M = TypeVar("M", bound=nn.Module)


def momentum_copy(module: M) -> M:
    """A copy that asks for no gradient; parameters that are shared within the module are shared within the copy."""
    return copy.deepcopy(module).requires_grad_(False)


@torch.no_grad()
def follow(followers: nn.Module, leaders: nn.Module, momentum: float) -> None:
    """Move each parameter of `followers` towards its namesake in `leaders`: θ̂ <- m θ̂ + (1 - m) θ.

    Parameters only: the averages of a batch norm are those of the batches that the copy itself has seen. One that
    several modules share moves once.

    Args:
        followers: what `momentum_copy` made of `leaders`.
        momentum: m; 1 keeps the copy as it is, 0 makes it equal.

    Raises:
        ValueError: the two have not the same parameters; names the first that differs.
    """
    for module in (leaders, followers):
        reshard(module)
    theirs, ours = dict(leaders.named_parameters()), dict(followers.named_parameters())
    if differing := sorted(theirs.keys() ^ ours.keys()):
        raise ValueError(
            f"A momentum copy follows the module that it was made of, but only one of the two has {differing[0]!r}. "
            "Make the copy after the last change of the module's layers."
        )
    if ours:
        get_ema_multi_avg_fn(momentum)(list(ours.values()), [theirs[name] for name in ours], 0)
