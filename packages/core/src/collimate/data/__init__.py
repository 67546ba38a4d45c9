"""Sources of samples, mixtures of them, and the loaders that resume exactly.

What needs torch is imported when it is first used, so that `collimate data` answers at once.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from collimate.data.balance import BalancedSource
from collimate.data.captions import Caption, CaptionChoice, OneCaption
from collimate.data.folders import FolderSource
from collimate.data.grouping import BatchSampling, DistinctLabels, GroupedStream, PerLabel, WithNeighbours
from collimate.data.hugging_face import HuggingFaceSource
from collimate.data.mixture import Mixture
from collimate.data.opening import open_source
from collimate.data.order import Permutation, ShardOrder
from collimate.data.plan import BatchPlan, BatchSchedule, ClipShape, Leg, Slot
from collimate.data.regions import Region, RegionChoice, regions_of
from collimate.data.shards import ShardSource
from collimate.data.source import CorruptSample, Sample, Source, class_names
from collimate.data.tables import TableSource

if TYPE_CHECKING:
    from collimate.data.loading import EvalLoader, TooManyCorruptSamples, TrainLoader
    from collimate.data.module import DataModule
    from collimate.data.preparation import Augmentation, Preparation, TrainingPreparation
    from collimate.data.text_augmentation import TextAugmentation
    from collimate.data.transforms import ImageAugmentation, StrongImageAugmentation

__all__ = [
    "Augmentation",
    "BalancedSource",
    "BatchPlan",
    "BatchSampling",
    "BatchSchedule",
    "Caption",
    "CaptionChoice",
    "ClipShape",
    "CorruptSample",
    "DataModule",
    "DistinctLabels",
    "EvalLoader",
    "FolderSource",
    "GroupedStream",
    "HuggingFaceSource",
    "ImageAugmentation",
    "Leg",
    "Mixture",
    "OneCaption",
    "PerLabel",
    "Permutation",
    "Preparation",
    "Region",
    "RegionChoice",
    "Sample",
    "ShardOrder",
    "ShardSource",
    "Slot",
    "Source",
    "StrongImageAugmentation",
    "TableSource",
    "TextAugmentation",
    "TooManyCorruptSamples",
    "TrainLoader",
    "TrainingPreparation",
    "WithNeighbours",
    "class_names",
    "open_source",
    "regions_of",
]

_LATE = {
    "Augmentation": "preparation",
    "DataModule": "module",
    "EvalLoader": "loading",
    "ImageAugmentation": "transforms",
    "Preparation": "preparation",
    "StrongImageAugmentation": "transforms",
    "TextAugmentation": "text_augmentation",
    "TooManyCorruptSamples": "loading",
    "TrainLoader": "loading",
    "TrainingPreparation": "preparation",
}


def __getattr__(name: str) -> Any:
    if name in _LATE:
        return getattr(import_module(f"collimate.data.{_LATE[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
