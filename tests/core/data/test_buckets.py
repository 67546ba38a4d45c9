"""Batches of like length: little padding, each sample once, the same for any ranks, and exact resuming."""

import pytest
import torch

from collimate.data.buckets import LengthBuckets
from collimate.data.commands import write_shard
from collimate.data.loading import EvalLoader, TrainLoader
from collimate.data.mixture import Mixture
from collimate.data.opening import open_source
from collimate.data.preparation import TrainingPreparation
from collimate.data.source import Source
from collimate.processing import Processor

LONGEST = 1000


class Lines(Source):
    """Sample i is a row of 1 to 10 tenths of `LONGEST`."""

    name = "lines"

    def __init__(self, length=600):
        self.lengths = torch.randint(LONGEST // 10, LONGEST + 1, (length,), generator=torch.Generator().manual_seed(0))

    def __len__(self):
        return len(self.lengths)

    def size_of(self, index):
        return int(self.lengths[index])

    def read(self, index):
        return {"__key__": str(index), "__source__": self.name, "line": self.size_of(index)}


class Padded(Processor):
    """A length to a row of ones, padded with 0."""

    def __call__(self, raw):
        return (torch.arange(LONGEST) < raw).float()

    def mask(self, batch):
        return batch > 0


def loader(window=20, **options):
    preparation = TrainingPreparation({"line": Padded()})
    return TrainLoader(Mixture([Lines()], seed=3), preparation, 10, bucket_batches=window, **options)


def take(stream, steps):
    return [next(stream) for _ in range(steps)]


def padding(batches):
    return 1 - sum(float(batch["line"].sum()) for batch in batches) / sum(batch["line"].numel() for batch in batches)


def test_little_is_padding():
    """Clips of one to ten tenths of the longest, evenly: 45 % without buckets."""
    assert padding(take(loader(0), 60)) > 0.4
    assert padding(take(loader(20), 60)) < 0.1


def test_each_window_is_of_its_own_samples_once():
    positions = torch.cat([batch["position"] for batch in take(loader(), 60)])
    for window in range(3):
        mine = positions[200 * window : 200 * (window + 1)]
        assert mine.sort().values.tolist() == list(range(200 * window, 200 * (window + 1)))


def test_batches_of_a_window_come_in_no_order_of_length():
    widths = [batch["line"].shape[1] for batch in take(loader(), 20)]
    assert widths != sorted(widths)
    assert widths != sorted(widths, reverse=True)


def test_ranks_share_the_same_batches_out():
    one = [set(batch["position"].tolist()) for batch in take(loader(rank=0, world_size=1), 40)]
    preparation = TrainingPreparation({"line": Padded()})
    mixture = Mixture([Lines()], seed=3)
    halves = [take(TrainLoader(mixture, preparation, 5, bucket_batches=20, rank=r, world_size=2), 40) for r in (0, 1)]
    for whole, left, right in zip(one, *halves, strict=True):
        assert {*left["position"].tolist(), *right["position"].tolist()} == whole
        assert abs(left["line"].shape[1] - right["line"].shape[1]) <= 0.1 * LONGEST


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_goes_on_in_the_middle_of_a_window(workers):
    whole = take(loader(), 30)
    first = loader(num_workers=workers)
    take(first, 13)
    state = first.state_dict()
    first.close()
    second = loader(num_workers=workers)
    second.load_state_dict(state)
    for again, once in zip(take(second, 17), whole[13:], strict=True):
        assert torch.equal(again["position"], once["position"])
        assert torch.equal(again["line"], once["line"])
    second.close()


def test_evaluation_sees_each_sample_once_and_tells_its_place():
    source = Lines(95)
    batches = list(EvalLoader(source, {"line": Padded()}, 10, by_length=True))
    assert padding(batches) < 0.1
    index = torch.cat([batch["index"][batch["valid"]] for batch in batches])
    assert index.sort().values.tolist() == list(range(95))
    found = torch.cat([batch["line"].sum(1)[batch["valid"]] for batch in batches])
    assert torch.equal(found[index.argsort()], source.lengths.float())


def test_shards_know_the_sizes_of_their_samples(tmp_path):
    texts = [{"__key__": str(i), "__source__": "t", "txt": b"a" * (10 * i + 1)} for i in range(4)]
    write_shard(tmp_path / "0.tar", texts, 1e9, {}, lambda: None)
    assert [open_source(tmp_path).size_of(i) for i in range(4)] == [1, 11, 21, 31]


def test_tables_and_folders_know_the_sizes_of_their_files(tmp_path):
    for i in range(3):
        (tmp_path / f"{i}.wav").write_bytes(b"a" * (10 * i + 1))
    (tmp_path / "table.csv").write_text("file,text\n0.wav,a\n2.wav,b\nmissing.wav,c\n")
    (tmp_path / "texts.jsonl").write_text('{"text": "ab"}\n{"text": "abcd"}\n')
    assert [open_source(tmp_path / "table.csv").size_of(i) for i in range(3)] == [1, 21, 0]
    assert [open_source(tmp_path / "texts.jsonl").size_of(i) for i in range(2)] == [15, 17]
    (tmp_path / "table.csv").unlink()
    assert [open_source(tmp_path).size_of(i) for i in range(3)] == [1, 11, 21]


def test_what_cannot_be_sorted_is_refused():
    class Mute(Source):
        name = "mute"

        def __len__(self):
            return 5

    with pytest.raises(ValueError, match="mute cannot say how long"):
        LengthBuckets(Mixture([Mute()]), 2, 1, 4)
    with pytest.raises(ValueError, match="1 batch or more, not of -1"):
        LengthBuckets(Mixture([Lines()]), 2, 1, -1)
