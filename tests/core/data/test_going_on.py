"""A run that goes on with other data is told so; with the same data, wherever they lie now, nothing is said."""

from types import SimpleNamespace

import pytest

from collimate.data import DataModule
from collimate.processing import ImageProcessor


def begun(length: int, state: dict, first: bool = True) -> DataModule:
    data = DataModule(f"world:train?length={length}", batch_size=4)
    method = SimpleNamespace(processors={"image": ImageProcessor(32)})
    data.trainer = SimpleNamespace(lightning_module=method, is_global_zero=first)  # type: ignore[assignment]
    data.load_state_dict(state)
    next(data.train_dataloader())
    return data


def test_other_data_are_told_and_the_run_goes_on(capsys):
    state = begun(8, {}).state_dict()
    assert state == {"consumed": 4, "lengths": [8]}
    assert begun(12, state).state_dict() == {"consumed": 8, "lengths": [12]}
    out = capsys.readouterr().out
    assert "data.train holds 12 samples now, and held 8 samples" in out
    assert "sample 4 of another stream" in out
    assert "--resume never" in out


@pytest.mark.parametrize("state", [{"consumed": 4, "lengths": [8]}, {"consumed": 4}], ids=["same", "of before"])
def test_the_same_data_and_checkpoints_that_do_not_say_are_no_matter(state, capsys):
    assert begun(8, state).state_dict()["consumed"] == 8
    assert "another stream" not in capsys.readouterr().out


def test_one_rank_says_it(capsys):
    begun(12, {"consumed": 4, "lengths": [8]}, first=False)
    assert "another stream" not in capsys.readouterr().out
