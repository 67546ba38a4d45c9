"""Mistakes with checkpoints, exports and evaluations."""

from __future__ import annotations

import json
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import torch

import collimate
from collimate.checkpoints import save
from collimate.encoders import OpenClipImageEncoder, OpenClipTextEncoder
from collimate.processing import ClipTokenizer, ImageProcessor
from collimate.training import Method

from .data import picture, shard, table
from .table import command, mistake

SUBJECT = "Checkpoints, export and evaluation"

KEPT = tempfile.TemporaryDirectory()


def clip(width: int = 16) -> Method:
    """A CLIP with random weights, as small as may be."""
    from collimate_vision_language import CLIP

    torch.manual_seed(0)
    image = OpenClipImageEncoder(image_size=16, patch_size=8, width=width, layers=1, head_width=8)
    text = OpenClipTextEncoder(context_length=12, width=width, layers=1, heads=2)
    return CLIP(image, text, ImageProcessor(16), ClipTokenizer(12), embed_dim=16)


@cache
def model() -> Path:
    """Its folder."""
    save(clip(), Path(KEPT.name) / "model")
    return Path(KEPT.name) / "model"


def copied(folder: Path) -> Path:
    """A copy of it, to be damaged."""
    import shutil

    return Path(shutil.copytree(model(), folder / "model"))


def zero_shot(folder: Path, data: Path | str, *words: str) -> None:
    command("vision-language", "zero-shot", "--checkpoint", model(), "--data", data, "--output", folder / "out", *words)


@mistake(
    SUBJECT,
    "A model that is not there",
    "'runs/none/model'",
    "neither a folder nor a file",
    "Hugging Face",
    "Name a folder",
)
def missing_model(folder: Path) -> None:
    collimate.load("runs/none/model")


@mistake(
    SUBJECT, "A folder that holds no model", "config.json is missing", "no model folder", "Expected", "name that folder"
)
def no_model(folder: Path) -> None:
    collimate.load(folder)


@mistake(
    SUBJECT, "Weights that were cut short", "model.safetensors", "cut short", "whole safetensors file", "copy it again"
)
def truncated_weights(folder: Path) -> None:
    path = copied(folder) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    collimate.load(path.parent)


@mistake(
    SUBJECT,
    "Weights of another shape",
    "model.safetensors",
    "size mismatch",
    "not the weights of this model",
    "bring both from one model",
)
def other_shape(folder: Path) -> None:
    path = copied(folder) / "model.safetensors"
    save(clip(width=32), folder / "other")
    path.write_bytes((folder / "other" / "model.safetensors").read_bytes())
    collimate.load(path.parent)


@mistake(
    SUBJECT,
    "A configuration of another activation than the weights were trained with",
    "model",
    "off by",
    "when it was saved",
    "config.json",
)
def other_activation(folder: Path) -> None:
    path = copied(folder) / "config.json"
    path.write_text(path.read_text().replace('"quick_gelu": false', '"quick_gelu": true'))
    collimate.load(path.parent)


@mistake(
    SUBJECT,
    "A checkpoint of another project",
    "other.pt",
    "no checkpoint of a Collimate run",
    "converters",
    "from_open_clip",
)
def other_project(folder: Path) -> None:
    torch.save({"state_dict": {"a": torch.ones(1)}}, folder / "other.pt")
    collimate.load(folder / "other.pt")


