"""Which method runs with which switch: every cell is a tiny training, which runs or is refused with a reason.

    python -m tools.composition                    # all cells, some minutes; writes the JSON and docs/composition.md
    python -m tools.composition --method TCL       # one row, printed

A method is taken from its demo, two steps of eight synthetic samples; a cell that neither runs nor is refused by
a message that says why is a fault.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import socket
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

import collimate
from collimate.app import App, installed_apps
from collimate.arguments import plain
from collimate.training.run import cli_for, fit

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "tools" / "composition.json"
DOCUMENT = ROOT / "docs" / "composition.md"

Recipe = dict[str, Any]
RUNS = "runs"
REFUSALS = (ValueError, TypeError, NotImplementedError)

METHODS: dict[str, tuple[str, str]] = {
    "CLIP": ("vision-language", "clip_demo"),
    "SigLIP": ("vision-language", "clip_demo"),
    "ALIP": ("vision-language", "alip_demo"),
    "CLOC": ("vision-language", "cloc_demo"),
    "DreamLIP": ("vision-language", "dreamlip_demo"),
    "FILIP": ("vision-language", "filip_demo"),
    "TCL": ("vision-language", "tcl_demo"),
    "BeatsPretraining": ("audio", "beats_demo"),
    "CLAP": ("audio", "clap_demo"),
    "ALPRO": ("video", "alpro_demo"),
    "CoAVT": ("video", "coavt_demo"),
    "VATT": ("video", "vatt_demo"),
    "ConVIRT": ("medical", "convirt_demo"),
    "GLoRIA": ("medical", "gloria_demo"),
    "MERL": ("medical", "merl_demo"),
    "MoRE": ("medical", "more_demo"),
    "SceneGraphVLP": ("three-d", "scene_graph_demo"),
    "ESSL3D": ("three-d", "essl3d_demo"),
    "CenterPoint": ("three-d", "lidar_detect_demo"),
    "ObjectText": ("three-d", "lidar_names_demo"),
    "PointText": ("three-d", "point_text_demo"),
}
"""Method -> app and recipe. Those that are not here share the towers and the step of one that is."""


def callback(name: str, **arguments: Any) -> Callable[[Recipe], None]:
    """A switch that is a callback."""

    def switch(recipe: Recipe) -> None:
        recipe["trainer"].setdefault("callbacks", []).append({"class_path": name, "init_args": arguments})

    return switch


def trainer(**settings: Any) -> Callable[[Recipe], None]:
    """A switch that is an argument of the trainer."""
    return lambda recipe: recipe["trainer"].update(settings)


def low_rank(recipe: Recipe) -> None:
    """LoRA around every tower that the recipe names."""
    arguments = recipe["model"]["init_args"]
    towers = [name for name in arguments if name.split("_")[-1] in ("encoder", "tower", "backbone")]
    for name in towers:
        if isinstance(arguments[name], dict) and "class_path" in arguments[name]:
            wrapped = {"encoder": arguments[name], "rank": 2}
            arguments[name] = {"class_path": "collimate.encoders.LoRA", "init_args": wrapped}
    if not towers:
        raise ValueError("the recipe names no tower that LoRA could go around")


def harmonized(granularity: str) -> Callable[[Recipe], None]:
    """Each loss term a group of its own."""
    wanted = {"class_path": "collimate.training.harmonization.Harmonization", "init_args": {"granularity": granularity}}
    return callback("collimate.training.callbacks.Harmonize", harmonization=wanted)


SWITCHES: dict[str, Callable[[Recipe], None]] = {
    "gradient cache": callback("collimate.training.callbacks.GradientCache", chunk_size=4),
    "2 ranks": trainer(devices=2, strategy="ddp"),
    "FSDP2": trainer(devices=2, strategy="fsdp2"),
    "bf16": trainer(precision="bf16-mixed"),
    "compiled": callback("collimate.training.callbacks.CompileEncoders"),
    "LoRA": low_rank,
    "EMA": callback("lightning.pytorch.callbacks.EMAWeightAveraging", decay=0.9),
    "harmonized": harmonized("microbatch"),
    "harmonized by feature": harmonized("feature"),
    "SAM": lambda recipe: recipe["optimization"].update(sharpness=0.05),
    "resume": lambda recipe: None,
    "export": lambda recipe: None,
}


def recipe_of(method: str, output: Path) -> tuple[App, Recipe]:
    """The method's demo, cut down to two steps of eight samples, without its evaluation."""
    app_name, name = METHODS[method]
    app = installed_apps()[app_name]
    recipe: Recipe = yaml.safe_load(app.recipe(name).read_text(encoding="utf-8"))
    if method == "SigLIP":
        recipe["model"]["class_path"] = "collimate_vision_language.SigLIP"
    for section in ("evaluation", "resume"):
        recipe.pop(section, None)
    recipe["output"] = str(output)
    recipe["data"] |= {"batch_size": 8, "num_workers": 0, "val": None}
    recipe["data"].pop("schedule", None)
    recipe["trainer"] = {"max_steps": 2, "accelerator": "cpu", "enable_progress_bar": False, "logger": False}
    recipe["checkpoint"] = {"every_steps": 1}
    recipe.setdefault("optimization", {})
    return app, recipe


