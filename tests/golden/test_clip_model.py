"""CLIP from weights in OpenAI's layout: features, tokens, logits, loss and gradients of the official model."""

from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import normalize

from collimate.checkpoints.open_clip import to_open_clip
from collimate_vision_language import CLIP


@pytest.fixture
def sets(golden):
    """Each tower's golden set, its weights, and the method made from them."""
    found = [golden(f"clip_model/{name}") for name in golden("clip_model").config["sets"]]
    weights = [load_file(found_set.folder / "weights.safetensors") for found_set in found]
    return [
        (golden_set, w, CLIP.from_openai(w, golden_set.config["transformer_heads"]))
        for golden_set, w in zip(found, weights, strict=True)
    ]


def test_features_logits_loss_and_gradients(sets):
    for golden_set, _, method in sets:
        image, ids = golden_set.inputs["image"].clone().requires_grad_(), golden_set.inputs["text_ids"]
        embeddings = method.embed({"image": image, "text": ids})
        loss = method.total_loss(method.losses(embeddings, {}))
        loss.backward()
        unit = {name: normalize(vectors, dim=-1) for name, vectors in embeddings.items()}
        logits = method.logit_scale.exp() * unit["image"] @ unit["text"].T
        actual = {
            "image_features": embeddings["image"],
            "text_features": embeddings["text"],
            "logits_per_image": logits,
            "logits_per_text": logits.T,
            "loss": loss,
            "grad_image": image.grad,
        }
        gradients = {name: parameter.grad for name, parameter in method.named_parameters()}
        named = SimpleNamespace(
            encoders=method.encoders, projections=method.projections, state_dict=lambda gradients=gradients: gradients
        )
        prefix = golden_set.config["test"]["grad_param_prefix"]
        theirs = {prefix + name: gradient for name, gradient in to_open_clip(named)[1].items()}
        actual |= {name: gradient for name, gradient in theirs.items() if name in golden_set.expected}
        golden_set.compare(actual)
        done = {name for name in golden_set.expected if "tokens" in name or name.startswith("plain_gelu/")}
        assert golden_set.expected.keys() == actual.keys() | done


def test_tokens(sets):
    for golden_set, _, method in sets:
        text = method.encoders["text"](golden_set.inputs["text_ids"])
        expected = golden_set.expected["text_tokens_after_ln_final"]
        # What stands behind the longest text of a batch is not computed.
        padding = expected[:, text.tokens.shape[1] :]
        actual = {"text_tokens_after_ln_final": torch.cat([text.tokens, padding], dim=1)}
        if "image_tokens_after_ln_post" in golden_set.expected:
            image = method.encoders["image"](golden_set.inputs["image"])
            actual["image_tokens_after_ln_post"] = torch.cat([image.pooled[:, None], image.tokens], dim=1)
        golden_set.compare(actual)


def test_the_activation_is_part_of_the_model(sets):
    for golden_set, weights, method in sets:
        config, _ = to_open_clip(method)
        plain = CLIP.from_open_clip(config | {"quick_gelu": False}, weights)
        golden_set.compare(
            {
                "plain_gelu/image_features": plain.encode("image", golden_set.inputs["image"]).pooled,
                "plain_gelu/text_features": plain.encode("text", golden_set.inputs["text_ids"]).pooled,
            }
        )


def test_prefixes_half_precision_and_extra_entries(sets):
    for golden_set, weights, method in sets:
        published = {f"module.{name}": value.half() for name, value in weights.items() if value.is_floating_point()}
        published |= {f"module.{name}": value for name, value in weights.items() if not value.is_floating_point()}
        published |= {name: torch.tensor(1) for name in ("input_resolution", "context_length", "vocab_size")}
        again = CLIP.from_openai(published, golden_set.config["transformer_heads"])
        for name, value in again.state_dict().items():
            assert value.dtype in (torch.float32, torch.int64)
            torch.testing.assert_close(value, method.state_dict()[name], rtol=1e-3, atol=1e-3)
