"""cwcl_loss against CellCLIP's."""

import torch

from collimate.losses import Similarities, cwcl_loss, info_nce
from collimate.testing import oracles

GOLDEN = "cwcl"


def test_cwcl(golden_set):
    inputs = golden_set.inputs
    frozen = inputs["features_of_similarity_modality"].clone().requires_grad_()
    trained = inputs["features_of_other_modality"].clone().requires_grad_()
    log_scale = inputs["log_inverse_temperature"].clone().requires_grad_()
    teacher = inputs["teacher_embeddings"]
    normalize = not golden_set.config["inputs_normalized"]
    loss = cwcl_loss(frozen, trained, log_scale.exp(), teacher=teacher, normalize=normalize)
    loss.backward()
    scale, targets = log_scale.exp(), Similarities(teacher, teacher)
    unnormalised, mass = targets.blend(torch.eye(teacher.shape[0]), (teacher.shape[0],))
    actual = {
        "loss": loss,
        "loss_cwcl_direction": info_nce(frozen, trained, scale, targets=targets, normalize=normalize),
        "loss_plain_direction": info_nce(trained, frozen, scale, normalize=normalize),
        "grad_features_similarity_modality": frozen.grad,
        "grad_features_other_modality": trained.grad,
        "grad_log_inverse_temperature": log_scale.grad,
        "weights_unnormalised": unnormalised,
        "targets": unnormalised / mass[:, None],
    }
    golden_set.compare_all("", actual)
    if teacher.shape[1] == 1 and not normalize:
        dense = oracles.cwcl_loss(frozen.detach(), trained.detach(), scale.detach().double(), teacher[:, 0])
        torch.testing.assert_close(loss.detach().double(), dense, rtol=1e-5, atol=1e-6)
