"""Model folders of transformers, read by whichever package knows the model.

A package says so by an entry point of the group `collimate.readers`: the `model_type` of a config.json, and what makes
a method or an encoder of such a folder.

    [project.entry-points."collimate.readers"]
    clap = "collimate_audio.audio_text:CLAP.from_transformers"
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from collimate.checkpoints.files import CheckpointError

GROUP = "collimate.readers"


def is_foreign(config: Any) -> bool:
    """Whether a config.json is of a model of transformers."""
    return isinstance(config, Mapping) and "model_type" in config and "model" not in config


def read_foreign(folder: Path, model_type: str) -> Any:
    """The model of a folder, in evaluation mode.

    Raises:
        CheckpointError: no installed package reads such models.
    """
    readers = {entry.name: entry for entry in entry_points(group=GROUP)}
    if model_type not in readers:
        raise CheckpointError(
            f"{folder} holds a {model_type!r} model of transformers, which is not read here as it is; those that are: "
            f"{', '.join(sorted(readers)) or 'none'}. Other weights are read by converters, such as "
            "CLIP.from_open_clip(name, path)."
        )
    return readers[model_type].load()(folder).eval()
