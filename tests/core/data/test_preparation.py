"""Modalities that samples may lack: what stands in their place, in training and in evaluation, and what is refused."""

import numpy as np
import pytest
import torch

from collimate.data import CorruptSample, DataModule, EvalLoader, Preparation, Source, TrainingPreparation
from collimate.data.preparation import Augmentation, collate
from collimate.evaluation.features import extract
from collimate.processing import ClipTokenizer, ImageProcessor, Processor
from collimate.testing import run_on_ranks
from collimate.training import Method

PICTURE = np.full((20, 20, 3), 200, np.uint8)


class Numbers(Processor):
    """A list of three numbers."""

    def __call__(self, raw):
        return torch.tensor(raw, dtype=torch.float32)

    def example(self):
        return [1.0, 2.0, 3.0]


class Doubled(Augmentation):
    def __call__(self, raw, processor):
        return 2 * processor(raw)


def processors():
    return {"image": ImageProcessor(16), "numbers": Numbers(), "text": ClipTokenizer(12)}


def sample(number=0, **fields):
    return {"__key__": str(number), "__source__": "mixed", "txt": f"number {number}", **fields}


OPTIONAL = ("image", "numbers")


@pytest.mark.parametrize("kind", [Preparation, TrainingPreparation])
def test_what_is_missing_is_zeros_of_the_same_shape(kind):
    prepare = kind(processors(), optional=OPTIONAL)
    whole, lacking = prepare(sample(png=PICTURE, numbers=[4, 5, 6])), prepare(sample(png=PICTURE))
    assert bool(whole["numbers_given"])
    assert not bool(lacking["numbers_given"])
    assert bool(lacking["image_given"])
    assert torch.equal(lacking["numbers"], torch.zeros(3))
    assert torch.equal(lacking["image"], whole["image"])
    batch = collate([lacking, whole, prepare(sample(numbers=[1, 2, 3]))])
    assert batch["image_given"].tolist() == [True, True, False]
    assert batch["image"].shape == (3, 3, 16, 16)
    assert not batch["image"][2].any()


def test_a_modality_that_is_not_optional_is_needed():
    with pytest.raises(CorruptSample, match=r"mixed: 0: no numbers"):
        Preparation(processors(), optional=("image",))(sample(png=PICTURE))


def test_what_is_there_and_damaged_is_refused():
    with pytest.raises(CorruptSample, match=r"0\.png: not an image"):
        Preparation(processors(), optional=OPTIONAL)(sample(png=b"no picture", numbers=[1, 2, 3]))


def test_training_refuses_a_text_alone_and_evaluation_says_that_it_is_alone():
    with pytest.raises(CorruptSample, match=r"no .*png.*/numbers"):
        TrainingPreparation(processors(), optional=OPTIONAL)(sample())
    row = Preparation(processors(), optional=OPTIONAL)(sample())
    assert not bool(row["image_given"] | row["numbers_given"])


def test_views_and_shapes_follow():
    prepare = TrainingPreparation(
        processors(), augmentations={"numbers": Doubled()}, views={"again": "numbers"}, optional=OPTIONAL
    )
    assert prepare(sample(numbers=[1, 2, 3]))["again"].tolist() == [2, 4, 6]
    assert prepare(sample(png=PICTURE))["again"].tolist() == [0, 0, 0]
    assert prepare.shaped((("image", 8),))(sample(numbers=[1, 2, 3]))["image"].shape == (3, 8, 8)


@pytest.mark.parametrize(("optional", "said"), [("text", "of their own"), ("sound", "is a modality"), ("bare", "`ex")])
def test_what_cannot_be_optional(optional, said):
    class Bare(Processor):
        pass

    with pytest.raises(ValueError, match=said):
        Preparation({**processors(), "bare": Bare()}, optional=[optional])


# In loaders -------------------------------------------------------------------------------------------------------


class Mixed(Source):
    """Every third sample lacks the picture, every third the numbers; those of `alone` have neither."""

    name = "mixed"

    def __init__(self, size=30, alone=()):
        self.size, self.alone = size, alone

    def __len__(self):
        return self.size

    def read(self, index):
        fields = {"png": PICTURE, "numbers": [float(index)] * 3}
        left = {0: ["png"], 1: ["numbers"], 2: []}[index % 3] if index not in self.alone else list(fields)
        return sample(index, **{key: value for key, value in fields.items() if key not in left})


class ThreeTowers(Method):
    modalities = ("image", "numbers", "text")
    optional = OPTIONAL

    def __init__(self):
        super().__init__()
        self.processors = processors()
        self.weight = torch.nn.Parameter(torch.ones(()))

    def forward(self, modality, inputs, mask=None):
        from collimate.encoding import Encoding

        return Encoding(self.weight * inputs.float().flatten(1)[:, :3])


def test_training_and_validation_ask_the_method():
    class Run:
        lightning_module = ThreeTowers()

    data = DataModule(Mixed(alone=(4,)), Mixed(), batch_size=6, augmentations={})
    data.trainer = Run()
    loader = data.train_dataloader()
    batches = list(loader)
    assert all({"image_given", "numbers_given"} <= batch.keys() for batch in batches)
    for batch in batches:
        assert (batch["image_given"] | batch["numbers_given"]).all()
        assert not batch["numbers"][~batch["numbers_given"]].any()
    assert sum(loader.corrupt.values()) == 1
    assert [batch["image_given"].sum().item() for batch in data.val_dataloader()] == [4] * 5


def rows(method, source, batch_size, names):
    found = extract(method, source, names, batch_size=batch_size, device="cpu")
    return found.index.tolist(), found.encodings[names[0]].pooled, found.settings


def test_evaluation_leaves_out_and_counts_what_lacks_the_modality():
    method = ThreeTowers()
    alone = rows(method, Mixed(29), 29, ["numbers"])
    assert alone[0] == [index for index in range(29) if index % 3 != 1]
    assert alone[1][:, 0].tolist() == alone[0]
    assert (alone[2]["without"], alone[2]["unreadable"]) == ("numbers: 10", 0)
    assert rows(method, Mixed(29), 4, ["numbers", "image"])[0] == [index for index in range(29) if index % 3 == 2]
    for found in run_on_ranks(rows, [(method, Mixed(29), 4, ["numbers"])] * 2):
        assert found[0] == alone[0]
        assert torch.equal(found[1], alone[1])
        assert found[2] == alone[2]
    with pytest.raises(ValueError, match="can be read and has numbers"):
        rows(method, Mixed(9, alone=range(9)), 4, ["numbers"])


def test_nothing_changes_where_all_is_needed():
    batch = next(iter(EvalLoader(Mixed(3), {"text": ClipTokenizer(12)}, 3)))
    assert not any(name.endswith("_given") for name in batch)


def test_labels_that_a_tokenizer_reads_are_one_text():
    tokenizer = ClipTokenizer(12)
    prepare = Preparation({"text": tokenizer, "labels": tokenizer})
    for labels, text in (("inform date", "inform date"), (["inform", "date"], "inform, date"), ("a;b", "a, b")):
        assert torch.equal(prepare(sample(**{"labels.json": labels}))["labels"], tokenizer(text))
    assert torch.equal(prepare(sample(cls=3))["labels"], tokenizer("3"))
    with pytest.raises(CorruptSample, match="neither names nor numbers"):
        prepare(sample(**{"labels.json": [1.5]}))
