"""The base of every method: encoders in, named loss terms out; all else is here or in callbacks.

A method is one file. It sets `modalities`, `processors`, `encoders` and `projections`, and writes

- `losses(embeddings, batch) -> {name: scalar}`;
- `forward(modality, inputs, mask) -> Encoding`, pooled in the joint space, unless a tower and its projection are all.

Training runs `embed` (per sample, so that the gradient cache may cut it into chunks) and then `losses` (where
the samples of a batch meet, and ranks too). Evaluation needs only `encode` and `similarity`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from types import MappingProxyType
from typing import Any

import torch
from jaxtyping import Float
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn.functional import normalize

from collimate.configurable import Configurable
from collimate.data.captions import CaptionChoice
from collimate.data.plan import BatchPlan
from collimate.data.regions import RegionChoice
from collimate.encoding import Encoding
from collimate.processing import Processor
from collimate.training.gradient_cache import batch_size, embed_in_chunks
from collimate.training.harmonization import Harmonization
from collimate.training.optimization import Optimization
from collimate.training.sharding import shard

CHECKPOINT_KEY = "collimate"
"""Where a Lightning checkpoint keeps the method's configuration, as plain data."""


class Method(LightningModule, Configurable):
    """A training objective over one or more encoders.

    Attributes:
        modalities: the names of what it encodes; each is a key of the batches and of `processors`.
        processors: modality -> the raw-to-tensor step, saved with the weights.
        captions: key of a batch -> which of a sample's captions it holds, for methods that need more than any one
            under `text`; see `collimate.data.captions`.
        regions: which of a sample's regions batches hold, under `regions`, `region_text` and `region_given`; see
            `collimate.data.Preparation`.
        views: key of a batch -> the modality of which it holds one more draw of the augmentation: `{"image_view":
            "image"}`. In validation, where nothing is drawn, it equals the modality.
        also: what else batches carry of a sample, as `collimate.data.Preparation` names it: `id`, `label`, ...
        optional: modalities that a sample may lack: batches say under `<modality>_given` which samples have them, and
            evaluation leaves the others out.
        joint: name -> the modalities that `encode_joint` encodes together under it; evaluations take it for a modality.
        encoders: modality -> its tower.
        projections: modality -> the way from its tower into the joint space.
        shardable: whether FSDP2 may spread its encoders: not where a method runs parts of one by themselves.
        max_logit_scale: what the method's own parameters `*logit_scale`, which are logarithms, do not exceed after
            exponentiation; they do not fall below 1 either. None holds them nowhere.
        optimization: optimizer, groups, schedule and loss weights.
        gradient_cache: samples a chunk, or None; set by the `GradientCache` callback.
        harmonization: what becomes of losses whose gradients are at odds, or None; set by the `Harmonize` callback.
        statistics: numbers of the latest batch that `losses` leaves for the step log, by name; `group/name` where
            several belong together.
    """

    modalities: tuple[str, ...] = ()
    captions: Mapping[str, CaptionChoice] = MappingProxyType({})
    regions: RegionChoice | None = None
    views: Mapping[str, str] = MappingProxyType({})
    also: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    joint: Mapping[str, tuple[str, ...]] = MappingProxyType({})
    encoders: nn.ModuleDict
    projections: nn.ModuleDict
    shardable: bool = True
    max_logit_scale: float | None = None

    def __init__(self) -> None:
        super().__init__()
        self.processors: dict[str, Processor] = {}
        self.optimization = Optimization()
        self.gradient_cache: int | None = None
        self.harmonization: Harmonization | None = None
        self.statistics: dict[str, Tensor] = {}

    # What a method states ---------------------------------------------------------------------------------

    def forward(self, modality: str, inputs: Tensor, mask: Tensor | None = None) -> Encoding:
        """Encode finished inputs of one modality; `pooled` lies in the joint space, not normalised."""
        projection: Any = self.projections[modality]
        return projection.project(self.encoders[modality](inputs, mask))

    def losses(self, embeddings: dict[str, Tensor], batch: dict[str, Any]) -> dict[str, Tensor]:
        """The loss terms, each a scalar. Embeddings come in float32, outside autocast."""
        raise NotImplementedError

    def embed(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Per-sample embeddings of a batch: each modality's pooled vector, (B, D), unless overridden."""
        return {modality: self.encode(modality, batch[modality]).pooled for modality in self.modalities}

    def similarity(self, query: Encoding, key: Encoding) -> Float[Tensor, "Q K"]:
        """The score by which this method ranks; the cosine unless overridden. Larger is nearer."""
        return normalize(query.pooled.float(), dim=-1) @ normalize(key.pooled.float(), dim=-1).T

    @torch.no_grad()
    def after_optimizer_step(self) -> None:
        """What follows each optimizer step: clamps, here that of the logit scales, and momentum encoders."""
        if self.max_logit_scale is not None:
            for name, parameter in self.named_parameters(recurse=False):
                if name.endswith("logit_scale"):
                    parameter.clamp_(0, math.log(self.max_logit_scale))

    # What a method may use --------------------------------------------------------------------------------

    def in_chunks(self, run: Callable[[dict[str, Any]], dict[str, Tensor]], rows: dict[str, Any]) -> dict[str, Tensor]:
        """`run(rows)`, in chunks where the gradient cache is on; for networks that `losses` runs, on chosen pairs.

        Args:
            run: row by row, as `embed` is sample by sample.
            rows: tensors of equally many rows; they may carry gradients.
        """
        if self.gradient_cache is None or not torch.is_grad_enabled():
            return run(rows)
        return embed_in_chunks(run, rows, self.gradient_cache, self)

    def warmed_up(self, steps: int) -> float:
        """How much of a warm-up of so many optimizer steps is over, from 0 to 1; 1 where there is none."""
        return min(1.0, self.global_step / steps) if steps else 1.0

    def tower_precision(self) -> AbstractContextManager[Any]:
        """The run's own precision, in which towers run; for networks that `losses` runs, which itself is float32."""
        return nullcontext() if self._trainer is None else self.trainer.precision_plugin.forward_context()

    # What users call --------------------------------------------------------------------------------------

    def encode(self, modality: str, inputs: Tensor | Sequence[Any], mask: Tensor | None = None) -> Encoding:
        """Encode a batch of one modality.

        Args:
            modality: one of `modalities`.
            inputs: a batch as the modality's processor makes it, or a list of raw samples (PIL images,
                strings...), which the processor turns into one.
            mask: (B, L) bool, True where an input position is real; taken from the processor if None.

        Raises:
            ValueError: this method has no such modality.
        """
        if modality not in self.modalities:
            raise ValueError(f"{type(self).__name__} encodes {', '.join(self.modalities)}, not {modality!r}.")
        processor = self.processors.get(modality)
        if not isinstance(inputs, Tensor):
            if processor is None:
                raise ValueError(f"No processor for {modality!r}: pass tensors, or build the method with one.")
            inputs = processor.batch(inputs)
        inputs = inputs.to(self.device)
        if processor is not None:
            mask = processor.mask(inputs) if mask is None else mask
            inputs = processor.finish(inputs)
        return self(modality, inputs, mask)

    def encode_joint(self, name: str, inputs: dict[str, Tensor]) -> Encoding:
        """Encode several modalities together, for methods that name such in `joint`.

        Args:
            name: of `joint`.
            inputs: each of its modalities, as its processor makes batches.
        """
        raise NotImplementedError

    def loss_terms(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """All loss terms of a batch."""
        return self._terms(self._embeddings(batch), batch)

    def total_loss(self, terms: dict[str, Tensor]) -> Tensor:
        """The weighted sum of the terms.

        Raises:
            ValueError: a weight was given for a term that does not exist.
        """
        weights = self.optimization.loss_weights
        if unknown := weights.keys() - terms.keys():
            raise ValueError(f"loss_weights names {sorted(unknown)}, but the terms are {sorted(terms)}.")
        return torch.stack([weights.get(name, 1.0) * term for name, term in terms.items()]).sum()

    # Training ---------------------------------------------------------------------------------------------

    def on_fit_start(self) -> None:
        self.train()  # loaded models come in evaluation mode, and Lightning would leave them so

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any]:
        embeddings = self._embeddings(batch)
        if self.harmonization is not None:
            loss, terms = self.harmonization.loss(self, embeddings, batch)
        else:
            terms = self._terms(embeddings, batch)
            loss = self.total_loss(terms)
        # Callbacks read terms and embeddings from here: the step log, the non-finite guard.
        return {"loss": loss, "terms": terms, "embeddings": embeddings}

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any]:
        embeddings = self._embeddings(batch)
        # Padded rows stand in for the end of the set on some ranks; the loss is only a monitor here.
        terms = self._terms(embeddings, batch)
        size = batch_size(batch)
        self.log_dict({f"val/{name}": term for name, term in terms.items()}, batch_size=size, sync_dist=True)
        return {"embeddings": embeddings}

    def configure_model(self) -> None:
        if self.device_mesh is not None:
            shard(self, self.device_mesh["data_parallel"])

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        self.after_optimizer_step()

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer = self.optimization.optimizer(self)
        if getattr(optimizer, "runs_twice", False) and self.trainer.accumulate_grad_batches > 1:
            raise ValueError(
                f"{type(optimizer).__name__} runs batches twice, and of accumulated ones only the last is at hand: set "
                "trainer.accumulate_grad_batches to 1, and use the gradient cache for batches that do not fit."
            )
        scheduler = self.optimization.scheduler(
            optimizer, int(self.trainer.estimated_stepping_batches), self._plan_factor()
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint[CHECKPOINT_KEY] = {"config": self.config()}

    def _plan_factor(self) -> Callable[[int], float]:
        """What the batches of an optimizer step ask of its learning rate."""
        plan: BatchPlan | None = getattr(getattr(self.trainer, "datamodule", None), "plan", None)
        if plan is None:
            return lambda _: 1.0
        return lambda step: plan.lr_factor(step * self.trainer.accumulate_grad_batches)

    def _embeddings(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        return self.in_chunks(self.embed, batch)

    def _terms(self, embeddings: dict[str, Tensor], batch: dict[str, Any]) -> dict[str, Tensor]:
        # Logits of size 100 have steps of 0.06 in half precision: the loss is float32 always.
        with torch.autocast(self.device.type, enabled=False):
            full = {name: e.float() if e.is_floating_point() else e for name, e in embeddings.items()}
            return self.losses(full, batch)
