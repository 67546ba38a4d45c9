"""Training in phases of growing inputs: small pictures and short texts for most of a run, full ones at its end.

RECLIP (Li et al. 2023, arXiv 2304.06028) trains CLIP on small pictures and then fine-tunes it on full ones; CLIPA (Li
et al. 2023, arXiv 2305.07017) does so with fewer tokens of pictures and texts. Picture towers interpolate their tables
of positions to each size (a timm transformer needs `dynamic_img_size`), text towers use the beginning of theirs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from collimate.data.plan import BatchPlan, BatchSchedule, Leg, Slot
from collimate.training.multigrid import LrScaling

KEYS = {"share", "batch", "shapes", "lr"}


class PhaseSchedule(BatchSchedule):
    """Phases of a run of `trainer.max_steps`, each with batches of its own size and shape.

    Args:
        phases: of each, `share` of all steps; `shapes`, modality -> what its processor's `shaped` takes: a side in
            pixels, a length in tokens; `batch`, times the run's own, 1 unless given; `lr`, times what `lr_scaling`
            gives, 1 unless given.
        lr_scaling: how the learning rate follows `batch`: its square root, itself, or not.

    Raises:
        ValueError: a phase has other keys, or none of the steps; or the shares do not add up to 1.
    """

    def __init__(self, phases: Sequence[Mapping[str, Any]], lr_scaling: LrScaling = "sqrt") -> None:
        for number, phase in enumerate(phases):
            if "share" not in phase or phase.keys() - KEYS:
                raise ValueError(
                    f"Phase {number} needs `share` and may have `batch`, `shapes`, `lr`: got {dict(phase)}."
                )
        total = sum(phase["share"] for phase in phases)
        if not math.isclose(total, 1) or min(phase["share"] for phase in phases) <= 0:
            raise ValueError(f"The shares of the phases must be above 0 and add up to 1, not {total:g}.")
        self.phases, self.lr_scaling = [dict(phase) for phase in phases], lr_scaling

    def plan(self, samples: int, batch_size: int, ranks: int, steps: int | None = None) -> BatchPlan:
        """The batches of the run; see `BatchSchedule.plan`.

        Raises:
            ValueError: the run has no number of steps, or too few.
        """
        if steps is None:
            raise ValueError("Phases are shares of a run: set trainer.max_steps.")
        legs, done, reached = [], 0, 0.0
        for number, phase in enumerate(self.phases):
            reached += phase["share"]
            end = round(reached * steps)
            if end == done:
                raise ValueError(f"Phase {number}, a share of {phase['share']:g}, has none of the {steps} steps.")
            size = max(1, round(batch_size * phase.get("batch", 1)))
            slot = Slot(size, tuple(sorted(phase.get("shapes", {}).items())))
            legs.append(Leg.of_steps([slot], end - done, ranks))
            done = end
        return BatchPlan(legs, ranks, self.rate)

    def rate(self, phase: float) -> float:
        """What the learning rate is multiplied by in a phase."""
        chosen = self.phases[min(int(phase), len(self.phases) - 1)]
        power = {"linear": 1.0, "sqrt": 0.5, "none": 0.0}[self.lr_scaling]
        return chosen.get("lr", 1.0) * chosen.get("batch", 1) ** power
