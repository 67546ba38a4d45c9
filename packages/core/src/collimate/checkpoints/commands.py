"""The command `export`."""

from __future__ import annotations

from typing import Literal


def export(
    checkpoint: str, output: str, format: Literal["collimate", "open_clip", "transformers", "onnx"] = "collimate"
) -> None:
    """Write a checkpoint in another format, and check what was written.

    Args:
        checkpoint: a model folder, a training run's .ckpt file, or a hub id.
        output: the folder to write.
        format: `collimate` for a model folder, `open_clip`, `transformers`, or `onnx` for one file a modality.
    """
    from rich.console import Console

    from collimate.checkpoints import load
    from collimate.checkpoints.export import export as write

    differences = write(load(checkpoint), output, format)
    console = Console()
    console.print(f"Written to {output} as {format}, read again and compared:")
    for modality, difference in differences.items():
        console.print(f"  {modality}: features agree to {difference:.1e} of their largest entry")
