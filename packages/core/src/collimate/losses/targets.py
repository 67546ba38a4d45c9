"""Targets: which keys are positives of a query, and how much.

Targets enter a softmax or sigmoid contrast linearly: with logits l_ij = s <x_i, y_j>,

    Σ_j t_ij l_ij = s <x_i, Σ_j t_ij y_j>,

so all that a loss ever asks of targets is the weighted sum of the keys and the sum of the weights, and structured
targets (labels, similarities of teacher embeddings) never need a matrix of all pairs. Weights are given as they are,
not normalised: each direction divides by its own sums, and a normalised target is never transposed.

Shape legend: n queries of this rank, m keys of this rank, N and M those of all ranks in rank order, D width,
E teacher width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from collimate import distributed
from collimate.distributed import Group

Blend = tuple[Float[Tensor, "n D"], Float[Tensor, " n"]]
"""Σ_j t_ij y_j and Σ_j t_ij."""


class Targets(ABC):
    """A relation of this rank's queries to the keys of all ranks. What it is made of gets no gradient."""

    @abstractmethod
    def blend(self, keys: Float[Tensor, "M D"], counts: tuple[int, ...], group: Group = None) -> Blend:
        """The weighted sum of the keys for each query, and the sum of the weights.

        Args:
            keys: those of all ranks.
            counts: keys of each rank.
        """

    @abstractmethod
    def flipped(self) -> Targets:
        """The same relation seen from the keys: this rank's keys to the queries of all ranks."""


@dataclass(frozen=True)
class Paired(Targets):
    """Query i belongs to key i, and to no other: the identity."""

    def blend(self, keys: Float[Tensor, "M D"], counts: tuple[int, ...], group: Group = None) -> Blend:
        mine = keys[distributed.own(counts, group)]
        return mine, mine.new_ones(mine.shape[0])

    def flipped(self) -> Paired:
        return self


@dataclass(frozen=True)
class Leading(Targets):
    """Query i belongs to this rank's key i; the keys after them, as those of a queue, belong to nobody.

    Attributes:
        count: n.
    """

    count: int

    def blend(self, keys: Float[Tensor, "M D"], counts: tuple[int, ...], group: Group = None) -> Blend:
        mine = keys[distributed.own(counts, group)][: self.count]
        return mine, mine.new_ones(mine.shape[0])

    def flipped(self) -> Targets:
        raise NotImplementedError("The entries of a queue are never queries.")


@dataclass(frozen=True)
class SharedLabels(Targets):
    """Positives are the pairs of equal label (Khosla et al. 2020, SupCon; duplicate captions; several views).

    Costs O(B D): the positives' sum is a sum by label.
    """

    query_labels: Int[Tensor, " n"]
    key_labels: Int[Tensor, " m"]

    def blend(self, keys: Float[Tensor, "M D"], counts: tuple[int, ...], group: Group = None) -> Blend:
        key_labels = distributed.gather(self.key_labels, group, counts)
        every, place = torch.cat([self.query_labels, key_labels]).unique(return_inverse=True)
        query_place, key_place = place.split([self.query_labels.shape[0], key_labels.shape[0]])
        sums = keys.new_zeros(every.shape[0], keys.shape[1]).index_add(0, key_place, keys)
        number = keys.new_zeros(every.shape[0]).index_add(0, key_place, keys.new_ones(keys.shape[0]))
        return sums[query_place], number[query_place]

    def flipped(self) -> SharedLabels:
        return SharedLabels(self.key_labels, self.query_labels)


@dataclass(frozen=True)
class Similarities(Targets):
    """t_ij = 1/2 + the cosine of teacher embeddings / 2 (Srinivasa et al. 2023, CWCL, arXiv 2309.14580).

    Several teacher embeddings a sample give the mean of their cosines. Costs O(B E D): the weights have low rank.
    """

    query_teacher: Float[Tensor, "n *several E"]
    key_teacher: Float[Tensor, "m *several E"]

    def blend(self, keys: Float[Tensor, "M D"], counts: tuple[int, ...], group: Group = None) -> Blend:
        query, key = _teacher(self.query_teacher, keys), _teacher(self.key_teacher, keys)
        key = distributed.gather(key, group, counts)
        several = query.shape[1] if self.query_teacher.ndim == 3 else 1
        query, key = (teacher.flatten(1) for teacher in (query, key))
        blended = (query @ (key.T @ keys) / several + keys.sum(0)) / 2
        mass = (query @ key.sum(0) / several + keys.shape[0]) / 2
        return blended, mass

    def flipped(self) -> Similarities:
        return Similarities(self.key_teacher, self.query_teacher)


