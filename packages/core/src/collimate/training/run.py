"""`train`: LightningCLI over a recipe, with what every run needs added to it.

A recipe is a YAML file with the sections `model` (a Method), `data` (the DataModule's arguments),
`optimization`, `trainer` (Lightning's Trainer), `checkpoint`, `evaluation` (what to evaluate afterwards), and the keys
`output`, `resume` and `seed_everything`. Any of them can be overridden on the command line: `--optimization.lr 1e-3`.
"""

from __future__ import annotations

import logging
import os
import warnings
from pathlib import Path
from typing import Any, cast

import torch
import yaml
from jsonargparse import ActionConfigFile  # pyright: ignore[reportPrivateImportUsage]
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.callbacks import Callback, ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from collimate.app import App
from collimate.arguments import plain, suggestion
from collimate.console import say
from collimate.data import DataModule
from collimate.evaluation import AfterTraining
from collimate.training.callbacks import (
    GracefulStop,
    NonFiniteGuard,
    RunCheckpoint,
    StepLog,
    StepProgress,
    newest_checkpoint,
)
from collimate.training.method import Method
from collimate.training.optimization import Optimization
from collimate.training.sharding import unsharded


class _Parser(LightningArgumentParser):
    def error(self, message: str, ex: Exception | None = None) -> Any:
        return super().error(plain(message) + suggestion(message, self), ex)


class _SaveConfig(SaveConfigCallback):
    """Writes the resolved recipe into the run's folder, before training starts."""

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        folder = Path(trainer.default_root_dir)
        folder.mkdir(parents=True, exist_ok=True)
        self.parser.save(self.config, folder / "config.yaml", skip_none=False, overwrite=True, multifile=False)


class TrainCLI(LightningCLI):
    """LightningCLI with Collimate's sections and defaults."""

    config: Any  # namespaces, whose sections jsonargparse cannot type
    config_init: Any

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        parser = _Parser(usage="%(prog)s [--config RECIPE] [--key value ...]", allow_abbrev=False, **kwargs)
        parser.add_argument("-c", "--config", action=ActionConfigFile, help="a recipe: its name, or a YAML file")
        return parser

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--output", type=str, default="runs/train", help="the folder of all that the run writes")
        parser.add_argument(
            "--resume",
            type=str,
            default="auto",
            help="`auto` goes on from the newest whole checkpoint in the output folder; `never` starts anew; "
            "or the path of a checkpoint",
        )
        parser.add_class_arguments(Optimization, "optimization")
        parser.add_class_arguments(RunCheckpoint, "checkpoint")
        parser.add_class_arguments(AfterTraining, "evaluation")
        for action in parser._actions:
            if action.dest in ("data.train", "data.val"):  # a table's name, in the place of which a file would be read
                cast(Any, action)._enable_path = False
        parser.link_arguments("output", "checkpoint.output")
        parser.link_arguments("output", "trainer.default_root_dir")
        parser.set_defaults(
            {
                "checkpoint.every_steps": 1000,
                "trainer.num_sanity_val_steps": 0,
                "trainer.use_distributed_sampler": False,  # the loaders know their ranks
                "trainer.enable_model_summary": False,
            }
        )

    def instantiate_classes(self) -> None:
        super().instantiate_classes()
        cast(Method, self.model).optimization = self.config_init.optimization

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        settings = self._get(self.config_init, "trainer", default={})
        output = self.config_init.output
        given = list(settings.get("callbacks") or [])
        standard: list[Callback] = [NonFiniteGuard(), self.config_init.checkpoint, StepLog(), GracefulStop()]
        wanted = settings.get("enable_progress_bar") is not False
        if wanted and not any(isinstance(callback, ProgressBar) for callback in given):
            standard.append(StepProgress())
        kinds = {type(callback) for callback in given}
        kwargs["callbacks"] = [callback for callback in standard if type(callback) not in kinds] + given
        if settings.get("logger") in (None, True):
            log = CSVLogger(output, name="logs", flush_logs_every_n_steps=1)
            kwargs["logger"] = [log, TensorBoardLogger(output, name="logs", version=f"version_{log.version}")]
        try:
            return super().instantiate_trainer(**kwargs)
        except MisconfigurationException as error:
            if "max_" in str(error):  # how long, not on what
                raise ValueError(f"trainer: {error}") from error
            asked = ", ".join(f"trainer.{name}={settings.get(name)}" for name in ("accelerator", "devices", "strategy"))
            raise ValueError(
                f"This machine cannot run {asked}: {error} Ask for what `collimate doctor` finds here, such as "
                "--trainer.accelerator cpu."
            ) from error


