"""VATT's losses against the official TensorFlow code: both forms, missing modalities, replicas."""

import pytest
import torch

from collimate.losses import mil_nce_losses, symmetric_mil_nce_losses
from collimate.testing import run_on_ranks

GOLDEN = "vatt_losses"
PARTS = ("video_totxt", "text_tovid", "video_toaud", "audio_tovid")


def losses_of(form, scale, video, candidates, given):
    """The losses of this rank's clips; `asym` counts positives twice, as the released code does."""
    if form == "sym":
        return symmetric_mil_nce_losses(video, candidates, scale, given=given)
    return mil_nce_losses(video, candidates, scale, given=given, positives="twice")


def replica_losses(form, scale, count, video_text, text, video_audio, audio, text_mask, audio_mask):
    """Both losses and their mean, each over this replica's own clips that have the modality, as officially."""
    found = {}
    for name, video, other, mask in (
        ("vidtxt", video_text, text.unflatten(0, (-1, count)), text_mask),
        ("vidaud", video_audio, audio[:, None], audio_mask),
    ):
        losses = losses_of(form, scale, video, other, mask.bool()[:, None].expand(other.shape[:2]))
        found[f"{name}_loss"] = losses.sum() / mask.sum().clamp_min(1)
    return found | {"loss": (found["vidtxt_loss"] + found["vidaud_loss"]) / 2}


@pytest.mark.parametrize("form", ["asym", "sym"])
def test_vatt_losses(golden_set, case, form):
    config, settings = golden_set.config, golden_set.cases[case]
    assert set(config["loss_weights"].values()) == {1.0}
    rows = [golden_set.inputs[f"{case}/{name}"].clone() for name in PARTS]
    masks = [golden_set.inputs[f"{case}/{name}"] for name in ("text_mask", "audio_mask")]
    replicas, size = settings["replicas"], settings["batch_per_replica"]
    common = (form, 1 / settings["temperature"], len(rows[1]) // (replicas * size))
    if replicas > 1:
        parts = zip(*(each.tensor_split(replicas) for each in (*rows, *masks)), strict=True)
        everywhere = run_on_ranks(replica_losses, [(*common, *own) for own in parts])
        found = {f"replica{rank}/{name}": value for rank, own in enumerate(everywhere) for name, value in own.items()}
    else:
        rows = [each.requires_grad_() for each in rows]
        found = replica_losses(*common, *rows, *masks)
        if settings["gradients"]:
            gradients = torch.autograd.grad(found["loss"], rows)
            found |= {f"grad_{name}": each for name, each in zip(PARTS, gradients, strict=True)}
    prefix = f"{case}/{form}/"
    wanted = {key.removeprefix(prefix): each for key, each in golden_set.expected.items() if key.startswith(prefix)}
    assert wanted.keys() == found.keys()
    for name, value in found.items():
        tolerance = config["tolerance"]["gradients" if "grad" in name else "losses"]
        value = value.float().view_as(wanted[name])
        torch.testing.assert_close(value, wanted[name], **tolerance, msg=lambda m, n=name: f"{n}: {m}")
