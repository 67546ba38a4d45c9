"""The app's own verbs. What is heavy is imported when they run."""

from __future__ import annotations

from typing import Any, Literal, Unpack

from collimate.evaluation.options import Measured


class SceneOptions(Measured, total=False):
    """The options of `Measured`, of scenes.

    Args:
        batch_size: scenes at a time, or objects where they are classified; 16 scenes or 256 objects unless given.
        num_workers: processes that read and decode; 0, the default, reads in this one.
        device: `auto`, the default, is the first GPU where there is one, else the CPU.
        precision: of the networks; float32 unless given.
        limit: at most so many scenes, or objects where they are classified, spread over the data; all unless given.
        resamples: of the bootstrap intervals; 1000 unless given.
    """


def ground(
    checkpoint: str,
    data: str,
    boxes: Literal["ground truth", "predicted"] = "ground truth",
    output: str = "runs/grounding",
    **options: Unpack[SceneOptions],
) -> None:
    """Find the object that each sentence of each scene means.

    Args:
        checkpoint: a model folder, or a .ckpt of a training run.
        data: scenes with sentences: shards, `world-rooms:test`, ...
        boxes: whether objects are the annotated ones, or predicted ones, of which overlaps are reported.
        output: the folder of report.html and report.json.
    """
    from collimate.data import open_source
    from collimate.evaluation.commands import publish
    from collimate_3d.evaluation.grounding import evaluate_grounding

    found = evaluate_grounding(_method(checkpoint), open_source(data), boxes, **options)
    publish(found, checkpoint, output)


def classify_objects(
    checkpoint: str,
    data: str,
    classes: str | list[str] | None = None,
    templates: str | list[str] | None = None,
    output: str = "runs/objects",
    **options: Unpack[SceneOptions],
) -> None:
    """Name the objects of scenes by the words of their classes, without training.

    Args:
        checkpoint: a model folder, or a .ckpt of a training run.
        data: scenes: shards, `world-rooms:test`, ...
        classes: names, or a file of them; those that the model's scenes have unless given.
        templates: what names are put into, such as `the {}`; the name alone unless given.
        output: the folder of report.html and report.json.
    """
    from collimate.data import open_source
    from collimate.evaluation.commands import publish
    from collimate_3d.evaluation.objects import evaluate_objects

    # Objects are small: more of them than of scenes go through the networks at a time.
    found = evaluate_objects(
        _method(checkpoint), open_source(data), classes, templates, **{"batch_size": 256, **options}
    )
    publish(found, checkpoint, output)


def relationships(
    checkpoint: str,
    train: str,
    data: str,
    output: str = "runs/relationships",
    train_pairs: int = 20_000,
    seed: int = 0,
    **options: Unpack[SceneOptions],
) -> None:
    """Read the relations of scenes' objects from frozen features, by a linear probe, with 3DSSG's measures.

    Args:
        checkpoint: a model folder, or a .ckpt of a training run.
        train: scenes with graphs to fit on: shards, `world-rooms:val`, ...
        data: scenes with graphs to test on: shards, `world-rooms:test`, ...
        output: the folder of report.html and report.json.
        train_pairs: of objects that are fitted, at most, drawn from all scenes.
        seed: of the random weights, the pairs that are drawn, and the scenes that choose the penalty.
    """
    from collimate.data import open_source
    from collimate.evaluation.commands import publish
    from collimate_3d.evaluation.relationships import evaluate_relationships

    found = evaluate_relationships(
        _method(checkpoint),
        open_source(train),
        open_source(data),
        train_pairs,
        seed=seed,
        **options,
    )
    publish(found, checkpoint, output)


def vocabulary(data: str, output: str, at_least: int = 1, limit: int | None = None) -> None:
    """Count the words of captions and sentences, the most frequent first, and write them, one a line.

    Args:
        data: scenes with texts: shards, `world-rooms:train`, ...
        output: a .txt file, for `WordTokenizer`.
        at_least: how often a word occurs that is kept.
        limit: at most so many scenes, spread over the data; all if not given.
    """
    from pathlib import Path

    from collimate.console import say
    from collimate.data import open_source
    from collimate.data.captions import captions_of
    from collimate.data.decoding import value_of
    from collimate.data.files import write_atomically
    from collimate.data.referrals import REFERRALS, referrals_of
    from collimate_3d.language import count_words

    source = open_source(data)
    size = len(source) if limit is None else min(limit, len(source))
    texts: list[str] = []
    for place in range(size):
        sample = source.peek(place * len(source) // size, ("txt", "captions.json", REFERRALS))
        texts += [caption.text for caption in captions_of(sample)] if {"txt", "captions.json"} & sample.keys() else []
        texts += [each.text for each in referrals_of(value_of(sample, (REFERRALS,)))] if REFERRALS in sample else []
    words = count_words(texts, at_least)
    write_atomically(Path(output), "".join(f"{word}\n" for word in words).encode())
    say(f"{len(words)} words of {len(texts)} texts: {output}")


def _method(checkpoint: str) -> Any:
    import collimate
    from collimate_3d import SceneGraphVLP

    model = collimate.load(checkpoint)
    if not isinstance(model, SceneGraphVLP):
        raise ValueError(f"{checkpoint} holds a {type(model).__name__}, which does not ground sentences in scenes.")
    return model