def train(arguments: list[str], program: str, app: App | None = None) -> None:
    """Train a recipe; without a configuration, the app's embedded demo.

    Args:
        arguments: the command line after `train`.
        program: how the command is called in help texts.
        app: whose recipes `--config` may name.
    """
    cli = cli_for(arguments, program, app)
    cli.config_init.evaluation.check()
    folder = fit(cli.trainer, cast(Method, cli.model), cli.datamodule, cli.config.resume)
    cli.config_init.evaluation.run(folder, cli.config.output)


def cli_for(arguments: list[str], program: str, app: App | None = None, kind: type[TrainCLI] = TrainCLI) -> TrainCLI:
    """Everything that a command line describes, built but not run: `.trainer`, `.model`, `.datamodule`, `.config`."""
    _hush()
    return kind(
        model_class=Method,
        datamodule_class=DataModule,
        subclass_mode_model=True,
        save_config_callback=_SaveConfig,
        save_config_kwargs={"overwrite": True},  # a run that goes on writes it again
        parser_kwargs={"prog": program, "description": "Train a recipe."},
        seed_everything_default=0,
        auto_configure_optimizers=False,
        run=False,
        args=with_recipe(arguments, app),
    )


def fit(trainer: Trainer, method: Method, data: DataModule, resume: str = "auto") -> Path:
    """Train, going on from a checkpoint where there is one, and leave a model folder.

    Returns:
        The folder `<output>/model`, for `collimate.load` and the evaluation commands.

    Raises:
        FileNotFoundError: `resume` names a checkpoint that does not exist.
    """
    from collimate.checkpoints import save

    output = Path(trainer.default_root_dir)
    checkpoint = _checkpoint(output, resume)
    if trainer.is_global_zero:
        say(f"Going on from {checkpoint}." if checkpoint else f"All that this run writes lies in {output}/.")
    if isinstance(trainer.accelerator, CPUAccelerator):
        _leave_cores(data.num_workers, trainer.num_devices)
    trainer.fit(method, data, ckpt_path=checkpoint, weights_only=True)
    folder = output / "model"
    whole = cast(Method, unsharded(method))
    if trainer.is_global_zero:
        save(whole, folder)
        say(f"Model: {folder}\nLogs:  {output / 'logs'} (CSV, and TensorBoard)")
    trainer.strategy.barrier()
    return folder


def _leave_cores(num_workers: int, ranks: int) -> None:
    """On the CPU, leave a core to each loading worker: threads that wait for one another are slow where cores lack."""
    if "OMP_NUM_THREADS" not in os.environ:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        torch.set_num_threads(max(1, cores // ranks - num_workers))


def _checkpoint(output: Path, resume: str) -> Path | None:
    if resume == "never":
        return None
    if resume == "auto":
        return newest_checkpoint(output)
    if not Path(resume).exists():
        raise FileNotFoundError(f"There is no checkpoint {resume!r}; `--resume auto` looks in {output}/checkpoints.")
    return Path(resume)


def _hush() -> None:
    """Silence what Lightning says of itself and of our own doing; its other messages stay."""
    for message in (
        "LightningCLI's args parameter",
        ".*treespec, LeafSpec.*",
        "Total length of `list` across ranks is zero",
        "The number of training batches .* is smaller than the logging interval",  # epochs are virtual
        "You defined a `validation_step` but have no `val_dataloader`",
        "Found .* in eval mode at the start of training",  # frozen parts are to be
        "Checkpoint directory .* exists and is not empty",
        ".*WeightAveraging callback with a model that overrides the configure_model",
    ):
        warnings.filterwarnings("ignore", message=message)
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.pytorch.trainer.connectors", "lightning.fabric"):
        logging.getLogger(name).addFilter(
            lambda record: (
                not any(word in record.getMessage() for word in ("litlogger", "GPU available", "TPU available"))
            )
        )


def with_recipe(arguments: list[str], app: App | None, demo: str | None = None) -> list[str]:
    """Names of recipes become files; no configuration at all becomes the demo, the app's unless another is given."""
    arguments = list(arguments)
    if app is None:
        return arguments
    asks = {"--config", "-c", "--help", "-h", "--model"}
    if not any(argument.split("=")[0] in asks for argument in arguments):
        return [f"--config={app.recipe(demo or app.demo)}", *arguments]
    for index, argument in enumerate(arguments):
        if argument.startswith("--config="):
            arguments[index] = f"--config={_parsed(app.recipe(argument.partition('=')[2]))}"
        elif argument in ("--config", "-c") and index + 1 < len(arguments):
            arguments[index + 1] = str(_parsed(app.recipe(arguments[index + 1])))
    return arguments


def _parsed(recipe: Path) -> Path:
    """The recipe, if it is YAML: the parser's own message would not name the file."""
    try:
        yaml.safe_load(recipe.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{recipe}: expected YAML. {error}\nMend that line.") from None
    return recipe