@dataclass(frozen=True)
class Softened(Targets):
    """t_ij = softmax over keys of scale * <u_i, v_j>, u and v teacher embeddings of queries and keys.

    The soft targets of momentum distillation (ALBEF, TCL), with the hard ones in a `Mixture`, and of label embeddings
    (Dialog2Flow, arXiv 2410.18481). Teacher embeddings are brought to unit length unless `normalize` is False. The
    blend is attention, so torch's fused attention computes it where it can.
    """

    query_teacher: Float[Tensor, "n E"]
    key_teacher: Float[Tensor, "m E"]
    scale: Float[Tensor, ""] | float
    normalize: bool = True

    def blend(self, keys: Float[Tensor, "M D"], counts: tuple[int, ...], group: Group = None) -> Blend:
        query, key = (_teacher(each, keys, self.normalize) for each in (self.query_teacher, self.key_teacher))
        key = distributed.gather(key, group, counts)
        query = query * torch.as_tensor(self.scale).detach()  # not as an argument: reading it would wait for the device
        blended = scaled_dot_product_attention(query[None, None], key[None, None], keys[None, None], scale=1.0)
        return blended[0, 0], keys.new_ones(query.shape[0])

    def flipped(self) -> Softened:
        return Softened(self.key_teacher, self.query_teacher, self.scale, self.normalize)


@dataclass(frozen=True)
class Mixture(Targets):
    """t = share * first + (1 - share) * second, of each the weights of a query brought to the sum 1 before.

    A query that has no positive in the second has the share of the first alone, and the other way round.
    """

    first: Targets
    second: Targets
    share: float

    def blend(self, keys: Float[Tensor, "M D"], counts: tuple[int, ...], group: Group = None) -> Blend:
        first, first_mass = _mean(self.first.blend(keys, counts, group))
        second, second_mass = _mean(self.second.blend(keys, counts, group))
        blended = self.share * first + (1 - self.share) * second
        return blended, self.share * first_mass + (1 - self.share) * second_mass

    def flipped(self) -> Mixture:
        return Mixture(self.first.flipped(), self.second.flipped(), self.share)


@dataclass(frozen=True)
class Smoothed(Targets):
    """t = (1 - ε) base + ε / M for every key, the base's weights of a query brought to the sum 1 before.

    Label smoothing (Szegedy et al. 2016, arXiv 1512.00567, section 7) as torch's `cross_entropy` has it: the share ε
    falls to all keys of all ranks, the positives and those that a mask leaves out of the sum among them. A query
    without a positive has no target.
    """

    base: Targets
    smoothing: float

    def blend(self, keys: Float[Tensor, "M D"], counts: tuple[int, ...], group: Group = None) -> Blend:
        mean, mass = _mean(self.base.blend(keys, counts, group))
        return (1 - self.smoothing) * mean + self.smoothing * keys.mean(0), mass

    def flipped(self) -> Smoothed:
        return Smoothed(self.base.flipped(), self.smoothing)


@dataclass(frozen=True)
class Weights(Targets):
    """t_ij as the caller holds them: any non-negative weights, 0/1 for several positives.

    Attributes:
        rows: weights of this rank's queries with the keys of all ranks. On one process, the whole matrix.
        columns: weights of this rank's keys with the queries of all ranks. May be left out on one process, where it
            is the transpose of `rows`.
    """

    rows: Shaped[Tensor, "n M"]
    columns: Shaped[Tensor, "m N"] | None = None

    def blend(self, keys: Float[Tensor, "M D"], counts: tuple[int, ...], group: Group = None) -> Blend:
        if self.rows.shape[1] != keys.shape[0]:
            raise ValueError(
                f"The weights have {self.rows.shape[1]} columns for {keys.shape[0]} keys. Each rank gives the weights "
                "of its own queries with the keys of all ranks, and, for the other direction, `columns`."
            )
        rows = self.rows.to(keys.dtype)
        return rows @ keys, rows.sum(1)

    def flipped(self) -> Weights:
        return Weights(self.rows.T if self.columns is None else self.columns, self.rows)


def _mean(blend: Blend) -> Blend:
    """The weighted mean of the keys, and 1; or two zeros for a query without weights."""
    summed, mass = blend
    return summed / mass.clamp_min(torch.finfo(mass.dtype).tiny)[:, None], (mass > 0).to(mass.dtype)


def _teacher(embeddings: Tensor, like: Tensor, normalize: bool = True) -> Tensor:
    embeddings = embeddings.detach().to(like)
    return torch.nn.functional.normalize(embeddings, dim=-1) if normalize else embeddings
