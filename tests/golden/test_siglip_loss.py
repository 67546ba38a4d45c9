"""siglip_loss against open_clip's SigLipLoss, on one process and on ranks."""

import torch

from collimate.losses import siglip_loss
from collimate.testing import run_on_ranks

GOLDEN = "siglip_loss"


def value_and_gradients(*inputs):
    image, text, logit_scale_param, logit_bias = (t.clone().requires_grad_() for t in inputs)
    loss = siglip_loss(image, text, logit_scale_param.exp(), logit_bias)
    loss.backward()
    return loss.detach(), image.grad, text.grad, logit_scale_param.grad, logit_bias.grad


def test_siglip_loss(golden_set, case):
    settings = golden_set.cases[case]
    image, text = golden_set.inputs["image"], golden_set.inputs["text"]
    log_scale, bias = (golden_set.inputs[settings[name]] for name in ("logit_scale_param", "logit_bias"))
    if settings["kind"] == "distributed":
        ranks = settings["world_size"]
        parts = list(zip(image.chunk(ranks), text.chunk(ranks), [log_scale] * ranks, [bias] * ranks, strict=True))
        loss, *gradients = zip(*run_on_ranks(value_and_gradients, parts), strict=True)
        image_grad, text_grad = (torch.cat(g) for g in gradients[:2])
        scale_grad, bias_grad = (torch.stack(g) for g in gradients[2:])
        actual = {"loss_per_rank": torch.stack(loss)}
    else:
        loss, image_grad, text_grad, scale_grad, bias_grad = value_and_gradients(image, text, log_scale, bias)
        actual = {"loss": loss, "logit_scale": log_scale.exp(), "logit_scale_param_after_clamp": log_scale}
    actual |= {
        "grad_image": image_grad,
        "grad_text": text_grad,
        "grad_logit_scale_param": scale_grad,
        "grad_logit_bias": bias_grad,
    }
    golden_set.compare_all(case + "/", actual)
