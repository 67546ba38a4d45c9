"""FRUGAL: Adam's state for a part of the weights at a time, signs of gradients for the rest.

Zmushko et al. 2024, arXiv 2411.07837, algorithm 1; fzmushko/FRUGAL. The subspace is blocks of weights: every T steps
other matrices of linear layers are drawn, a share ρ of their weights, which AdamW moves with state anew; the others
move by -η sign(g), which needs none. All else (embeddings, norms, biases, heads) always has a state, as in the released
code, so that for the linear layers of encoders the state takes ρ of AdamW's memory.

Departure: ρ is a share of weights, where the code counts matrices.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from collimate.encoders.linear_weights import linear_weights


class Frugal(Optimizer):
    """AdamW for a changing share of the linear layers, signSGD for the rest of them.

    Args:
        params: parameters or groups of them.
        module: whose encoders' linear layers are drawn from.
        lr: η.
        betas, eps: AdamW's.
        weight_decay: AdamW's, for all matrices.
        density: ρ; 0.25 in the released code.
        every: T; 200 as in all main experiments.
        sign_lr: times η, the rate of the weights without state; 1 for pre-training, 0.1 for fine-tuning as published.

    Raises:
        ValueError: the density is not in [0, 1], or there is nothing to draw from.
    """

    def __init__(
        self,
        params: Any,
        module: nn.Module,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        density: float = 0.25,
        every: int = 200,
        sign_lr: float = 1.0,
    ) -> None:
        if not 0 <= density <= 1:
            raise ValueError(f"The share of weights with a state lies in [0, 1], not {density:g}.")
        self.drawn = {id(weight) for weight in linear_weights(module).values()}
        if not self.drawn:
            raise ValueError(f"{type(module).__name__} has no encoder with linear layers that learn: take AdamW.")
        super().__init__(params, {"lr": lr, "betas": tuple(betas), "eps": eps, "weight_decay": weight_decay, "step": 0})
        self.density, self.every, self.sign_lr = density, every, sign_lr

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        done = self.param_groups[0]["step"]
        full = self._with_state(done // self.every)
        for place, (group, parameter) in enumerate(self._parameters()):
            if place not in full:
                self.state.pop(parameter, None)
            if parameter.grad is None:
                continue
            parameter.mul_(1 - group["lr"] * group["weight_decay"])
            if place in full:
                self._adam(group, parameter)
            else:
                parameter.sub_(self.sign_lr * group["lr"] * parameter.grad.sign())
        for group in self.param_groups:
            group["step"] = done + 1
        return loss

    def _with_state(self, turn: int) -> set[int]:
        """The places of the parameters that AdamW moves now; the same on all ranks, and after resuming."""
        sizes = [each.numel() if id(each) in self.drawn else 0 for _, each in self._parameters()]
        chosen, left = {place for place, size in enumerate(sizes) if size == 0}, self.density * sum(sizes)
        for place in torch.randperm(len(sizes), generator=torch.Generator().manual_seed(turn)).tolist():
            if 0 < sizes[place] <= left:
                chosen.add(place)
                left -= sizes[place]
        return chosen

    def _adam(self, group: dict[str, Any], parameter: Tensor) -> None:
        state, gradient = self.state[parameter], parameter.grad
        assert gradient is not None
        if not state:
            state.update(step=0, m=torch.zeros_like(parameter), v=torch.zeros_like(parameter))
        state["step"] += 1
        first, second = group["betas"]
        state["m"].lerp_(gradient, 1 - first)
        state["v"].mul_(second).addcmul_(gradient, gradient, value=1 - second)
        size = (state["v"] / (1 - second ** state["step"])).sqrt_().add_(group["eps"])
        parameter.addcdiv_(state["m"], size, value=-group["lr"] / (1 - first ** state["step"]))

    def _parameters(self) -> Iterator[tuple[dict[str, Any], Tensor]]:
        return ((group, parameter) for group in self.param_groups for parameter in group["params"])
