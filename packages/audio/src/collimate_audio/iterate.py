"""BEATs' iterations as one command: encoders and tokenizers that teach each other in turns.

Chen et al. 2023, BEATs, arXiv 2212.09058, section 3.1 and figure 1. The first encoder learns the labels of a random
tokenizer. Then, in each further iteration, a tokenizer is distilled from the encoder before, and the next encoder
learns its labels, from the start. The teacher may be fine-tuned on classes first: the paper's iter3+.

A plan names a recipe of `train` for each kind of stage. Its folder holds, for each iteration,

    iteration2/fine_tuning/    the run of the teacher, where it is fine-tuned
    iteration2/distillation/   the run of the tokenizer
    iteration2/tokenizer/      the tokenizer alone, for `trained_tokenizer`
    iteration2/labels/         its labels of the training data, where they are wanted on disk
    iteration2/pretraining/    the run of the encoder
    iteration2/encoder/        the encoder alone, for `BEATs.from_pretrained`

What is there stays: started again after any interruption, the command goes on, within a stage from its last checkpoint.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import yaml
from jsonargparse import ActionConfigFile  # type: ignore[attr-defined]

from collimate.app import App
from collimate.arguments import Parser
from collimate.configurable import build
from collimate.console import say
from collimate.data.files import write_atomically
from collimate.training.method import Method
from collimate.training.run import cli_for, fit, with_recipe
from collimate_audio.iteration_report import Evaluation, write_report
from collimate_audio.labels import write_labels
from collimate_audio.tokenizers import AcousticTokenizer
from collimate_audio.trained import trained_encoder, trained_head, trained_tokenizer

SECTIONS = ("encoder", "tokenizer", "fine_tuning")
"""The recipes of a plan; `--encoder.trainer.max_steps 100` overrides what the recipe says."""

MACHINE = ("accelerator", "devices", "num_nodes", "strategy")
"""What a plan may say of the trainer of all stages: nothing that changes what is trained."""

DEMO = "beats_iterate_demo"
PLAN = "plan.json"
Recipe = dict[str, Any]


class Plan:
    """What `collimate audio iterate` does.

    Args:
        output: the folder of all that it writes.
        iterations: how many; a finished plan goes on when there are more.
        encoder: the recipe of pre-training, by its name, its file, or its sections themselves. Its tokenizer is that of
            the first iteration.
        tokenizer: the recipe of distillation; its teacher is set in each iteration.
        fine_tuning: the recipe that fine-tunes a teacher, with `AudioClassifier`; what it is `pretrained` by is set in
            each iteration.
        fine_tune: in which iterations the teacher is fine-tuned before the tokenizer is distilled.
        target: what a tokenizer is taught by a fine-tuned teacher: its `logits`, as in the paper, or its `features`.
        labels: made in `training`, of what the encoder sees; or once, on `disk`, for training data of one source and
            without augmentation.
        trainer: where all stages are trained, over what their recipes say: `{devices: 8, strategy: ddp}`; any of
            `MACHINE`. On several devices each stage is a process of its own, which starts those of the other devices.
        launch: what starts training instead, as a list of words: `[torchrun, --nproc-per-node=8]`, or a cluster's own.
        evaluation: data with classes, by which iterations are compared; see `Evaluation`.

    Raises:
        ValueError: the plan contradicts itself.
    """

    def __init__(
        self,
        output: str = "runs/beats_iterate",
        iterations: int = 2,
        encoder: str | dict[str, Any] = "beats_iter1",
        tokenizer: str | dict[str, Any] = "beats_tokenizer",
        fine_tuning: str | dict[str, Any] | None = None,
        fine_tune: list[int] | None = None,
        target: Literal["logits", "features"] = "logits",
        labels: Literal["training", "disk"] = "training",
        trainer: dict[str, Any] | None = None,
        launch: list[str] | None = None,
        evaluation: dict[str, Any] | None = None,
    ) -> None:
        if iterations < 1:
            raise ValueError(f"iterations is at least 1; got {iterations}.")
        if wrong := sorted(set(trainer or {}) - set(MACHINE)):
            raise ValueError(
                f"trainer.{wrong[0]} is a recipe's to say: --encoder.trainer.{wrong[0]}. A plan's trainer has "
                f"{', '.join(MACHINE)}."
            )
        self.fine_tune = sorted(fine_tune or [])
        if self.fine_tune and fine_tuning is None:
            raise ValueError(
                "fine_tune names iterations whose teacher is fine-tuned: say by which recipe, fine_tuning."
            )
        if wrong := [number for number in self.fine_tune if not 2 <= number <= iterations]:
            raise ValueError(
                f"fine_tune names iterations from 2 to {iterations}, which have a teacher; not {wrong[0]}."
            )
        self.output, self.iterations = Path(output), iterations
        self.recipes: dict[str, str | Recipe | None] = {
            "encoder": encoder,
            "tokenizer": tokenizer,
            "fine_tuning": fine_tuning,
        }
        self.target, self.labels, self.launch = target, labels, launch
        self.trainer: Recipe = trainer or {}
        self.evaluation = Evaluation(**evaluation) if evaluation else None

    def folder(self, iteration: int, name: str) -> Path:
        """Where something of an iteration lies."""
        return self.output / f"iteration{iteration}" / name


@dataclass(frozen=True)
class Stage:
    """One step of a plan.

    Attributes:
        iteration: from 1.
        name: what it makes.
        section: whose recipe it trains; None where nothing is trained.
        product: the folder that is there once it is done.
        run: does it.
    """

    iteration: int
    name: str
    section: str | None
    product: Path
    run: Callable[[], None]

    @property
    def done(self) -> bool:
        return (self.product / "config.json").exists()  # folders of models appear whole


def iterate(arguments: list[str], program: str, app: App | None = None) -> None:
    """Run a plan, or what of it is not done yet, and report how its iterations compare.

    Args:
        arguments: the command line after `iterate`.
        program: how the command is called in help texts.
        app: whose recipes may be named.

    Raises:
        ValueError: the folder holds another plan, or this is one of several processes.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError("`iterate` is one process, which starts those of training: give it `launch: [torchrun, ...]`.")
    own, overrides = split_overrides(arguments)
    parser = Parser(prog=program, description="Pre-train encoders and tokenizers in turns.", allow_abbrev=False)
    parser.add_argument("-c", "--config", action=ActionConfigFile, help="a plan: its name, or a YAML file")
    parser.add_class_arguments(Plan, as_group=False)
    given = parser.parse_args(with_recipe(own, app, DEMO)).as_dict()
    given.pop("config", None)
    Iterations(Plan(**given), overrides, app).run()


