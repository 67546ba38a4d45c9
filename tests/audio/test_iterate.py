"""BEATs' iterations: what a plan does, that it goes on wherever it was killed, and what it reports."""

import json
import multiprocessing
import os
import random
import signal
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

import collimate
from collimate.cli import main
from collimate.training import Method
from collimate_audio import BEATs, trained_tokenizer
from collimate_audio.iterate import Iterations, Plan, iterate, split_overrides
from collimate_audio.labels import read_labels
from collimate_world import SOUND_CLASSES

from .beats_toys import ENCODER, FRONT_END, LEARNED, distillation_section, pretraining_section, recipe, section

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(
    ["collimate_audio.iterate", "collimate.evaluation.probes", "collimate.evaluation.report"]
)
RUNS = ("iteration1/pretraining", "iteration2/distillation", "iteration2/pretraining")
PRODUCTS = ("iteration1/encoder", "iteration2/tokenizer", "iteration2/encoder")


def plan(folder, **changes):
    """The file of a plan of two iterations that takes seconds."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = recipe(distillation_section(dropout=0.1), steps=6)
    tokenizer["model"]["init_args"]["teacher"] = None
    made = {
        "output": str(folder / "run"),
        "iterations": 2,
        "encoder": recipe(pretraining_section(dropout=0.1), steps=6),
        "tokenizer": tokenizer,
        **changes,
    }
    path = folder / "plan.yaml"
    path.write_text(yaml.safe_dump(made))
    return path


def run(path, *overrides):
    iterate([f"--config={path}", *overrides], "iterate")


@pytest.fixture(scope="module")
def straight(tmp_path_factory) -> Path:
    """A plan that ran without interruption."""
    folder = tmp_path_factory.mktemp("straight")
    run(plan(folder))
    return folder / "run"


def logged(folder):
    """step -> the loss as logged, digit for digit; a later session's lines replace an earlier one's."""
    found = {}
    for log in sorted((folder / "logs").glob("version_*/metrics.csv"), key=lambda path: int(path.parent.name[8:])):
        header, *lines = log.read_text().splitlines()
        names = header.split(",")
        rows = [
            dict(zip(names, line.split(","), strict=True)) for line in lines if line.count(",") == header.count(",")
        ]
        found |= {int(row["step"]): row["loss"] for row in rows}
    return found


def assert_same(one, other):
    """The same losses, and the same weights and codes in the end."""
    for name in RUNS:
        assert logged(one / name) == logged(other / name), name
        assert sorted(logged(one / name)) == list(range(1, 7))
    for name in PRODUCTS:
        weights = load_file(other / name / "model.safetensors")
        for key, value in load_file(one / name / "model.safetensors").items():
            assert torch.equal(value, weights[key]), (name, key)


def test_a_plan_leaves_encoders_and_tokenizers(straight):
    for number in (1, 2):
        encoder = BEATs.from_pretrained(straight / f"iteration{number}/encoder")
        assert encoder.processor is not None
    first, second = (trained_tokenizer(str(straight / f"iteration{number}/tokenizer")) for number in (1, 2))
    assert type(first).__name__ == "RandomTokenizer"
    assert int(second.quantize.updates) == 6
    used = yaml.safe_load((straight / "iteration2/pretraining/recipe.yaml").read_text())["model"]["init_args"]
    assert used["tokenizer"]["init_args"]["source"] == str(straight / "iteration2/tokenizer")
    teacher = yaml.safe_load((straight / "iteration2/distillation/recipe.yaml").read_text())["model"]["init_args"]
    assert teacher["teacher"]["init_args"]["source"] == str(straight / "iteration1/encoder")
    distilled = load_file(straight / "iteration2/distillation/model/model.safetensors")
    for name, value in load_file(straight / "iteration1/encoder/model.safetensors").items():
        assert torch.equal(distilled[f"teacher.{name}"], value), "the teacher stays as it was"
    assert (straight / "report.html").exists()


def alive(path, pace=0.0):
    """A plan that runs in a process of its own, so many seconds a step longer; it writes to `said` beside it."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    process = PROCESSES.Process(target=_run, args=(path, pace))
    process.start()
    return process


def _run(path, pace):
    torch.set_num_threads(1)
    with open(path.parent / "said", "a") as file:
        os.dup2(file.fileno(), 1)
    followed = Method.after_optimizer_step

    def slowly(method):
        time.sleep(pace)
        followed(method)

    Method.after_optimizer_step = slowly
    run(path)


def wait_for(condition, process, seconds=200):
    end = time.monotonic() + seconds
    while not condition() and process.exitcode is None:
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.01)


def kill(process):
    os.kill(process.pid, signal.SIGKILL)
    process.join(60)


def ended(process, seconds=300):
    process.join(seconds)
    return process.exitcode


