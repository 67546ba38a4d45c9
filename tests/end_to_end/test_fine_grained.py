"""The verbs for fine-grained models, as a user types them, on a tiny model with random weights."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from collimate.checkpoints import save
from collimate.cli import main
from collimate.configurable import build
from collimate.evaluation import AfterTraining

from .recipes import tiny_recipe
from .test_command_line import LIGHT

OPTIONS = ["--device=cpu", "--resamples=10"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("run") / "model"
    save(build(tiny_recipe("", Path(), 1)["model"]), folder)
    return folder


def metrics(output: Path, title: str) -> dict[str, float]:
    assert (output / "report.html").stat().st_size > 20_000  # it has pictures
    return json.loads((output / "report.json").read_text())[title]["metrics"]


def test_localize(model: Path, tmp_path: Path, capsys):
    data = "world:test?objects=2&length=12&masks=true"
    main(["vision-language", "localize", f"--checkpoint={model}", f"--data={data}", f"--output={tmp_path}", *OPTIONS])
    found = metrics(tmp_path, "Localization")
    assert 0 < found["area_share"] < 0.3
    assert 0 <= found["pointing_accuracy"] < 1
    assert 0 <= found["miou"] < 0.5
    assert "pointing_above_chance" in capsys.readouterr().out


def test_compositional(model: Path, tmp_path: Path, capsys):
    data = "world:test?objects=2-3&length=12&negatives=true"
    arguments = [f"--checkpoint={model}", f"--data={data}", f"--output={tmp_path}", *OPTIONS]
    main(["vision-language", "compositional", *arguments])
    found = metrics(tmp_path, "Compositional understanding")
    assert set(found) >= {"paired_accuracy", "paired_accuracy/swap_colour", "mean_over_kinds"}
    assert "replace_colour" in capsys.readouterr().out


def test_embed_with_tokens(model: Path, tmp_path: Path):
    data = "world:test?objects=2&length=12"
    arguments = [f"--checkpoint={model}", f"--data={data}", f"--output={tmp_path}", "--tokens=true", "--device=cpu"]
    main(["vision-language", "embed", *arguments, "--token_precision=float16"])
    plan = json.loads((tmp_path / "embeddings.json").read_text())
    assert plan["tokens"] == "float16"
    assert len(json.loads((tmp_path / "000000.keys.json").read_text())) == 12


def test_after_training(model: Path, tmp_path: Path):
    evaluation = AfterTraining(
        localize={"boxes": {"data": "world:test?objects=2&length=6", "resamples": 5, "device": "cpu"}},
        compositional={"pairs": {"data": "world:test?objects=2&length=6&negatives=true", "resamples": 5}},
    )
    assert list(evaluation.run(model, tmp_path)) == ["boxes", "pairs"]
    data = json.loads((tmp_path / "report.json").read_text())
    assert {"Localization: boxes", "Compositional understanding: pairs"} <= set(data)


@pytest.mark.parametrize("verb", ["localize", "compositional"])
def test_help_is_light(verb: str):
    """Without torch: numpy comes with the option parser."""
    code = LIGHT.format(arguments=["vision-language", verb, "--help"]).replace('"numpy", ', "")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--checkpoint" in done.stdout
