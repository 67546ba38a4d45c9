"""What a batch of scenes and sentences is taught by; pure functions of tensors. See `collimate_3d.scene_graph_vlp`.

Shape legend: B scenes of this rank, S sentences of a scene, L tokens, M objects, n sentences of this rank, K
objects of all ranks, D width.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from collimate import distributed
from collimate.distributed import Group
from collimate.kernels.tiles import Keep
from collimate.losses import SharedLabels, info_nce_losses
from collimate.losses.masked_tokens import mean_of_chosen

MOST_OBJECTS = 2**24  # of a scene, where objects of all scenes are numbered


class NamedObjectLosses(NamedTuple):
    """Of each pair of an object and the words of a sentence that name it; 0 where there is no such pair."""

    by_word: Float[Tensor, "B S M"]
    by_object: Float[Tensor, "B S M"]
    named: Bool[Tensor, "B S M"]


def mentions_of(names: Int64[Tensor, "B S L"], ids: Int64[Tensor, "B M"]) -> Float[Tensor, "B S M L"]:
    """Of each object and sentence, the share of each token in naming it: rows sum to 1, or to 0 without a mention.

    Args:
        names: the id of the object that a token names, -1 for none.
        ids: of the objects, -1 where a row is none.
    """
    named = (names[:, :, None] == ids[:, None, :, None]) & (names >= 0)[:, :, None]
    return named / named.sum(-1, keepdim=True).clamp_min(1)


def named_object_losses(
    words: Float[Tensor, "B S L D"],
    objects: Float[Tensor, "B M D"],
    mentions: Float[Tensor, "B S M L"],
    given: Bool[Tensor, "B M"],
    real: Bool[Tensor, "B S L"],
    logit_scale: Float[Tensor, ""] | float,
    alike: Bool[Tensor, "B M M"] | None = None,
) -> NamedObjectLosses:
    """Words against the objects of their scene, and objects against the words of a sentence, for all that are named.

    With w the mean of the unit vectors of the words that name object m, and s the scale,

        by word    - log softmax over m' of s o_m' w,                                at m
        by object  - log softmax over w and the words that do not name m of s o_m w_l,   at w

    Args:
        words, objects: unit vectors.
        mentions: of `mentions_of`.
        given: which rows are objects.
        real: which tokens are words.
        logit_scale: s.
        alike: pairs of objects that words may name alike; such an object is no negative. An object is alike to itself
            or not, which changes nothing.
    """
    named = (mentions.sum(-1) > 0) & given[:, None]
    spoken = torch.einsum("bsml,bsld->bsmd", mentions.to(words.dtype), words)
    positive = logit_scale * (spoken * objects[:, None]).sum(-1)

    own = torch.eye(objects.shape[1], dtype=torch.bool, device=objects.device)
    negatives = given[:, None] & ~own if alike is None else given[:, None] & ~own & ~alike
    logits = logit_scale * torch.einsum("bsmd,bnd->bsmn", spoken, objects)
    others = _logsumexp(logits, negatives[:, None])
    by_word = torch.logaddexp(others, positive) - positive

    logits = logit_scale * torch.einsum("bsld,bmd->bsml", words, objects)
    others = _logsumexp(logits, (mentions == 0) & real[:, :, None])
    by_object = torch.logaddexp(others, positive) - positive
    return NamedObjectLosses(by_word.masked_fill(~named, 0), by_object.masked_fill(~named, 0), named)


class Referred(NamedTuple):
    """The sentences of this rank that have a target, one row each.

    Attributes:
        sentence: unit vectors, (n, D).
        scene, place: of the target: the scene by its number on this rank, the object by its place in it.
        label: the target's class, -1 where it has none.
    """

    sentence: Float[Tensor, "n D"]
    scene: Int64[Tensor, " n"]
    place: Int64[Tensor, " n"]
    label: Int64[Tensor, " n"]


def referral_loss(
    referred: Referred,
    nodes: Float[Tensor, "B M D"],
    given: Bool[Tensor, "B M"],
    labels: Int64[Tensor, "B M"],
    logit_scale: Float[Tensor, ""] | float,
    group: Group = None,
) -> Float[Tensor, ""]:
    """Half the contrast of sentences with the objects of all scenes of all ranks, plus half that of objects with them.

        L = 1/2N Σ_i [ - log softmax over objects m of s g_m s_i,  at i's target
                       - log softmax over sentences j of s g_t(i) s_j,  at i ],       over all N sentences of all ranks.

    What may be true is no negative: another sentence on the same object; and an object of another scene that is of the
    target's class, with the sentences on it.

    Args:
        referred: this rank's sentences.
        nodes: unit vectors of the objects after the graph.
        given: which rows are objects.
        labels: their classes, -1 where unknown.
        logit_scale: s.

    Returns:
        this rank's share; an exact 0 with gradients of 0 where no rank has a sentence.
    """
    before = distributed.own(distributed.row_counts(given, group), group).start  # scenes of the ranks before this one
    at = before + referred.scene
    sentence_object = at * MOST_OBJECTS + referred.place
    scene, place = given.nonzero(as_tuple=True)
    key, key_object = nodes[scene, place], (before + scene) * MOST_OBJECTS + place
    by_sentence = info_nce_losses(
        referred.sentence,
        key,
        logit_scale,
        targets=SharedLabels(sentence_object, key_object),
        mask=_Plausible.of(at, referred.label, before + scene, labels[scene, place], group),
        normalize=False,
        group=group,
    )
    targets = nodes[referred.scene, referred.place]
    by_object = info_nce_losses(
        targets,
        referred.sentence,
        logit_scale,
        ids=sentence_object,
        mask=_Plausible.of(at, referred.label, at, referred.label, group),
        normalize=False,
        group=group,
    )
    losses = (by_sentence + by_object) / 2
    return mean_of_chosen(losses, torch.ones_like(losses, dtype=torch.int64), group)


class _Plausible(NamedTuple):
    """A mask of negatives, tile by tile: what is of another scene and of the same class is left out."""

    query_scene: Int64[Tensor, " n"]
    query_label: Int64[Tensor, " n"]
    key_scene: Int64[Tensor, " K"]
    key_label: Int64[Tensor, " K"]

    @classmethod
    def of(cls, query_scene: Tensor, query_label: Tensor, scene: Tensor, label: Tensor, group: Group) -> Keep:
        counts = distributed.row_counts(scene, group)
        return cls(
            query_scene, query_label, distributed.gather(scene, group, counts), distributed.gather(label, group, counts)
        ).tile

    def tile(self, rows: slice, columns: slice) -> Bool[Tensor, "rows columns"]:
        label = self.query_label[rows, None]
        alike = (label == self.key_label[columns]) & (label >= 0)
        return ~alike | (self.query_scene[rows, None] == self.key_scene[columns])


def _logsumexp(logits: Tensor, kept: Tensor) -> Tensor:
    """Over the last dimension, of what is kept; minus a large number where nothing is."""
    return logits.masked_fill(~kept, torch.finfo(logits.dtype).min).logsumexp(-1)
