"""Balanced sampling: the published weights, deterministic draws, ranks, exact resume, and labels read without files."""

import json
from collections import Counter

import numpy as np
import pytest

from collimate.data import BalancedSource, Mixture, TrainingPreparation, TrainLoader, open_source
from collimate.data.order import WeightedOrder
from collimate.processing import ClassLabels

ROWS = [["a"]] * 90 + [["b"]] * 9 + [["a", "c"]] + [[]]


@pytest.fixture
def table(tmp_path):
    """101 rows of empty files."""
    path = tmp_path / "manifest.jsonl"
    for number in range(len(ROWS)):
        (tmp_path / f"{number}.wav").touch()
    rows = ({"file": f"{number}.wav", "labels": labels} for number, labels in enumerate(ROWS))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_weights_are_the_published_ones(table):
    weights = BalancedSource(open_source(table)).weights
    assert weights[0] == pytest.approx(1000 / 91.01)
    assert weights[90] == pytest.approx(1000 / 9.01)
    assert weights[99] == pytest.approx(1000 / 91.01 + 1000 / 1.01)
    assert weights[100] == 0


def test_draws_follow_the_weights(table):
    source = BalancedSource(open_source(table))
    order = source.order(0, 0)
    drawn = Counter(order[position] for position in range(20_000))
    expected = source.weights / source.weights.sum() * 20_000
    for index, count in enumerate(expected):
        assert abs(drawn[index] - count) <= 5 * count**0.5, index
    assert [source.order(0, 0)[place] for place in range(50)] == [order[place] for place in range(50)]
    assert [source.order(0, 1)[place] for place in range(50)] != [order[place] for place in range(50)]


def test_a_weight_of_zero_is_never_drawn():
    order = WeightedOrder(np.cumsum([0.0, 1.0, 0.0, 1.0, 0.0]), 0, 0)
    assert {order[position] for position in range(1000)} == {1, 3}


def test_nothing_labelled_is_an_error(tmp_path):
    (tmp_path / "t.csv").write_text("file,caption\nx.wav,hello\n")
    with pytest.raises(ValueError, match="no sample has a label"):
        BalancedSource(open_source(tmp_path / "t.csv"))


def loader(path, batch_size, rank=0, ranks=1):
    mixture = Mixture([BalancedSource(open_source(path))], seed=3)
    preparation = TrainingPreparation({"labels": ClassLabels(["a", "b", "c"])})
    return TrainLoader(mixture, preparation, batch_size, 5, rank=rank, world_size=ranks)


def drawn(batches):
    return [tuple(map(tuple, batch["labels"].tolist())) for batch in batches]


def test_streams_share_out_over_ranks_and_resume_exactly(table):
    whole = drawn(loader(table, 8))
    halves = [drawn(loader(table, 4, rank, 2)) for rank in range(2)]
    for step, batch in enumerate(whole):
        assert batch == tuple(row for pair in zip(*(half[step] for half in halves), strict=True) for row in pair)
    resumed = loader(table, 8)
    resumed.load_state_dict({"consumed": 16})
    assert drawn(resumed)[:3] == whole[2:]


@pytest.mark.parametrize("kind", ["table", "folder", "shards"])
def test_labels_are_peeked_at_without_reading_files(tmp_path, kind, monkeypatch, write_tar):
    if kind == "table":
        (tmp_path / "t.csv").write_text("file,label\nmissing.wav,dog\n")
        source = open_source(tmp_path / "t.csv")
    elif kind == "folder":
        for name in ("cat", "dog"):
            (tmp_path / "clips" / name).mkdir(parents=True)
            (tmp_path / "clips" / name / "1.wav").write_bytes(b"sound")
        source = open_source(tmp_path / "clips", extensions=("wav",))
        monkeypatch.setattr("pathlib.Path.read_bytes", lambda path: pytest.fail("a file was read"))
    else:
        write_tar(tmp_path / "s" / "0.tar", [("1.wav", b"sound"), ("1.labels.json", b'["dog"]')])
        source = open_source(f"{tmp_path}/s")
    found = source.peek(0, ["labels.json", "cls"])
    assert {key for key in found if not key.startswith("__")} == {"labels.json" if kind == "shards" else "cls"}
    assert BalancedSource(source).weights[0] == pytest.approx(1000 / 1.01)
