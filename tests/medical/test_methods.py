"""ConVIRT, GLoRIA and MERL as methods: terms, ranks, the gradient cache, learning, saving; sentences of reports."""

import random
from itertools import combinations

import pytest
import torch

from collimate.checkpoints import load, save
from collimate.data import open_source
from collimate.data.captions import Caption
from collimate.data.decoding import Undecodable
from collimate.encoders import Frozen, OpenClipTextEncoder
from collimate.evaluation.retrieval import evaluate_retrieval
from collimate.processing import ClipTokenizer
from collimate.testing import assert_cached_equals_full
from collimate_medical import (
    MERL,
    ConVIRT,
    ECGProcessor,
    ECGTransformer,
    GLoRIA,
    ImageTransformer,
    OneSentence,
    SomeSentences,
    XRayProcessor,
)
from collimate_medical.gloria import gloria_losses, zero_shot_similarity
from collimate_medical.sentences import sentences

TEXTS = [
    "No pneumothorax.",
    "The heart is large.",
    "There is a left pleural effusion.",
    "Tachycardia.",
    "St elevation.",
    "No.",
]


def film_tower():
    return ImageTransformer(32, 16, 24, 1, 3, dropkey=0.0)


def text_tower():
    return OpenClipTextEncoder(width=16, heads=2, layers=1, context_length=12)


def convirt(**options):
    torch.manual_seed(0)
    return ConVIRT(film_tower(), text_tower(), XRayProcessor(32), ClipTokenizer(12), embed_dim=8, **options)


def gloria(**options):
    torch.manual_seed(0)
    return GLoRIA(film_tower(), text_tower(), XRayProcessor(32), ClipTokenizer(12), embed_dim=8, **options)


def merl(**options):
    torch.manual_seed(0)
    tower = ECGTransformer(100, stem_width=8, width=24, depth=1, heads=3, dropkey=0.0)
    return MERL(tower, text_tower(), ECGProcessor(seconds=1), ClipTokenizer(12), embed_dim=8, **options)


METHODS = {"convirt": convirt, "gloria": gloria, "merl": merl}


@pytest.fixture
def batch():
    torch.manual_seed(1)
    return {
        "xray": torch.randint(256, (6, 3, 32, 32), dtype=torch.uint8),
        "ecg": torch.randn(6, 12, 100),
        "text": ClipTokenizer(12).batch(TEXTS),
    }


@pytest.mark.parametrize("name", METHODS)
def test_it_learns_which_belong_together(name, batch):
    method = METHODS[name]().train()
    optimizer = torch.optim.Adam(method.parameters(), 3e-3)
    losses = []
    for _ in range(60):
        loss = method.total_loss(method.loss_terms(batch))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2


@pytest.mark.parametrize("name", ["convirt", "gloria"])
def test_the_gradient_cache_changes_nothing(name, batch):
    method = METHODS[name]()

    def loss(chunk):
        method.gradient_cache = chunk
        return method.total_loss(method.loss_terms(batch))

    assert_cached_equals_full(lambda: loss(None), lambda: loss(4), dict(method.named_parameters()), tolerance=1e-5)


def test_terms(batch):
    assert convirt().encode("xray", batch["xray"]).pooled.shape == (6, 8)
    assert set(gloria().loss_terms(batch)) == {"local", "pooled"}
    assert set(merl().loss_terms(batch)) == {"cross_modal", "uni_modal"}
    one_way = convirt(image_share=1.0).loss_terms(batch)["convirt"]
    other_way = convirt(image_share=0.0).loss_terms(batch)["convirt"]
    both = convirt().loss_terms(batch)["convirt"]
    torch.testing.assert_close(both, 0.75 * one_way + 0.25 * other_way)


def test_both_heads_of_convirt_learn(batch):
    method = convirt()
    method.loss_terms(batch)["convirt"].backward()
    assert all(parameter.grad is not None for parameter in method.projections.parameters())


