"""Mistakes on the command line and in recipes."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import yaml

from .table import command, mistake

SUBJECT = "Command line and recipes"


def train(folder: Path, *words: str) -> None:
    """`collimate vision-language train` of the demo, into the folder."""
    command("vision-language", "train", "--config", "clip_demo", "--output", folder / "run", *words)


@mistake(
    SUBJECT,
    "An app that there is not: `collimate vision train`",
    "<app or command>",
    "'vision'",
    "choose from",
    "'vision-language'",
)
def unknown_app(folder: Path) -> None:
    command("vision", "train")


@mistake(SUBJECT, "A verb misspelt: `trian`", "<verb>", "'trian'", "choose from", "'train'")
def unknown_verb(folder: Path) -> None:
    command("vision-language", "trian")


@mistake(
    SUBJECT, "A recipe that there is not", "vision-language", "'clip_dmo'", "neither a file nor a recipe", "clip_demo"
)
def unknown_recipe(folder: Path) -> None:
    command("vision-language", "train", "--config", "clip_dmo")


@mistake(
    SUBJECT, "An option misspelt: `--optimization.learning_rat 1`",
    "--optimization.learning_rat", "learning_rat 1", "unrecognized", "Did you mean 'optimization.lr'?",
)  # fmt: skip
def misspelt_option(folder: Path) -> None:
    train(folder, "--optimization.learning_rat", "1")


@mistake(
    SUBJECT, "A key of a recipe misspelt: `trainer: {max_step: 3}`",
    "'trainer'", "max_step", "does not accept", "Did you mean 'trainer.max_steps'?",
)  # fmt: skip
def misspelt_key(folder: Path) -> None:
    (folder / "recipe.yaml").write_text("trainer: {max_step: 3}\n")
    command("vision-language", "train", "--config", folder / "recipe.yaml")


@mistake(SUBJECT, "A recipe that is no YAML", "recipe.yaml", "line 2", "expected YAML", "Mend that line")
def broken_recipe(folder: Path) -> None:
    (folder / "recipe.yaml").write_text("data: {train: [\n")
    command("vision-language", "train", "--config", folder / "recipe.yaml")


@mistake(SUBJECT, "Words where a number belongs: `--data.batch_size many`", "data.batch_size", "many", "int", "--help")
def wrong_type(folder: Path) -> None:
    train(folder, "--data.batch_size", "many")


@mistake(
    SUBJECT, "A method that there is not: `--model collimate_vision_language.CLIPP`",
    '"model"', "CLIPP", "no attribute", "Did you mean 'collimate_vision_language.CLIP'?",
)  # fmt: skip
def unknown_method(folder: Path) -> None:
    train(folder, "--model", "collimate_vision_language.CLIPP")


@mistake(SUBJECT, "No sample in a batch: `--data.batch_size 0`", "batch_size", "is 0", "1 or more", "raise it")
def empty_batch(folder: Path) -> None:
    train(folder, "--data.batch_size", "0")


@mistake(
    SUBJECT,
    "An image tower that timm has not: `--model.image_encoder.name resnet10`",
    "timm",
    "'resnet10'",
    "nearest",
    "list_models",
)
def unknown_tower(folder: Path) -> None:
    train(folder, "--model.image_encoder.name", "resnet10")


@mistake(
    SUBJECT,
    "Data of an evaluation that is not there, found before the training that it follows",
    "evaluation.retrieval.mine",
    "'nowhere'",
    "source",
    "Data is named as",
)
def missing_evaluation_data(folder: Path) -> None:
    train(folder, "--evaluation.retrieval", "{mine: {data: 'nowhere:x'}}")


@mistake(SUBJECT, "An optimizer that there is not", "optimization.name", "'adamww'", "adamw", "nearest")
def unknown_optimizer(folder: Path) -> None:
    train(folder, "--optimization.name", "adamww")


@mistake(
    SUBJECT,
    "A precision that is not supported: `--trainer.precision 12`",
    "trainer.precision",
    "12",
    "bf16-mixed",
    "--help",
)
def unsupported_precision(folder: Path) -> None:
    train(folder, "--trainer.precision", "12")


@mistake(
    SUBJECT,
    "A GPU asked for where there is none",
    "trainer.accelerator",
    "=gpu",
    "This machine cannot",
    "--trainer.accelerator cpu",
)
def no_gpu(folder: Path) -> None:
    with (
        mock.patch("torch.cuda.is_available", return_value=False),
        mock.patch("torch.cuda.device_count", return_value=0),
    ):
        train(folder, "--trainer.accelerator", "gpu")


@mistake(SUBJECT, "Nothing to train on", "data.train", "nothing", "table, folder, shards or source", "set data.train")
def nothing_to_train_on(folder: Path) -> None:
    train(folder, "--data.train", "null")


@mistake(
    SUBJECT,
    "A share of a mixture that is no share: `{a: 1, b: 0}`",
    "data.train",
    "0.0",
    "must be positive",
    "leave a source out",
)
def no_share(folder: Path) -> None:
    train(
        folder,
        "--data.train",
        yaml.safe_dump({"world:train?length=8": 1, "world:test?length=8": 0}, default_flow_style=True).strip(),
    )


@mistake(SUBJECT, "A global batch that the ranks do not divide", "data.global_batch_size", "10", "3 ranks", "multiple")
def undivided_batch(folder: Path) -> None:
    from collimate.data.module import rank_batch_size

    rank_batch_size(8, 10, 3)


@mistake(SUBJECT, "A checkpoint to go on from that is not there", "--resume", "gone.ckpt", "checkpoints", "auto")
def missing_checkpoint(folder: Path) -> None:
    train(folder, "--resume", "gone.ckpt")


@mistake(
    SUBJECT,
    "Output where no folder can be: below a file",
    "file/run",
    "Not a directory",
    "can be read and written",
    "choose another one",
)
def unwritable_output(folder: Path) -> None:
    (folder / "file").write_text("")
    command("data", "shard", "--input", "world:test?length=2", "--output", folder / "file" / "run")


@mistake(SUBJECT, "A full disk", "000000.tar", "File too large", "more space than there is", "free some")
def full_disk(folder: Path) -> None:
    import resource
    import signal

    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
        command("data", "shard", "--input", "world:test?length=2", "--output", folder / "run")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)


@mistake(
    SUBJECT,
    "Shards written into a folder that holds others",
    "run holds shards",
    "length=2",
    "now it is",
    "Choose another folder",
)
def shards_in_use(folder: Path) -> None:
    command("data", "shard", "--input", "world:test?length=2", "--output", folder / "run")
    command("data", "shard", "--input", "world:test?length=3", "--output", folder / "run")
