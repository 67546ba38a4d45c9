"""Sharpness-aware minimization: steps by the gradient at the worst point nearby.

Foret et al. 2021, SAM, arXiv 2010.01412, equation 2 and algorithm 1. With the gradient g at the weights w,

    ε = ρ g / |g|        w <- w - η ∇L(w + ε)

by whatever optimizer takes the last step. It costs a second forward and backward pass, and a copy of the weights. The
whole batch makes both gradients, with the gradient cache too, and all ranks make both together: g is DDP's mean, where
the paper lets each device climb by its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from collimate.training.gradient_cache import RunningAveragesHeld


class SharpnessAware(Optimizer):
    """An optimizer around an optimizer, whose parameters, state and rates are the inner one's.

    Args:
        base: takes the step.
        rho: ρ, the distance of the worst point. 0.05 in the paper.
        module: whose batch norms keep their running averages in the second pass.

    Raises:
        ValueError: ρ is not positive.
    """

    runs_twice = True

    def __init__(self, base: Optimizer, rho: float, module: nn.Module) -> None:
        if rho <= 0:
            raise ValueError(f"The distance to the worst point is above 0, not {rho:g}.")
        super().__init__(base.param_groups, base.defaults)
        self.base, self.rho, self.module = base, rho, module
        self._share()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """One step.

        Args:
            closure: clears the gradients, runs the batch and the backward pass, and gives the loss.

        Raises:
            ValueError: there is no closure to run again.
        """
        if closure is None:
            raise ValueError("Sharpness-aware steps run the batch twice: call step(closure).")
        with torch.enable_grad():
            loss = closure()
        before = self._climb()
        try:
            with torch.enable_grad(), RunningAveragesHeld(self.module):
                closure()
        finally:
            for parameter, value in before:
                parameter.copy_(value)
        self.base.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        return self.base.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.base.load_state_dict(state_dict)
        self._share()

    def _climb(self) -> list[tuple[Tensor, Tensor]]:
        """Go to w + ε; the parameters that moved, with w."""
        moving = [each for group in self.param_groups for each in group["params"] if each.grad is not None]
        norm = torch.nn.utils.get_total_norm([each.grad for each in moving])
        scale = self.rho / norm.clamp_min(torch.finfo(norm.dtype).tiny)
        before = [(each, each.clone()) for each in moving]
        for each in moving:
            each.add_(each.grad * scale.to(each.grad))
        return before

    def _share(self) -> None:
        self.param_groups, self.state = self.base.param_groups, self.base.state
