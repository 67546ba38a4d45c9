"""DeBERTaV3 as a text tower, through the transformers adapter: masks, gradients, folders."""

import pytest
import torch

import collimate
from collimate.checkpoints import save
from collimate.encoders import HuggingFaceTextEncoder

SIZES = {  # DeBERTaV3's settings at a small size: disentangled attention, shared keys, buckets of distances
    "model_type": "deberta-v2",
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 32,
    "relative_attention": True,
    "position_buckets": 8,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "pos_att_type": ["p2c", "c2p"],
    "position_biased_input": False,
    "type_vocab_size": 0,
}


@pytest.fixture
def tower():
    pytest.importorskip("transformers")
    torch.manual_seed(0)
    return HuggingFaceTextEncoder(SIZES, pooling="mean").eval()


def test_padding_changes_nothing(tower):
    ids = torch.randint(1, 40, (3, 9), generator=torch.Generator().manual_seed(1))
    padded = torch.cat([ids, torch.zeros(3, 4, dtype=torch.long)], 1)
    mask = torch.arange(13).expand(3, -1) < 9
    torch.testing.assert_close(tower(padded, mask).pooled, tower(ids).pooled, rtol=1e-4, atol=1e-5)


def test_every_parameter_learns(tower):
    tower.train()(torch.randint(1, 40, (3, 9))).pooled.square().sum().backward()
    assert [name for name, value in tower.named_parameters() if value.grad is None] == []


def test_a_saved_tower_is_the_same(tower, tmp_path):
    save(tower, tmp_path / "tower")
    ids = torch.randint(1, 40, (3, 9))
    again = collimate.load(tmp_path / "tower").eval()
    torch.testing.assert_close(again(ids).pooled, tower(ids).pooled)
    assert max(again.depths().values()) == 3
