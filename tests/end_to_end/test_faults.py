"""What breaks a run in the middle, and what is left of it."""

import csv
import os
import random
import resource
import signal
import time
from pathlib import Path

import pytest
import torch

from .processes import finish, start, wait_for
from .recipes import losses, tiny_recipe, write_pictures, write_recipe


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("pictures"), count=100)


def checkpoints(output: Path) -> list[Path]:
    return sorted((output / "checkpoints").glob("*.ckpt"))


@pytest.mark.timeout(900)
def test_killed_at_twenty_random_points_the_losses_are_bit_equal(tmp_path: Path, pictures: Path):
    """100 samples in batches of 8: an epoch of 12 steps, so nearly every kill is in mid-epoch."""
    kills, steps = 20, 200
    # Forked workers start at once, and end when they find their parent gone.
    options = {"data": {"num_workers": 1, "start_method": "fork"}, "checkpoint": {"every_steps": 4}}
    straight = write_recipe(tmp_path / "a.yaml", tiny_recipe(pictures, tmp_path / "straight", steps, **options))
    assert finish(start(straight)) == 0
    broken = write_recipe(tmp_path / "b.yaml", tiny_recipe(pictures, tmp_path / "broken", steps, **options))
    draw = random.Random(0)
    done = 0
    for life in range(kills):
        process = start(broken)
        goal = done + draw.randint(1, 2 * steps // (kills + 5) - 2)  # some lives end before their first checkpoint
        wait_for(lambda goal=goal: max(losses(tmp_path / "broken"), default=0) >= goal, process)
        time.sleep(draw.uniform(0, 0.02))
        assert process.exitcode is None, f"life {life} ended before it was killed"
        os.kill(process.pid, signal.SIGKILL)
        assert finish(process) == -signal.SIGKILL
        saved = checkpoints(tmp_path / "broken")
        done = int(saved[-1].stem.split("=")[1]) if saved else 0
    assert finish(start(broken)) == 0
    expected, found = losses(tmp_path / "straight"), losses(tmp_path / "broken")
    assert sorted(found) == list(range(1, steps + 1))
    assert {step: found[step] for step in found if found[step] != expected[step]} == {}
    sessions = list((tmp_path / "broken" / "logs").iterdir())
    assert len(sessions) > kills / 2, "most kills should hit a run that trains, not one that starts"
    same = [torch.load(checkpoints(tmp_path / name)[-1], weights_only=True) for name in ("straight", "broken")]
    for name, value in same[0]["state_dict"].items():
        assert torch.equal(value, same[1]["state_dict"][name]), name


def test_other_ranks_and_workers_go_on_where_the_stream_stopped(tmp_path: Path, pictures: Path):
    """Half an epoch on one rank, the rest on two: every sample of the epoch is read once."""
    recipe = write_recipe(
        tmp_path / "r.yaml",
        tiny_recipe(pictures, tmp_path / "out", 6, data={"global_batch_size": 8}, checkpoint={"every_steps": 6}),
    )
    assert finish(start(recipe)) == 0
    two = (
        "--trainer.max_steps=12",
        "--trainer.devices=2",
        "--trainer.strategy=ddp_fork",
        "--data.num_workers=1",
        "--data.start_method=fork",
    )
    assert finish(start(recipe, *two)) == 0
    consumed = torch.load(checkpoints(tmp_path / "out")[-1], weights_only=True)["loops"]["fit_loop"]["state_dict"]
    assert consumed["combined_loader"] == [{"consumed": 96}]


def test_a_truncated_checkpoint_is_refused_and_the_one_before_is_used(tmp_path: Path, pictures: Path):
    recipe = write_recipe(tmp_path / "r.yaml", tiny_recipe(pictures, tmp_path / "out", 6))
    assert finish(start(recipe)) == 0
    first = losses(tmp_path / "out")
    newest = checkpoints(tmp_path / "out")[-1]
    newest.write_bytes(newest.read_bytes()[: newest.stat().st_size // 2])
    assert finish(start(recipe, "--trainer.max_steps=8")) == 0
    with open(tmp_path / "out" / "logs" / "version_1" / "metrics.csv") as resumed:
        assert next(csv.DictReader(resumed))["step"] == "5"  # went on after step 4, the checkpoint before
    both = losses(tmp_path / "out")
    assert sorted(both) == list(range(1, 9))
    assert both[5] == first[5]


def test_sigterm_saves_and_exits_cleanly(tmp_path: Path, pictures: Path):
    recipe = write_recipe(
        tmp_path / "r.yaml", tiny_recipe(pictures, tmp_path / "out", 100_000, checkpoint={"every_steps": 100_000})
    )
    process = start(recipe)
    wait_for(lambda: max(losses(tmp_path / "out"), default=0) >= 5, process)
    os.kill(process.pid, signal.SIGTERM)
    assert finish(process) == 0
    (saved,) = checkpoints(tmp_path / "out")
    step = int(saved.stem.split("=")[1])
    assert step == max(losses(tmp_path / "out"))
    assert finish(start(recipe, f"--trainer.max_steps={step + 3}")) == 0
    assert sorted(losses(tmp_path / "out")) == list(range(1, step + 4))


def small_files() -> None:
    """Writing past 150 kB fails, as on a full disk."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, 150_000))


def test_a_full_disk_loses_no_earlier_checkpoint(tmp_path: Path, pictures: Path):
    recipe = write_recipe(tmp_path / "r.yaml", tiny_recipe(pictures, tmp_path / "out", 4))
    assert finish(start(recipe)) == 0
    before = {path.name: path.read_bytes() for path in checkpoints(tmp_path / "out")}
    assert min(map(len, before.values())) > 150_000
    assert finish(start(recipe, "--trainer.max_steps=8", before=small_files)) == 1
    after = {path.name: path.read_bytes() for path in checkpoints(tmp_path / "out")}
    assert after == before
    assert finish(start(recipe, "--trainer.max_steps=8")) == 0
    assert max(losses(tmp_path / "out")) == 8


class Evil:
    def __reduce__(self) -> tuple:
        return os.system, ("touch ran",)


def test_a_malicious_checkpoint_is_refused_without_running_it(
    tmp_path: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    bad = tmp_path / "bad.ckpt"
    torch.save({"state_dict": {}, "loops": Evil()}, bad)
    recipe = write_recipe(tmp_path / "r.yaml", tiny_recipe(pictures, tmp_path / "out", 4))
    assert finish(start(recipe, f"--resume={bad}")) != 0
    assert not (tmp_path / "ran").exists()


def test_a_dying_rank_ends_the_others(tmp_path: Path, pictures: Path):
    recipe = write_recipe(tmp_path / "r.yaml", tiny_recipe(pictures, tmp_path / "out", 100_000))
    process = start(recipe, "--trainer.devices=2", "--trainer.strategy=ddp_fork")
    wait_for(lambda: max(losses(tmp_path / "out"), default=0) >= 3, process)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    ranks = [int(child) for child in children if b"forkserver" not in Path(f"/proc/{child}/cmdline").read_bytes()]
    os.kill(int(children[-1]) if not ranks else ranks[-1], signal.SIGKILL)
    began = time.monotonic()
    assert finish(process, 60) != 0
    assert time.monotonic() - began < 60