def cell(method: str, switch: str) -> str:
    """`RUNS`, or why not.

    Raises:
        Exception: neither; the fault.
    """
    with tempfile.TemporaryDirectory() as folder:
        app, recipe = recipe_of(method, Path(folder))
        try:
            SWITCHES[switch](recipe)
            if recipe["trainer"].get("devices", 1) > 1:
                return _on_ranks(app, recipe, Path(folder))
            _train(app, recipe, Path(folder))
            if switch == "resume":
                recipe["trainer"]["max_steps"] = 3
                _train(app, recipe, Path(folder))
            if switch == "export":
                _exported(Path(folder))
        except REFUSALS as error:
            return plain(str(error))
    return RUNS


def _train(app: App, recipe: Recipe, folder: Path) -> None:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            cli = cli_for([f"--config={path}"], "train", app)
    except SystemExit as refusal:
        lines = [line.strip() for line in said.getvalue().splitlines()]
        told = [line for line in lines if "does not correspond" in line or "LoRA adapts" in line] or lines
        raise ValueError(told[0]) from refusal
    fit(cli.trainer, cli.model, cli.datamodule, "auto")
    assert cli.trainer.global_step == recipe["trainer"]["max_steps"]


def _exported(folder: Path) -> None:
    """Loading compares what the model computes with what it computed when it was saved."""
    again = collimate.load(folder / "model")
    from collimate.checkpoints import save

    save(again, folder / "again")
    collimate.load(folder / "again")


def _on_ranks(app: App, recipe: Recipe, folder: Path) -> str:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={_free_port()}"]
    command += ["-m", "collimate", app.name, "train", f"--config={path}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    if done.returncode == 0:
        return RUNS
    if refused := [line for line in done.stderr.splitlines() if line.startswith("collimate: ")]:
        return refused[0].removeprefix("collimate: ")
    raise RuntimeError(done.stderr[-3000:])


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def cells(methods: list[str]) -> Iterator[tuple[str, str, str]]:
    """Method, switch, what came of it."""
    for method in methods:
        for switch in SWITCHES:
            print(f"{method} x {switch}: ", end="", flush=True)
            try:
                found = cell(method, switch)
            except Exception as error:  # the table says it, and the command fails in the end
                found = f"FAULT {type(error).__name__}: {str(error)[-400:]}"
            print(found, flush=True)
            yield method, switch, found


def document(record: dict[str, Any]) -> str:
    """The page: a table of methods and switches, and the reasons below it."""
    reasons: list[str] = []
    lines = [HEAD.format(**record["machine"]), "| | " + " | ".join(SWITCHES) + " |", "|---" * (1 + len(SWITCHES)) + "|"]
    for method, row in record["cells"].items():
        marks = []
        for switch in SWITCHES:
            found = row[switch]
            if found != RUNS and found not in reasons:
                reasons.append(found)
            marks.append("✓" if found == RUNS else f"[{reasons.index(found) + 1}]")
        lines.append(f"| {method} | " + " | ".join(marks) + " |")
    lines += ["", "Refused when the run starts, with these words:", ""]
    lines += [f"{number}. {' '.join(reason.split())}" for number, reason in enumerate(reasons, 1)]
    return "\n".join(lines) + "\n"


HEAD = """# What runs with what

Each cell is two steps of training on eight synthetic samples: a method's demo with one switch of `README.md` set. ✓: it
ran, and left a model that loads and computes what was saved. [n]: it is refused when it starts, for the reason below.
Written by `python -m tools.composition` ({date}, torch {torch}, CPU, gloo; compiled with the `aot_eager` back end).
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--method", choices=METHODS)
    options = parser.parse_args()
    quick_compile()
    record: dict[str, Any] = {
        "machine": {"date": datetime.now(UTC).date().isoformat(), "torch": torch.__version__},
        "cells": {},
    }
    for method, switch, found in cells([options.method] if options.method else list(METHODS)):
        record["cells"].setdefault(method, {})[switch] = found
    if not options.method:
        RESULTS.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        DOCUMENT.write_text(document(record), encoding="utf-8")
    faults = [found for row in record["cells"].values() for found in row.values() if found.startswith("FAULT")]
    raise SystemExit(1 if faults else 0)


def quick_compile() -> None:
    """What matters here is that towers can be captured as graphs: generating C++ for each takes minutes."""
    usual = nn.Module.compile
    nn.Module.compile = lambda self, *args, **kwargs: usual(self, backend="aot_eager")  # type: ignore[method-assign]
    warnings.filterwarnings("ignore")


if __name__ == "__main__":
    main()
