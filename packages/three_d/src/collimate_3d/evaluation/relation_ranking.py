"""Where what is true of a scene's objects stands among all that could be said of them: the measures of 3DSSG.

A triplet scores p(subject's class) p(predicate) p(object's class), as in Wald et al. 2020, 3DSSG, arXiv 2004.03967.
Ranks are counted as in ShunChengWu/3DSSG, ssg/utils/util_eva.py, with several predicates a pair:

- predicate: a true one's rank among all predicates of its pair, over the number of the pair's true ones, rounded up, so
  that n true ones that come first are all of rank 1;
- triplet of a pair: the same among all triplets of its pair (what that code calls R@50 and R@100);
- triplet of a scene: its rank among all triplets of all pairs, as in scene graphs of pictures (Lu et al. 2016, arXiv
  1608.00187; several predicates a pair: Newell and Deng 2017, arXiv 1706.07365).

Pairs of which nothing is true have nothing to be found; their triplets count among the scene's. In that code a pair
without relations is right by a threshold of 0.5, unless it is told to ignore these, as is done here.
Departure: of equal scores the false ones come first; there, whichever a sort brings.

Shape legend: P pairs, K predicates, M objects, C classes, T true relations.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

AT_A_TIME = 2**22  # scores


class Said(NamedTuple):
    """What is said of a scene's objects, and what is true.

    Attributes:
        predicates: of each pair the probability of each predicate.
        classes: of each object the probability of each class.
        pairs: subject and object of each pair.
        labels: the objects' true classes; -1 for one that is none of the C.
        relations: of each true relation the pair and the predicate; each once.
    """

    predicates: Float[Tensor, "P K"]
    classes: Float[Tensor, "M C"]
    pairs: Int64[Tensor, "2 P"]
    labels: Int64[Tensor, " M"]
    relations: Int64[Tensor, "T 2"]


class Ranks(NamedTuple):
    """Of each true relation, from 1; inf where it cannot be found, as a class of its objects is none of the known."""

    predicate: Float[Tensor, " T"]
    of_pair: Float[Tensor, " T"]
    of_scene: Float[Tensor, " T"]


def relation_ranks(said: Said) -> Ranks:
    """The three ranks of every true relation of a scene."""
    nothing = said._replace(  # with one class that is certain, a triplet is its predicate
        classes=said.predicates.new_ones(len(said.classes), 1), labels=torch.zeros_like(said.labels)
    )
    known = (said.labels[said.pairs] >= 0).all(0)[said.relations[:, 0]]
    of_pair, of_scene = (torch.full((len(known),), torch.inf, dtype=torch.float64) for _ in range(2))
    findable = said._replace(relations=said.relations[known])
    of_pair[known], of_scene[known] = ranks_of_pair(findable), ranks_of_scene(findable)
    return Ranks(ranks_of_pair(nothing), of_pair, of_scene)


def ranks_of_pair(said: Said) -> Float[Tensor, " T"]:
    """Of each true relation among the triplets of its pair, over the number of true ones, rounded up."""
    pair, predicate = said.relations.T
    true = torch.zeros(said.predicates.shape, dtype=torch.bool)
    true[pair, predicate] = True
    own, beside = _true_scores(said), _scores_of_true_classes(said)[pair]
    count = said.classes.shape[1] ** 2 * said.predicates.shape[1]
    reach = [
        (_triplets(said, pair[part]).flatten(1) >= own[part, None]).sum(1)
        for part in torch.arange(len(pair)).split(max(1, AT_A_TIME // count))
    ]
    same = true[pair]
    false = torch.cat([*reach, torch.zeros(0, dtype=torch.int64)]) - ((beside >= own[:, None]) & same).sum(1)
    tied = (beside == own[:, None]) & (torch.arange(true.shape[1]) < predicate[:, None])
    before = (((beside > own[:, None]) | tied) & same).sum(1)
    return ((false + before + 1) / same.sum(1).clamp_min(1)).ceil().double()


def ranks_of_scene(said: Said) -> Float[Tensor, " T"]:
    """Of each true relation among the triplets of all pairs."""
    own = _true_scores(said)
    values, order = own.sort(descending=True, stable=True)
    rising = values.flip(0)

    def reaching(scores: Tensor) -> Int64[Tensor, " T"]:
        """How many scores are as large as each value or larger."""
        counts = torch.searchsorted(rising, scores.flatten(), right=True).bincount(minlength=len(own) + 1)
        return counts.flip(0).cumsum(0)[:-1]

    false = -reaching(own)
    step = max(1, AT_A_TIME // (said.classes.shape[1] ** 2 * said.predicates.shape[1]))
    for some in torch.arange(said.pairs.shape[1]).split(step):
        false += reaching(_triplets(said, some))
    ranks = torch.empty(len(own), dtype=torch.float64)
    ranks[order] = (false + torch.arange(1, len(own) + 1)).double()
    return ranks


def _triplets(said: Said, some: Int64[Tensor, " p"]) -> Float[Tensor, "p C C K"]:
    """The scores of all triplets of some pairs."""
    subject, target = said.classes[said.pairs[:, some]]
    return (subject[:, :, None] * target[:, None])[..., None] * said.predicates[some][:, None, None]


def _scores_of_true_classes(said: Said) -> Float[Tensor, "P K"]:
    """The scores of each pair's triplets of true classes, multiplied as in `_triplets`, so that they agree."""
    own = said.classes.gather(1, said.labels.clamp_min(0)[:, None])[:, 0]
    return (own[said.pairs[0]] * own[said.pairs[1]])[:, None] * said.predicates


def _true_scores(said: Said) -> Float[Tensor, " T"]:
    pair, predicate = said.relations.T
    return _scores_of_true_classes(said)[pair, predicate]