def test_gloria_compares_tokens(batch):
    method = gloria().eval()
    image, text = method.encode("xray", batch["xray"]), method.encode("text", batch["text"])
    assert image.grid == (2, 2)
    scores = method.similarity(image, text)
    expected = zero_shot_similarity(image.pooled, text.pooled, image.tokens, text.tokens, text.token_mask)
    torch.testing.assert_close(scores, expected)
    torch.testing.assert_close(method.similarity(text, image), expected.T)
    with pytest.raises(ValueError, match="lie on a grid"):
        method.similarity(text, text)
    terms = gloria_losses(image.pooled, text.pooled, image.tokens, text.tokens, text.token_mask)
    torch.testing.assert_close(method.loss_terms(batch)["local"], terms.local)


def test_merl_has_two_views_of_each_ecg_and_may_freeze_its_text(batch):
    method = merl().train()
    embeddings = method.embed(batch)
    assert not torch.equal(embeddings["view"], embeddings["other_view"])
    assert embeddings["view"].shape == (6, 24)
    assert torch.equal(method.eval().embed(batch)["ecg"], method.encode("ecg", batch["ecg"]).pooled)
    tower = ECGTransformer(100, stem_width=8, width=24, depth=1, heads=3)
    frozen = MERL(tower, Frozen(text_tower()), ECGProcessor(seconds=1), ClipTokenizer(12), embed_dim=8)
    frozen.total_loss(frozen.loss_terms(batch)).backward()
    assert all(parameter.grad is None for parameter in frozen.encoders["text"].parameters())
    assert all(parameter.grad is not None for parameter in frozen.projections.parameters())


@pytest.mark.parametrize("name", METHODS)
def test_it_is_saved_loaded_and_evaluated(name, batch, tmp_path):
    method = METHODS[name]().eval()
    save(method, tmp_path / name)
    again = load(tmp_path / name)
    for modality in method.modalities:
        assert torch.equal(
            again.encode(modality, batch[modality]).pooled, method.encode(modality, batch[modality]).pooled
        )
    source = open_source("world-patients:test?patients=7&size=32&seconds=1")
    found = evaluate_retrieval(again, source, device="cpu", resamples=2)
    assert 0 <= found.metrics["text_retrieval_recall@1"] <= 1


# Sentences --------------------------------------------------------------------------------------------------------


def test_sentences_of_a_report():
    report = "FINDINGS: The heart is large.  No effusion; 2.5 cm nodule\n\nStable."
    assert sentences(report) == ["FINDINGS: The heart is large", "No effusion", "2.5 cm nodule", "Stable"]
    assert sentences(report, min_words=2) == ["FINDINGS: The heart is large", "No effusion", "2.5 cm nodule"]


def test_one_sentence_is_drawn():
    random.seed(0)
    captions = [Caption("The heart is large. No effusion. Stable.", "xray"), Caption("Sinus rhythm here.", "ecg")]
    drawn = {OneSentence(["xray"])(captions) for _ in range(60)}
    assert drawn == {"The heart is large", "No effusion"}
    assert {OneSentence(["ecg"])(captions) for _ in range(5)} == {"Sinus rhythm here"}
    assert OneSentence(min_words=9)(captions[1:]) == "Sinus rhythm here."
    assert OneSentence(["long"], optional=True)(captions) is None


def test_from_one_to_all_sentences_are_kept_in_their_order():
    random.seed(0)
    report = [Caption("First here. Second here. Third here.", "raw"), Caption("Other.", "ecg")]
    drawn = {SomeSentences(["raw"])(report) for _ in range(200)}
    parts = ["First here.", "Second here.", "Third here."]
    assert drawn == {" ".join(some) for count in (1, 2, 3) for some in combinations(parts, count)}
    assert SomeSentences(["long"], optional=True)(report) is None
    with pytest.raises(Undecodable, match="no caption of kind long"):
        SomeSentences(["long"])(report)
