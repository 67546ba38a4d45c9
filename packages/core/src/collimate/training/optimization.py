"""Optimizer, parameter groups and learning-rate schedule, from plain settings."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, Literal

from torch import nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from collimate.configurable import Configurable, at_least
from collimate.encoders import Encoder
from collimate.training.frugal import Frugal
from collimate.training.sharpness import SharpnessAware
from collimate.training.sophia import Sophia

Schedule = Literal["cosine", "linear", "constant", "rsqrt", "warmup_stable_decay", "cosine_cycles", "infinite"]

OWN: dict[str, Any] = {"sophia": Sophia, "frugal": Frugal}
"""Optimizers beside timm's."""

TINY = 1e-3
"""The share of the peak at which an exponential decay to 0 ends."""


class Optimization(Configurable):
    """How a method is optimized. Training counts optimizer steps, never epochs.

    Args:
        name: any optimizer of `timm.optim` (which includes torch's): `adamw`, `lamb`, `lion`, `muon`, `sgd`...; or
            `sophia` or `frugal`, see `collimate.training.sophia` and `.frugal`, whose own betas and epsilon come with
            `betas: null` and `eps: null`.
        lr: the peak learning rate.
        weight_decay: applied to matrices only; see `parameter_groups`.
        layer_decay: r; what lies d layers below an encoder's output (`Encoder.depths`) learns at r^d times `lr`, what
            lies outside of encoders, such as heads, at `lr`. 1 for one rate everywhere.
        betas: Adam's betas, or None for optimizers without them.
        eps: Adam's epsilon, or None for the optimizer's own default.
        schedule: what follows the warm-up.
        warmup: optimizer steps of linear warm-up; below 1, a share of all steps.
        final_lr: the share of `lr` at which `cosine`, `linear`, `warmup_stable_decay` and `infinite` end.
        decay: the share of all steps that `warmup_stable_decay` spends on its final linear decay, and `infinite` on its
            exponential one.
        cycles: of `cosine_cycles`: so many times in equal parts of the run the rate is warmed up and decays, as when
            training goes on with new data (Ibrahim et al. 2024, arXiv 2403.08763).
        cooldown: optimizer steps in which `infinite` goes down from `lr`, along a cosine; below 1, a share of them all.
        plateau: the share of `lr` at which `infinite` then stays, for as long as new data come (the same paper). Where
            warm-up and cool-down are numbers of steps, a longer run goes on from any checkpoint before the decay.
        sharpness: ρ of `SharpnessAware` steps (SAM), which run each batch twice; 0 for plain ones.
        loss_weights: weight of each loss term by name; 1 where not given.
        options: further arguments of the optimizer's constructor.
    """

    def __init__(
        self,
        name: str = "adamw",
        lr: float = 5e-4,
        weight_decay: float = 0.2,
        layer_decay: float = 1.0,
        betas: tuple[float, float] | None = (0.9, 0.98),
        eps: float | None = 1e-6,
        schedule: Schedule = "cosine",
        warmup: float = 0.05,
        final_lr: float = 0.0,
        decay: float = 0.2,
        cycles: int = 2,
        cooldown: float = 0.3,
        plateau: float = 0.5,
        sharpness: float = 0.0,
        loss_weights: dict[str, float] | None = None,
        options: dict[str, Any] | None = None,
    ) -> None:
        at_least(0, lr=lr, weight_decay=weight_decay, warmup=warmup, final_lr=final_lr, sharpness=sharpness)
        if not 0 < layer_decay <= 1:
            raise ValueError(f"layer_decay is above 0 and at most 1, not {layer_decay:g}.")
        self.name, self.lr, self.weight_decay, self.layer_decay = name, lr, weight_decay, layer_decay
        self.betas, self.eps = betas, eps
        self.schedule: Schedule = schedule
        self.warmup, self.final_lr, self.decay = warmup, final_lr, decay
        if cycles < 1 or not 0 < plateau <= 1:
            raise ValueError(f"There is a cycle at least, and a plateau in (0, 1]; got {cycles} and {plateau:g}.")
        self.cycles, self.cooldown, self.plateau, self.sharpness = cycles, cooldown, plateau, sharpness
        self.loss_weights = dict(loss_weights or {})
        self.options = dict(options or {})

    def optimizer(self, module: nn.Module) -> Optimizer:
        """The optimizer over `module`'s trainable parameters.

        Raises:
            ValueError: nothing is trainable, or no optimizer has this name.
        """
        from timm.optim import create_optimizer_v2, list_optimizers  # pyright: ignore[reportPrivateImportUsage]

        if self.name not in (*OWN, *list_optimizers()):
            from difflib import get_close_matches

            near = get_close_matches(self.name, [str(name) for name in list_optimizers()], n=3)
            raise ValueError(
                f"optimization.name: no optimizer is called {self.name!r}. The nearest: {', '.join(near) or 'none'}."
            )
        options = dict(self.options)
        if self.betas is not None:
            options.setdefault("betas", tuple(self.betas))
        if self.eps is not None:
            options.setdefault("eps", self.eps)
        groups = parameter_groups(module, self.weight_decay, self.layer_decay, self.lr)
        if self.name in OWN:
            optimizer: Optimizer = OWN[self.name](
                groups, module=module, lr=self.lr, weight_decay=self.weight_decay, **options
            )
        else:
            settings = {"opt": self.name, "lr": self.lr, "weight_decay": self.weight_decay}
            optimizer = create_optimizer_v2(groups, **settings, **options)
        return SharpnessAware(optimizer, self.sharpness, module) if self.sharpness else optimizer

    def scheduler(
        self, optimizer: Optimizer, total_steps: int, times: Callable[[int], float] = lambda _: 1.0
    ) -> LambdaLR:
        """The schedule over `total_steps` optimizer steps, to be stepped after each of them.

        Args:
            times: step -> what the schedule is multiplied by, as a `BatchPlan` asks for.
        """
        factor = self.lr_factor(total_steps)
        return LambdaLR(optimizer, lambda step: factor(step) * times(step))

    def lr_factor(self, total_steps: int) -> Callable[[int], float]:
        """step -> share of the peak learning rate.

        Warm-up is linear from lr/warmup; `cosine` is 1/2 (1 + cos(pi (t - w) / (T - w))), as open_clip's.
        """
        if self.schedule == "cosine_cycles":
            length = max(1, total_steps // self.cycles)
            cycle = self._one("cosine", length)
            # What division leaves over belongs to the last cycle, at its end.
            return lambda step: cycle(step - length * min(step // length, self.cycles - 1))
        return self._one(self.schedule, total_steps)

    def _one(self, schedule: Schedule, total_steps: int) -> Callable[[int], float]:
        """The factor over one warm-up and what follows it."""
        warmup = int(self.warmup if self.warmup >= 1 else self.warmup * total_steps)
        cooldown = int(self.cooldown if self.cooldown >= 1 else self.cooldown * total_steps)
        decay_steps = max(1, int(self.decay * total_steps))

        def factor(step: int) -> float:
            if step < warmup:
                return (step + 1) / warmup
            progress = min(1.0, (step - warmup) / max(1, total_steps - warmup))
            if schedule == "cosine":
                return self.final_lr + (1 - self.final_lr) * 0.5 * (1 + math.cos(math.pi * progress))
            if schedule == "linear":
                return 1 + (self.final_lr - 1) * progress
            if schedule == "rsqrt":
                return math.sqrt(max(warmup, 1) / max(step, warmup, 1))
            if schedule == "warmup_stable_decay":
                into_decay = max(0.0, (step - (total_steps - decay_steps)) / decay_steps)
                return 1 + (self.final_lr - 1) * min(1.0, into_decay)
            if schedule == "infinite":
                cooled = min(1.0, (step - warmup) / max(1, cooldown))
                level = self.plateau + (1 - self.plateau) * 0.5 * (1 + math.cos(math.pi * cooled))
                into_decay = min(1.0, max(0.0, (step - (total_steps - decay_steps)) / decay_steps))
                return level * (max(self.final_lr, TINY) / self.plateau) ** into_decay
            return 1.0

        return factor


def parameter_groups(
    module: nn.Module, weight_decay: float, layer_decay: float = 1.0, lr: float = 1.0
) -> list[dict[str, Any]]:
    """Matrices, which decay, and the rest (biases, norms, `logit_scale`, `logit_bias`), which do not.

    With a `layer_decay` r below 1, two such groups for each depth d at which parameters lie, which learn at r^d `lr`,
    the highest first. Learning rates, and not gradients, because Adam divides by a gradient's size. Parameters that are
    spread over ranks and those that are not lie in groups apart, as fused optimizers take one kind at a time.

    Raises:
        ValueError: nothing is trainable.
    """
    depths = parameter_depths(module) if layer_decay != 1 else {}
    found: dict[tuple[int, bool, bool], list[nn.Parameter]] = {}
    for name, parameter in _trainable(module):
        kind = depths.get(name, 0), parameter.ndim < 2, isinstance(parameter, DTensor)
        found.setdefault(kind, []).append(parameter)
    if not found:
        raise ValueError(f"{type(module).__name__} has no trainable parameter: is everything frozen?")
    rates = {} if layer_decay == 1 else {depth: {"lr": lr * layer_decay**depth} for depth, _, _ in found}
    return [
        {"params": parameters, "weight_decay": 0.0 if plain else weight_decay, **rates.get(depth, {})}
        for (depth, plain, _), parameters in sorted(found.items(), key=lambda group: group[0])
    ]


def parameter_depths(module: nn.Module) -> dict[str, int]:
    """Parameter name -> how many layers it lies below its encoder's output, for all encoders in a module."""
    found: dict[str, int] = {}
    inside: list[str] = []  # what an outer encoder says of an inner one stands
    for name, child in module.named_modules():
        if isinstance(child, Encoder) and not any(name.startswith(outer) for outer in inside):
            prefix = f"{name}." if name else ""
            inside.append(prefix)
            found |= {prefix + parameter: depth for parameter, depth in child.depths().items()}
    return found


def _trainable(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    return ((name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad)
