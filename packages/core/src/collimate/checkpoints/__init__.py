"""Checkpoints: models as folders, converters from and to other projects' formats, export."""

from collimate.checkpoints.export import export
from collimate.checkpoints.files import CheckpointError
from collimate.checkpoints.folder import load, save
from collimate.checkpoints.trained import trained_processor, trained_tower

__all__ = ["CheckpointError", "export", "load", "save", "trained_processor", "trained_tower"]