@pytest.mark.timeout(900)
def test_killed_within_a_stage_and_after_one_it_ends_the_same(tmp_path, straight):
    path, output = plan(tmp_path), tmp_path / "run"
    process = alive(path, pace=0.3)
    wait_for(lambda: max(logged(output / RUNS[0]), default=0) >= 3, process)
    kill(process)
    assert not (output / PRODUCTS[0]).exists(), "killed within the stage"
    process = alive(path, pace=0.1)
    wait_for((output / PRODUCTS[1]).exists, process)
    kill(process)
    assert not (output / PRODUCTS[2]).exists(), "killed after the stage"
    kept = (output / PRODUCTS[1] / "model.safetensors").stat().st_mtime_ns
    assert ended(alive(path)) == 0
    assert_same(straight, output)
    assert (output / PRODUCTS[1] / "model.safetensors").stat().st_mtime_ns == kept, "what is there stays"


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_killed_at_random_times_it_ends_the_same(tmp_path, straight):
    path, output, draw = plan(tmp_path), tmp_path / "run", random.Random(0)
    for _ in range(8):
        process = alive(path)
        wait_for((output / "plan.json").exists, process)
        process.join(draw.uniform(0.5, 6))
        if process.exitcode is None:
            kill(process)
    assert ended(alive(path)) == 0
    assert_same(straight, output)


@pytest.mark.timeout(300)
def test_ctrl_c_stops_with_a_checkpoint_and_says_how_to_go_on(tmp_path, straight):
    path, output = plan(tmp_path), tmp_path / "run"
    process = alive(path, pace=0.3)
    wait_for(lambda: max(logged(output / RUNS[0]), default=0) >= 2, process)
    os.kill(process.pid, signal.SIGINT)
    assert ended(process) == 0
    assert "Run the same command again" in (tmp_path / "said").read_text()
    assert not (output / PRODUCTS[0]).exists()
    run(path)
    assert_same(straight, output)


def test_a_finished_plan_is_left_as_it_is_and_may_grow(tmp_path, capsys):
    short = [f"--{section}.trainer.max_steps=1" for section in ("encoder", "tokenizer")]
    path = plan(tmp_path, iterations=1)
    run(path, *short)
    first = (tmp_path / "run/iteration1/encoder/model.safetensors").stat().st_mtime_ns
    run(path, *short, "--iterations=2")
    assert (tmp_path / "run/iteration1/encoder/model.safetensors").stat().st_mtime_ns == first
    assert (tmp_path / "run/iteration2/encoder").exists()
    assert "Stage 2 of 4: the encoder of iteration 1 is there" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"holds another plan \(overrides\.encoder differ"):
        run(path, "--encoder.trainer.max_steps=2", short[1])


def test_labels_on_disk_make_the_same_encoders(tmp_path, straight):
    run(plan(tmp_path, labels="disk", iterations=1))
    run_folder = tmp_path / "run"
    assert logged(run_folder / RUNS[0]) == logged(straight / RUNS[0])
    assert read_labels(run_folder / "iteration1/labels").shape == (40, 9)


def test_a_comparison_is_reported(tmp_path, capsys):
    short = [f"--{section}.trainer.max_steps=1" for section in ("encoder", "tokenizer")]
    data = {"train": "world-sound:train?length=60&seconds=0.6&seed=1", "test": "world-sound:val?length=30&seconds=0.6"}
    path = plan(tmp_path, evaluation=data, labels="disk")
    run(path, *short)
    found = json.loads((tmp_path / "run/report.json").read_text())["Iterations"]
    assert len(found) == 2
    for each in found:
        assert 0 <= each["masked"]["accuracy"] <= 1
        assert 0 < each["masked"]["majority"] <= 1
        assert 1 <= each["codes"]["perplexity"] <= LEARNED["codes"]
        assert each["codes"]["largest_class"] <= each["codes"]["purity"] <= 1
        assert 0 <= each["codes"]["mutual_information"] <= 1
        assert {"linear/acc1", "knn/acc1"} <= each["probe"].keys()
    assert "random/linear/acc1" in found[0]["probe"]
    page = (tmp_path / "run/report.html").read_text()
    assert page.count("<svg") >= 4
    assert "mutual information" in page
    assert "Iteration 2: distillation" in page
    assert "linear probe" in capsys.readouterr().out
    quality = tmp_path / "run/iteration1/quality.json"
    taken = quality.stat().st_mtime_ns
    run(path, *short)
    assert quality.stat().st_mtime_ns == taken, "numbers are taken once"


