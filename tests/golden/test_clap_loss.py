"""CLAP's losses against LAION's: the plain one, the four-term one, and the latter with weighted classes."""

import pytest
import torch

from collimate.losses import clip_loss
from collimate.testing import run_on_ranks
from collimate_audio.contrasts import four_term_loss

GOLDEN = "clap_loss"
FEATURES = ("audio", "text", "audio_mlp", "text_mlp")


def losses(golden_set, case):
    settings, leaves = golden_set.cases[case], {}
    for name in (*FEATURES, "logit_scale_a", "logit_scale_t"):
        leaf = golden_set.inputs[name].clone()
        leaves[name] = (
            leaf.log() if "scale" in name and golden_set.config["logit_scale_is_log"] else leaf
        ).requires_grad_()
    scales = [leaves[f"logit_scale_{side}"].reshape(()) for side in "at"]
    normalize = not golden_set.config["inputs_normalized"]
    if settings["mlp_loss"]:
        return four_term_loss(*(leaves[name] for name in FEATURES), *scales, settings["kappa"]), leaves
    return clip_loss(leaves["audio"], leaves["text"], scales[0], normalize=normalize), leaves


def test_clap_loss(golden_set, case):
    loss, leaves = losses(golden_set, case)
    loss.backward()
    actual = {f"loss_{case}": loss.reshape(1)}
    actual |= {
        key: leaf.grad
        for name, leaf in leaves.items()
        if leaf.grad is not None and (key := f"grad_{name}_{case}") in golden_set.expected
    }
    assert len(actual) == (6 if golden_set.cases[case]["mlp_loss"] else 3) + 1
    golden_set.compare(actual)


def own_loss(audio, text, scale):
    """This rank's loss and its gradients."""
    leaves = [each.clone().requires_grad_() for each in (audio, text, scale)]
    loss = clip_loss(*leaves, normalize=False)
    loss.backward()
    return [loss.detach(), *(leaf.grad for leaf in leaves)]


def test_on_ranks_it_is_the_local_loss_gathered_with_gradient(golden_set):
    """The one official mode that is exact; the set may hold any."""
    exact = {
        name: settings
        for name, settings in golden_set.config["distributed_cases"].items()
        if settings["local_loss"] and settings["gather_with_grad"]
    }
    if not exact:
        pytest.skip("this set has no exact case of several processes; clip_loss has")
    for name, settings in exact.items():
        ranks, scale = settings["world_size"], torch.tensor(float(settings["logit_scale"]))
        audio, text = (golden_set.inputs[settings[side]].chunk(ranks) for side in ("audio", "text"))
        found = run_on_ranks(own_loss, list(zip(audio, text, [scale] * ranks, strict=True)))
        for rank, values in enumerate(found):
            keys = (f"{name}.rank{rank}.{key}" for key in ("loss", "grad_audio", "grad_text", "grad_scale"))
            golden_set.compare({k: v.reshape(golden_set.expected[k].shape) for k, v in zip(keys, values, strict=True)})
