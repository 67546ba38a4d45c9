"""clip_loss against open_clip's ClipLoss, on one process and on ranks."""

import pytest
import torch

from collimate.losses import clip_loss
from collimate.testing import run_on_ranks

GOLDEN = "clip_loss"


def value_and_gradients(image, text, logit_scale_param):
    image, text, logit_scale_param = (t.clone().requires_grad_() for t in (image, text, logit_scale_param))
    loss = clip_loss(image, text, logit_scale_param.exp())
    loss.backward()
    return loss.detach(), image.grad, text.grad, logit_scale_param.grad


def test_clip_loss(golden_set, case):
    settings, config = golden_set.cases[case], golden_set.config
    image, text = golden_set.inputs["image"], golden_set.inputs["text"]
    log_scale = golden_set.inputs[settings["logit_scale_param"]]
    if settings["clamp"]:
        log_scale = log_scale.clamp(*config["logit_scale_param_clamp"])
    if settings["kind"] == "distributed":
        if not (settings["local_loss"] and settings["gather_with_grad"]):
            pytest.skip("a mode whose gradient is not that of one process; there is none here")
        ranks = settings["world_size"]
        parts = list(zip(image.chunk(ranks), text.chunk(ranks), [log_scale] * ranks, strict=True))
        loss, image_grad, text_grad, scale_grad = zip(*run_on_ranks(value_and_gradients, parts), strict=True)
        actual = {
            "loss_per_rank": torch.stack(loss),
            "grad_image": torch.cat(image_grad),
            "grad_text": torch.cat(text_grad),
            "grad_logit_scale_param": torch.stack(scale_grad),
        }
    else:
        loss, image_grad, text_grad, scale_grad = value_and_gradients(image, text, log_scale)
        actual = {
            "loss": loss,
            "grad_image": image_grad,
            "grad_text": text_grad,
            "grad_logit_scale_param": scale_grad,
            "logit_scale": log_scale.exp(),
            "logit_scale_param_after_clamp": log_scale,
        }
    golden_set.compare_all(case + "/", actual)
    if twin := settings["equal_to"]:
        golden_set.compare({f"{twin}/{name}": actual[name] for name in ("loss", "grad_image", "grad_text")})
