"""Models without the wrappers that only training needs."""

from __future__ import annotations

from typing import Any

from torch import nn

from collimate.configurable import build
from collimate.encoders import Encoder, Frozen, LoRA


def plain_model(model: Any) -> Any:
    """The same model with its low-rank updates merged and its frozen encoders unwrapped.

    Args:
        model: a method or an encoder; it is left as it is.
    """
    if isinstance(model, LoRA):
        return model.merged()
    if isinstance(model, Frozen):
        return plain_model(model.encoder)
    wrappers = _wrappers(model)
    if not wrappers:
        return model
    config, weights = model.config(), model.state_dict()
    for name, wrapper in wrappers.items():
        encoder = plain_model(wrapper)
        config = substituted(config, wrapper.config(), encoder.config())
        weights = {key: value for key, value in weights.items() if not key.startswith(f"{name}.")}
        weights |= {f"{name}.{key}": value for key, value in encoder.state_dict().items()}
    plain = build(config, trust=[type(model).__module__.partition(".")[0]])
    plain.load_state_dict(weights)
    return plain.train(model.training)


def substituted(value: Any, old: Any, new: Any) -> Any:
    """A configuration with every part that equals `old` replaced by `new`."""
    if value == old:
        return new
    if isinstance(value, dict):
        return {key: substituted(item, old, new) for key, item in value.items()}
    if isinstance(value, list):
        return [substituted(item, old, new) for item in value]
    return value


def _wrappers(model: nn.Module) -> dict[str, Encoder]:
    """The outermost wrapped encoders, by name."""
    found: dict[str, Encoder] = {}
    for name, module in model.named_modules():
        inside = any(name.startswith(f"{outer}.") for outer in found)
        if isinstance(module, LoRA | Frozen) and not inside:
            found[name] = module
    return found
