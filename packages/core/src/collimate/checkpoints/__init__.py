"""Checkpoints: models as folders, converters from and to other projects' formats, export."""

from collimate.checkpoints.export import export
from collimate.checkpoints.files import CheckpointError
from collimate.checkpoints.folder import load, save

__all__ = ["CheckpointError", "export", "load", "save"]
