"""The app's own verbs. What is heavy is imported when they run."""

from __future__ import annotations

from pathlib import Path
from typing import Unpack

from collimate.data import CaptionChoice
from collimate.evaluation.options import Measured


def consistency(
    checkpoint: str,
    data: str,
    output: str = "runs/consistency",
    captions: dict[str, CaptionChoice] | None = None,
    **options: Unpack[Measured],
) -> None:
    """Show how much ALIP's gates trust each picture's text and caption, and how well they tell wrong ones.

    Args:
        checkpoint: a model folder, or a .ckpt of a training run; of ALIP, or of another method of images and text.
        data: pictures with raw texts and synthetic captions (see `collimate data inspect`).
        output: the folder of report.html, report.json and weights.csv, which has every sample.
        captions: which are the `text` and the `caption` of a sample, as in a recipe's `data.captions`.
    """
    import collimate
    from collimate.data import open_source
    from collimate.evaluation.commands import publish
    from collimate_vision_language.consistency import evaluate_consistency

    found = evaluate_consistency(collimate.load(checkpoint), open_source(data), captions, **options)
    table = Path(output) / "weights.csv"
    table.parent.mkdir(parents=True, exist_ok=True)
    found.write_table(table)
    publish(found, checkpoint, output, Table=table)
