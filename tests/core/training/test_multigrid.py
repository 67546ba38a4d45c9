"""Multigrid runs: stages, rates, batch norm in splits and over ranks, resuming, phases, speed, and what is printed."""

import copy
import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers.logger import DummyLogger
from torch import nn

from collimate import distributed
from collimate.app import Verb
from collimate.cli import run
from collimate.configurable import build
from collimate.data import ClipShape, DataModule, Source
from collimate.encoding import Encoding
from collimate.losses import clip_loss
from collimate.processing import Processor
from collimate.testing import run_on_ranks
from collimate.training import Method, MultigridSchedule, Optimization, PhaseSchedule
from collimate.training.callbacks import InputSpeed, RunCheckpoint, SplitNorms, newest_checkpoint
from collimate.training.callbacks.input_speed import pixels
from collimate.training.sub_batch_norm import SubBatchNorm, plain_norms, precise_statistics, split_norms


def schedule(**given):
    """A baseline of 4 epochs, fine-tuned in the last, as a run of 6 of clips of at most 4 frames of side 16."""
    return MultigridSchedule(**{"frames": 4, "crop": 16, "lr_steps": [0, 3], "epochs": 4, "norm_size": 2, **given})


# The schedule ---------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=100, derandomize=True)
@given(
    frames=st.integers(1, 64),
    crop=st.integers(32, 256),
    gaps=st.lists(st.integers(1, 60), min_size=2, max_size=5),
    factor=st.floats(0.5, 3),
    long=st.booleans(),
    short=st.booleans(),
)
def test_stages_fill_the_run_and_get_finer(frames, crop, gaps, factor, long, short):
    steps = [sum(gaps[:place]) for place in range(len(gaps))]
    found = schedule(
        frames=frames, crop=crop, lr_steps=steps, epochs=sum(gaps), epoch_factor=factor, long=long, short=short
    )
    ends = [0, *(stage.end for stage in found.planned)]
    assert [stage.start for stage in found.planned] == ends[:-1]
    assert ends == sorted(ends)
    whole = sum(gaps) * factor
    if long:
        assert abs(found.total_epochs - whole) <= 0.5 + 1e-9  # a sum of shares, which may end on either side of a half
    else:
        assert found.total_epochs == int(whole)
    by_step = {}
    for stage in found.planned:
        by_step.setdefault(stage.lr_index, []).append(stage.frames * stage.crop**2)
        assert found.sizes(stage, 4)[-1] == 4
        assert min(found.sizes(stage, 1)) >= 1
    assert all(sizes == sorted(sizes) for sizes in by_step.values())
    assert found.rate(found.total_epochs - 1e-9) > 0


def test_a_long_cycle_without_a_short_one():
    found = schedule(short=False)
    assert all(len(found.shapes(stage)) == 1 for stage in found.stages)
    assert [stage.batch for stage in found.planned][-1] == 1


@pytest.mark.parametrize(("scaling", "power"), [("linear", 1), ("sqrt", 0.5), ("none", 0)])
def test_the_learning_rate_follows_the_batch(scaling, power):
    found = schedule(lr_scaling=scaling, epochs=40, lr_steps=[0, 30])
    for stage in found.stages[:-1]:
        assert found.rate(stage.start) == pytest.approx(stage.batch**power)


def test_warm_up_rises_to_the_scheduled_rate():
    found = schedule(warmup=2.0, warmup_start=0.25, epochs=40, lr_steps=[0, 30])
    assert found.rate(0) == 0.25
    assert found.rate(1) == pytest.approx((0.25 + found.rate(2)) / 2)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"lr_steps": [0]}, "rise from 0"),
        ({"lr_steps": [1, 3]}, "rise from 0"),
        ({"lr_steps": [0, 4]}, "less than the 4 epochs"),
        ({"short_factors": [0.0]}, "above 0"),
        ({"short_factors": [3.0]}, "The factor 3 makes a shape"),
    ],
)
def test_schedules_that_make_no_sense_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        schedule(**given)


def test_a_schedule_is_plain_configuration():
    assert build(schedule().config()).to_dict() == schedule().to_dict()


def test_pictures_have_a_side_alone():
    plan = schedule(frames=1, modality="image").plan(100, 2, 1)
    assert {slot.shape[0] for leg in plan.legs for slot in leg.slots} == {("image", 8), ("image", 11), ("image", 16)}


# Batch norm -----------------------------------------------------------------------------------------------------


