"""Which device a name means."""

from __future__ import annotations


def device_named(device: str) -> str:
    """The device; `auto` is the first GPU where there is one, else the CPU."""
    import torch

    return ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
