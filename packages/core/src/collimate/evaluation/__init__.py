"""Zero-shot classification, retrieval, probes, localization, regions, compositional choice; intervals; reports.

What needs torch is imported when it is first used, so that the verbs' help answers at once.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collimate.evaluation.after_training import AfterTraining
    from collimate.evaluation.bootstrap import confidence_intervals
    from collimate.evaluation.by_region import evaluate_regions
    from collimate.evaluation.compositional import evaluate_compositional
    from collimate.evaluation.embedding import write_embeddings
    from collimate.evaluation.features import Features, extract
    from collimate.evaluation.index import EmbeddingIndex
    from collimate.evaluation.localization import evaluate_localization
    from collimate.evaluation.maps import Localizer, localization_map
    from collimate.evaluation.metrics import (
        classification_metrics,
        multilabel_metrics,
        paired_accuracy,
        retrieval_metrics,
        winoground_metrics,
    )
    from collimate.evaluation.modalities import Exhibit, Manner, register_evaluation
    from collimate.evaluation.probes import LinearProbe, evaluate_probe, few_shot, knn_scores
    from collimate.evaluation.report import Report
    from collimate.evaluation.result import Result
    from collimate.evaluation.retrieval import evaluate_retrieval, evaluate_retrieval_between
    from collimate.evaluation.tagging import evaluate_tagging
    from collimate.evaluation.zero_shot import evaluate_zero_shot

__all__ = [
    "AfterTraining",
    "EmbeddingIndex",
    "Exhibit",
    "Features",
    "LinearProbe",
    "Localizer",
    "Manner",
    "Report",
    "Result",
    "classification_metrics",
    "confidence_intervals",
    "evaluate_compositional",
    "evaluate_localization",
    "evaluate_probe",
    "evaluate_regions",
    "evaluate_retrieval",
    "evaluate_retrieval_between",
    "evaluate_tagging",
    "evaluate_zero_shot",
    "extract",
    "few_shot",
    "knn_scores",
    "localization_map",
    "multilabel_metrics",
    "paired_accuracy",
    "register_evaluation",
    "retrieval_metrics",
    "winoground_metrics",
    "write_embeddings",
]

_HOMES = {
    "after_training": ("AfterTraining",),
    "bootstrap": ("confidence_intervals",),
    "by_region": ("evaluate_regions",),
    "compositional": ("evaluate_compositional",),
    "embedding": ("write_embeddings",),
    "features": ("Features", "extract"),
    "index": ("EmbeddingIndex",),
    "localization": ("evaluate_localization",),
    "maps": ("Localizer", "localization_map"),
    "metrics": (
        "classification_metrics",
        "multilabel_metrics",
        "paired_accuracy",
        "retrieval_metrics",
        "winoground_metrics",
    ),
    "modalities": ("Exhibit", "Manner", "register_evaluation"),
    "probes": ("LinearProbe", "evaluate_probe", "few_shot", "knn_scores"),
    "report": ("Report",),
    "result": ("Result",),
    "retrieval": ("evaluate_retrieval", "evaluate_retrieval_between"),
    "tagging": ("evaluate_tagging",),
    "zero_shot": ("evaluate_zero_shot",),
}


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"collimate.evaluation.{home}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
