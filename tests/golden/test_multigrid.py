"""Multigrid schedules and split batch norm against SlowFast's."""

import json
from itertools import groupby

import pytest
import torch
from safetensors.torch import load_file

from collimate.data.plan import Leg, Slot
from collimate.training.multigrid import MultigridSchedule
from collimate.training.sub_batch_norm import SubBatchNorm

GOLDEN = "multigrid"


@pytest.fixture
def expected(golden_set, case):
    return json.loads((golden_set.folder / "expected.json").read_text())[case]


@pytest.fixture
def schedule(expected):
    given = expected["input"]
    return MultigridSchedule(
        frames=given["frames"],
        crop=given["crop"],
        lr_steps=given["steps"],
        epochs=given["max_epoch"],
        epoch_factor=given["epoch_factor"],
        long_factors=given["long_cycle_factors"],
        short_factors=given["short_cycle_factors"],
        gamma=given["gamma"],
        long=given["long_cycle"],
        short=given["short_cycle"],
        lr_scaling="linear",
        warmup=given["warmup_epochs"],
        warmup_start=given["warmup_start_lr"] / given["base_lr"],
        stride=given["sampling_rate"],
        sides=given["jitter"],
        norm_size=given["bn_base_size"],
    )


def stages_of(schedule, given, samples):
    """Ours in the form of the set: one entry whenever the shape changes."""
    found = []
    for _, group in groupby(schedule.stages, key=lambda stage: stage[3:]):
        stage = next(group)
        batch = given["batch"] * stage.batch
        own = batch // given["num_gpus"]
        sizes, shapes, norm = schedule.sizes(stage, own), schedule.shapes(stage), schedule.norm(own)
        leg = Leg.epochs([Slot(size) for size in sizes], 1, samples, 1)
        first, firsts = 0, []
        for place in range(min(7, leg.steps)):
            firsts.append([first, place % len(sizes), sizes[place % len(sizes)]])
            first += firsts[-1][2]
        taken = sum(sizes) * (leg.steps // len(sizes)) + sum(sizes[: leg.steps % len(sizes)])
        found.append(
            {
                "from_epoch": stage.start,
                "global_batch": batch,
                "per_gpu_batch": own,
                "frames": stage.frames,
                "crop": stage.crop,
                "bn": "sub_batchnorm" if norm.splits > 1 else "sync_batchnorm" if norm.ranks > 1 else "batchnorm",
                "bn_num_splits": norm.splits if norm.splits > 1 else None,
                "bn_sync_devices": norm.ranks if norm.ranks > 1 else None,
                "strides": (shapes[0].stride_low, shapes[0].stride_high),
                "short_cycle_per_gpu_batches": sizes,
                "short_cycle_crops": [shape.crop for shape in shapes],
                "short_cycle_min_jitter": [shape.min_side for shape in shapes],
                f"batches_really_yielded_drop_last_n{samples}": leg.steps,
                f"batches_really_yielded_keep_last_n{samples}": leg.steps + (taken < samples),
                "first_7_batches_first_index_shape_size": firsts,
            }
        )
    return found


def official_strides(stage, given):
    high = stage["long_cycle_sampling_rate"]  # 0: no long cycle, and the stride is the video's own
    return given["sampling_rate"], high or given["sampling_rate"]


def test_schedule(golden_set, case, schedule, expected):
    settings = golden_set.cases[case]
    if settings["kind"] == "official_error":
        assert schedule.stages[-1].end == schedule.total_epochs
        assert all(schedule.sizes(stage, 8) == [8] for stage in schedule.stages)
        return
    tolerance = golden_set.config["tolerance"]["learning_rates"]["atol"]
    given, rate = expected["input"], expected["input"]["base_lr"]
    found_rates = [relative for _, relative in schedule.rates]
    absolute = {float(epoch): lr for epoch, lr in enumerate(expected["lr_at_epoch"])}
    absolute |= {float(epoch): lr for epoch, lr in expected["lr_at_fractional_epoch"].items()}
    ours = {
        "schedule": [[stage.lr_index, [*stage[3:]], stage.end] for stage in schedule.planned]
        if schedule.long
        else None,
        "solver": {
            "steps": [start for start, _ in schedule.rates],
            "max_epoch": schedule.total_epochs,
            "lrs": pytest.approx(found_rates, abs=tolerance),
        },
        "eval_epochs": schedule.eval_epochs(),
        "checkpoint_epochs": schedule.eval_epochs(every=1),
        "stages": stages_of(schedule, given, settings["num_samples"] or 1000),
    }
    compared = set(settings["compare"])
    if "solver" in compared:  # without long cycles, more rates are listed there than there are steps
        official = {**expected["solver"], "lrs": expected["solver"]["lrs"][: len(found_rates)]}
        assert ours["solver"] == official
    if "stages" in compared:
        for stage, official in zip(ours["stages"], expected["stages"], strict=True):
            assert stage.pop("strides") == official_strides(official, given)
            assert stage == {key: official[key] for key in stage}
    for key in compared & {"schedule", "eval_epochs", "checkpoint_epochs"}:
        assert ours[key] == expected[key], key
    if compared & {"lr_at_epoch", "lr_at_fractional_epoch"}:
        assert {epoch: rate * schedule.rate(epoch) for epoch in absolute} == pytest.approx(absolute, abs=tolerance)
    if settings["kind"] == "official_empty_batch":
        assert min(size for stage in schedule.stages for size in schedule.sizes(stage, 1)) >= 1


def test_split_batch_norm(golden_set):
    settings = golden_set.config["subbn"]
    tensors = {name: load(golden_set, name) for name in ("subbn_inputs", "subbn_expected")}
    tolerance = golden_set.config["tolerance"]["subbn"]
    for number, case in settings["cases"].items():
        inputs, wanted = (
            {name.removeprefix(f"{number}/"): value for name, value in each.items() if name.startswith(f"{number}/")}
            for each in tensors.values()
        )
        norm = SubBatchNorm(
            case["channels"], splits=case["num_splits"], eps=settings["eps"], momentum=settings["momentum"]
        )
        norm.load_state_dict({"weight": inputs["weight"], "bias": inputs["bias"]}, strict=False)
        found = {f"y{name[1:]}": norm.train()(inputs[name]) for name in settings["train_inputs"]}
        norm.aggregate()
        found |= {
            "agg_mean": norm.running_mean,
            "agg_var": norm.running_var,
            "y_eval": norm.eval()(inputs[settings["eval_input"]]),
            "split_running_mean": norm.split_mean.flatten(),
            "split_running_var": norm.split_var.flatten(),
        }
        assert wanted.keys() <= found.keys(), wanted.keys() - found.keys()
        for name, value in wanted.items():
            torch.testing.assert_close(found[name], value, rtol=1e-5, atol=tolerance["atol"], msg=f"{number}/{name}")


def load(golden_set, name):
    return load_file(golden_set.folder / f"{name}.safetensors")
