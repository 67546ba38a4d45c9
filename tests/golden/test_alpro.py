"""ALPRO: features, losses and scores of the official code, from its own weights and with its draws."""

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import normalize

from collimate.processing import Tokenizer
from collimate_video import ALPRO

GOLDEN = "alpro"


class Ids(Tokenizer):
    """Ids as they are: the set's texts are ids already."""

    pad_id, mask_id, vocab_size, context_length = 0, 3, 120, 12

    def __init__(self) -> None: ...

    def mask(self, batch):
        return batch != self.pad_id


@pytest.fixture
def method(golden_set):
    weights = load_file(golden_set.folder / "weights.safetensors")
    config = golden_set.config
    settings = {"heads": config["video"]["heads"], "fusion_layer": config["text"]["fusion_layer"]}
    return ALPRO.from_official(weights, tokenizer=Ids(), drop_path=0.0, dropout=0.0, **settings)


def batch_of(golden_set):
    inputs = golden_set.inputs
    return {
        "video": inputs["visual_inputs"],
        "text": inputs["text_input_ids"],
        "negative_video": inputs["vtm_negative_video_index"],
        "negative_text": inputs["vtm_negative_text_index"],
        "masked_text": inputs["mlm_text_input_ids"],
        "masked_labels": inputs["mlm_labels"],
    }


def close(golden_set, actual):
    for name, value in actual.items():
        tolerance = golden_set.config["tolerance"]["outputs"]["atol"]
        torch.testing.assert_close(
            value, golden_set.expected[name], rtol=0, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_features_and_what_fusion_reads(golden_set, method):
    video = method("video", golden_set.inputs["visual_inputs"])
    text = method("text", golden_set.inputs["text_input_ids"], golden_set.inputs["text_input_mask"].bool())
    close(
        golden_set,
        {
            "video_feat": normalize(video.pooled, dim=1),
            "text_feat": normalize(text.pooled, dim=1),
            "video_embeds": video.tokens,
            "text_embeds": text.tokens,
            "sim_v2t": method.similarity(video, text) / method.temp,
        },
    )
    wanted = golden_set.expected["vtm_logits"][: len(video.pooled)]
    torch.testing.assert_close(method.rerank(video, text), wanted[:, 1] - wanted[:, 0], rtol=0, atol=4e-5)


def test_losses(golden_set, method):
    terms = method.loss_terms(batch_of(golden_set))
    close(golden_set, {f"{name}_loss": value for name, value in terms.items()})


def test_in_chunks_all_gradients_are_the_same(golden_set, method):
    gradients = []
    for chunk in (None, 2):
        method.gradient_cache = chunk
        method.zero_grad()
        method.total_loss(method.loss_terms(batch_of(golden_set))).backward()
        gradients.append({name: parameter.grad.clone() for name, parameter in method.named_parameters()})
    for name, one in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], one, rtol=1e-4, atol=1e-5, msg=name)


def test_the_weights_of_negatives(golden_set, method):
    from collimate.losses.matching import negative_weights

    expected = golden_set.expected
    for name in ("v2t", "t2v"):
        found = negative_weights(expected[f"sim_{name}"])
        wanted = expected[f"vtm_weights_{name}"]
        torch.testing.assert_close(found / found.sum(1, keepdim=True), wanted / wanted.sum(1, keepdim=True))
