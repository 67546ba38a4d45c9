"""The verbs `zero-shot`, `retrieval`, `probe`, `embed`, and those of some apps: `localize`, `regions`, `compositional`.

What is heavy is imported when they run.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Unpack

from collimate.evaluation.options import Measured, Reading

if TYPE_CHECKING:
    from collimate.evaluation.result import Result


def zero_shot(
    checkpoint: str,
    data: str,
    classes: str | list[str] | None = None,
    templates: str | list[str] | None = None,
    output: str = "runs/zero_shot",
    modality: str | None = None,
    windows: int = 1,
    **options: Unpack[Measured],
) -> None:
    """Classify labelled data by class names, without training.

    Args:
        checkpoint: a model folder, or a .ckpt of a training run.
        data: labelled samples: a folder with a folder a class, shards, a table, ... (see `collimate data inspect`).
            Where they have several classes each (`labels.json`, lists of names or numbers), average precisions are
            reported.
        classes: a JSON or YAML file with a list of names, or with texts for each class (`file.json#entry` takes one
            entry of it), or the names; what the data know unless given.
        templates: `imagenet` (80), `imagenet7`, `photo` ("a photo of a {}."), `name`, a file, or templates with {}; of
            sounds also `sound` ("This is a sound of {}."), `sounds` (5), `recording` (7), `music`. Unless given,
            `imagenet` for pictures and `sound` for sounds.
        output: the folder of report.html and report.json.
        modality: what is classified; the model's first that is not text unless given.
        windows: of samples that are longer than the encoder's input, such as sounds, the mean over so many windows,
            spread evenly; with 1 only the first is heard.
    """
    from collimate.data import open_source
    from collimate.evaluation.tagging import evaluate_tagging, has_several_labels
    from collimate.evaluation.zero_shot import evaluate_zero_shot

    method, source = load_method(checkpoint), open_source(data)
    evaluate = evaluate_tagging if has_several_labels(source) else evaluate_zero_shot
    found = evaluate(method, source, classes, templates, modality=modality, windows=windows, **options)
    publish(found, checkpoint, output)


def retrieval(
    checkpoint: str,
    data: str,
    text_prefix: str = "",
    output: str = "runs/retrieval",
    modality: str | None = None,
    max_captions: int | None = None,
    index: str | None = None,
    rerank: int | None = None,
    windows: int = 1,
    against: str | None = None,
    **options: Unpack[Measured],
) -> None:
    """Rank samples by their captions, and captions by their samples; or two other modalities by each other.

    A model that ranks by tokens (late interaction) writes them into files first, and reads them some at a time.

    Args:
        checkpoint: a model folder, or a .ckpt of a training run.
        data: captioned samples: shards, a table, a folder, ... (see `collimate data inspect`).
        text_prefix: put before each caption, such as "a photo of ".
        output: the folder of report.html and report.json.
        modality: what is searched beside texts; the model's first that is not text unless given.
        max_captions: at most so many of each sample's captions; all unless given.
        index: a folder in which tokens are kept, where the model's score needs them: run the same command again, and
            it goes on from what is there. A temporary folder unless given.
        rerank: rank so many of each query's best anew, by the network of the model that reads a sample and a text
            together (TCL: 256 on COCO, 128 on Flickr30k), and report both rankings.
        windows: of samples that are longer than the encoder's input, such as sounds, the mean over so many windows,
            spread evenly; with 1 only the first is heard.
        against: in the place of texts, another modality of the samples: X-rays by ECGs and ECGs by X-rays.
    """
    from collimate.data import open_source
    from collimate.evaluation.features import other_modality
    from collimate.evaluation.retrieval import evaluate_retrieval, evaluate_retrieval_between

    method, source = load_method(checkpoint), open_source(data)
    if against is not None:
        between = evaluate_retrieval_between(method, source, modality or other_modality(method), against, **options)
        publish(between, checkpoint, output)
        return
    found = evaluate_retrieval(
        method,
        source,
        text_prefix,
        modality,
        max_captions=max_captions,
        index=index,
        identity={"checkpoint": checkpoint},
        rerank=rerank,
        windows=windows,
        **options,
    )
    publish(found, checkpoint, output)


def probe(
    checkpoint: str,
    train: str,
    test: str,
    output: str = "runs/probe",
    kinds: Sequence[Literal["linear", "knn"]] = ("linear", "knn"),
    scaling: Literal["standardize", "normalize", "none"] = "standardize",
    shots: Sequence[int] = (),
    projected: bool = False,
    random_encoder: bool = True,
    modality: str | None = None,
    limit: int | None = None,
    seed: int = 0,
    windows: int = 1,
    **options: Unpack[Reading],
) -> None:
    """Read classes from frozen features, by logistic regression and by nearest neighbours.

    Args:
        checkpoint: a model or encoder folder, or a .ckpt of a training run.
        train: labelled samples to fit on (see `collimate data inspect`).
        test: labelled samples of the same classes.
        output: the folder of report.html and report.json.
        kinds: `[linear]`, `[knn]`, or both.
        scaling: of the features before logistic regression.
        shots: also fit with so many samples a class, as `[1, 4, 16]`.
        projected: probe the joint space instead of the encoder before its projection.
        random_encoder: also probe the same encoder with random weights, the row that training must beat.
        modality: which encoder; the model's first that is not text unless given.
        limit: at most so many samples of each, spread over the data.
        seed: of the validation split, the draws of shots and the random weights.
        windows: of samples that are longer than the encoder's input, such as sounds, the mean over so many windows,
            spread evenly; with 1 only the first is heard.
    """
    import collimate
    from collimate.data import open_source
    from collimate.evaluation.probes import evaluate_probe

    found = evaluate_probe(
        collimate.load(checkpoint),
        open_source(train),
        open_source(test),
        modality,
        kinds,
        scaling,
        projected,
        shots,
        random_encoder,
        limit=limit,
        seed=seed,
        windows=windows,
        **options,
    )
    publish(found, checkpoint, output)


def embed(
    checkpoint: str,
    data: str,
    output: str,
    modalities: Sequence[str] | None = None,
    projected: bool = True,
    tokens: bool = False,
    token_precision: Literal["float32", "float16"] = "float32",
    samples_per_file: int | None = None,
    **options: Unpack[Reading],
) -> None:
    """Write the embeddings of a data set as safetensors files, with the samples' names.

    Run the same command again after an interruption: finished files are kept.

    Args:
        checkpoint: a model or encoder folder, or a .ckpt of a training run.
        data: what to embed (see `collimate data inspect`).
        output: the folder of 000000.safetensors, 000000.keys.json, ... and embeddings.json.
        modalities: what to embed of each sample; all that the model encodes unless given, which each must have:
            `[image]` for pictures without captions.
        projected: into the joint space; otherwise each encoder's own vectors.
        tokens: the tokens too, which late interaction compares; `collimate.evaluation.EmbeddingIndex` searches them.
        token_precision: of the tokens as they are written.
        samples_per_file: of each file; so many are held in memory. 10 000, or 1 000 with tokens, unless given.
    """
    import collimate
    from collimate.console import say
    from collimate.data import open_source
    from collimate.evaluation.embedding import write_embeddings

    source = open_source(data)
    rows = write_embeddings(
        collimate.load(checkpoint),
        source,
        output,
        modalities,
        projected,
        samples_per_file,
        identity={"checkpoint": checkpoint, "data": source.name},
        tokens=tokens,
        token_precision=token_precision,
        **options,
    )
    say(f"Embeddings of {rows} samples: {output}/")


def localize(
    checkpoint: str,
    data: str,
    classes: str | list[str] | None = None,
    templates: str | list[str] = "name",
    output: str = "runs/localize",
    modality: str | None = None,
    **options: Unpack[Measured],
) -> None:
    """Point at what phrases say, and segment by class names: maps of each text over the cells of a picture.

    Args:
        checkpoint: a model folder, or a .ckpt of a training run.
        data: samples with boxes and their phrases (`regions.json`; in a table, the column `regions` or `boxes`).
        classes: of the segmentation: a JSON or YAML file with names, or with texts for each class, or the names; what
            the data know unless given.
        templates: what phrases and names are put into: `name` (nothing), `photo`, `imagenet7`, `imagenet`, a file, or
            templates with {}.
        output: the folder of report.html and report.json.
        modality: what is looked at; the model's first that is not text unless given.
    """
    from collimate.data import open_source
    from collimate.evaluation.localization import evaluate_localization

    method, source = load_method(checkpoint), open_source(data)
    found = evaluate_localization(method, source, classes, templates, modality, **options)
    publish(found, checkpoint, output)


def compositional(
    checkpoint: str,
    data: str,
    text_prefix: str = "",
    output: str = "runs/compositional",
    modality: str | None = None,
    **options: Unpack[Measured],
) -> None:
    """Choose between captions and hard negatives, which are nearly the same and false.

    Args:
        checkpoint: a model folder, or a .ckpt of a training run.
        data: samples with pairs of captions and negatives (`compositional.json`; in a table, the column
            `compositional`).
        text_prefix: put before each caption, such as "a photo of ".
        output: the folder of report.html and report.json.
        modality: what the captions are of; the model's first that is not text unless given.
    """
    from collimate.data import open_source
    from collimate.evaluation.compositional import evaluate_compositional

    found = evaluate_compositional(load_method(checkpoint), open_source(data), text_prefix, modality, **options)
    publish(found, checkpoint, output)


def regions(
    checkpoint: str,
    data: str,
    classes: str | list[str] | None = None,
    templates: str | list[str] = "name",
    by: Literal["auto", "prompts", "crops"] = "auto",
    output: str = "runs/regions",
    modality: str | None = None,
    **options: Unpack[Measured],
) -> None:
    """Name the contents of boxes, match boxes and phrases, and find the box of a phrase.

    Args:
        checkpoint: a model folder, or a .ckpt of a training run.
        data: samples with boxes and their phrases (`regions.json`; in a table, the column `regions` or `boxes`).
        classes: a JSON or YAML file with names, or with texts for each class, or the names; what the data know unless
            given.
        templates: what class names are put into: `name` (nothing), `photo`, `imagenet7`, `imagenet`, a file, or
            templates with {}.
        by: how a box gets its vector: by the model's own `prompts`, by `crops` of the picture, or `auto`, by prompts
            where the model has them.
        output: the folder of report.html and report.json.
        modality: what the boxes lie in; the model's first that is not text unless given.
    """
    from collimate.data import open_source
    from collimate.evaluation.by_region import evaluate_regions

    method, source = load_method(checkpoint), open_source(data)
    found = evaluate_regions(method, source, classes, templates, by, modality=modality, **options)
    publish(found, checkpoint, output)


def classify(
    checkpoint: str,
    data: str,
    output: str = "runs/classify",
    top: int = 5,
    limit: int | None = None,
    resamples: int = 1000,
    **options: Unpack[Reading],
) -> None:
    """Tell the classes of samples by a classifier that was trained on them; where they have labels, how right that is.

    Args:
        checkpoint: a model folder, or a .ckpt of a training run, of a `Classifier`.
        data: samples, with labels or without (see `collimate data inspect`).
        output: the folder of answers.csv and, where there are labels, report.html and report.json.
        top: how many of each sample's likeliest classes the table has.
        limit: at most so many samples, spread over the data.
        resamples: of the bootstrap intervals; 0 for none, which of hundreds of classes take long.
    """
    import collimate

    model = collimate.load(checkpoint)
    tell_classes(model, checkpoint, data, output, top, limit, resamples, **options)


def tell_classes(
    model: Any,
    checkpoint: str,
    data: str,
    output: str,
    top: int,
    limit: int | None,
    resamples: int,
    **options: Unpack[Reading],
) -> None:
    """`classify` with a model that is loaded.

    Raises:
        ValueError: it is no classifier.
    """
    from collimate.console import say
    from collimate.data import open_source
    from collimate.evaluation.answers import answer, judge
    from collimate.training import Classifier

    if not isinstance(model, Classifier):
        raise ValueError(f"{checkpoint} holds a {type(model).__name__}, which knows no classes: fine-tune it first.")
    answers = answer(model, open_source(data), limit=limit, **options)
    table = Path(output) / "answers.csv"
    answers.write(table, top)
    if answers.targets is None:
        say(f"Answers: {table}\nThe data has no labels to judge them by.")
    else:
        publish(judge(answers, model, resamples), checkpoint, output, Answers=table)


def publish(found: Result, checkpoint: str, output: str, **further: Path) -> None:
    """Print what an evaluation found, write its report, and say where that lies: the end of every verb.

    Args:
        found: numbers and figures.
        checkpoint: of the model that was evaluated.
        output: the report's folder.
        further: other files that the verb wrote, by what they are.
    """
    from rich import get_console

    from collimate.console import say
    from collimate.evaluation.report import Report

    report = Report(found.title, checkpoint)
    found.add_to(report)
    page = report.save(Path(output))
    get_console().print(found.table())
    files = {"Report": page, "JSON": page.with_suffix(".json"), **further}
    say("\n".join(f"{name + ':':<8}{path}" for name, path in files.items()))


def load_method(checkpoint: str) -> Any:
    """A method from a checkpoint.

    Raises:
        ValueError: it holds an encoder alone, which has no joint space with text.
    """
    import collimate
    from collimate.training import Method

    model = collimate.load(checkpoint)
    if not isinstance(model, Method):
        raise ValueError(f"{checkpoint} holds a {type(model).__name__} alone; it can be probed and embedded only.")
    return model
