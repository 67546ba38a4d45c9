"""Selection by two models: losses by hand, the pairs that a better model understands, shards and scores, bad input."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import cross_entropy, normalize

from collimate.checkpoints import save
from collimate.data import open_source
from collimate.encoding import Encoding
from collimate.evaluation.selection import loss_reduction, pair_losses, select
from collimate.processing import ClipTokenizer, ImageProcessor
from collimate.training import Method

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}


class Colours(Method):
    """Pictures are their mean colours, texts the colours they name; the untaught knows none of the names."""

    modalities = ("image", "text")

    def __init__(self, taught: bool = True):
        super().__init__()
        self.processors = {"image": ImageProcessor(8, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)), "text": ClipTokenizer(8)}
        self.logit_scale = torch.nn.Parameter(torch.tensor(2.0))
        ids = [int(self.processors["text"](word)[1]) for word in COLOURS]
        self.names = {number: place for place, number in enumerate(ids)}
        self.taught = taught

    def forward(self, modality, inputs, mask=None):
        if modality == "image":
            return Encoding(inputs.mean((2, 3)))
        places = torch.tensor([self.names[int(row[1])] for row in inputs])
        return Encoding(torch.eye(3)[places] if self.taught else torch.ones(len(inputs), 3))


@pytest.fixture
def table(tmp_path):
    """24 pictures; the caption of every fourth is wrong."""
    rows, names = [], list(COLOURS)
    for number in range(24):
        name = names[number % 3]
        Image.fromarray(np.full((8, 8, 3), COLOURS[name], dtype=np.uint8)).save(tmp_path / f"{number}.png")
        caption = names[(number + 1) % 3] if number % 4 == 0 else name
        rows.append(json.dumps({"image": f"{number}.png", "caption": caption}))
    (tmp_path / "table.jsonl").write_text("\n".join(rows))
    return tmp_path / "table.jsonl"


def test_losses_are_those_of_one_batch_that_holds_all():
    draw = torch.Generator().manual_seed(0)
    first, second = torch.randn(2, 9, 4, generator=draw)
    logits = 5 * normalize(first, dim=1) @ normalize(second, dim=1).T
    labels = torch.arange(9)
    expected = (cross_entropy(logits, labels, reduction="none") + cross_entropy(logits.T, labels, reduction="none")) / 2
    torch.testing.assert_close(pair_losses(first, second, 5.0, contrast_size=100), expected)
    several = pair_losses(first, second, 5.0, contrast_size=3)
    assert (several < expected).all(), "fewer others, smaller losses"


def test_pairs_that_fit_gain_most(table):
    found = loss_reduction(Colours(taught=False), Colours(), open_source(table), contrast_size=24)
    wrong = torch.arange(24) % 4 == 0
    assert found.scores[~wrong].min() > found.scores[wrong].max()


def test_the_best_share_is_written(table, tmp_path, monkeypatch):
    models = {"before": Colours(taught=False), "after": Colours()}
    monkeypatch.setattr("collimate.evaluation.selection.load", models.__getitem__)
    select("before", "after", str(table), str(tmp_path / "best"), keep=0.75, contrast_size=24)
    kept = open_source(tmp_path / "best")
    assert len(kept) == 18
    numbers = sorted(int(json.loads(kept.read(place)["json"])["image"].split(".")[0]) for place in range(18))
    assert numbers == [number for number in range(24) if number % 4]
    scores = torch.load(tmp_path / "best" / "scores.pt", weights_only=True)
    assert scores["scores"].shape == scores["places"].shape == (24,)


def test_what_cannot_be_selected_is_told(table, tmp_path):
    with pytest.raises(ValueError, match="share to keep"):
        select("a", "b", str(table), str(tmp_path / "x"), keep=0.0)
    one = Colours()
    one.modalities = ("image",)
    with pytest.raises(ValueError, match="same two modalities"):
        loss_reduction(one, one, open_source(table))


def test_an_encoder_is_no_judge_of_pairs(tmp_path):
    from collimate.encoders import OpenClipTextEncoder
    from collimate.evaluation.selection import load_method

    save(OpenClipTextEncoder(width=8, heads=2, layers=1, vocab_size=11, context_length=6), tmp_path / "tower")
    with pytest.raises(TypeError, match="holds a OpenClipTextEncoder"):
        load_method(str(tmp_path / "tower"))
