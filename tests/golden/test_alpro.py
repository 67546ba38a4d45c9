"""ALPRO: features, losses and scores of the official code, from its own weights and with its draws."""

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import normalize

from collimate.processing import Tokenizer
from collimate_video import ALPRO
from collimate_video.alpro.crops import cropped

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


@pytest.fixture
def whole(golden_set):
    """The model of pre-training, with its teacher."""
    weights = load_file(golden_set.folder / "weights.safetensors")
    config = golden_set.config
    settings = {"heads": config["video"]["heads"], "fusion_layer": config["text"]["fusion_layer"]}
    names = [f"entity{number}" for number in range(config["num_entities"])]
    method = ALPRO.from_official(weights, tokenizer=Ids(), drop_path=0.0, dropout=0.0, entities=names, **settings)
    method.prompter.threshold = config["pem_ignore_threshold"]
    return method


def batch_of(golden_set):
    inputs = golden_set.inputs
    pictures = torch.tensor(golden_set.config["batch_type"] == "img")
    return {
        "boxes": inputs["pem_patch_mask"] == golden_set.config["pem_patch_mask_inside_crop"],
        "still": pictures.expand(len(inputs["visual_inputs"])),
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


def test_prompts(golden_set, whole):
    config, count = golden_set.config, golden_set.config["num_entities"]
    assert config["prompt_order"] == "template_major"
    for kind in ("video", "image"):
        ids = golden_set.inputs[f"{kind}_prompt_ids"].unflatten(0, (-1, count)).transpose(0, 1)
        close(golden_set, {f"{kind}_prompt_feat": whole.prompter.prompt_features(ids)})
        assert torch.equal(getattr(whole.prompter, f"{kind}_prompt_feat"), golden_set.expected[f"{kind}_prompt_feat"])


def test_crops_and_what_they_show(golden_set, whole):
    batch = batch_of(golden_set)
    crops = cropped(batch["video"], batch["boxes"])
    assert torch.equal(crops, golden_set.inputs["crop_visual_inputs"])
    close(golden_set, {"crop_feat": normalize(whole.prompter.prompter("video", crops).pooled, dim=1)})
    for mode, name in (("probability", "paper"), ("official", "official")):
        whole.prompter.threshold_mode = mode
        labels, kept = whole.prompter(crops, batch["still"])
        close(golden_set, {"pem_soft_labels": labels})
        assert torch.equal(~kept, golden_set.expected[f"pem_ignore_{name}"].bool())


def test_entities_and_the_sum_of_all_losses(golden_set, whole):
    wanted, batch = golden_set.expected, batch_of(golden_set)
    assert set(golden_set.config["loss_weights"].values()) == {1.0}
    terms = whole.loss_terms(batch)
    close(golden_set, {"pem_loss_paper_threshold": terms["pem"]})
    whole.prompter.threshold_mode = "official"
    video = batch["video"].clone().requires_grad_()
    terms = whole.loss_terms({**batch, "video": video})
    total = whole.total_loss(terms)
    close(golden_set, {"pem_loss_official": terms["pem"], "total_loss_official": total})
    total.backward()
    learned = official_names(whole) | {"visual_inputs": video}
    relative = golden_set.config["tolerance"]["gradients"]["rtol"]
    for name in golden_set.config["grad_names"]:
        gradient, expected = learned[name].grad, wanted[f"grad_total/{name}"]
        error = float((gradient - expected).abs().max())
        assert error <= relative * float(expected.abs().max()), f"{name}: {error}"


def official_names(method):
    """The student's parameters by the released names."""
    names = (
        ("encoders.video.", "visual_encoder.model."),
        ("encoders.text.cls.", "text_encoder.cls."),
        ("encoders.text.", "text_encoder.bert."),
        ("projections.video.linear.", "vision_proj."),
        ("projections.text.linear.", "text_proj."),
    )
    found = {}
    for name, parameter in method.named_parameters():
        ours, theirs = next(((o, t) for o, t in names if name.startswith(o)), ("", ""))
        found[theirs + name.removeprefix(ours)] = parameter
    return found
