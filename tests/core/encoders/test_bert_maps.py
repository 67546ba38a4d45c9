"""Maps of cross-attention: the formula, pair by pair; under inference mode; and that they find what makes the score."""

import pytest
import torch
from torch import nn

from collimate.encoders import Bert
from collimate.encoders import bert_maps as maps
from collimate.encoders.bert_maps import cross_attention_maps, whole_texts
from collimate.encoding import Encoding

CELLS, CLS, SEP = 9, 1, 2


def bert(**further):
    torch.manual_seed(0)
    sizes = {"vocab_size": 20, "context_length": 8, "width": 32, "layers": 3, "heads": 2, "hidden": 64}
    return Bert(**{**sizes, "fusion_layer": 1, "cross_width": 16, "dropout": 0.0, **further}).eval()


def pictures(count, masked=False):
    tokens = torch.randn(count, CELLS, 16, generator=torch.Generator().manual_seed(1))
    mask = torch.arange(CELLS) < torch.arange(3, 3 + count)[:, None] if masked else None
    return Encoding(tokens[:, 0], tokens, mask)


def texts(model):
    ids = torch.tensor([[CLS, 5, 6, SEP, 0], [CLS, 7, SEP, 0, 0], [CLS, 8, 9, 10, SEP]])
    return model(ids, ids != 0)


def head(width=32):
    torch.manual_seed(1)
    return nn.Linear(width, 2)


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("inference", [False, True])
def test_it_is_the_formula_of_each_pair(layer, inference, monkeypatch):
    model, score = bert(), head()
    image, text = pictures(2, masked=True), texts(model)
    monkeypatch.setattr(maps, "PAIRS_AT_A_TIME", 4)
    with torch.inference_mode(inference):
        given = Encoding.cat([image]), texts(model)
        found = cross_attention_maps(model, lambda fused: score(fused.pooled)[:, 1], *given, layer)
    assert found.shape == (2, 3, CELLS)
    for n in range(2):
        for t in range(3):
            one = Encoding(image.pooled[n : n + 1], image.tokens[n : n + 1], image.mask[n : n + 1])
            other = Encoding(text.pooled[t : t + 1], text.tokens[t : t + 1], text.mask[t : t + 1])
            with model.cross_attention() as weights:
                value = score(model.fuse(other, one).pooled)[0, 1]
            gradient = torch.autograd.grad(value, weights[layer])[0].clamp_min(0)
            expected = (gradient * weights[layer] * other.mask[:, None, :, None]).mean((1, 2))[0]
            torch.testing.assert_close(found[n, t], expected.detach(), rtol=1e-4, atol=1e-8)
    assert (found >= 0).all()
    assert (found[~image.mask[:, None].expand_as(found)] == 0).all()
    assert found.amax(2).min() > 0


def test_no_gradients_are_left_and_frozen_weights_do():
    model, score = bert().requires_grad_(False), head().requires_grad_(False)
    found = cross_attention_maps(model, lambda fused: score(fused.pooled)[:, 1], pictures(2), texts(model), 0)
    assert not found.requires_grad
    model.requires_grad_(True)
    image, text = pictures(2), texts(model)
    same = cross_attention_maps(model, lambda fused: score(fused.pooled)[:, 1], image, text, 0)
    torch.testing.assert_close(same, found)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not image.tokens.requires_grad


def test_masks_of_words_alone_are_made_whole():
    real = torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 1]]).bool()
    words = torch.tensor([[0, 1, 1, 0, 0, 0], [0, 1, 0, 0, 0, 0], [0, 1, 0, 1, 1, 0]]).bool()
    assert torch.equal(whole_texts(words), real)
    assert torch.equal(whole_texts(real), real)
    model, score = bert(), head()
    text = texts(model)
    ids = torch.arange(5)
    inner = text.token_mask & (ids > 0) & (ids < text.token_mask.sum(1, keepdim=True) - 1)

    def found(given):
        return cross_attention_maps(model, lambda fused: score(fused.pooled)[:, 1], pictures(2), given, 0)

    torch.testing.assert_close(found(text.replace(mask=inner)), found(text))


def test_what_cannot_be_mapped():
    model = bert()
    with pytest.raises(ValueError, match="one of the 2 fusion layers, not 2"):
        cross_attention_maps(model, lambda fused: fused.pooled[:, 0], pictures(1), texts(model), 2)
    with pytest.raises(ValueError, match="need the tokens"):
        cross_attention_maps(model, lambda fused: fused.pooled[:, 0], Encoding(torch.zeros(1, 16)), texts(model), 0)


@pytest.mark.parametrize("layer", [0, 1])
def test_it_points_at_the_cell_that_makes_the_score(layer):
    """Of a picture of equal cells, one is changed so that the score rises."""
    model, score = bert().requires_grad_(False), head()

    def matches(fused):
        return score(fused.pooled)[:, 1]

    ids = torch.tensor([[CLS, 5, 6, SEP]])
    plain = torch.randn(16, generator=torch.Generator().manual_seed(4)).expand(CELLS, CELLS, 16).clone()
    changed = plain[:, 0].clone().requires_grad_()  # of picture i, cell i
    own = torch.eye(CELLS)[..., None]
    optimizer = torch.optim.SGD([changed], 10.0)
    for _ in range(30):
        tokens = plain * (1 - own) + changed[:, None] * own
        value = matches(model.fuse(model(ids.expand(CELLS, -1)), Encoding(tokens[:, 0], tokens)))
        optimizer.zero_grad()
        (-value.sum()).backward()
        optimizer.step()
    tokens = (plain * (1 - own) + changed[:, None] * own).detach()
    found = cross_attention_maps(model, matches, Encoding(tokens[:, 0], tokens), model(ids), layer)[:, 0]
    assert found.argmax(1).tolist() == list(range(CELLS))
