"""COSMO: words' losses by hand, no word tells itself, plain pairs alone contrast, chunks, folders, data, bad towers."""

import pytest
import torch
from torch.nn.functional import cross_entropy

import collimate
from collimate.checkpoints import save
from collimate.data import Caption
from collimate.encoders import Bert, OpenClipImageEncoder, OpenClipTextEncoder
from collimate.losses import clip_loss
from collimate.processing import ClipTokenizer, ImageProcessor
from collimate.testing import assert_cached_equals_full
from collimate_vision_language import COSMO

WIDTH = 16


def cosmo(**given):
    torch.manual_seed(0)
    parts = {
        "image_encoder": OpenClipImageEncoder(width=WIDTH, layers=1, image_size=32, patch_size=16, head_width=8),
        "text_encoder": OpenClipTextEncoder(width=WIDTH, heads=2, layers=1, context_length=16),
    }
    return COSMO(
        **{**parts, **given},
        image_processor=ImageProcessor(32),
        tokenizer=ClipTokenizer(16),
        embed_dim=8,
        decoder_layers=1,
        decoder_heads=2,
    ).eval()


@pytest.fixture
def documents(batch):
    """Plain pairs, but for two samples; passages of three."""
    passages = ["", "", "the dog ran off", "", "we saw the sea at night and slept", "it rains"]
    given = torch.tensor([bool(text) for text in passages])
    return batch | {
        "text_given": torch.tensor([True, True, True, True, False, False]),
        "passage": ClipTokenizer(16).batch(passages),
        "passage_given": given,
    }


def test_each_word_is_told_from_those_before_it_and_the_picture(batch):
    method = cosmo()
    losses = []
    with torch.no_grad():
        picture = method._tower("image", batch["image"])
        for row, ids in enumerate(batch["text"]):
            length = int((ids == method.processors["text"].end_id).nonzero()[0]) + 1
            tokens = method._tower("text", ids[None]).tokens[:, :length]
            logits = method.decoder(tokens, picture.tokens[row : row + 1], torch.ones(1, length, dtype=torch.bool))
            losses.append(cross_entropy(logits[:-1], ids[1:length], reduction="none"))
        found = method.loss_terms(batch)["caption"]
    torch.testing.assert_close(found, torch.cat(losses).mean(), rtol=1e-4, atol=1e-5)


def test_no_word_is_told_by_itself_or_later_ones():
    method = cosmo()
    draw = torch.Generator().manual_seed(0)
    text, picture = torch.randn(2, 5, WIDTH, generator=draw), torch.randn(2, 4, WIDTH, generator=draw)
    everywhere = torch.ones(2, 5, dtype=torch.bool)
    before = method.decoder(text, picture, everywhere).unflatten(0, (2, 5))
    text[:, 3:] += 1
    after = method.decoder(text, picture, everywhere).unflatten(0, (2, 5))
    torch.testing.assert_close(before[:, :3], after[:, :3])
    assert not torch.allclose(before[:, 3:], after[:, 3:])
    assert not torch.allclose(before, method.decoder(text, picture + 1, everywhere).unflatten(0, (2, 5)))


def test_running_text_is_told_but_contrasts_with_nothing(documents):
    method = cosmo()
    terms = method.loss_terms(documents)
    embeddings = method.embed(documents)
    plain = documents["text_given"]
    alone = clip_loss(embeddings["image"][plain], embeddings["text"][plain], method.logit_scale.exp())
    torch.testing.assert_close(terms["contrast"], alone)
    changed = documents | {"passage": documents["passage"].roll(1, 0)}
    assert not torch.isclose(method.loss_terms(changed)["passage"], terms["passage"])
    torch.testing.assert_close(method.loss_terms(changed)["caption"], terms["caption"])
    assert embeddings["passage_count"].tolist()[:2] == [0, 0]
    none = method.loss_terms(documents | {"text_given": torch.zeros(6, dtype=torch.bool)})
    assert (none["contrast"].item(), none["caption"].item()) == (0, 0)
    method.total_loss(none).backward()
    assert all(value.grad.isfinite().all() for value in method.parameters() if value.grad is not None)


def test_equal_captions_are_no_negatives(batch):
    method = cosmo()
    repeated = batch | {"text": batch["text"][[0, 0, 1, 2, 3, 4]]}
    embeddings = method.embed(repeated)
    ids = torch.tensor([0, 0, 1, 2, 3, 4])
    expected = clip_loss(embeddings["image"], embeddings["text"], method.logit_scale.exp(), ids=ids)
    torch.testing.assert_close(method.loss_terms(repeated)["contrast"], expected)


def test_chunks_change_nothing(documents):
    method = cosmo()

    def loss(chunk):
        method.gradient_cache = chunk
        return method.total_loss(method.loss_terms(documents))

    parameters = dict(method.named_parameters())
    assert_cached_equals_full(lambda: loss(None), lambda: loss(4), parameters, tolerance=1e-4)


def test_a_saved_method_is_the_same(documents, tmp_path):
    method = cosmo()
    save(method, tmp_path / "model")
    again = collimate.load(tmp_path / "model").eval()
    torch.testing.assert_close(again.loss_terms(documents), method.loss_terms(documents))


def test_captions_and_passages_are_told_apart_by_kind():
    both = [Caption("a dog"), Caption("then the dog ran", "interleaved")]
    text, passage = COSMO.captions["text"], COSMO.captions["passage"]
    assert (text(both), passage(both)) == ("a dog", "then the dog ran")
    assert (text(both[1:]), passage(both[:1])) == (None, None)


def test_a_tower_that_looks_ahead_is_refused():
    ahead = Bert(vocab_size=49408, width=WIDTH, heads=2, layers=1, context_length=16)
    with pytest.raises(ValueError, match="see later ones"):
        cosmo(text_encoder=ahead)
    with pytest.raises(ValueError, match="see later ones"):
        cosmo(text_encoder=OpenClipTextEncoder(width=WIDTH, heads=2, layers=1, context_length=16, no_causal_mask=True))
