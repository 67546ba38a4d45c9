"""Labels on disk: equal to those of training, kept, refused where anything else made them; and how good they are."""

import json
import pickle

import numpy as np
import pytest
import torch
import yaml

from collimate.data import open_source
from collimate.data.source import CorruptSample
from collimate.losses.masked_tokens import UNSCORED
from collimate.testing import run_on_ranks
from collimate.training.run import cli_for, fit
from collimate_audio import FilterBank, LabelledSource, RandomTokenizer, write_labels
from collimate_audio.code_quality import agreement, codes_of, masked_accuracy, usage_of
from collimate_audio.labels import PLAN, read_labels, read_plan
from collimate_audio.pretraining import LABELLED_BY, LABELS

from .beats_toys import CODES, FRONT_END, RANDOM, pretraining, pretraining_section, recipe
from .sounds import TonesAndNoises

DATA = "world-sound:train?length=10&seconds=0.6"


def tokenizer(seed=0, **front_end):
    made = RandomTokenizer(**RANDOM, seed=seed).eval()
    made.processor = FilterBank(**{**FRONT_END, **front_end})
    return made


class Short(TonesAndNoises):
    """Sounds shorter than the front end's clips; one is damaged."""

    def __init__(self, size=12, damaged=None, prefix=""):
        super().__init__(size, 0.3)
        self.damaged, self.prefix = damaged, prefix

    def read(self, index):
        if index == self.damaged:
            raise CorruptSample(f"sound {index}", "truncated file")
        sample = super().read(index)
        return {**sample, "__key__": self.prefix + sample["__key__"]}


def expected(source, made):
    sounds = made.processor.batch(source.read(index)["wav"] for index in range(len(source)))
    return made.labels(made.processor.finish(sounds), made.processor.mask(sounds))


def test_labels_are_those_of_the_tokenizer(tmp_path):
    made, source = tokenizer(), Short()
    folder = write_labels(made, source, tmp_path / "labels", batch_size=5, clips_per_file=7)
    labels = read_labels(folder)
    assert torch.equal(labels, expected(source, made))
    assert (labels == UNSCORED).any(), "shorter sounds have padding"
    assert np.load(folder / "000001.npy").dtype == np.int16
    assert sorted(path.name for path in folder.glob("*.npy")) == [
        "000000.names.npy", "000000.npy", "000001.names.npy", "000001.npy",
    ]  # fmt: skip
    labelled = LabelledSource(folder, source)
    assert torch.equal(torch.stack([labelled.read(index)[LABELS] for index in range(12)]).long(), labels)
    assert labelled.class_names == source.class_names
    assert labelled.read(3)["cls"] == source.read(3)["cls"]
    assert [labelled.order(1, 2)[place] for place in range(12)] == [source.order(1, 2)[place] for place in range(12)]
    assert pickle.loads(pickle.dumps(labelled)).read(8)["__key__"] == source.read(8)["__key__"]


def label_on_rank(folder):
    write_labels(tokenizer(), Short(), folder, batch_size=2, clips_per_file=7)


def test_ranks_write_the_labels_of_one(tmp_path):
    alone = write_labels(tokenizer(), Short(), tmp_path / "alone", clips_per_file=7)
    run_on_ranks(label_on_rank, [(tmp_path / "together",)] * 2)
    for path in alone.iterdir():
        assert path.read_bytes() == (tmp_path / "together" / path.name).read_bytes(), path.name


def test_an_interrupted_run_goes_on(tmp_path):
    made, source = tokenizer(), Short()
    folder = write_labels(made, source, tmp_path, clips_per_file=5)
    labels = read_labels(folder)
    (folder / "000001.npy").unlink()
    with pytest.raises(FileNotFoundError, match="lacks 1 of 3 files"):
        LabelledSource(folder, source)
    np.save(folder / "000000.npy", np.zeros((5, 9), np.int16))  # told from what would be written anew
    write_labels(made, source, tmp_path, clips_per_file=5)
    again = read_labels(folder)
    assert torch.equal(again[5:], labels[5:])
    assert (again[:5] == 0).all(), "a finished file is kept"


@pytest.mark.parametrize(
    ("made", "source", "said"),
    [
        (tokenizer(seed=1), Short(), "weights: "),
        (tokenizer(mean=1.0), Short(), "'mean': 1.0"),
        (tokenizer(), Short(13), "samples: 12 there, 13 now"),
    ],
    ids=["weights", "front end", "samples"],
)
def test_labels_made_otherwise_are_refused(tmp_path, made, source, said):
    write_labels(tokenizer(), Short(), tmp_path)
    with pytest.raises(ValueError, match=said) as refused:
        write_labels(made, source, tmp_path)
    assert "Choose another output" in str(refused.value)


def test_changed_data_are_refused(tmp_path):
    folder = write_labels(tokenizer(), Short(), tmp_path)
    with pytest.raises(ValueError, match=r"labels of 12 samples, .* has 11"):
        LabelledSource(folder, Short(11))
    with pytest.raises(ValueError, match="is now 'new sound 2'"):
        LabelledSource(folder, Short(prefix="new ")).read(2)


def test_batches_that_are_sorted_by_length_keep_their_labels(tmp_path):
    """They end where their longest clip does; what is on disk is of whole clips."""
    made, source = tokenizer(), Short()
    sounds = made.processor.batch(source.read(index)["wav"] for index in range(len(source)))
    batch = {"audio": made.processor.trimmed(sounds), "position": torch.arange(len(source))}
    online, offline = pretraining(made), pretraining(None)
    on_disk = read_labels(write_labels(made, source, tmp_path)).to(torch.int16)
    assert on_disk.shape[1] > online.embed(batch)["labels"].shape[1], "something is cut"
    for name, value in online.embed(batch).items():
        assert torch.equal(offline.embed({**batch, LABELS: on_disk})[name], value), name


