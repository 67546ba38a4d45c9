"""Callbacks: the step log, guards, checkpoints and the techniques that recipes switch on."""

from collimate.training.callbacks.checkpointing import RunCheckpoint, newest_checkpoint
from collimate.training.callbacks.input_speed import InputSpeed
from collimate.training.callbacks.non_finite import NonFiniteError, NonFiniteGuard
from collimate.training.callbacks.progress import StepProgress
from collimate.training.callbacks.sparse import SparseWeights
from collimate.training.callbacks.split_norms import SplitNorms
from collimate.training.callbacks.step_log import StepLog
from collimate.training.callbacks.stopping import GracefulStop
from collimate.training.callbacks.switches import CompileEncoders, GradientCache, Harmonize

__all__ = [
    "CompileEncoders",
    "GracefulStop",
    "GradientCache",
    "Harmonize",
    "InputSpeed",
    "NonFiniteError",
    "NonFiniteGuard",
    "RunCheckpoint",
    "SparseWeights",
    "SplitNorms",
    "StepLog",
    "StepProgress",
    "newest_checkpoint",
]
