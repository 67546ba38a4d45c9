"""Which device a name means."""

from __future__ import annotations


def device_named(device: str) -> str:
    """The device; `auto` is the first GPU where there is one, else the CPU.

    Raises:
        ValueError: a GPU is asked for where there is none.
    """
    import torch

    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(
            f"device is {device}, and torch finds no GPU here: take cpu or auto, or see `collimate doctor`."
        )
    return ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
