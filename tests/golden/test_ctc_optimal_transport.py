"""CTC and the debiased Sinkhorn divergence against the official criterion: each clip alone, computed in a batch."""

import torch
from torch.nn.functional import normalize

from collimate.losses.transport import ctc_losses, sinkhorn_divergences

GOLDEN = "ctc_optimal_transport"


def masks(golden_set):
    inputs = golden_set.inputs
    for side in ("speech", "text"):
        length = inputs[f"{side}_states"].shape[0]
        yield torch.arange(length) < inputs[f"{side}_lengths"][:, None]


def diameter(golden_set, settings):
    """None for a clip's own; that of all of them and their padding where the official code ran on all at once."""
    if settings["bs1"]:  # values per sample are always those of the clips alone
        return None
    states = torch.cat([golden_set.inputs[f"{side}_states"].flatten(0, 1) for side in ("speech", "text")])
    states = normalize(states, dim=1) if settings["norm"] else states
    return float((states.amax(0) - states.amin(0)).norm())


def divergences(golden_set, settings, diameter=None):
    """W of each clip, and the states that gradients go to."""
    states = [golden_set.inputs[f"{side}_states"].clone().requires_grad_() for side in ("speech", "text")]
    found = sinkhorn_divergences(
        *(each.transpose(0, 1) for each in states),
        *masks(golden_set),
        p=settings["p"],
        blur=settings["blur"],
        scaling=settings["scaling"],
        position_weight=settings["posw"],
        normalize=settings["norm"],
        diameter=diameter,
    )
    return found, states


def test_divergence(golden_set):
    for name, settings in golden_set.config["sets"].items():
        found, (speech, text) = divergences(golden_set, settings, diameter(golden_set, settings))
        found.sum().backward()
        alone, _ = divergences(golden_set, settings)
        actual = {
            "": found.sum().reshape(1),
            ".per_sample": alone,
            ".grad_speech": speech.grad,
            ".grad_text": text.grad,
        }
        for key, value in actual.items():
            wanted = golden_set.expected[f"wass_{name}{key}"]
            allowed = settings["grad_atol" if "grad" in key else "value_atol"]
            assert (value - wanted).abs().max() <= allowed, f"{name}{key}"


def test_ctc_and_total(golden_set):
    config, inputs = golden_set.config, golden_set.inputs
    speech_mask, text_mask = masks(golden_set)
    speech = inputs["speech_states"].clone().requires_grad_()
    labels = inputs["targets"][:, : text_mask.shape[1]]
    logits = (speech @ inputs["ctc_weight_matrix"]).transpose(0, 1)
    found = ctc_losses(logits, labels, speech_mask, text_mask, blank=config["blank"])
    found.sum().backward()
    transport, _ = divergences(golden_set, config["sets"][config["total_uses"]])
    total = config["ctc_weight"] * found.sum() + config["ot_weight"] * transport.sum()
    golden_set.compare(
        {
            "ctc": found.sum().reshape(1),
            "ctc.per_sample": found,
            "ctc.grad_speech": speech.grad,
            "total": total.reshape(1),
        }
    )
