"""The verb `schedule` of some apps: what a `BatchSchedule` makes of a run, before it is started."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from collimate.data.plan import BatchPlan, BatchSchedule, Leg

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def schedule(
    schedule: BatchSchedule,
    samples: int,
    batch_size: int,
    ranks: int = 1,
    max_steps: int | None = None,
    output: str = "runs/schedule",
) -> None:
    """Show a schedule of batches: a table, and in the output folder schedule.json and schedule.png.

    Args:
        schedule: as `data.schedule` in a recipe: `--schedule MultigridSchedule --schedule.frames 32 ...`
        samples: of an epoch.
        batch_size: samples of each rank in a batch of the full shape.
        ranks: how many share the batches.
        max_steps: of the run, for schedules that count in shares of it.
        output: the folder to write.
    """
    import json

    from rich.console import Console
    from rich.table import Table

    plan = schedule.plan(samples, batch_size, ranks, max_steps)
    rows = list(legs(plan))
    columns = [name for name in rows[0] if len(rows) == 1 or any(row[name] != rows[0][name] for row in rows)]
    table = Table(*columns, title=f"{type(schedule).__name__}: {plan.steps:,} steps")
    for row in rows:
        table.add_row(*(_shown(row[name]) for name in columns))
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    found = {"schedule": schedule.config(), "ranks": ranks, "steps": plan.steps, "legs": rows}
    (folder / "schedule.json").write_text(json.dumps(found, indent=1) + "\n")
    plot(plan).savefig(folder / "schedule.png", dpi=150)
    console = Console()
    console.print(table)
    console.print(f"Written to {folder}: schedule.json, schedule.png")


def legs(plan: BatchPlan) -> Iterator[dict[str, Any]]:
    """What each leg of a plan is, as plain data; of lists, an item for each batch of a cycle."""
    first = 0
    for leg in plan.legs:
        steps = leg.steps * leg.rounds
        yield {
            "first step": first,
            "steps": steps,
            "epochs": leg.rounds,
            "samples": [plan.ranks * slot.size for slot in leg.slots],
            **{name: [values[name] for values in _values(leg)] for name in _values(leg)[0]},
            "learning rate": [plan.lr_factor(first), plan.lr_factor(first + steps - 1)],
        }
        first += steps


def plot(plan: BatchPlan) -> Figure:
    """Batch size, shape and learning rate over the steps of a plan; of short cycles, the last batch."""
    from collimate.evaluation.figures import curves

    series: dict[str, list[tuple[float, float]]] = {}
    for row in legs(plan):
        ends = (row["first step"], row["first step"] + row["steps"])
        for name in row.keys() - {"first step", "steps", "epochs", "learning rate"}:
            series.setdefault(name, []).extend((float(end), float(row[name][-1])) for end in ends)
    stride = max(1, plan.steps // 1000)
    series = {name: series[name] for name in sorted(series)}
    series["learning rate, times"] = [(step, plan.lr_factor(step)) for step in range(0, plan.steps, stride)]
    return curves(series)


def _values(leg: Leg) -> list[dict[str, Any]]:
    """The numbers of each slot's shape, by name."""
    found = []
    for slot in leg.slots:
        values: dict[str, Any] = {}
        for modality, shape in slot.shape:
            named = asdict(shape) if is_dataclass(shape) and not isinstance(shape, type) else {"": shape}
            values |= {f"{modality} {name}".strip(): value for name, value in named.items()}
        found.append(values)
    return found


def _shown(value: Any) -> str:
    """A number, or those of a list, which are given once where they are all equal."""
    if isinstance(value, list):
        return ", ".join(_shown(each) for each in (value if len(set(value)) > 1 else value[:1]))
    return f"{value:.4g}" if isinstance(value, float) else f"{value:,}"
