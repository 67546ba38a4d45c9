"""`plan`: what a recipe costs on a machine, before anything is rented."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningArgumentParser

from collimate.app import App
from collimate.console import say
from collimate.data import DataModule
from collimate.planning.counting import PROBES, StepCount, count_step
from collimate.planning.here import measure_this_machine
from collimate.planning.machines import HERE, MACHINES, Machine
from collimate.planning.prediction import Bound, Prediction, largest_batch, predict
from collimate.training import Method
from collimate.training.run import TrainCLI, cli_for

DRAWN = 32
"""Samples that are read, of which the longest are counted with."""


class PlanCLI(TrainCLI):
    """The recipe of `train`, and the machine that it is to run on. No trainer is made: its devices are not at hand."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        super().add_arguments_to_parser(parser)
        parser.add_argument("--machine", type=str, default=HERE, help=f"{HERE}, or one of {', '.join(MACHINES)}")
        parser.add_argument("--price", type=float, help="of a device's hour, in any currency")
        parser.add_argument("--stand_in", type=str, help="data to take the few samples from that are counted")

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        return cast(Trainer, None)


def plan(arguments: list[str], program: str, app: App | None = None) -> None:
    """Predict what a recipe's run takes on a machine, and write it to `<output>/plan.json`.

    Args:
        arguments: the command line after `plan`: as of `train`, with `--machine`, `--price` and `--stand_in`.
        program: how the command is called in help texts.
        app: whose recipes `--config` may name.

    Raises:
        ValueError: no machine has this name; names those that there are.
    """
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)  # no epochs are planned for
    cli = cast(PlanCLI, cli_for(arguments, program, app, PlanCLI))
    machine = named_machine(cli.config.machine)
    method, data = cast(Method, cli.model), cli.datamodule
    run = _Run(cli.config, data)
    if cli.config.stand_in:
        data.train = cli.config.stand_in
    if data.schedule is not None:
        say("data.schedule is left out: every step is planned with the shapes of the recipe's processors.")
    say(f"Counting steps of {', '.join(map(str, PROBES))} samples, on the CPU.")
    count = count_step(method, _batches(method, data), run.precision)
    how = {"ranks": run.ranks, "nodes": run.nodes, "precision": run.precision, "sharded": run.sharded}
    found = predict(count, machine, run.batch_size, chunk=run.chunk, **how)
    fits = largest_batch(count, machine, **how)
    table, record = _told(run, machine, count, found, fits, cli.config.price)
    _show(table, list(advice(run, machine, found, fits)))
    output = Path(cli.config.output)
    output.mkdir(parents=True, exist_ok=True)
    (output / "plan.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    say(f"JSON: {output / 'plan.json'}")


def named_machine(name: str) -> Machine:
    """The machine of this name; `here` is measured.

    Raises:
        ValueError: there is none.
    """
    if name == HERE:
        return measure_this_machine()
    if name not in MACHINES:
        raise ValueError(f"No machine is called {name!r}; there are {HERE}, {', '.join(MACHINES)}.")
    return MACHINES[name]


def advice(run: _Run, machine: Machine, found: Prediction, fits: int) -> Iterator[str]:
    """What would help, most first."""
    gpu = machine.name != HERE
    if found.memory > machine.memory:
        if not fits:
            yield "Weights alone do not fit: trainer.strategy=fsdp2 keeps them in parts, LoRA trains few of them."
        else:
            yield f"It does not fit: the callback GradientCache(chunk_size={max(1, fits // 2)}) keeps this batch."
    if gpu and run.precision is None:
        yield "trainer.precision=bf16-mixed: matrix products take half the time or less, activations half the memory."
    if gpu and found.bound == "calls":
        yield "Most time goes into starting kernels: CompileEncoders, or a larger batch."
    if gpu and found.bound == "memory bandwidth":
        yield "Element-wise kernels bound it: CompileEncoders fuses them."
    if found.bound == "communication":
        yield "The exchange of gradients bounds it: a larger batch on each device, or trainer.accumulate_grad_batches."
    if run.batch_size * 2 <= fits and run.chunk is None:
        yield f"A device takes up to {fits} samples at once (a power of two), without the gradient cache."


class _Run:
    """What the recipe says of the run's size."""

    def __init__(self, config: Any, data: DataModule) -> None:
        trainer = config.trainer
        self.devices = _number(trainer.devices)
        self.nodes = int(trainer.num_nodes or 1)
        self.ranks = self.devices * self.nodes
        self.batch_size = data.batch_size if data.global_batch_size is None else data.global_batch_size // self.ranks
        self.steps = int(trainer.max_steps)
        precision = str(trainer.precision or "")
        self.precision = torch.bfloat16 if "bf16" in precision else torch.float16 if "16" in precision else None
        self.sharded = "fsdp" in str(trainer.strategy)
        callbacks = [*(trainer.callbacks or [])]
        caches = [each for each in callbacks if "GradientCache" in str(each.get("class_path", ""))]
        self.chunk: int | None = caches[0]["init_args"]["chunk_size"] if caches else None


def _number(devices: Any) -> int:
    if isinstance(devices, list):
        return len(devices)
    return int(devices) if str(devices).lstrip("-").isdigit() and int(devices) > 0 else 1


def _batches(method: Method, data: DataModule) -> Callable[[int], dict[str, Any]]:
    """Batches of up to `DRAWN` samples, as training would have them; read in this process.

    The longest samples come first, so that every batch is trimmed to the length that large ones have.
    """
    data.num_workers, data.global_batch_size, data.schedule, data.sampling = 0, None, None, None
    data.batch_size = data.epoch_samples = DRAWN
    stand_in = SimpleNamespace(lightning_module=method, max_steps=1, accumulate_grad_batches=1)
    data.trainer = cast(Trainer, stand_in)
    try:
        drawn: dict[str, Any] = next(iter(data.train_dataloader()))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{error}\nA few samples are needed to count with: give any of the same kind with --stand_in, such as "
            "--stand_in 'world:train'."
        ) from error
    lengths = torch.zeros(DRAWN)
    for modality, processor in method.processors.items():
        if isinstance(value := drawn.get(modality), torch.Tensor) and (mask := processor.mask(value)) is not None:
            lengths += mask.reshape(DRAWN, -1).float().mean(1)
    order = lengths.argsort(descending=True).tolist()
    rows = {
        name: value[order] if isinstance(value, torch.Tensor) else [value[index] for index in order]
        for name, value in drawn.items()
    }
    return lambda size: {name: value[:size] for name, value in rows.items()}