def test_labelled_sounds_are_as_long_as_the_sounds(tmp_path):
    folder = write_labels(tokenizer(), DATA, tmp_path / "labels")
    labelled, source = LabelledSource(folder), open_source(DATA)
    assert [labelled.size_of(index) for index in range(10)] == [source.size_of(index) for index in range(10)]
    assert not hasattr(LabelledSource(write_labels(tokenizer(), Short(), tmp_path / "short"), Short()), "size_of")


def test_a_damaged_sample_has_no_labels(tmp_path):
    source = Short(damaged=4)
    folder = write_labels(tokenizer(), source, tmp_path)
    assert (read_labels(folder)[4] == UNSCORED).all()
    assert torch.equal(read_labels(folder)[5:], expected(Short(), tokenizer())[5:])
    with pytest.raises(CorruptSample, match="truncated"):
        LabelledSource(folder, source).read(4)


def test_what_is_no_folder_of_labels(tmp_path):
    with pytest.raises(FileNotFoundError, match="audio tokenize"):
        open_source(f"labels:{tmp_path}")
    (tmp_path / PLAN).write_text("{")
    with pytest.raises(RuntimeError, match="not readable"):
        read_plan(tmp_path)
    with pytest.raises(ValueError, match="no processor"):
        write_labels(RandomTokenizer(**RANDOM), Short(), tmp_path / "new")


def losses(model, folder, train, **sections):
    path = folder.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(recipe(model, train, **sections)))
    cli = cli_for([f"--config={path}", f"--output={folder}"], "train")
    fit(cli.trainer, cli.model, cli.datamodule)
    return cli.model.state_dict()


def test_training_on_labels_equals_training_with_the_tokenizer(tmp_path):
    write_labels(tokenizer(), DATA, tmp_path / "labels", clips_per_file=4)
    model = pretraining_section()
    online = losses(model, tmp_path / "online", DATA)
    model["init_args"]["tokenizer"] = None
    stored = losses(model, tmp_path / "stored", f"labels:{tmp_path / 'labels'}", data={"num_workers": 1})
    assert stored.keys() == {name for name in online if not name.startswith("tokenizer.")}
    for name, value in stored.items():
        assert torch.equal(value, online[name]), name
    augmented = {"data": {"augmentations": {"audio": {"class_path": "collimate.data.Augmentation"}}}}
    with pytest.raises(ValueError, match="take it out, or give the model a tokenizer"):
        losses(model, tmp_path / "augmented", f"labels:{tmp_path / 'labels'}", **augmented)


# Quality --------------------------------------------------------------------------------------------------------


def test_usage():
    codes = torch.tensor([[0, 0, 1, UNSCORED], [0, 3, UNSCORED, UNSCORED]])
    found = usage_of(codes, 4)
    assert found.patches == 5
    assert found.used == 0.75
    assert found.majority == pytest.approx(0.6)
    assert found.perplexity == pytest.approx(np.exp(-(0.6 * np.log(0.6) + 0.4 * np.log(0.2))))


def test_agreement_is_between_nothing_and_everything():
    labels = torch.arange(4).repeat(50)
    telling = labels[:, None].repeat(1, 6)
    assert agreement(telling, labels) == pytest.approx((1, 1, 0.25))
    blind = torch.arange(6).repeat(200, 1)
    assert agreement(blind, labels) == pytest.approx((0, 0.25, 0.25), abs=1e-9)
    half = telling.clone()
    half[:, 3:] = 9  # silence, the same in all
    found = agreement(half, labels)
    assert 0 < found.mutual_information < 1
    assert found.purity == pytest.approx(0.5 + 0.5 * 0.25)
    half[:, 3:] = UNSCORED
    assert agreement(half, labels) == pytest.approx((1, 1, 0.25)), "padding does not count"
    with pytest.raises(ValueError, match="but padding"):
        agreement(torch.full((2, 3), UNSCORED), torch.arange(2))


def test_codes_of_a_source():
    source, made = Short(damaged=4), tokenizer()
    found = codes_of(made, source, batch_size=5)
    assert torch.equal(found.codes, expected(Short(), made)[torch.arange(12) != 4])
    assert found.labels.tolist() == [index % 3 for index in range(12) if index != 4]


def test_masked_accuracy_of_a_source():
    """The same whatever the batches, and better than nothing once a constant answer is learned."""
    method = pretraining()
    one, other = (masked_accuracy(method, Short(), batch_size) for batch_size in (5, 12))
    assert one == pytest.approx(other)
    labels = expected(Short(), tokenizer())
    most_frequent = int(labels[labels >= 0].bincount(minlength=CODES).argmax())
    with torch.no_grad():
        method.predictor.decoder_pred.weight.zero_()
        method.predictor.decoder_pred.bias.copy_(torch.eye(CODES)[most_frequent])
    constant = masked_accuracy(method, Short())
    assert constant.accuracy == pytest.approx(constant.majority)
    assert method.training is True


def test_the_plan_says_what_made_them(tmp_path):
    plan = json.loads((write_labels(tokenizer(), DATA, tmp_path) / PLAN).read_text())
    assert plan["data"] == DATA
    assert plan["samples"] == 10
    assert plan["labelled_by"]["std"] == FilterBank().std
    labelled = open_source(f"labels:{tmp_path}")
    assert json.loads(labelled.read(0)[LABELLED_BY]) == plan["labelled_by"]
    assert len(labelled) == 10
