"""Evaluation of any modality: how it is shown, prompted, and cut into windows, as a package registers it."""

import pytest
import torch
from PIL import Image

from collimate.data import Source
from collimate.encoding import Encoding
from collimate.evaluation import Exhibit, Manner, Report, evaluate_zero_shot, modalities, register_evaluation
from collimate.evaluation.bootstrap import evaluate
from collimate.evaluation.features import extract, modality_of
from collimate.evaluation.metrics import ranking_statistic, retrieval_statistic
from collimate.evaluation.modalities import exhibit_in, manner_of
from collimate.evaluation.prompts import template_list
from collimate.evaluation.tagging import evaluate_tagging, has_several_labels
from collimate.evaluation.windows import mean_of_windows
from collimate.processing import Processor

from .toys import COLOURS, ColourMethod, ColourPictures, TokenMethod, Words

GREY = (102,) * 3  # 0.4 of full scale, which the method takes for nothing


class Glow(Processor):
    """A list of colours to the mean of its first two."""

    modality = "glow"

    def __call__(self, raw):
        return torch.tensor(raw[:2]).float().mean(0) / 255


class GlowMethod(ColourMethod):
    modalities = ("glow", "text")

    def __init__(self):
        super().__init__()
        self.processors = {"glow": Glow(), "text": Words()}

    def forward(self, modality, inputs, mask=None):
        return Encoding(inputs - 0.4)


class Glows(Source):
    """Four colours in a row: a grey that says nothing twice, then the sample's own twice."""

    name, class_names = "glows", list(COLOURS)

    def __len__(self):
        return 10

    def read(self, index):
        colours = [GREY] * 2 + [list(COLOURS.values())[index % 5]] * 2
        return {"__key__": str(index), "__source__": self.name, "glow": colours, "cls": index % 5}


def cut(raw, processor, number, count):
    return raw[2 * number : 2 * number + 2]


@pytest.fixture(autouse=True)
def manner(monkeypatch):
    monkeypatch.setattr(modalities, "_MANNERS", dict(modalities._MANNERS))
    register_evaluation(
        "glow",
        Manner(
            show=lambda raw: Exhibit(Image.new("RGB", (4, 4), raw[-1]), b"a file", "audio/x-glow"),
            window=cut,
            templates="glows",
            template_sets={"glows": ["it glows {}"]},
            ranks=True,
        ),
    )


def test_a_registered_modality_is_shown_and_asked_in_its_own_way():
    found = evaluate_zero_shot(GlowMethod(), Glows(), device="cpu", resamples=5, windows=2)
    assert "it glows red" in found.protocol["prompts"]
    assert found.protocol["windows"] == "2 of each longer sample, averaged"
    assert found.metrics["acc1"] >= 0.8  # the second window tells
    assert {"map@10", "mean_rank", "median_rank", "acc10"} <= found.metrics.keys()
    report = Report("Glows")
    found.add_to(report)
    assert 'src="data:audio/x-glow;base64,YSBmaWxl"' in report.html()
    blind = evaluate_zero_shot(GlowMethod(), Glows(), device="cpu", resamples=5)
    assert blind.metrics["acc1"] == pytest.approx(0.2)  # the first two are grey in all


def test_windows_are_means_of_directions_and_keep_what_is_read_beside():
    method = GlowMethod()
    found = extract(method, Glows(), ["glow"], ["label"], device="cpu", windows=2, limit=4)
    assert found.index.tolist() == [0, 2, 5, 7]
    assert found.extras["label"].tolist() == [0, 2, 0, 2]
    assert found.keys == ["0", "2", "5", "7"]
    red = torch.tensor(COLOURS["red"]) / 255 - 0.4
    torch.testing.assert_close(found.encodings["glow"].pooled[0], red / red.norm())
    vectors = torch.tensor([[3.0, 0.0], [0.0, 0.1], [2.0, 0.0], [1.0, 0.0]])
    wanted = torch.tensor([[0.5**0.5, 0.5**0.5], [1.0, 0.0]])
    torch.testing.assert_close(mean_of_windows(vectors, 2), wanted)


def test_what_has_no_windows_says_so():
    with pytest.raises(ValueError, match="no windows of 'image'"):
        extract(ColourMethod(), ColourPictures(), ["image"], device="cpu", windows=2)
    with pytest.raises(ValueError, match="not as tokens"):
        extract(TokenMethod(), Glows(), ["glow"], tokens=True, device="cpu", windows=2)


def test_pictures_need_no_registration_and_others_are_not_shown():
    sample = ColourPictures().read(0)
    assert exhibit_in(sample, "image").picture == sample["png"]
    assert exhibit_in(sample, "smell") is None
    assert exhibit_in({"__key__": "0"}, "image") is None
    assert manner_of("image").templates == "imagenet"
    assert manner_of("smell").templates == "name"
    assert template_list("glows") == ["it glows {}"]


def test_a_lone_encoder_says_what_it_encodes():
    class Lone:
        processor = Glow()

    assert modality_of(Lone()) == "glow"
    Lone.processor = None
    assert modality_of(Lone()) == "image"


class TaggedPictures(ColourPictures):
    def read(self, index):
        sample = super().read(index)
        return {**sample, "labels.json": [list(COLOURS)[sample.pop("cls")], "white"] if index % 2 else [index % 5]}


def test_tags_are_ranked_for_each_class():
    assert has_several_labels(TaggedPictures())
    assert not has_several_labels(ColourPictures())
    found = evaluate_tagging(ColourMethod(), TaggedPictures(20), templates="{}", device="cpu", resamples=5)
    assert found.details["per_class"][0] == {"class": "red", "samples": 4, "average_precision": 1.0}
    assert found.metrics["mean_average_precision"] < 1  # white is a tag of many that are not
    assert found.protocol["labels"] == "1.40 a sample"  # a white one has one tag only


def test_ranks_count_from_one_and_precision_ends_at_ten():
    scores = torch.arange(12.0).flip(0).expand(4, 12)
    found = evaluate(ranking_statistic(scores, torch.tensor([0, 1, 9, 10])), 4)
    assert found["map@10"] == pytest.approx((1 + 1 / 2 + 1 / 10) / 4)
    assert found["mean_rank"] == pytest.approx((1 + 2 + 10 + 11) / 4)
    assert found["median_rank"] == 6
    assert found["acc10"] == pytest.approx(3 / 4)
    assert torch.isnan(torch.tensor(evaluate(ranking_statistic(scores[:, :5], torch.tensor([0, 1, 2, 3])), 4)["acc10"]))
    ranks, owner = torch.tensor([0, 4, 12]), torch.tensor([0, 0, 1])
    statistic = evaluate(retrieval_statistic(ranks, torch.tensor([1, 0]), owner, names=("audio", "text")), 2)
    assert statistic["audio_retrieval_map@10"] == pytest.approx((1 + 1 / 5) / 3)
    assert statistic["text_retrieval_map@10"] == pytest.approx((1 / 2 + 1) / 2)
    assert statistic["audio_retrieval_mean_rank"] == pytest.approx((1 + 5 + 13) / 3)
    recalls = sum(value for name, value in statistic.items() if "recall" in name)
    assert statistic["rsum"] == pytest.approx(recalls)
