"""BERT that fuses: the official TCL's and ALPRO's tokens, matching and token logits, from their own weights."""

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import linear

from collimate.encoders import Bert
from collimate.encoders.bert_weights import official_bert_weights
from collimate.encoding import Encoding
from collimate.losses.masked_tokens import UNSCORED, masked_token_losses, mean_of_chosen


def bert_of(weights, prefix="text_encoder.", **sizes):
    bert = Bert(**sizes, token_head=True)
    bert.load_state_dict(official_bert_weights(weights, prefix))
    return bert.eval()


def tcl_sizes(golden_set):
    bert = golden_set.config["bert"]
    return {
        "vocab_size": bert["vocab_size"],
        "context_length": bert["max_position_embeddings"],
        "width": bert["hidden_size"],
        "layers": bert["num_hidden_layers"],
        "heads": bert["num_attention_heads"],
        "hidden": bert["intermediate_size"],
        "fusion_layer": bert["fusion_layer"],
        "cross_width": bert["encoder_width"],
    }


def alpro_sizes(golden_set):
    text = golden_set.config["text"]
    same = {name: text[name] for name in ("vocab_size", "width", "layers", "heads", "fusion_layer")}
    return {**same, "context_length": text["max_positions"], "hidden": text["ffn_width"]}


def image(tokens):
    return Encoding(tokens[:, 0], tokens)


def scores(fused, weights):
    return linear(fused.pooled, weights["itm_head.weight"], weights["itm_head.bias"])


def rows(encoding, chosen):
    mask = None if encoding.mask is None else encoding.mask[chosen]
    return Encoding(encoding.pooled[chosen], encoding.tokens[chosen], mask)


def pairs(text, other, wrong_other, wrong_text):
    """Each text with its own, with a wrong, and each other with a wrong text, as the official codes order them."""
    own = torch.arange(len(text.pooled))
    return rows(text, torch.cat([own, own, wrong_text])), rows(other, torch.cat([own, wrong_other, own]))


@pytest.fixture
def tcl(golden):
    found = golden("tcl/pretrain_forward")
    weights = load_file(found.folder / "weights.safetensors")
    return found, weights, bert_of(weights, **tcl_sizes(found))


def test_tcl(tcl):
    golden_set, weights, bert = tcl
    inputs = golden_set.inputs
    mask, pictures = inputs["attention_mask"].bool(), image(golden_set.expected["image_tokens"])
    text = bert(inputs["input_ids"], mask)
    every = pairs(text, pictures, inputs["recorded_neg_image_index"], inputs["recorded_neg_text_index"])
    told = bert.fuse(bert(inputs["recorded_mlm_input_ids"], mask), pictures)
    logits, chosen = bert.token_logits(told.tokens), inputs["recorded_mlm_labels"] != UNSCORED
    losses = masked_token_losses(
        logits[chosen],
        inputs["recorded_mlm_labels"][chosen],
        golden_set.expected["mlm_logits_momentum"][chosen],
        float(inputs["alpha"]),
    )
    actual = {
        "text_tokens": text.tokens,
        "itm_logits": scores(bert.fuse(*every), weights),
        "mlm_logits": logits,
        "loss_mlm": mean_of_chosen(losses, torch.ones_like(losses, dtype=torch.int64)),
    }
    golden_set.compare(actual)


def test_a_text_is_its_class_token(tcl):
    golden_set, weights, bert = tcl
    text = bert(golden_set.inputs["input_ids"], golden_set.inputs["attention_mask"].bool())
    projected = linear(text.pooled, weights["text_proj.weight"], weights["text_proj.bias"])
    golden_set.compare({"text_feat": torch.nn.functional.normalize(projected, dim=1)})


def test_the_momentum_copy_loads_by_its_own_name(tcl):
    golden_set, weights, bert = tcl
    copy = bert_of(weights, "text_encoder_m.", **tcl_sizes(golden_set))
    assert not torch.equal(copy.embeddings.word_embeddings.weight, bert.embeddings.word_embeddings.weight)


def test_alpro(golden):
    golden_set = golden("alpro")
    weights = load_file(golden_set.folder / "weights.safetensors")
    bert = bert_of(weights, **alpro_sizes(golden_set))
    inputs, expected = golden_set.inputs, golden_set.expected
    mask, videos = inputs["text_input_mask"].bool(), image(expected["video_embeds"])
    text = bert(inputs["text_input_ids"], mask)
    every = pairs(text, videos, inputs["vtm_negative_video_index"], inputs["vtm_negative_text_index"])
    told = bert.fuse_joined(bert(inputs["mlm_text_input_ids"], mask), videos)
    logits, labels = bert.token_logits(told.tokens[:, : mask.shape[1]]), inputs["mlm_labels"]
    losses = masked_token_losses(logits[labels != UNSCORED], labels[labels != UNSCORED])
    actual = {
        "text_embeds": text.tokens,
        "fused_positive": bert.fuse_joined(text, videos).tokens,
        "vtm_logits": scores(bert.fuse_joined(*every), weights),
        "mlm_logits": logits,
        "mlm_loss": losses.mean(),
    }
    tolerance = golden_set.config["tolerance"]["outputs"]["atol"]
    for name, value in actual.items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=tolerance)
