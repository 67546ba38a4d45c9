"""Cross-validation as one command: a recipe is trained once for each fold, on the others, and judged on it.

The folder of a run holds, for each fold k, `fold_<k>/`, a run of `train` with its checkpoints and its model, and in it
`answers.csv` and `result.json`; and `report.html` with the mean over folds and each fold. What is there stays: started
again, the command goes on, within a fold from its last checkpoint.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, cast

from rich import get_console

from collimate.app import App
from collimate.checkpoints import load
from collimate.console import say
from collimate.data import TableSource, open_source
from collimate.data.files import write_atomically
from collimate.evaluation.answers import answer, judge
from collimate.evaluation.report import Report
from collimate.evaluation.result import Result
from collimate.training.method import Method
from collimate.training.run import cli_for, fit

PLAN, RESULT = "plan.json", "result.json"


def cross_validate(arguments: list[str], program: str, app: App | None = None) -> None:
    """Train and judge a recipe fold by fold, or what of it is not done yet.

    Args:
        arguments: the command line after `cross-validate`: options of this command, and those of `train`.
        program: how the command is called in help texts.
        app: whose recipes may be named.

    Raises:
        ValueError: the data is no table with folds, the output holds another cross-validation, or this is one of
            several processes.
    """
    own, rest = _parser(program).parse_known_args(arguments)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError(
            "`cross-validate` is one process, which starts those of training: give it `--launch torchrun`."
        )
    cli = cli_for(rest, program, app)
    output, table = Path(cli.config.output), cli.datamodule.train
    if not isinstance(table, str):
        raise ValueError("Cross-validation is of one table: data.train is one line of text.")
    folds = folds_of(table, own.column)
    if wrong := [fold for fold in own.folds or () if fold not in folds]:
        raise ValueError(f"{table} has no fold {wrong[0]!r} in its column {own.column!r}; it has {', '.join(folds)}.")
    _refuse_another(output, {"arguments": [each for each in rest if "output" not in each], "folds": folds})
    found: dict[str, dict[str, float]] = {}
    for fold in own.folds or folds:
        folder = output / f"fold_{fold}"
        if not (folder / RESULT).exists():
            say(f"Fold {fold}: trained on the others, judged on it.")
            others = [other for other in folds if other != fold]
            data = [
                f"--data.train={_part(table, own.column, others)}",
                f"--data.val={_part(table, own.column, [fold])}",
            ]
            model = _train([*rest, *data, f"--output={folder}"], own.launch, program, app)
            _judge(model, _part(table, own.column, [fold]), folder, own.batch_size)
        found[fold] = json.loads((folder / RESULT).read_text(encoding="utf-8"))["metrics"]
        say(
            f"Fold {fold}: "
            + ", ".join(f"{name} {value:.4f}" for name, value in found[fold].items() if value is not None)
        )
    _report(found, table, output)


def folds_of(table: str, column: str) -> list[str]:
    """The values of a table's column, in order.

    Raises:
        ValueError: it is no table, or has no such column, or less than two values.
    """
    source = open_source(table)
    if not isinstance(source, TableSource):
        raise ValueError(f"Folds are a column of a table, but {table} is none: see `collimate audio import-esc50`.")
    if column not in source.row(0):
        raise ValueError(f"{table} has no column {column!r}; it has {', '.join(source.row(0))}: name one by --column.")
    found = {str(source.row(index)[column]) for index in range(len(source))}
    if len(found) < 2:
        raise ValueError(
            f"{table} has the one fold {min(found)!r} in its column {column!r}: there must be two or more."
        )
    return sorted(found, key=lambda fold: (not fold.isdecimal(), int(fold) if fold.isdecimal() else 0, fold))


def _parser(program: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=program,
        description="Train a recipe once for each fold of a table, on the others, and judge it on the fold.",
        epilog="All other options are those of `train`: --config, --data.train <table>, --output, ...",
        allow_abbrev=False,
    )
    parser.add_argument("--column", default="fold", help="the table's column that says of which fold a row is")
    parser.add_argument("--folds", nargs="+", help="the folds to be judged; all if not given")
    parser.add_argument("--batch_size", type=int, default=64, help="clips that are judged at a time")
    parser.add_argument("--launch", help="what starts training on several devices: 'torchrun --nproc-per-node=8'")
    return parser


def _part(table: str, column: str, folds: Sequence[str]) -> str:
    """The rows of some folds."""
    return f"{table}{'&' if '?' in table else '?'}{column}=[{','.join(folds)}]"


def _train(arguments: list[str], launch: str | None, program: str, app: App | None) -> Path:
    """Train, in this process unless something else is to start it; the model's folder."""
    if launch is None:
        cli = cli_for(arguments, program, app)
        return fit(cli.trainer, cast(Method, cli.model), cli.datamodule)
    name = "audio" if app is None else app.name
    done = subprocess.run([*shlex.split(launch), "-m", "collimate", name, "train", *arguments])
    output = next(each.partition("=")[2] for each in reversed(arguments) if each.startswith("--output="))
    if done.returncode:
        raise RuntimeError(f"Training in {output} failed with status {done.returncode}; its messages stand above.")
    if not (Path(output) / "model").exists():  # it was asked to stop, and has said so
        raise SystemExit(0)
    return Path(output) / "model"


def _judge(model: Path, data: str, folder: Path, batch_size: int) -> None:
    classifier: Any = load(model)
    answers = answer(classifier, open_source(data), batch_size)
    answers.write(folder / "answers.csv")
    found = judge(answers, classifier, resamples=0)
    write_atomically(folder / RESULT, json.dumps(found.to_json(), indent=1).encode())


def _report(found: dict[str, dict[str, float]], table: str, output: Path) -> None:
    """Mean, spread and folds, on the terminal and as a report."""
    metrics: dict[str, float] = {}
    names = [name for name in next(iter(found.values())) if all(each[name] is not None for each in found.values())]
    for name in names:
        values = [each[name] for each in found.values()]
        metrics |= {
            name: fmean(values),
            f"{name}/deviation of folds": stdev(values) if len(values) > 1 else float("nan"),
        }
    result = Result("Cross-validation", metrics, {}, {"data": table, "folds": ", ".join(found)})
    result.details["folds"] = found
    report = Report("Cross-validation", table)
    result.add_to(report)
    rows = [[fold, *(f"{each[name]:.4f}" for name in names)] for fold, each in found.items()]
    report.add_table(["fold", *names], rows, "Each fold")
    page = report.save(output)
    get_console().print(result.table())
    say(f"Report: {page}\nJSON:   {page.with_suffix('.json')}")


def _refuse_another(output: Path, plan: dict[str, Any]) -> None:
    path = output / PLAN
    if path.exists() and json.loads(path.read_text(encoding="utf-8")) != plan:
        raise ValueError(
            f"{output} holds a cross-validation of other data or settings: choose another output, or remove {path} to "
            "go on there all the same."
        )
    write_atomically(path, json.dumps(plan, indent=1).encode())