def norm_and_input(splits=2, size=8):
    torch.manual_seed(0)
    return SubBatchNorm(3, splits), torch.randn(size, 3, 2, 2) * 2 + 1


def test_one_split_is_torchs_batch_norm():
    norm, inputs = norm_and_input(1)
    plain = nn.BatchNorm2d(3)
    for mode in (True, True, False):
        torch.testing.assert_close(norm.train(mode)(inputs), plain.train(mode)(inputs))


def test_splits_are_interleaved():
    norm, inputs = norm_and_input(2)
    found = norm(inputs)
    for split in range(2):
        torch.testing.assert_close(found[split::2], nn.BatchNorm2d(3)(inputs[split::2]))


def test_state_dicts_are_torchs_and_splits_come_back_exactly():
    norm, inputs = norm_and_input(4)
    norm(inputs)
    plain, one, four = nn.BatchNorm2d(3), SubBatchNorm(3, 1), SubBatchNorm(3, 1)
    plain.load_state_dict(norm.state_dict())
    one.load_state_dict(norm.state_dict())
    four.load_state_dict(norm.state_dict())
    four.load_split_state(norm.split_state())
    assert (one.splits, four.splits) == (1, 4)
    for other in (plain, one, four):
        torch.testing.assert_close(other.eval()(inputs), norm.eval()(inputs))
    torch.testing.assert_close(four.train()(inputs), norm.train()(inputs))
    assert torch.equal(four.split_var, norm.split_var)
    norm.load_state_dict(plain.state_dict())
    assert torch.equal(norm.split_mean, plain.running_mean.expand(4, 3))


def test_another_number_of_splits_starts_from_the_folded_statistics():
    norm, inputs = norm_and_input(4)
    norm(inputs)
    buffer = norm.split_mean
    norm.split(2)
    assert norm.split_mean is buffer  # DDP holds it
    mean, var = norm.running_mean.clone(), norm.running_var.clone()
    norm.aggregate()
    torch.testing.assert_close((norm.running_mean, norm.running_var), (mean, var))
    with pytest.raises(ValueError, match="A batch of 7 samples cannot be normalised in 2 splits"):
        norm(inputs[:7])


def over_two(inputs, weight):
    norm = SubBatchNorm(3)
    norm.group = distributed.neighbours(2)
    inputs = inputs.requires_grad_()
    found = norm(inputs)
    (found * weight).sum().backward()
    norm.eval()
    return found.detach(), inputs.grad, norm.running_mean, norm.running_var


def test_neighbouring_ranks_share_their_statistics():
    """Ranks 0 and 1 are one batch, and so are 2 and 3."""
    _, inputs = norm_and_input(size=8)
    weight = torch.randn(8, 3, 2, 2)
    parts = zip(inputs.split(2), weight.split(2), strict=True)
    found = run_on_ranks(over_two, [(own.clone(), of_own) for own, of_own in parts])
    for pair in (0, 2):
        rows, whole = slice(2 * pair, 2 * pair + 4), nn.BatchNorm2d(3)
        own = inputs[rows].clone().requires_grad_()
        wanted = whole(own)
        (wanted * weight[rows]).sum().backward()
        torch.testing.assert_close(torch.cat([found[pair][0], found[pair + 1][0]]), wanted)
        torch.testing.assert_close(torch.cat([found[pair][1], found[pair + 1][1]]), own.grad, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close((found[pair][2], found[pair][3]), (whole.running_mean, whole.running_var))


def test_norms_are_split_and_made_plain_again_in_place():
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Sequential(nn.BatchNorm2d(4)))
    before, inputs = {k: v.clone() for k, v in network.state_dict().items()}, torch.randn(4, 3, 5, 5)
    wanted = network.eval()(inputs)
    assert list(split_norms(network)) == ["1", "2.0"]
    torch.testing.assert_close(network.eval()(inputs), wanted)
    plain_norms(network)
    assert [type(each) for each in network][1] is nn.BatchNorm2d
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_a_batch_norm_that_does_more_is_refused():
    from timm.layers import BatchNormAct2d

    with pytest.raises(ValueError, match="only torch's own"):
        split_norms(nn.Sequential(BatchNormAct2d(3)))


def test_precise_statistics_are_the_mean_over_batches():
    norm, inputs = norm_and_input(1)
    norm(inputs + 9)
    batches = inputs.split(4)
    precise_statistics([norm], norm, batches)
    torch.testing.assert_close(norm.running_mean, torch.stack([b.mean((0, 2, 3)) for b in batches]).mean(0))
    assert norm.momentum == 0.1


