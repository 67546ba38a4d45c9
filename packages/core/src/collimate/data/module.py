"""The data of a training run, as a recipe states it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_info

from collimate import distributed
from collimate.configurable import at_least
from collimate.console import say
from collimate.data.balance import BalancedSource
from collimate.data.captions import CaptionChoice
from collimate.data.grouping import BatchSampling, GroupedStream
from collimate.data.loading import EvalLoader, TrainLoader
from collimate.data.mixture import Mixture
from collimate.data.opening import open_source
from collimate.data.plan import BatchPlan, BatchSchedule
from collimate.data.preparation import Augmentation, TrainingPreparation
from collimate.data.regions import RegionChoice
from collimate.data.source import Source
from collimate.data.transforms import ImageAugmentation
from collimate.processing import ImageProcessor, Processor


class DataModule(LightningDataModule):
    """Training and validation data.

    The method's own processors turn samples into tensors, so that the preprocessing is that of the checkpoint. The
    place in the stream is saved with every Lightning checkpoint.

    Args:
        train: what to train on, as `open_source` takes it: `data/manifest.jsonl?split=train`; or several, each with its
            weight in the mixture: `{shards/{000..099}.tar: 3, world:train: 1}`; or a source.
        val: what to validate on, or None.
        batch_size: samples of each rank in a step; instead of it, `global_batch_size` for all ranks together.
        num_workers: loading processes of each rank.
        seed: of shuffling, mixing and augmentation.
        balanced: draw samples of rare classes as often as those of frequent ones, with replacement; see
            `collimate.data.BalancedSource`.
        epoch_samples: samples in a virtual epoch; those of all training sources together if None.
        augmentations: modality -> its training transform. If None, `ImageAugmentation`, CLIP's slight random crop, for
            pictures, unless the method reads regions, of which a crop would lose some; `{}` for none at all. A view of
            the method's, or one of its captions, may have another than its modality, under its own key.
        val_batch_size: samples of each rank in a validation step; as in training if None.
        val_limit: validate on at most so many samples.
        max_corrupt_rate: the share of corrupt samples at which the run stops.
        fields: modality -> keys of a sample in which it lies, where they are not the usual ones.
        captions: key of the batch -> which of a sample's captions it holds, in the place of the method's own choice.
        regions: which of a sample's regions the batch holds, in the place of the method's own choice.
        prefetch: batches that each worker prepares ahead.
        start_method: of the workers: fork, spawn or forkserver; the platform's if None.
        schedule: how size and shape of batches change in the run: a `MultigridSchedule` or a `PhaseSchedule`.
            `batch_size` is then that of the full shape. One virtual epoch is the whole run, so set
            `trainer.max_epochs` to 1, or `max_steps`.
        bucket_batches: sort samples by their length within so many batches, and trim each batch to its longest sample;
            for sounds and texts whose method takes any length. 0 for none.
        sampling: which samples stand together in a batch: `PerLabel`, `DistinctLabels` or `WithNeighbours`; see
            `collimate.data.grouping`. At random if None.

    Raises:
        ValueError: a number is too small, or two ways to make batches are asked for.
    """

    def __init__(
        self,
        train: str | dict[str, float] | Source | None = None,
        val: str | Source | None = None,
        batch_size: int = 64,
        global_batch_size: int | None = None,
        num_workers: int = 0,
        seed: int = 0,
        balanced: bool = False,
        epoch_samples: int | None = None,
        augmentations: dict[str, Augmentation] | None = None,
        val_batch_size: int | None = None,
        val_limit: int | None = None,
        max_corrupt_rate: float = 0.01,
        fields: dict[str, list[str]] | None = None,
        captions: dict[str, CaptionChoice] | None = None,
        regions: RegionChoice | None = None,
        prefetch: int = 2,
        start_method: str | None = None,
        schedule: BatchSchedule | None = None,
        bucket_batches: int = 0,
        sampling: BatchSampling | None = None,
    ) -> None:
        if sampling is not None and (schedule is not None or bucket_batches or balanced):
            raise ValueError(
                "Batches are sampled in groups, or follow a schedule, or are sorted or balanced: not both."
            )
        at_least(1, batch_size=batch_size, global_batch_size=global_batch_size, val_batch_size=val_batch_size)
        at_least(1, epoch_samples=epoch_samples, val_limit=val_limit, prefetch=prefetch)
        at_least(0, num_workers=num_workers, bucket_batches=bucket_batches, max_corrupt_rate=max_corrupt_rate)
        super().__init__()
        self.train, self.val, self.seed, self.balanced = train, val, seed, balanced
        self.batch_size, self.global_batch_size = batch_size, global_batch_size
        self.num_workers, self.prefetch, self.start_method = num_workers, prefetch, start_method
        self.epoch_samples, self.val_batch_size, self.val_limit = epoch_samples, val_batch_size, val_limit
        self.augmentations, self.max_corrupt_rate, self.fields = augmentations, max_corrupt_rate, fields
        self.captions, self.regions = captions or {}, regions
        self.schedule, self.bucket_batches, self.sampling = schedule, bucket_batches, sampling
        self._loader: TrainLoader | None = None
        self._plan: BatchPlan | None = None
        self._place: dict[str, Any] | None = None  # in the stream, of a checkpoint

    @property
    def processors(self) -> dict[str, Processor]:
        """The method's, by modality."""
        assert self.trainer is not None
        return self.trainer.lightning_module.processors  # type: ignore[return-value]

    @property
    def caption_choices(self) -> dict[str, CaptionChoice]:
        """The method's, with the recipe's in their place."""
        assert self.trainer is not None
        return {**getattr(self.trainer.lightning_module, "captions", {}), **self.captions}

    @property
    def region_choice(self) -> RegionChoice | None:
        """The method's, or the recipe's in its place."""
        assert self.trainer is not None
        return self.regions or getattr(self.trainer.lightning_module, "regions", None)

    @property
    def _views(self) -> Mapping[str, str]:
        assert self.trainer is not None
        return getattr(self.trainer.lightning_module, "views", {})

    @property
    def _also(self) -> Sequence[str]:
        assert self.trainer is not None
        return getattr(self.trainer.lightning_module, "also", ())

    @property
    def _optional(self) -> Sequence[str]:
        assert self.trainer is not None
        return getattr(self.trainer.lightning_module, "optional", ())

    def mixture(self) -> Mixture:
        """The training stream.

        Raises:
            ValueError: there is nothing to train on.
        """
        if self.train is None:
            raise ValueError("There is nothing to train on: set data.train to a table, folder, shards or source.")
        weights = list(self.train.values()) if isinstance(self.train, Mapping) else None
        sources = [open_source(spec) for spec in (self.train if isinstance(self.train, Mapping) else [self.train])]
        return Mixture([BalancedSource(each) if self.balanced else each for each in sources], weights, self.seed)

    def _understood(self, source: Source) -> Source:
        """The source, if the method's processors understand its samples."""
        for processor in self.processors.values():
            processor.check_source(source)
        return source

    @property
    def plan(self) -> BatchPlan | None:
        """Of the training batches; None where all are of one size and shape."""
        if self.schedule is None:
            return None
        if self._plan is None:
            self._plan = self._laid(self.schedule, self.epoch_samples or len(self.mixture()))
        return self._plan

    def train_dataloader(self) -> TrainLoader:
        mixture, ranks = self.mixture(), distributed.world_size()
        for source in mixture.sources:
            self._understood(source)
        size = rank_batch_size(self.batch_size, self.global_batch_size, ranks)
        samples = self.epoch_samples or len(mixture)
        if self.sampling is not None:
            mixture = GroupedStream(mixture, self.sampling, size, ranks)
        plan = self.plan
        steps = max(1, samples // (size * ranks)) if plan is None else plan.steps
        augmentations: Mapping[str, Augmentation] | None = self.augmentations
        if augmentations is None and self.region_choice is None:
            pictures = [name for name, processor in self.processors.items() if isinstance(processor, ImageProcessor)]
            augmentations = dict.fromkeys(pictures, ImageAugmentation())
        sources = ", ".join(f"{source.name} ({len(source)})" for source in mixture.sources)
        rank_zero_info(
            f"Training on {sources}: {steps} steps of {ranks} x {size} samples an epoch, "
            f"{len(mixture) / (size * ranks):.1f} steps for each sample once."
            if plan is None
            else f"Training on {sources}: {steps} steps in {len(plan.legs)} legs of batches that change."
        )
        self._loader = TrainLoader(
            mixture,
            TrainingPreparation(
                self.processors,
                self.fields,
                augmentations,
                self._also,
                self.caption_choices,
                self._views,
                self.region_choice,
                self._optional,
            ),
            size,
            steps,
            self.num_workers,
            self.max_corrupt_rate,
            prefetch=self.prefetch,
            start_method=self.start_method,
            plan=plan,
            bucket_batches=self.bucket_batches,
        )
        if self._place is not None:
            self._tell_of_other_data(self._place.get("lengths", self._lengths), self._place["consumed"])
            self._loader.load_state_dict(self._place)
            self._place = None
        return self._loader

    @property
    def _lengths(self) -> list[int]:
        """Of the sources of the training stream, in its order."""
        return [] if self._loader is None else [len(source) for source in self._loader.mixture.sources]

    def _tell_of_other_data(self, before: list[int], consumed: int) -> None:
        """A place in one stream says nothing of another; to go on there may be meant, so it is told, not refused."""
        assert self.trainer is not None
        if before != self._lengths and self.trainer.is_global_zero:
            say(
                f"data.train holds {_counted(self._lengths)} now, and held {_counted(before)} when the checkpoint was "
                f"written. Going on at sample {consumed} of another stream, some samples come twice or not at all. "
                "Expected the same data: name it again, or start anew with --resume never."
            )

    def state_dict(self) -> dict[str, Any]:
        """The place in the stream, and what the stream was of.

        Lightning keeps the place of the loader too, but does not hand it to one that was made to count a run's steps.
        """
        return {} if self._loader is None else {**self._loader.state_dict(), "lengths": self._lengths}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._place = state_dict or None

    def _laid(self, schedule: BatchSchedule, samples: int) -> BatchPlan:
        assert self.trainer is not None
        ranks, steps = distributed.world_size(), self.trainer.max_steps
        accumulated = self.trainer.accumulate_grad_batches
        size = rank_batch_size(self.batch_size, self.global_batch_size, ranks)
        plan = schedule.plan(samples, size, ranks, steps * accumulated if steps > 0 else None)
        cycles = {len(leg.slots) for leg in plan.legs}
        if accumulated > 1 and any(accumulated % cycle for cycle in cycles):
            raise ValueError(
                f"trainer.accumulate_grad_batches={accumulated} would weigh the shapes of data.schedule unequally: "
                f"accumulate over whole cycles, of {max(cycles)} batches, or not at all."
            )
        return plan

    def teardown(self, stage: str) -> None:
        if self._loader is not None:
            self._loader.close()  # left to the garbage collector, each worker would be waited for in vain

    def val_dataloader(self) -> EvalLoader | list[EvalLoader]:
        if self.val is None:
            return []
        size = rank_batch_size(self.batch_size, self.global_batch_size, distributed.world_size())
        return EvalLoader(
            self._understood(open_source(self.val)),
            self.processors,
            self.val_batch_size or size,
            self.num_workers,
            self._also,
            self.fields,
            self.caption_choices,
            limit=self.val_limit,
            max_corrupt_rate=self.max_corrupt_rate,
            prefetch=self.prefetch,
            start_method=self.start_method,
            views=self._views,
            regions=self.region_choice,
            optional=self._optional,
        )


def _counted(lengths: Sequence[int]) -> str:
    return f"{' + '.join(map(str, lengths))} samples"


def rank_batch_size(batch_size: int, global_batch_size: int | None, ranks: int) -> int:
    """Samples of each rank in a step.

    Raises:
        ValueError: the global batch cannot be shared out evenly.
    """
    if global_batch_size is None:
        return batch_size
    if global_batch_size % ranks:
        raise ValueError(
            f"A global batch of {global_batch_size} cannot be shared out evenly over {ranks} ranks: set "
            f"data.global_batch_size to a multiple of {ranks}."
        )
    return global_batch_size // ranks
