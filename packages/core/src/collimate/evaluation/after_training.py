"""What a recipe's `evaluation` section names: the model is evaluated as soon as it is trained, in one report."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable
from importlib import import_module
from os import PathLike
from pathlib import Path
from typing import Any

from rich import get_console
from rich.table import Table

from collimate import distributed
from collimate.configurable import Configurable
from collimate.console import say
from collimate.data import Source, open_source
from collimate.evaluation.report import Report
from collimate.evaluation.result import Result, number

COMPARED = ("zero_shot", "retrieval")  # what any model with a joint space can be asked for

NOT_DRAWN = ("step", "epoch", "lr", "data_wait", "negatives")
"""The quantities of the step log that reports leave out: they are settings, or mere housekeeping."""

_NEEDED = {
    "probe": {"train", "test"},
    "between": {"data", "modality", "against"},
    "further": {"data", "function"},
}


class AfterTraining(Configurable):
    """Evaluations of a trained model.

    Each maps a name, which the report shows, to the arguments of the function: `data`, `classes`, `templates`, ...

    Args:
        zero_shot: name -> arguments of `evaluate_zero_shot`.
        retrieval: name -> arguments of `evaluate_retrieval`.
        probe: name -> arguments of `evaluate_probe`; `train` and `test` instead of `data`.
        localize: name -> arguments of `evaluate_localization`.
        compositional: name -> arguments of `evaluate_compositional`.
        regions: name -> arguments of `evaluate_regions`.
        beside: name -> checkpoint of another model, whose zero-shot classification and retrieval of the same data stand
            beside this one's, such as the mean over frames of an image-text model.
        between: name -> arguments of `evaluate_retrieval_between`: `modality` and `against`, neither of them text.
        further: name -> `function`, the import path of an evaluation that a package has of its own, and its arguments:
            `collimate_medical.evaluate_findings`. It takes the method first and gives a `Result`.
    """

    def __init__(
        self,
        zero_shot: dict[str, dict[str, Any]] | None = None,
        retrieval: dict[str, dict[str, Any]] | None = None,
        probe: dict[str, dict[str, Any]] | None = None,
        localize: dict[str, dict[str, Any]] | None = None,
        compositional: dict[str, dict[str, Any]] | None = None,
        regions: dict[str, dict[str, Any]] | None = None,
        beside: dict[str, str] | None = None,
        between: dict[str, dict[str, Any]] | None = None,
        further: dict[str, dict[str, Any]] | None = None,
    ) -> None:
        self.beside = beside or {}
        self.wanted = {
            "zero_shot": zero_shot or {},
            "retrieval": retrieval or {},
            "probe": probe or {},
            "localize": localize or {},
            "compositional": compositional or {},
            "regions": regions or {},
            "between": between or {},
            "further": further or {},
        }
        for kind, evaluations in self.wanted.items():
            needed = _NEEDED.get(kind, {"data"})
            for name, arguments in evaluations.items():
                if missing := needed - arguments.keys():
                    raise ValueError(f"evaluation.{kind}.{name} lacks {', '.join(sorted(missing))}.")

    def check(self) -> None:
        """Open all data once, before a training whose end would find it missing.

        Raises:
            ValueError: what is asked for cannot be opened; names the evaluation.
        """
        for kind, evaluations in self.wanted.items():
            for name, given in evaluations.items():
                try:
                    _sources(given)
                except (ValueError, OSError, ImportError) as error:
                    raise ValueError(f"evaluation.{kind}.{name}: {error}") from error

    def run(self, model_folder: str | PathLike[str], output: str | PathLike[str]) -> dict[str, Result]:
        """Evaluate a model folder; write `<output>/report.html` and `report.json`, and print the numbers.

        All ranks must call it: they share the encoding. The first one writes and prints.

        Args:
            model_folder: what `collimate.load` reads.
            output: the folder of the run; the step log below it is drawn too.

        Returns:
            name -> what was found.
        """
        import collimate
        from collimate.evaluation.by_region import evaluate_regions
        from collimate.evaluation.compositional import evaluate_compositional
        from collimate.evaluation.localization import evaluate_localization
        from collimate.evaluation.probes import evaluate_probe
        from collimate.evaluation.retrieval import evaluate_retrieval, evaluate_retrieval_between
        from collimate.evaluation.zero_shot import evaluate_zero_shot

        functions: dict[str, Callable[..., Result]] = {
            "zero_shot": evaluate_zero_shot,
            "retrieval": evaluate_retrieval,
            "probe": evaluate_probe,
            "localize": evaluate_localization,
            "compositional": evaluate_compositional,
            "regions": evaluate_regions,
            "between": evaluate_retrieval_between,
            "further": evaluate_further,
        }
        model = collimate.load(model_folder)
        others = {name: collimate.load(checkpoint) for name, checkpoint in self.beside.items()}
        report = Report(f"{type(model).__name__}: training and evaluation", str(output))
        add_training_curves(report, Path(output))
        results: dict[str, Result] = {}
        for kind, evaluations in self.wanted.items():
            for name, given in evaluations.items():
                sources = _sources(given)
                found = functions[kind](model, **{**given, **sources})
                found.title = f"{found.title}: {name}"
                found.add_to(report)
                if distributed.rank() == 0:
                    get_console().print(found.table())
                results[name] = found
                if kind in COMPARED and others:
                    arguments = {**given, **sources}
                    arguments.pop("rerank", None)  # other models have other heads, or none
                    compared = {other: functions[kind](loaded, **arguments) for other, loaded in others.items()}
                    add_comparison(report, found, compared)
        if distributed.rank() == 0:
            page = report.save(Path(output))
            say(f"Report: {page}\nJSON:   {page.with_suffix('.json')}")
        return results


def _sources(given: dict[str, Any]) -> dict[str, Source]:
    named = {key: given[key] for key in ("data", "train", "test") if key in given}
    for key, name in named.items():
        if isinstance(name, dict):
            raise ValueError(
                f"{key} is the mapping {name}, where a name of data is expected. A text with a colon and a space in it "
                'was taken for one: write {"txt":"label"} and not {txt: label}.'
            )
    return {key: open_source(name) for key, name in named.items()}


def add_comparison(report: Report, found: Result, others: dict[str, Result]) -> None:
    """A table of a model's numbers beside those of other models on the same data; printed too."""
    title = f"{found.title}, beside other models"
    rows = [
        [name, number(value), *(number(other.metrics.get(name)) for other in others.values())]
        for name, value in found.metrics.items()
    ]
    columns = ["metric", "this model", *others]
    report.add_table(columns, rows, title)
    report.record(title, {name: other.to_json() for name, other in others.items()})
    if distributed.rank() == 0:
        table = Table(*columns, title=title, title_justify="left")
        for row in rows:
            table.add_row(*row)
        get_console().print(table)


def evaluate_further(model: Any, function: str, **arguments: Any) -> Result:
    """What a package's own evaluation finds.

    Args:
        model: what is evaluated.
        function: its import path.
        arguments: of the function.

    Raises:
        ValueError: there is no such function.
    """
    module, _, name = function.rpartition(".")
    try:
        found = getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"There is no evaluation {function!r}, as package.function: {error}") from None
    return found(model, **arguments)


def add_training_curves(report: Report, output: Path, title: str = "Training") -> None:
    """Draw the step log of a run, all its versions (a resumed run has several) as one."""
    from collimate.evaluation import figures

    logs = sorted((output / "logs").glob("version_*/metrics.csv"), key=lambda path: int(path.parent.name[8:]))
    points: dict[str, dict[float, float]] = {}
    for log in logs:
        with log.open(newline="") as file:
            for row in csv.DictReader(file):
                for name, value in row.items():
                    if name not in NOT_DRAWN and value and math.isfinite(float(value)):
                        points.setdefault(name, {})[float(row["step"])] = float(value)
    if points:
        report.add_heading(title)
        report.add_figure(figures.curves({name: sorted(points[name].items()) for name in sorted(points)}))
        report.record(title, {name: sorted(curve.items()) for name, curve in points.items()})
