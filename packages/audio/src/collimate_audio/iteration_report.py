"""How the iterations of a plan compare: probes of encoders, codes of tokenizers, hidden labels that are told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from collimate.checkpoints import load
from collimate.console import say
from collimate.data import open_source
from collimate.data.files import write_atomically
from collimate_audio.code_quality import agreement, codes_of, masked_accuracy, usage_of
from collimate_audio.trained import trained_encoder, trained_tokenizer

if TYPE_CHECKING:
    from collimate.evaluation.report import Report
    from collimate_audio.iterate import Iterations, Plan

QUALITY = "quality.json"
QUANTITIES = {  # of the table -> where the number stands
    "linear probe": ("probe", "linear/acc1"),
    "nearest neighbours": ("probe", "knn/acc1"),
    "masked accuracy": ("masked", "accuracy"),
    "most frequent label": ("masked", "majority"),
    "perplexity": ("codes", "perplexity"),
    "codes used": ("codes", "used"),
    "mutual information": ("codes", "mutual_information"),
    "purity": ("codes", "purity"),
}


class Evaluation:
    """Clips with classes, by which iterations are compared.

    Args:
        train: what probes are fitted on.
        test: what they, the tokenizers and the masked prediction are judged by.
        limit: at most so many samples of each, spread over the data.
        batch_size: samples at a time.
        num_workers: processes that read and decode; 0 reads in this one.
        device: `auto` is the first GPU where there is one, else the CPU.
    """

    def __init__(
        self,
        train: str,
        test: str,
        limit: int | None = None,
        batch_size: int = 64,
        num_workers: int = 0,
        device: str = "auto",
    ) -> None:
        self.train, self.test = train, test
        self.options: dict[str, Any] = {
            "batch_size": batch_size,
            "num_workers": num_workers,
            "device": device,
            "limit": limit,
        }

    def config(self) -> dict[str, Any]:
        """What the numbers depend on."""
        return {"train": self.train, "test": self.test, "limit": self.options["limit"]}


def write_report(iterations: Iterations) -> None:
    """Compare what a plan has made, and write `report.html` and `report.json` into its folder."""
    from rich import get_console
    from rich.table import Table

    from collimate.evaluation.report import Report

    plan = iterations.plan
    report = Report("BEATs: iterations", str(plan.output))
    found = [] if plan.evaluation is None else [quality(plan, number) for number in range(1, plan.iterations + 1)]
    if found:
        columns, rows = comparison(found)
        add_comparison(report, plan, found, columns, rows)
        table = Table(*columns, title="Iterations", title_justify="left")
        for row in rows:
            table.add_row(*row)
        get_console().print(table)
    add_runs(report, plan)
    page = report.save(plan.output)
    say(f"Report: {page}\nJSON:   {page.with_suffix('.json')}")


def quality(plan: Plan, number: int) -> dict[str, Any]:
    """The numbers of one iteration; kept in its folder, so that they are taken once."""
    from collimate.evaluation.probes import evaluate_probe

    assert plan.evaluation is not None
    path, protocol = plan.folder(number, QUALITY), plan.evaluation.config()
    if path.exists() and (kept := json.loads(path.read_text(encoding="utf-8")))["protocol"] == protocol:
        return kept
    train, test = open_source(plan.evaluation.train), open_source(plan.evaluation.test)
    options = plan.evaluation.options
    encoder = trained_encoder(str(plan.folder(number, "encoder")))
    probe = evaluate_probe(encoder, train, test, "audio", random_encoder=number == 1, **options)
    tokenizer = trained_tokenizer(str(plan.folder(number, "tokenizer")))
    codes = codes_of(tokenizer, test, **options)
    method = load(plan.folder(number, "pretraining/model"))
    if method.tokenizer is None:  # its labels were on disk
        method.tokenizer, method.also = tokenizer, ()
    found = {
        "protocol": protocol,
        "probe": probe.metrics,
        "intervals": {name: list(interval) for name, interval in probe.intervals.items()},
        "codes": usage_of(codes.codes, tokenizer.codes)._asdict() | agreement(codes.codes, codes.labels)._asdict(),
        "masked": masked_accuracy(method, test, **options)._asdict(),
    }
    write_atomically(path, json.dumps(found, indent=1).encode())
    return found


def comparison(found: list[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """The columns and rows of a table: quantities, beside those of an encoder with random weights."""
    from collimate.evaluation.result import number

    columns = ["", "random weights", *(f"iteration {place}" for place in range(1, len(found) + 1))]
    rows = []
    for quantity, (group, name) in QUANTITIES.items():
        random = found[0][group].get(f"random/{name}")
        rows.append([quantity, number(random), *(number(each[group][name]) for each in found)])
    return columns, rows


def add_comparison(
    report: Report, plan: Plan, found: list[dict[str, Any]], columns: list[str], rows: list[list[str]]
) -> None:
    """A table, and a curve over iterations for each quantity."""
    from collimate.evaluation import figures

    assert plan.evaluation is not None
    report.add_heading("Iterations")
    report.add_table(columns, rows)
    report.add_text(
        "Masked accuracy is the share of hidden patches whose label is told; always naming the most frequent label "
        "gives the row below it. Labels differ between iterations, so these two do not compare across. "
        "Perplexity is the number of codes in use. Mutual information (normalised) and purity are between the codes of "
        "patches and the classes of their clips."
    )
    report.add_facts(plan.evaluation.config())
    series = {
        quantity: [(float(place), float(each[group][name])) for place, each in enumerate(found, 1)]
        for quantity, (group, name) in QUANTITIES.items()
    }
    report.add_figure(figures.curves(series, "iteration"))
    report.record("Iterations", found)


def add_runs(report: Report, plan: Plan) -> None:
    """The training curves of all runs."""
    from collimate.evaluation.after_training import add_training_curves

    for number in range(1, plan.iterations + 1):
        for name in ("fine_tuning", "distillation", "pretraining"):
            folder: Path = plan.folder(number, name)
            if folder.is_dir():
                add_training_curves(report, folder, f"Iteration {number}: {name.replace('_', '-')}")
