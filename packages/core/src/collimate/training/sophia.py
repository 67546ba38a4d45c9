"""Sophia: steps scaled by the curvature, clipped.

Liu et al. 2023, arXiv 2305.14342, algorithms 1 and 3 (Sophia-H). With the gradient g, and every k steps an estimate of
the Hessian's diagonal h from a random direction u,

    m <- β1 m + (1 - β1) g        h <- β2 h + (1 - β2) u ⊙ (H u)
    θ <- θ - η λ θ - η clip(m / max(γ h, ε), 1)

Settings are those of `SophiaHConfig` in the authors' levanter (stanford-crfm/levanter, optim/sophia.py), which like
Liuhong99/Sophia divides m by 1 - β1^t too; algorithm 3, and this, do not: the clip makes steps of η of either at first.

Departure: H u is the difference of two gradients of the same batch, (∇L(θ + δ u) - ∇L(θ)) / δ, with the same dropout:
the contrastive losses of `collimate.kernels` can be differentiated once only; and so the gradient cache works too. That
costs one further forward and backward pass every k steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from collimate.training.gradient_cache import RunningAveragesHeld

DELTA = 1e-3  # δ; ours: large against the rounding of gradients, small against weights


class Sophia(Optimizer):
    """Sophia-H with Hessian-vector products by differences.

    Args:
        params: parameters or groups of them.
        lr: η, a bound on each weight's step; somewhat below AdamW's.
        betas: β1, β2; 0.96 and 0.99 there.
        gamma: γ; 0.01 there for Sophia-H.
        eps: ε; 1e-12 there.
        weight_decay: λ; 0.1 there.
        every: k; 10 there.
        module: whose batch norms keep their running averages in the further pass.
    """

    runs_twice = True

    def __init__(
        self,
        params: Any,
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.96, 0.99),
        gamma: float = 0.01,
        eps: float = 1e-12,
        weight_decay: float = 0.1,
        every: int = 10,
        module: nn.Module | None = None,
    ) -> None:
        if every < 1:
            raise ValueError(f"The curvature is estimated every step at most, not every {every}.")
        settings = {"lr": lr, "betas": tuple(betas), "gamma": gamma, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, settings)
        self.every, self.module = every, module or nn.Module()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """One step.

        Args:
            closure: clears the gradients, runs the batch and the backward pass, and gives the loss.

        Raises:
            ValueError: there is no closure to run again.
        """
        if closure is None:
            raise ValueError("Sophia runs some batches twice: call step(closure).")
        states = _RandomStates()
        with torch.enable_grad():
            loss = closure()
        for _, parameter, state in self._learning():
            if not state:
                state.update(step=0, m=torch.zeros_like(parameter), h=torch.zeros_like(parameter))
        if any(state["step"] % self.every == 0 for _, _, state in self._learning()):
            self._estimate(closure, states)
        for group, parameter, state in self._learning():
            state["step"] += 1
            state["m"].lerp_(parameter.grad, 1 - group["betas"][0])
            move = state["m"] / (group["gamma"] * state["h"]).clamp_min(group["eps"])
            parameter.mul_(1 - group["lr"] * group["weight_decay"]).sub_(group["lr"] * move.clamp_(-1, 1))
        return loss

    def _estimate(self, closure: Callable[[], Any], states: _RandomStates) -> None:
        """Move h towards u ⊙ (H u), and leave weights and gradients as they are."""
        learning = list(self._learning())
        kept = [(parameter.clone(), parameter.grad.clone()) for _, parameter, _ in learning]
        # Drawn on the CPU by the number of the step: the same on all ranks, and after resuming.
        draw = torch.Generator().manual_seed(max(state["step"] for _, _, state in learning))
        directions = [torch.randn(each.shape, generator=draw).to(each) for _, each, _ in learning]
        for (_, parameter, _), direction in zip(learning, directions, strict=True):
            parameter.add_(DELTA * direction)
        with torch.enable_grad(), states, RunningAveragesHeld(self.module):
            closure()
        for (group, parameter, state), direction, (value, gradient) in zip(learning, directions, kept, strict=True):
            curvature = direction * (parameter.grad - gradient) / DELTA
            state["h"].lerp_(curvature, 1 - group["betas"][1])
            parameter.copy_(value)
            parameter.grad.copy_(gradient)

    def _learning(self) -> Iterator[tuple[dict[str, Any], Any, dict[str, Any]]]:
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    yield group, parameter, self.state[parameter]


class _RandomStates:
    """The generators as they were when this was made, while open: dropout draws the same once more."""

    def __init__(self) -> None:
        self.cpu = torch.get_rng_state()
        self.cuda: list[Tensor] = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []

    def __enter__(self) -> None:
        self.after = _RandomStates.__new__(_RandomStates)
        self.after.__init__()
        self._set()

    def __exit__(self, *_: object) -> None:
        self.after._set()

    def _set(self) -> None:
        torch.set_rng_state(self.cpu)
        if self.cuda:
            torch.cuda.set_rng_state_all(self.cuda)
