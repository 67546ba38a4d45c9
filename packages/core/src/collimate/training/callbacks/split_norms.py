"""Batch norms that keep to one number of samples while the batches of a multigrid run change."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from collimate import distributed
from collimate.training.multigrid import MultigridSchedule
from collimate.training.sub_batch_norm import SubBatchNorm, plain_norms, split_norms


class SplitNorms(Callback):
    """Takes batch statistics over `norm_size` clips at every stage of a `MultigridSchedule`.

    Where a rank's batch is larger, in splits of it; where it is smaller, over neighbouring ranks. During training a
    `SubBatchNorm` stands in the place of every batch norm; what is saved has torch's own again. A checkpoint holds
    the statistics of the splits too, for a run to go on from exactly.
    """

    def __init__(self) -> None:
        self._norms: dict[str, SubBatchNorm] = {}
        self._leg = -1

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            if not isinstance(getattr(trainer, "datamodule", None) and trainer.datamodule.schedule, MultigridSchedule):  # type: ignore[attr-defined]
                raise ValueError("SplitNorms follows a MultigridSchedule: set data.schedule to one.")
            self._norms, self._leg = split_norms(pl_module), -1

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        first = int(batch["position"][0]) - distributed.rank()
        leg = data.plan[data.plan.step_at(first)].leg
        if leg != self._leg:
            self._leg = leg
            wanted = data.schedule.norm(data.plan.legs[leg].slots[-1].size)
            group = distributed.neighbours(wanted.ranks)
            for norm in self._norms.values():
                norm.split(wanted.splits)
                norm.group = group

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            plain_norms(pl_module)
            self._norms = {}

    def state_dict(self) -> dict[str, Any]:
        return {name: norm.split_state() for name, norm in self._norms.items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for name, state in state_dict.items():
            self._norms[name].load_split_state(state)
