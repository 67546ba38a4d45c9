"""Retrieval from a source: uneven captions, prefixes, blocks, ranks, and a score that is no cosine."""

import pytest
import torch

from collimate.data.decoding import decode_image, register_decoder
from collimate.evaluation import Report
from collimate.evaluation.index import scorer
from collimate.evaluation.metrics import retrieval_metrics
from collimate.evaluation.retrieval import evaluate_retrieval, evaluate_retrieval_between
from collimate.testing import run_on_ranks

from .toys import ColourMethod, ColourPictures, TokenMethod

OPTIONS = {"device": "cpu", "resamples": 20}


def test_numbers_are_those_of_the_features():
    method = ColourMethod(-0.2)
    found = evaluate_retrieval(method, ColourPictures(11), recalls=(1, 3, 50), **OPTIONS)
    images = found.features.encodings["image"].pooled
    texts = method.encode("text", found.captions).pooled.detach()
    assert found.metrics == pytest.approx(retrieval_metrics(images, texts, found.sample_of_text, (1, 3, 50)))
    assert found.metrics["text_retrieval_recall@50"] == 1.0
    assert len(found.captions) == sum(1 + index % 3 for index in range(11))


@pytest.mark.parametrize("method", [ColourMethod(-0.3), TokenMethod(-0.3)], ids=["cosine", "tokens"])
def test_batches_and_ranks_change_nothing(method):
    def metrics(batch_size):
        return evaluate_retrieval(method, ColourPictures(), batch_size=batch_size, **OPTIONS).metrics

    alone = metrics(23)
    assert [metrics(5), *run_on_ranks(metrics, [(3,), (3,)])] == [alone] * 3


def test_scores_that_need_tokens_are_taken_in_blocks(monkeypatch):
    method = TokenMethod(0.3)
    queries, keys = method.encode("image", torch.rand(4, 3)), method.encode("text", torch.rand(9, 3))
    whole = method.similarity(queries, keys).detach()
    monkeypatch.setattr("collimate.evaluation.index.TOKEN_SCORES", 20)
    blocks = scorer(method, queries, keys)
    torch.testing.assert_close(blocks(slice(1, 3), slice(0, 9)), whole[1:3])


def test_prefix_and_number_of_captions_are_in_the_protocol():
    found = evaluate_retrieval(ColourMethod(), ColourPictures(9), "blue ", max_captions=1, **OPTIONS)
    assert found.protocol["text prefix"] == "blue "
    assert found.protocol["texts"].startswith("9, at most 1")
    plain = evaluate_retrieval(ColourMethod(), ColourPictures(9), **OPTIONS)
    assert found.metrics != plain.metrics  # blue is a word that counts


class TwoColours(ColourMethod):
    """Pictures, and the same pictures as another modality, which is a little off."""

    modalities = ("image", "other", "text")

    def __init__(self, bent: float = 0.0) -> None:
        super().__init__(bent)
        self.processors["other"] = self.processors["image"]

    def forward(self, modality, inputs, mask=None):
        return super().forward("image" if modality == "other" else "text", inputs)


class Twice(ColourPictures):
    def read(self, index):
        sample = super().read(index)
        picture = next(key for key in ("png", "jpg") if key in sample)
        return {**sample, "other": sample[picture]}


def between(method, batch_size):
    register_decoder(decode_image, "other")
    return evaluate_retrieval_between(method, Twice(17), "image", "other", batch_size=batch_size, **OPTIONS)


def test_two_modalities_by_each_other():
    alone = between(TwoColours(-0.3), 17)
    images, others = (alone.features.encodings[name].pooled for name in ("image", "other"))
    expected = retrieval_metrics(images, others, torch.arange(17))
    renamed = {name.replace("text_", "other_"): value for name, value in expected.items()}
    assert alone.metrics == pytest.approx(renamed)
    assert alone.captions == alone.features.keys
    assert [each.metrics for each in run_on_ranks(between, [(TwoColours(-0.3), 3)] * 2)] == [alone.metrics] * 2
    report = Report("between", "toys")
    alone.add_to(report)
    with pytest.raises(ValueError, match="does not rank by the cosine"):
        between(TokenMethod(), 4)
