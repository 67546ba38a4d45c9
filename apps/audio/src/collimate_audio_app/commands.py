"""The app's own verbs. What is heavy is imported when they run."""

from __future__ import annotations

from typing import Unpack

from collimate.evaluation.options import Reading


def tokenize(
    tokenizer: str,
    data: str,
    output: str,
    batch_size: int = 64,
    num_workers: int = 0,
    device: str = "auto",
    clips_per_file: int = 10_000,
) -> None:
    """Write a tokenizer's label for each patch of a data set, for pre-training on `labels:<output>`.

    Run the same command again after an interruption: finished files are kept.

    Args:
        tokenizer: a folder, or a .ckpt of a training run, of a tokenizer or of a method that has one.
        data: samples with sound (see `collimate data inspect`).
        output: the folder of 000000.npy, 000000.names.npy, ... and labels.json.
        batch_size: clips labelled at a time.
        num_workers: processes that read and decode; 0 reads in this one.
        device: `auto` is the first GPU where there is one, else the CPU.
        clips_per_file: of each file.
    """
    from collimate.console import say
    from collimate_audio import trained_tokenizer, write_labels
    from collimate_audio.code_quality import usage_of
    from collimate_audio.labels import read_labels

    made = trained_tokenizer(tokenizer)
    folder = write_labels(made, data, output, batch_size, num_workers, device, clips_per_file)
    used = usage_of(read_labels(folder), made.codes)
    say(
        f"Labels: {folder}\n{used.patches} patches in {used.used:.0%} of {made.codes} codes, perplexity "
        f"{used.perplexity:.1f}; the most frequent code has {used.majority:.1%} of them.\n"
        f"Pre-train on them with --data.train labels:{folder} and no tokenizer."
    )


def classify(
    checkpoint: str,
    data: str,
    output: str = "runs/classify",
    top: int = 5,
    limit: int | None = None,
    resamples: int = 1000,
    **options: Unpack[Reading],
) -> None:
    """Tell the classes of clips by a fine-tuned model; where they have labels, tell how right that is.

    Args:
        checkpoint: a model folder, or a .ckpt of a training run, of `AudioClassifier`; or a fine-tuned checkpoint as
            BEATs' authors publish them (.pt).
        data: clips, with labels or without (see `collimate data inspect`).
        output: the folder of answers.csv and, where there are labels, report.html and report.json.
        top: how many of each clip's likeliest classes the table has.
        limit: at most so many clips, spread over the data.
        resamples: of the bootstrap intervals; 0 for none, which of hundreds of classes take long.
    """
    import collimate
    from collimate.evaluation.commands import tell_classes
    from collimate_audio import AudioClassifier

    model = AudioClassifier.from_official(checkpoint) if checkpoint.endswith(".pt") else collimate.load(checkpoint)
    tell_classes(model, checkpoint, data, output, top, limit, resamples, **options)
