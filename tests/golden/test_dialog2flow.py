"""soft_label_loss, and its variants as choices of the core, against Dialog2Flow's."""

import torch

from collimate.losses import SharedLabels, Softened, info_nce, symmetric_info_nce
from collimate.losses.scores import symmetric_info_nce_of_scores
from collimate.losses.soft_labels import soft_label_loss

GOLDEN = "dialog2flow_soft_contrastive"


def test_dialog2flow(golden_set, case):
    settings, inputs = golden_set.cases[case], golden_set.inputs
    anchors, positives = (inputs[name].clone().requires_grad_() for name in ("anchors", "positives"))
    temperature, label_temperature = (inputs[f"{name}__{case}"] for name in ("temperature", "soft_label_temperature"))
    labels, embeddings = inputs["labels"], inputs["label_embeddings"][inputs["labels"]]
    targets = (
        Softened(embeddings, embeddings, 1 / label_temperature)
        if settings["soft_labels"]
        else SharedLabels(labels, labels)
    )
    scale = 1 / temperature
    if settings["use_abs"]:
        units = [torch.nn.functional.normalize(each, dim=1) for each in (anchors, positives)]
        scores = (units[0] @ units[1].T).abs()
        loss = symmetric_info_nce_of_scores(scores, scores.T, scale, targets=targets)
    elif settings["symmetric"] and settings["soft_labels"]:
        loss = soft_label_loss(anchors, positives, embeddings, temperature, label_temperature)
    else:
        contrast = symmetric_info_nce if settings["symmetric"] else info_nce
        loss = contrast(anchors, positives, scale, targets=targets)
    loss.backward()
    blended, mass = targets.blend(torch.eye(len(labels)), (len(labels),))
    golden_set.compare(
        {
            f"loss__{case}": loss,
            f"grad_anchors__{case}": anchors.grad,
            f"grad_positives__{case}": positives.grad,
            f"targets__{case}": blended / mass[:, None],
        }
    )