# Runs -----------------------------------------------------------------------------------------------------------


class Clips(Source):
    """Sample n is the number n, from which a clip of any shape is made."""

    name = "clips"

    def __len__(self):
        return 48

    def read(self, index):
        return {"__key__": str(index), "__source__": self.name, "txt": str(index), "video": index}


class ClipProcessor(Processor):
    def __init__(self, frames: int = 4, crop: int = 16) -> None:
        self.frames, self.crop = frames, crop

    def __call__(self, raw):
        return torch.sin(torch.arange(3 * self.frames * self.crop**2) * (1.0 + int(raw))).view(
            3, self.frames, *[self.crop] * 2
        )

    def shaped(self, shape: ClipShape) -> "ClipProcessor":
        return self.changed(frames=shape.frames, crop=shape.crop)


class Digits(Processor):
    def __call__(self, raw):
        return torch.tensor([float(raw) // 10, float(raw) % 10])


class Clip3d(Method):
    modalities = ("video", "text")

    def __init__(self, batch_norm: bool = True) -> None:
        super().__init__()
        self.processors = {"video": ClipProcessor(), "text": Digits()}
        norm = nn.BatchNorm3d(4) if batch_norm else nn.Identity()
        self.video, self.text = nn.Sequential(nn.Conv3d(3, 4, (1, 2, 2)), norm, nn.ReLU()), nn.Linear(2, 4)
        self.seen: list = []

    def forward(self, modality, inputs, mask=None):
        return Encoding(self.video(inputs).mean((2, 3, 4)) if modality == "video" else self.text(inputs))

    def losses(self, embeddings, batch):
        splits = getattr(self.video[1], "splits", None)
        self.seen.append(
            (tuple(batch["video"].shape[:3]) + batch["video"].shape[-1:], batch["position"].tolist(), splits)
        )
        return {"clip": clip_loss(embeddings["video"], embeddings["text"], 5.0)}


def fit(method, callbacks=(), checkpoint=None, stop=None, **given):
    torch.manual_seed(0)
    data = DataModule(
        Clips(), batch_size=2, fields={"video": ["video"]}, augmentations={}, schedule=given.pop("schedule", schedule())
    )
    trainer = Trainer(
        **{"max_epochs": 1, "logger": False, "enable_checkpointing": False, **given},
        max_steps=stop or given.get("max_steps", -1),
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
        callbacks=list(callbacks),
    )
    trainer.fit(method, data, ckpt_path=checkpoint, weights_only=True)
    return trainer


@pytest.fixture
def method():
    torch.manual_seed(0)
    found = Clip3d()
    found.optimization = Optimization("momentum", 0.1, 0, betas=None, eps=None, schedule="constant", warmup=0)
    return found


def test_batches_rates_and_norms_follow_the_schedule(method):
    rates = []

    class Rates(Callback):
        def on_train_batch_start(self, trainer, *_):
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    trainer = fit(method, [SplitNorms(), Rates()])
    plan = schedule().plan(48, 2, 1)
    assert trainer.global_step == len(rates) == plan.steps == trainer.estimated_stepping_batches
    assert rates == pytest.approx([0.1 * plan.lr_factor(step) for step in range(plan.steps)])
    stages = schedule().stages
    for step, (shape, positions, splits) in enumerate(method.seen):
        batch = plan[step]
        stage = stages[batch.leg]
        assert shape == (batch.size, 3, stage.frames, batch.shape[0][1].crop)
        assert positions == list(range(batch.first, batch.first + batch.size))
        assert splits == stage.batch  # a base batch of 2 clips, over which statistics are taken
    assert len({shape for shape, *_ in method.seen}) > 4
    assert isinstance(method.video[1], nn.BatchNorm3d)


@pytest.mark.parametrize("stop", [1, 4, 6, 9])
def test_a_run_goes_on_exactly_in_any_stage_and_in_the_middle_of_a_cycle(method, tmp_path, stop):
    first = copy.deepcopy(method)
    fit(method, [SplitNorms()])
    fit(first, [SplitNorms(), RunCheckpoint(str(tmp_path), every_steps=1)], enable_checkpointing=True, stop=stop)
    again = copy.deepcopy(method)
    again.seen = []
    fit(again, [SplitNorms()], newest_checkpoint(tmp_path))
    assert first.seen + again.seen == method.seen
    for name, value in method.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


def test_split_norms_need_a_multigrid_schedule(method):
    with pytest.raises(ValueError, match=r"set data\.schedule to one"):
        fit(method, [SplitNorms()], schedule=None)


def test_accumulation_over_part_of_a_cycle_is_refused(method):
    with pytest.raises(ValueError, match="accumulate over whole cycles, of 3 batches"):
        fit(method, accumulate_grad_batches=2)


def test_accumulation_over_whole_cycles_takes_the_rate_of_its_batches(method):
    trainer = fit(method, accumulate_grad_batches=3, schedule=schedule(short_factors=[1.0, 1.0]), stop=2)
    assert trainer.global_step == 2
    assert len(method.seen) == 6


# Phases ---------------------------------------------------------------------------------------------------------


def phases(*shares, **given):
    return PhaseSchedule(
        [{"share": share, "batch": 2 ** (len(shares) - n - 1)} for n, share in enumerate(shares)], **given
    )


def test_phases_share_out_the_steps():
    plan = phases(0.5, 0.3, 0.2).plan(100, 3, 2, 10)
    assert [(leg.steps, leg.slots[0].size) for leg in plan.legs] == [(5, 12), (3, 6), (2, 3)]
    assert [plan.lr_factor(step) for step in (0, 4, 5, 8, 9)] == pytest.approx([2, 2, 2**0.5, 1, 1])
    assert plan[8].first == 2 * (5 * 12 + 3 * 6)
    assert phases(0.5, 0.5, lr_scaling="none").plan(100, 3, 2, 10).lr_factor(0) == 1


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda: phases(0.5, 0.4), "add up to 1, not 0.9"),
        (lambda: PhaseSchedule([{"share": 1.0, "size": 3}]), "Phase 0 needs `share`"),
        (lambda: phases(0.5, 0.5).plan(9, 1, 1), "set trainer.max_steps"),
        (lambda: phases(0.99, 0.01).plan(9, 1, 1, 10), "has none of the 10 steps"),
    ],
)
def test_phases_that_make_no_sense_are_refused(made, message):
    with pytest.raises(ValueError, match=message):
        made()


