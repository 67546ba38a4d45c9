"""STAR's loss as the paper has it, and as its code was released."""

from torch.nn.functional import normalize

from collimate.losses import star_loss, symmetric_info_nce
from collimate.losses.star import star_loss_as_released

GOLDEN = "supcon_star"


def test_the_intended_loss(golden_set):
    inputs = golden_set.inputs
    golden_set.compare({"supcon_intended": star_loss(inputs["features"], inputs["labels"], inputs["t_0"])})


def test_the_released_losses(golden_set):
    inputs = golden_set.inputs
    features = inputs["features"].clone().requires_grad_()
    loss = star_loss_as_released(features, inputs["labels"], inputs["t_0"])
    loss.backward()
    golden_set.compare({"supcon_as_published": loss, "supcon_as_published_grad": features.grad})
    pair = normalize(inputs["anchors"], dim=1), normalize(inputs["replicas"], dim=0)
    scale = inputs["t_0"].exp().clamp(max=100)
    golden_set.compare({"infonce_as_published": symmetric_info_nce(*pair, scale, normalize=False)})
