"""AMCL's losses against its paper's equations in float64; no official code runs."""

import torch

from collimate.losses.amcl import adaptive_barlow_loss, adaptive_losses, adaptive_simsiam_losses, omega
from collimate.losses.redundancy import cross_correlation, standardized

GOLDEN = "amcl_reference"


def chosen(values, place):
    return values.gather(2, place[..., None])[..., 0]


def test_contrast(golden_set):
    inputs = {
        name: value.clone().requires_grad_(value.is_floating_point()) for name, value in golden_set.inputs.items()
    }
    anchor, positive, beta = inputs["anchor"], inputs["positive"], inputs["beta"].detach()
    width = anchor.shape[-1]
    near = torch.linalg.vecdot(anchor, positive)
    far = torch.linalg.vecdot(anchor[:, :, None], inputs["negatives"])
    tau, negative_tau = inputs["tau_positive"], inputs["tau_negative"]
    place = far.argmax(2)
    loss = adaptive_losses(near, chosen(far, place), tau, chosen(negative_tau, place), width, beta).sum(0).mean()
    loss.backward()
    every, every_tau = torch.cat([near[..., None], far], 2), torch.cat([tau[..., None], negative_tau], 2)
    hardest = every.argmax(2)
    competing = adaptive_losses(near, chosen(every, hardest), tau, chosen(every_tau, hardest), width, beta)
    golden_set.compare(
        {
            "hardest_negative_index": place,
            "omega_positive": omega(tau, width),
            "loss_ntxent": loss,
            "loss_infonce": competing.sum(0).mean(),
            "grad_anchor": anchor.grad,
            "grad_positive": positive.grad,
            "grad_tau_positive": tau.grad,
            "grad_tau_negative": negative_tau.grad,
        }
    )


def test_simsiam_and_barlow(golden_set):
    inputs = golden_set.inputs
    anchor, positive, beta = inputs["anchor"], inputs["positive"], inputs["beta"]
    simsiam = adaptive_simsiam_losses(
        torch.linalg.vecdot(anchor, inputs["simsiam_target_of_positive_view"]),
        torch.linalg.vecdot(positive, inputs["simsiam_target_of_anchor_view"]),
        inputs["tau_positive"],
        inputs["simsiam_tau_second"],
        anchor.shape[-1],
        beta,
    )
    views = [standardized(inputs[f"barlow_view_{view}"].transpose(0, 1)) for view in ("a", "b")]
    temperature = inputs["barlow_tau_offdiagonal"].clone()
    temperature.diagonal(dim1=1, dim2=2).copy_(inputs["barlow_tau_diagonal"])
    barlow = adaptive_barlow_loss(cross_correlation(*views), temperature, inputs["barlow_lambda"], beta)
    golden_set.compare({"loss_simsiam": simsiam.sum(0).mean(), "loss_barlow": barlow.sum()})
