"""What `collimate plan` predicts for this machine, beside measured steps of the same recipes.

    uv run python -m tools.bench.plan

The machine is measured first. Then the steps of each recipe (forward, losses, backward, optimizer; the batch is at hand
already) are timed, and predicted from steps of 2 to 8 samples.
"""

from __future__ import annotations

import statistics
import time

from collimate.app import installed_apps
from collimate.planning import count_step, measure_this_machine, predict
from collimate.planning.command import PlanCLI, _batches
from collimate.training.run import cli_for
from tools.bench._harness import report

RECIPES = (("vision-language", "clip_demo"), ("vision-language", "tcl_demo"), ("audio", "clap_demo"))
BATCH = 32
TURNS = 7


def main() -> None:
    machine = measure_this_machine(0.3)
    rows = [row(app, recipe, machine) for app, recipe in RECIPES]
    rows.append(row("vision-language", "clip_vit_b32", machine, "--data.train=world:train"))
    report("plan", rows, batch_size=BATCH, turns=TURNS)


def row(app: str, recipe: str, machine, *overrides: str) -> dict[str, object]:
    arguments = [f"--config={recipe}", "--trainer.precision=32-true", *overrides]
    cli = cli_for(arguments, "plan", installed_apps()[app], PlanCLI)
    method, batches = cli.model, _batches(cli.model, cli.datamodule)
    count = count_step(method, batches)
    predicted = predict(count, machine, BATCH)
    optimizer, rows = method.optimization.optimizer(method), batches(BATCH)

    def step() -> None:
        optimizer.zero_grad()
        method.training_step(rows, 0)["loss"].backward()
        optimizer.step()

    step()
    seconds = []
    for _ in range(TURNS):
        begun = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - begun)
    measured = statistics.median(seconds)
    return {
        "recipe": recipe,
        "measured_seconds": round(measured, 4),
        "predicted_seconds": round(predicted.seconds, 4),
        "ratio": round(predicted.seconds / measured, 3),
        "bound": predicted.bound,
    }


if __name__ == "__main__":
    main()
