"""The model card: what is known of a model, and nothing else."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn


def card(model: Any, config: Mapping[str, Any], notes: Mapping[str, str]) -> str:
    """The text of a model's README.md.

    Args:
        model: the model.
        config: the content of its config.json.
        notes: further sections, title to text; they come from whoever trained the model.
    """
    name = type(model).__name__
    sections = {
        "Model": _model(model),
        "Use": _use(model),
        "Training": _training(model),
        "Data": "Not recorded.",
        "Metrics": "Not recorded.",
        **notes,
        "Written with": ", ".join(f"{package} {number}" for package, number in config["versions"].items()) + ".",
    }
    tags = "---\nlibrary_name: collimate\n---\n"
    return f"{tags}\n# {name}\n\n" + "\n\n".join(f"## {title}\n\n{text}" for title, text in sections.items()) + "\n"


def _model(model: Any) -> str:
    first = (inspect.getdoc(type(model)) or "").partition("\n\n")[0].replace("\n", " ")
    lines = [f"`{type(model).__module__}.{type(model).__qualname__}`. {first}", "", "| part | class | parameters |"]
    lines.append("| --- | --- | --- |")
    parts: Mapping[str, nn.Module] = dict(getattr(model, "encoders", {}).items()) or {"encoder": model}
    for part, module in parts.items():
        count = sum(parameter.numel() for parameter in module.parameters())
        lines.append(f"| {part} | {type(module).__name__} | {count:,} |")
    return "\n".join(lines)


def _use(model: Any) -> str:
    if hasattr(model, "modalities"):
        modality = model.modalities[0]
        call = f'vectors = model.encode("{modality}", samples).pooled'
    else:
        call = "vectors = model.encode(samples).pooled"
    return f'```python\nimport collimate\n\nmodel = collimate.load("path/to/this/folder")\n{call}\n```'


def _training(model: Any) -> str:
    steps = getattr(model, "global_step", 0)
    if not steps:
        return "Not recorded."
    settings = model.optimization.config()["init_args"].items()
    return f"{steps:,} optimizer steps. " + ", ".join(f"{key} {value}" for key, value in settings) + "."
