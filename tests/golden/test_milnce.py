"""MIL-NCE against its released code, which counts positives twice, and against the paper's equation."""

import torch

from collimate.losses import mil_nce_losses

GOLDEN = "milnce"
COUNTED = {1: "once", 2: "twice"}


def test_milnce(golden_set, case):
    config, tolerance = golden_set.config, golden_set.config["tolerance"]["all"]
    assert not config["normalize"]
    assert config["temperature"] is None
    video, text = (golden_set.inputs[f"{case}/{name}"].clone().requires_grad_() for name in ("video", "text"))
    candidates = text.unflatten(0, (-1, golden_set.cases[case]["candidates"]))
    for name, how in config["losses"].items():
        positives = COUNTED[how["positives_in_denominator"]]
        loss = mil_nce_losses(video, candidates, 1.0, positives=positives, normalize=False).mean()
        torch.testing.assert_close(loss, golden_set.expected[f"{case}/{name}"], **tolerance, check_dtype=False)
        if name == config["gradients_of"]:
            for side, found in zip(("video", "text"), torch.autograd.grad(loss, (video, text)), strict=True):
                torch.testing.assert_close(found, golden_set.expected[f"{case}/grad_{side}"], **tolerance)