def test_a_teacher_may_be_fine_tuned(tmp_path):
    """The tokenizer is then taught its logits."""
    classifier = section(
        "AudioClassifier",
        encoder=section("BEATs", **ENCODER, layer_drop=0.1),
        labels={
            "class_path": "collimate.processing.ClassLabels",
            "init_args": {"names": SOUND_CLASSES, "exclusive": True},
        },
        processor=section("FilterBank", **FRONT_END),
    )
    path = plan(tmp_path, fine_tuning=recipe(classifier, steps=2), fine_tune=[2])
    run(path, "--encoder.trainer.max_steps=1", "--tokenizer.trainer.max_steps=1")
    output = tmp_path / "run/iteration2"
    tuned = collimate.load(output / "fine_tuning/model")
    distilled = collimate.load(output / "distillation/model")
    assert tuned.encoders["audio"].encoder.layers.layer_drop == 0.1, "what the recipe of fine-tuning says"
    assert not distilled.teacher.training, "and leaves out no layer of a teacher"
    assert distilled.estimator.target_width == len(SOUND_CLASSES) == distilled.head.predictor.out_features
    for name, value in tuned.encoders["audio"].state_dict().items():
        assert torch.equal(distilled.teacher.state_dict()[name], value)
    before = BEATs.from_pretrained(tmp_path / "run/iteration1/encoder").state_dict()
    assert not all(torch.equal(before[name], value) for name, value in distilled.teacher.state_dict().items())


def test_several_devices_train_in_processes_of_their_own(tmp_path, monkeypatch):
    """Lightning repeats the command of the process that asks for them, which must be one of training."""
    started = []
    monkeypatch.setattr("collimate_audio.iterate.subprocess.run", lambda command: started.append(command) or _Done)
    with pytest.raises(SystemExit):  # no model is there afterwards: training was asked to stop
        run(plan(tmp_path, trainer={"devices": 2, "strategy": "ddp"}))
    (command,) = started
    assert command[:5] == [sys.executable, "-m", "collimate", "audio", "train"]
    written = yaml.safe_load((tmp_path / "run" / RUNS[0] / "recipe.yaml").read_text())["trainer"]
    assert written["devices"] == 2
    assert written["strategy"] == "ddp"
    assert written["max_steps"] == 6, "the recipe's own settings stay"


class _Done:
    returncode = 0


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_devices_train_what_one_does(tmp_path):
    """Each has half of the batch; what is drawn within the encoder differs, so that there is no dropout here."""
    halves = {"batch_size": 2}
    plans = {}
    for name, data, trainer in (("one", {}, {}), ("two", halves, {"devices": 2, "strategy": "ddp"})):
        encoder = recipe(pretraining_section(), steps=3, data=data)
        plans[name] = plan(tmp_path / name, iterations=1, encoder=encoder, trainer=trainer)
        run(plans[name])
    one, two = (load_file(tmp_path / name / "run" / PRODUCTS[0] / "model.safetensors") for name in plans)
    for key, value in one.items():
        torch.testing.assert_close(two[key], value, rtol=1e-3, atol=1e-5)


def test_the_stages_of_a_plan_with_a_fine_tuned_teacher():
    made = Plan(
        iterations=3,
        encoder=recipe(pretraining_section()),
        tokenizer=recipe(distillation_section()),
        fine_tuning=recipe(pretraining_section(), steps=7),
        fine_tune=[3],
    )
    stages = list(Iterations(made, split_overrides([])[1]).stages())
    assert [(stage.iteration, stage.name) for stage in stages] == [
        (1, "tokenizer"), (1, "encoder"), (2, "tokenizer"), (2, "encoder"),
        (3, "fine-tuned teacher"), (3, "tokenizer"), (3, "encoder"),
    ]  # fmt: skip


def test_overrides_of_recipes():
    own, overrides = split_overrides(["--output", "a", "--encoder.trainer.max_steps", "5", "--tokenizer.data.seed=1"])
    assert own == ["--output", "a"]
    assert overrides == {"encoder": ["--trainer.max_steps=5"], "tokenizer": ["--data.seed=1"], "fine_tuning": []}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"iterations": 0}, "at least 1"),
        ({"fine_tune": [2]}, "by which recipe"),
        ({"fine_tune": [1], "fine_tuning": {"model": {}}}, "from 2 to 2"),
        ({"trainer": {"devices": 2, "max_steps": 3}}, r"--encoder\.trainer\.max_steps"),
    ],
    ids=["no iteration", "no recipe", "no teacher", "not of the machine"],
)
def test_plans_that_contradict_themselves(changes, said):
    with pytest.raises(ValueError, match=said):
        Plan(**changes)


def test_bad_plans(tmp_path, monkeypatch, capsys):
    with pytest.raises(ValueError, match="have a `model`"):
        run(plan(tmp_path, encoder={"data": {}}))
    without = recipe(pretraining_section())
    without["model"]["init_args"]["tokenizer"] = None
    with pytest.raises(ValueError, match="has no tokenizer"):
        run(plan(tmp_path / "none", encoder=without))
    mixed = recipe(pretraining_section(), train={"world-sound:train": 1, "world-sound:val": 1})
    with pytest.raises(ValueError, match="one source"):
        run(plan(tmp_path / "mixed", encoder=mixed, labels="disk"))
    with pytest.raises(SystemExit):
        main(["audio", "iterate", f"--config={plan(tmp_path)}", "--iteration=2"])
    assert "iterations" in capsys.readouterr().err
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="launch"):
        run(plan(tmp_path))
