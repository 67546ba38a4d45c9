"""Pre-training and what it is good for, as one command: E-SSL3D without labels, then a detector on few of them.

Three runs, each in its folder: `pretraining`, `scratch` and `pretrained`, which differ in nothing but the weights that
the backbone begins with. Both detectors are judged on the same unseen sweeps, side by side, at overlaps that suit maps
with cells of half a metre.
"""

from __future__ import annotations

from pathlib import Path
from typing import cast

from rich import get_console
from rich.table import Table

import collimate
from collimate import distributed
from collimate.app import App, installed_apps
from collimate.console import say
from collimate.data import open_source
from collimate.evaluation.after_training import add_training_curves
from collimate.evaluation.report import Report
from collimate.evaluation.result import number
from collimate.training import Method
from collimate.training.run import cli_for, fit
from collimate_3d.detection.evaluation import LOOSE, DetectionResult, evaluate_detection

RUNS = ("scratch", "pretrained")


def lidar_demo(
    output: str = "runs/lidar_demo",
    pretraining: str = "essl3d_demo",
    detection: str = "lidar_detect_demo",
    test: str = "world-sweeps:test?length=100",
    train: str = "label-share:world-sweeps:train?length=400&share=0.1",
    pretraining_steps: int | None = None,
    detection_steps: int | None = None,
    seed: int = 0,
) -> dict[str, DetectionResult]:
    """Pre-train a backbone without labels, fine-tune a detector on few, and compare it with one from scratch.

    Args:
        output: the folder of all that it writes: a folder for each run, report.html and report.json.
        pretraining: a recipe of pre-training, by its name or its file.
        detection: a recipe of a detector with the same backbone.
        test: sweeps on which detectors are compared.
        train: labelled sweeps to fine-tune on.
        pretraining_steps, detection_steps: of each run; what its recipe says unless given.
        seed: of all runs.
    """
    app = installed_apps()["three-d"]
    folder = Path(output)
    taught = _trained(app, pretraining, folder / "pretraining", seed, pretraining_steps)
    results = {}
    for name in RUNS:
        more = [f"--data.train={train}"]
        more += [f"--model.init_args.pretrained={taught}"] if name == "pretrained" else []
        model = collimate.load(_trained(app, detection, folder / name, seed, detection_steps, more))
        results[name] = evaluate_detection(model, open_source(test), overlaps=LOOSE)
        results[name].title += f": {name}"
    if distributed.rank() == 0:
        _report(results, folder)
    return results


def _trained(app: App, recipe: str, output: Path, seed: int, steps: int | None, more: list[str] | None = None) -> Path:
    """The model folder of a run, which goes on where it stopped."""
    say(f"{recipe} -> {output}")
    arguments = [f"--config={app.recipe(recipe)}", f"--output={output}", f"--seed_everything={seed}", *(more or [])]
    arguments += [] if steps is None else [f"--trainer.max_steps={steps}"]
    cli = cli_for(arguments, f"collimate {app.name} train", app)
    return fit(cli.trainer, cast(Method, cli.model), cli.datamodule, cli.config.resume)


def _report(results: dict[str, DetectionResult], folder: Path) -> None:
    report = Report("What pre-training on sweeps is good for", str(folder))
    columns = ["metric", *results]
    names = next(iter(results.values())).metrics
    rows = [[name, *(number(found.metrics[name]) for found in results.values())] for name in names]
    report.add_table(columns, rows, "Detectors on few labels, from scratch and pre-trained")
    report.record("comparison", {name: found.to_json() for name, found in results.items()})
    table = Table(*columns, title="Detectors on few labels", title_justify="left")
    for row in rows:
        table.add_row(*row)
    get_console().print(table)
    for name in ("pretraining", *results):
        add_training_curves(report, folder / name, name)
    for found in results.values():
        found.add_to(report)
    page = report.save(folder)
    say(f"Report: {page}\nJSON:   {page.with_suffix('.json')}")
