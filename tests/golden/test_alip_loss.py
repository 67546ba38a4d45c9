"""ALIP's history, gates and loss against the official training script's, step by step."""

import torch

from collimate_vision_language.alip import adaptive_losses, gates, similarities, updated_history

GOLDEN = "alip_loss"
HISTORY = ("H_text_caption", "H_image_text", "H_image_caption")
SIMILARITIES = ("S_text_caption", "S_image_text", "S_image_caption")


def step(golden_set, features_of, history):
    """One step on the features of a case: every number that the set may hold, and the history after it."""
    config, inputs = golden_set.config, golden_set.inputs
    features = [inputs[f"{features_of}/{name}"].clone().requires_grad_() for name in ("image", "raw_text", "caption")]
    scale = inputs["logit_scale_param"].exp()
    everyone = torch.ones(len(features[0]), dtype=torch.bool)
    found = similarities(*features)
    history = updated_history(history, found, everyone, config["momentum"])
    weights = gates(found, history, everyone, config["gamma_sample"], config["gamma_pair"])
    losses = adaptive_losses(*features, scale, weights, everyone)
    loss = losses.image_text + losses.image_caption
    gradients = torch.autograd.grad(loss, features)
    return history, {
        **dict(zip(HISTORY, history, strict=True)),
        **dict(zip(SIMILARITIES, found.unbind(1), strict=True)),
        "H_after": history,
        "weight_sample": weights.sample,
        "weight_text": weights.text,
        "weight_caption": weights.caption,
        "loss_image_text": losses.image_text,
        "loss_image_caption": losses.image_caption,
        "loss": loss,
        **dict(zip(("grad_image", "grad_raw_text", "grad_caption"), gradients, strict=True)),
    }


def history_before(golden_set, case):
    """The history that a case starts from: given, or carried through the steps before it."""
    settings = golden_set.cases[case]
    if settings["kind"] == "history_given":
        return golden_set.inputs[f"{case}/H_before"]
    if settings["history_from"] == "start":
        return torch.full((3,), golden_set.config["history_start"])
    before = settings["history_from"]
    return step(golden_set, before, history_before(golden_set, before))[0]


def test_alip_loss(golden_set, case):
    features_of = golden_set.cases[case].get("features_of", case)
    _, found = step(golden_set, features_of, history_before(golden_set, case))
    golden_set.compare_all(case + "/", found)