# What is told ---------------------------------------------------------------------------------------------------


class Kept(DummyLogger):
    def __init__(self):
        super().__init__()
        self.rows = []

    def log_metrics(self, metrics, step=None):
        self.rows.append(metrics)


def test_speed_and_waiting_are_logged_and_waiting_is_warned_of_once(method, capsys):
    log = Kept()
    fit(method, [InputSpeed(most_wait=0.0)], stop=3, logger=log)
    rows = [row for row in log.rows if "input/wait" in row]
    assert len(rows) == 3
    for row in rows:
        assert 0 < row["input/wait"] <= 1
        assert row["input/pixels_per_second"] > row["input/clips_per_second"] > 0
    assert capsys.readouterr().err.count("spent waiting for data") + capsys.readouterr().out.count("waiting") <= 1


def test_pixels_of_pictures_and_clips():
    assert pixels(torch.zeros(2, 3, 4, 5)) == 40
    assert pixels(torch.zeros(2, 3, 6, 4, 5)) == pixels(torch.zeros(2, 6, 3, 4, 5)) == 240
    assert pixels(torch.zeros(2, 7)) == 0


def test_the_schedule_command_prints_and_writes(tmp_path, capsys):
    verb = Verb("collimate.training.schedule_command:schedule", "show a schedule")
    given = {"frames": 4, "crop": 16, "lr_steps": [0, 3], "epochs": 4}
    arguments = ["--schedule", "collimate.training.MultigridSchedule"]
    arguments += [f"--schedule.{name}={value}" for name, value in given.items()]
    run(verb, [*arguments, "--samples=48", "--batch_size=2", f"--output={tmp_path}"], "collimate video schedule", None)
    plan, found = schedule().plan(48, 2, 1), json.loads((tmp_path / "schedule.json").read_text())
    assert found["steps"] == plan.steps == sum(leg["steps"] for leg in found["legs"])
    assert found["legs"][0]["video crop"] == [8, 11, 11]
    assert build(found["schedule"]).to_dict() == schedule(norm_size=8).to_dict()
    assert (tmp_path / "schedule.png").stat().st_size > 1000
    assert "steps" in capsys.readouterr().out