class Runs:
    """What runs a command when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("this ran",)


@mistake(
    SUBJECT,
    "A pickled checkpoint that would run code",
    "bad.pt",
    "could run code",
    "tensors and plain data",
    "Convert it to safetensors",
)
def pickle(folder: Path) -> None:
    torch.save({"state_dict": Runs()}, folder / "bad.pt")
    collimate.load(folder / "bad.pt")


@mistake(
    SUBJECT,
    "A configuration that names a class of a stranger",
    "'os.system'",
    "outside the trusted packages",
    "trusted",
    "trust=['os']",
)
def stranger(folder: Path) -> None:
    path = copied(folder) / "config.json"
    config = json.loads(path.read_text())
    config["model"] = {"class_path": "os.system", "init_args": {"command": "true"}}
    path.write_text(json.dumps(config))
    collimate.load(path.parent)


@mistake(
    SUBJECT,
    "An encoder asked for where a method of another kind lies",
    "model",
    "holds a CLIP",
    "not a TimmImageEncoder",
    "`encoders`",
)
def other_class(folder: Path) -> None:
    from collimate.encoders import TimmImageEncoder

    TimmImageEncoder.from_pretrained(model())


@mistake(SUBJECT, "A format of export that there is not", "format", "tflite", "onnx", "--help")
def unknown_format(folder: Path) -> None:
    command("vision-language", "export", "--checkpoint", model(), "--output", folder / "out", "--format", "tflite")


@mistake(
    SUBJECT, "An export into a folder of other things", "letters", "exists", "no model folder", "choose another one"
)
def export_over_others(folder: Path) -> None:
    (folder / "letters").mkdir()
    (folder / "letters" / "a.txt").write_text("dear")
    command("vision-language", "export", "--checkpoint", model(), "--output", folder / "letters")


@mistake(
    SUBJECT, "Zero-shot classification of data without labels", "set.tar", "it has jpg", "no cls", "leave them out"
)
def no_labels(folder: Path) -> None:
    zero_shot(folder, shard(folder, {"a.jpg": picture()}), "--classes", '["ball", "ring"]', "--templates", "photo")


@mistake(
    SUBJECT,
    "Zero-shot classification of data that do not know their classes",
    "classes.json",
    "do not know",
    "class names",
    "name them by",
)
def no_class_names(folder: Path) -> None:
    zero_shot(folder, shard(folder, {"a.jpg": picture(), "a.cls": b"0"}))


@mistake(SUBJECT, "A label beyond the list of classes", "Labels", "7", "between 0 and 1", "name all classes")
def label_beyond(folder: Path) -> None:
    data = shard(folder, {"a.jpg": picture(), "a.cls": b"7"})
    zero_shot(folder, data, "--classes", '["ball", "ring"]', "--templates", "photo")


@mistake(SUBJECT, "A template without {}", "template", "'a photo'", "{} where the class name belongs", "write one")
def template(folder: Path) -> None:
    data = shard(folder, {"a.jpg": picture(), "a.cls": b"0"})
    zero_shot(folder, data, "--classes", '["ball", "ring"]', "--templates", '["a photo"]')


@mistake(
    SUBJECT,
    "A set of templates that there is not",
    "'imagenet8'",
    "There is no file",
    "imagenet7",
    "a template needs {}",
)
def unknown_templates(folder: Path) -> None:
    data = shard(folder, {"a.jpg": picture(), "a.cls": b"0"})
    zero_shot(folder, data, "--classes", '["ball", "ring"]', "--templates", "imagenet8")


@mistake(SUBJECT, "A precision that evaluation has not", "precision", "float8", "bfloat16", "--help")
def unknown_precision(folder: Path) -> None:
    zero_shot(folder, "world:test?length=2", "--precision", "float8")


@mistake(SUBJECT, "An evaluation on a GPU where there is none", "device", "cuda", "no GPU", "cpu")
def evaluation_without_gpu(folder: Path) -> None:
    from unittest import mock

    with mock.patch("torch.cuda.is_available", return_value=False):
        zero_shot(folder, "world:test?length=2", "--device", "cuda")


@mistake(SUBJECT, "A probe of one class alone", "probe", "all 2 are of class 0", "two classes", "take more data")
def one_class(folder: Path) -> None:
    data = shard(folder, {"a.jpg": picture(), "a.cls": b"0", "b.jpg": picture(), "b.cls": b"0"})
    command(
        "vision-language", "probe", "--checkpoint", model(), "--train", data, "--test", data, "--output", folder / "out"
    )


@mistake(
    SUBJECT,
    "A classifier wanted where a contrastive model lies",
    "model",
    "holds a CLIP",
    "knows no classes",
    "fine-tune it first",
)
def no_classifier(folder: Path) -> None:
    command(
        "vision-language",
        "classify",
        "--checkpoint",
        model(),
        "--data",
        table(folder, {"image": "a.jpg"}),
        "--output",
        folder / "out",
    )


@mistake(
    SUBJECT,
    "A gradient cache around a method whose step cannot be cut",
    "Whole",
    "does not split",
    "embed (per sample) and losses",
    "leave it out",
)
def gradient_cache(folder: Path) -> None:
    from collimate.training.callbacks import GradientCache

    class Whole(Method):
        def loss_terms(self, batch: dict[str, Any]) -> dict[str, Any]:
            return {}

    GradientCache(4).setup(None, Whole(), "fit")  # type: ignore[arg-type]


@mistake(SUBJECT, "A BERT without cross-attention in TCL", "cross_width", "None", "attends to pictures", "fusion_layer")
def no_fusion(folder: Path) -> None:
    from collimate.encoders import Bert
    from collimate_vision_language import TCL

    image = OpenClipImageEncoder(image_size=16, patch_size=8, width=16, layers=1, head_width=8)
    TCL(image, Bert(width=16, layers=2, heads=2), ImageProcessor(16), ClipTokenizer(12))
