"""What a detector of rooms is taught by; pure functions of tensors.

Qi et al. 2019, VoteNet, arXiv 1904.09664, section 4; leolyj/3D-VLP, lib/loss_helper. With the proposals that lie within
0.3 m of the centre of an object called positive, and each assigned to the object whose centre is nearest,

    vote        mean over seeds on objects of |vote - centre of the object|_1
    objectness  cross-entropy of positive and other proposals, weighted 0.8 and 0.2
    faces       mean over positive ones of the Huber loss (0.15 m) of the distances to the faces
    classes     mean over positive ones of the cross-entropy of the object's class

Shape legend: B rooms, S seeds, M proposals, G objects, K classes.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn.functional import cross_entropy, huber_loss

from collimate.losses.masked_tokens import mean_of_chosen
from collimate_3d.proposals.voting import Proposals

NEAR = 0.3  # 3D-VLP, in metres
OTHERS, POSITIVES = 0.2, 0.8  # VoteNet, models/loss_helper.py
HUBER = 0.15  # 3D-VLP


def detection_losses(
    found: Proposals,
    seed_object: Int64[Tensor, "B S"],
    boxes: Float[Tensor, "B G 6"],
    given: Bool[Tensor, "B G"],
    labels: Int64[Tensor, "B G"],
) -> dict[str, Float[Tensor, ""]]:
    """The four terms; each a 0 with gradients of 0 where nothing counts.

    Args:
        seed_object: of each seed, the object it lies on by its row, -1 for none.
        boxes, given, labels: of the annotated objects; the label is -1 for a class that is not known.
    """
    assigned, positive = assignment(found.centers, boxes, given)
    own = boxes.gather(1, assigned[..., None].expand(-1, -1, 6))
    wanted = torch.cat([found.centers - own[..., :3] + own[..., 3:] / 2, own[..., :3] + own[..., 3:] / 2], -1)
    wanted[..., 3:] -= found.centers
    label = labels.gather(1, assigned)
    known = positive & (label >= 0)
    faces = huber_loss(found.faces, wanted.detach(), reduction="none", delta=HUBER).sum(-1)
    classes = cross_entropy(found.classes.flatten(0, 1), label.clamp_min(0).flatten(), reduction="none")
    return {
        "vote": _vote_loss(found.votes, seed_object, boxes),
        "objectness": _objectness_loss(found.objectness, positive, given.any(1)),
        "faces": _mean_over(faces, positive),
        "classes": _mean_over(classes.view_as(label), known),
    }


def assignment(
    centers: Float[Tensor, "B M 3"], boxes: Float[Tensor, "B G 6"], given: Bool[Tensor, "B G"]
) -> tuple[Int64[Tensor, "B M"], Bool[Tensor, "B M"]]:
    """Of each proposal the object whose centre is nearest, and whether that is near enough. No gradient."""
    apart = torch.cdist(centers.detach(), boxes[..., :3]).masked_fill(~given[:, None], torch.inf)
    nearest, which = apart.min(-1)
    return which, nearest < NEAR


def _vote_loss(votes: Tensor, seed_object: Tensor, boxes: Tensor) -> Tensor:
    """The distance of votes from what they should have hit, over seeds on objects."""
    on = seed_object >= 0
    centers = boxes[..., :3].gather(1, seed_object.clamp_min(0)[..., None].expand(-1, -1, 3))
    return _mean_over((votes - centers).abs().sum(-1), on)


def _objectness_loss(logits: Tensor, positive: Tensor, counted: Tensor) -> Tensor:
    """Over the rooms that have objects."""
    weight = torch.where(positive, POSITIVES, OTHERS)
    losses = cross_entropy(logits.flatten(0, 1), positive.long().flatten(), reduction="none").view_as(weight)
    return _mean_over(losses * weight, counted[:, None].expand_as(positive))


def _mean_over(losses: Float[Tensor, "B M"], counted: Bool[Tensor, "B M"]) -> Tensor:
    return mean_of_chosen((losses * counted).flatten(), counted.long().flatten())