def _told(
    run: _Run, machine: Machine, count: Callable[[int], StepCount], found: Prediction, fits: int, price: float | None
) -> tuple[list[tuple[str, str]], dict[str, Any]]:
    step = count(run.batch_size)
    samples = run.batch_size * run.ranks / found.seconds
    hours = run.steps * found.seconds / 3600 if run.steps > 0 else math.nan
    where = f"{run.ranks} x {machine.name}" + (f" on {run.nodes} nodes" if run.nodes > 1 else "")
    rows = [
        ("machine", where),
        ("batch", f"{run.batch_size} on each device, {run.batch_size * run.ranks} in all"),
        ("parameters", f"{step.parameters / 1e6:.1f} M, of which {step.trained / 1e6:.1f} M are trained"),
        ("arithmetic", f"{found.flops / run.batch_size / 1e9:.2f} GFLOP a sample, forward and backward"),
        (
            "memory",
            f"{_bytes(found.memory)} of {_bytes(machine.memory)}; weights and optimizer {_bytes(found.weights)}",
        ),
        ("largest batch", f"{fits} on each device"),
        ("step", f"{found.seconds:.3g} s: " + _shares(found.parts, found.seconds)),
        ("throughput", f"{samples:.0f} samples/s, which the loaders must read"),
        ("bound by", found.bound),
    ]
    if run.steps > 0:
        cost = "" if price is None else f"; {hours * run.ranks * price:.0f} at {price:g} an hour"
        rows.append((f"{run.steps} steps", f"{hours:.2f} hours, {hours * run.ranks:.2f} device hours{cost}"))
    record = {
        "machine": machine.name,
        "ranks": run.ranks,
        "batch_size": run.batch_size,
        "seconds": found.seconds,
        "parts": found.parts,
        "bound": found.bound,
        "memory": found.memory,
        "largest_batch": fits,
        "samples_per_second": samples,
        "flops_per_sample": found.flops / run.batch_size,
        "parameters": step.parameters,
        "trained": step.trained,
        "hours": None if math.isnan(hours) else hours,
        "device_hours": None if math.isnan(hours) else hours * run.ranks,
    }
    return rows, record


def _shares(parts: dict[Bound, float], whole: float) -> str:
    ordered = sorted(parts.items(), key=lambda part: -part[1])
    return ", ".join(f"{name} {100 * value / whole:.0f} %" for name, value in ordered if value > 0.005 * whole)


def _bytes(value: float) -> str:
    return f"{value / 2**30:.1f} GiB" if value >= 2**30 else f"{value / 2**20:.0f} MiB"


def _show(rows: list[tuple[str, str]], helps: list[str]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, show_header=False)
    for row in rows:
        table.add_row(*row)
    Console().print(table)
    for line in helps:
        say(f"- {line}")
