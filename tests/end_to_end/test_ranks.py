"""Training on several ranks gives the weights that training on one gives."""

import socket
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from .processes import finish, start, start_ranks
from .recipes import tiny_recipe, write_pictures, write_recipe


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    pictures = write_pictures(folder / "pictures", count=60)
    # SGD, because Adam divides by the size of the gradient and so hides an error in it.
    options = {
        "data": {"global_batch_size": 12},
        "optimization": {"name": "sgd", "lr": 0.5, "betas": None, "eps": None, "schedule": "constant", "warmup": 0},
    }
    return write_recipe(folder / "recipe.yaml", tiny_recipe(pictures, folder / "unused", 6, **options))


@pytest.fixture(scope="module")
def alone(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    output = tmp_path_factory.mktemp("alone")
    assert finish(start(recipe, f"--output={output}")) == 0
    return load_file(output / "model" / "model.safetensors")


CACHE = (
    '--trainer.callbacks+={"class_path": "collimate.training.callbacks.GradientCache", "init_args": {"chunk_size": 4}}'
)


@pytest.mark.parametrize(
    ("ranks", "options"),
    [
        (2, ["--trainer.strategy=ddp"]),
        (3, ["--trainer.strategy=ddp", CACHE]),
        (2, ["--trainer.strategy=fsdp2", CACHE]),
    ],
    ids=["ddp", "ddp with gradient cache", "fsdp2 with gradient cache"],
)
def test_weights_are_those_of_one_rank(
    tmp_path: Path, recipe: Path, alone: dict[str, torch.Tensor], ranks: int, options: list[str]
):
    processes = start_ranks(recipe, ranks, free_port(), f"--output={tmp_path}", *options)
    assert [finish(process) for process in processes] == [0] * ranks
    together = load_file(tmp_path / "model" / "model.safetensors")
    assert together.keys() == alone.keys()
    for name, value in alone.items():
        torch.testing.assert_close(together[name], value, rtol=1e-4, atol=1e-5, msg=lambda text, name=name: name + text)


def test_one_rank_with_gradient_cache_gives_the_same_weights(
    tmp_path: Path, recipe: Path, alone: dict[str, torch.Tensor]
):
    assert finish(start(recipe, f"--output={tmp_path}", CACHE)) == 0
    for name, value in load_file(tmp_path / "model" / "model.safetensors").items():
        torch.testing.assert_close(value, alone[name], rtol=1e-5, atol=1e-6)