def split_overrides(arguments: list[str]) -> tuple[list[str], dict[str, list[str]]]:
    """A command line without the overrides of recipes; and these, as `train` takes them."""
    own: list[str] = []
    overrides: dict[str, list[str]] = {section: [] for section in SECTIONS}
    rest = iter(arguments)
    for argument in rest:
        section, dot, key = argument.removeprefix("--").partition(".")
        if argument.startswith("--") and dot and section in SECTIONS:
            overrides[section].append(f"--{key}" if "=" in key else f"--{key}={next(rest, '')}")
        else:
            own.append(argument)
    return own, overrides


class Iterations:
    """A plan under way.

    Args:
        plan: what to do.
        overrides: section -> further arguments of `train`.
        app: whose recipes may be named.
    """

    def __init__(self, plan: Plan, overrides: dict[str, list[str]], app: App | None = None) -> None:
        self.plan, self.overrides, self.app = plan, overrides, app
        self.recipes = {name: self._recipe(given) for name, given in plan.recipes.items() if given is not None}

    def run(self) -> None:
        """Do what is not done yet."""
        self._refuse_another_plan()
        stages, began = list(self.stages()), time.monotonic()
        for number, stage in enumerate(stages, 1):
            title = f"Stage {number} of {len(stages)}: the {stage.name} of iteration {stage.iteration}"
            if stage.done:
                say(f"{title} is there: {stage.product}")
                continue
            say(f"{title}. {self._steps_behind(stages[: number - 1])}")
            self._guarded(stage.run, title)
            say(f"{stage.product} after {time.monotonic() - began:.0f} s.")
        self._guarded(lambda: write_report(self), "The comparison")

    def stages(self) -> Iterator[Stage]:
        """All of the plan, in order."""
        for number in range(1, self.plan.iterations + 1):
            if number in self.plan.fine_tune:
                yield self._stage(number, "fine-tuned teacher", "fine_tuning", "fine_tuning/model", self._fine_tune)
            section = "tokenizer" if number > 1 else None
            yield self._stage(number, "tokenizer", section, "tokenizer", self._distil if section else self._begin)
            yield self._stage(number, "encoder", "encoder", "encoder", self._pretrain)

    # Stages -----------------------------------------------------------------------------------------------------

    def _begin(self, number: int) -> None:
        """The first iteration's tokenizer, as the encoder's recipe has it."""
        parts = self.recipes["encoder"]["model"]["init_args"]
        if not parts.get("tokenizer"):
            raise ValueError("The encoder's recipe has no tokenizer, with which the first iteration could begin.")
        if parts["tokenizer"]["class_path"].endswith(trained_tokenizer.__name__):
            tokenizer: AcousticTokenizer = trained_tokenizer(**parts["tokenizer"]["init_args"])
        else:
            tokenizer = build(parts["tokenizer"])
        tokenizer.save_pretrained(self.plan.folder(number, "tokenizer"), build(parts["processor"]))

    def _fine_tune(self, number: int) -> None:
        teacher = {"pretrained": str(self.plan.folder(number - 1, "encoder"))}
        self._train(number, "fine_tuning", "fine_tuning", teacher)

    def _distil(self, number: int) -> None:
        folder, parts = self.plan.folder(number, "fine_tuning/model"), {}
        if number not in self.plan.fine_tune:
            parts = {"teacher": self._encoder(number - 1)}
        else:
            parts = {"teacher": _part(trained_encoder, folder)}
            if self.plan.target == "logits":
                estimator = self.recipes["tokenizer"]["model"]["init_args"]["estimator"]
                sizes = {
                    **estimator.get("init_args", {}),
                    "target_width": trained_head(str(folder)).predictor.out_features,
                }
                parts |= {"head": _part(trained_head, folder), "estimator": {**estimator, "init_args": sizes}}
        model = self._train(number, "tokenizer", "distillation", parts)
        trained_tokenizer(str(model)).save_pretrained(self.plan.folder(number, "tokenizer"))

    def _pretrain(self, number: int) -> None:
        tokenizer = self.plan.folder(number, "tokenizer")
        further: list[str] = []
        parts: Recipe = {"tokenizer": _part(trained_tokenizer, tokenizer)}
        if self.plan.labels == "disk":
            parts, further = {"tokenizer": None}, [f"--data.train=labels:{self._labels(number, tokenizer)}"]
        model = self._train(number, "encoder", "pretraining", parts, further)
        trained_encoder(str(model)).save_pretrained(self.plan.folder(number, "encoder"))

    def _labels(self, number: int, tokenizer: Path) -> Path:
        source = self._setting("encoder", "data", "train")
        if not isinstance(source, str):
            raise ValueError("Labels on disk are of one source: data.train is one line of text, or labels: training.")
        wanted = {name: self._setting("encoder", "data", name) for name in ("batch_size", "num_workers")}
        options: dict[str, Any] = {name: int(value) for name, value in wanted.items() if value is not None}
        folder = self.plan.folder(number, "labels")
        return write_labels(trained_tokenizer(str(tokenizer)), source, folder, **options)

    # Training ---------------------------------------------------------------------------------------------------

    def _train(self, number: int, section: str, run: str, parts: Recipe, further: Sequence[str] = ()) -> Path:
        """Train the recipe of a section with some parts of its model replaced; the model's folder."""
        folder = self.plan.folder(number, run)
        recipe = {**self.recipes[section], "output": str(folder)}
        model = recipe["model"]
        recipe["model"] = {**model, "init_args": {**model.get("init_args", {}), **parts}}
        recipe["trainer"] = {**(recipe.get("trainer") or {}), **self.plan.trainer}
        path = folder / "recipe.yaml"
        write_atomically(path, yaml.safe_dump(recipe, sort_keys=False).encode())
        arguments = [f"--config={path}", *self.overrides[section], *further, f"--output={folder}"]
        launch = self.plan.launch
        if launch is None:
            cli = cli_for(arguments, "train", self.app)
            if cli.trainer.num_devices * cli.trainer.num_nodes == 1:
                return fit(cli.trainer, cast(Method, cli.model), cli.datamodule)
            launch = [sys.executable]  # the other devices' processes repeat the command that starts theirs
        name = "audio" if self.app is None else self.app.name
        done = subprocess.run([*launch, "-m", "collimate", name, "train", *arguments])
        if done.returncode:
            raise RuntimeError(f"Training in {folder} failed with status {done.returncode}; its messages stand above.")
        model = folder / "model"
        if not model.exists():  # training was asked to stop, and has said so
            raise SystemExit(0)
        return model

    def _guarded(self, work: Callable[[], None], title: str) -> None:
        try:
            work()
        except KeyboardInterrupt:
            say(f"{title}: stopped. Run the same command again to go on from there.")
            raise

    def _steps_behind(self, stages: list[Stage]) -> str:
        behind = sum(self._steps(stage) for stage in stages)
        return f"Of {sum(map(self._steps, self.stages()))} steps of training, {behind} are behind."

    def _steps(self, stage: Stage) -> int:
        if stage.section is None:
            return 0
        return int(self._setting(stage.section, "trainer", "max_steps") or 0)

    def _setting(self, section: str, *names: str) -> Any:
        """What a recipe, with its overrides, says; None where it says nothing."""
        key = f"--{'.'.join(names)}="
        if given := [text.removeprefix(key) for text in self.overrides[section] if text.startswith(key)]:
            return given[-1]
        value: Any = self.recipes[section]
        for name in names:
            value = (value or {}).get(name)
        return value

    # The plan ---------------------------------------------------------------------------------------------------

    def _stage(self, number: int, name: str, section: str | None, product: str, run: Callable[[int], None]) -> Stage:
        return Stage(number, name, section, self.plan.folder(number, product), lambda: run(number))

    def _encoder(self, number: int) -> Recipe:
        return _part(trained_encoder, self.plan.folder(number, "encoder"))

    def _recipe(self, given: str | Recipe) -> Recipe:
        if isinstance(given, str):
            path = Path(given) if self.app is None else self.app.recipe(given)
            given = yaml.safe_load(path.read_text(encoding="utf-8"))
        assert isinstance(given, dict)
        if "model" not in given:
            raise ValueError(f"A plan's recipes have a `model`, as those of `train`; this has {', '.join(given)}.")
        return given

    def _refuse_another_plan(self) -> None:
        """A folder holds one plan, which may grow by iterations and be evaluated otherwise."""
        plan = {
            "recipes": self.recipes,
            "overrides": self.overrides,
            "target": self.plan.target,
            "labels": self.plan.labels,
        }
        path = self.plan.output / PLAN
        plan = json.loads(json.dumps(plan))
        if path.exists() and (found := json.loads(path.read_text(encoding="utf-8"))) != plan:
            differing = ", ".join(_differing(found, plan))
            raise ValueError(
                f"{self.plan.output} holds another plan ({differing} differ): choose another output. To go on there "
                f"with the changed plan, remove {path}; what is done stays as it is."
            )
        write_atomically(path, json.dumps(plan, indent=1).encode())


def _part(function: Callable[..., Any], folder: Path) -> Recipe:
    """A part of a recipe that loads what lies in a folder."""
    return {"class_path": f"collimate_audio.{function.__name__}", "init_args": {"source": str(folder)}}


def _differing(one: Any, other: Any, name: str = "") -> list[str]:
    """The dotted names of what differs between two nested dictionaries."""
    if not (isinstance(one, dict) and isinstance(other, dict)):
        return [] if one == other else [name]
    keys = {**one, **other}
    return [
        found for key in keys for found in _differing(one.get(key), other.get(key), f"{name}.{key}" if name else key)
    ]
