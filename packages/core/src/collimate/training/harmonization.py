"""Gradient harmonization: losses that pull what they share in opposite directions are realigned, or put off.

Wu et al. 2022, arXiv 2211.02077 (cross-modality gradient harmonization for VATT). With the gradients g_a and g_b of
two groups of losses with respect to what both reach, cos = <g_a, g_b> / (|g_a| |g_b|),

    realignment   where cos < 0:  g_a' = g_a - <g_a, g_b> / |g_b|^2 g_b,  g_b' likewise;  update = g_a' + g_b'
    curriculum    a sample takes part in step k where cos > gamma(k), which grows from -0.3 to 0

Only the paper's abstract and the beginning of its text could be read and no official code exists: this is our reading.
What is only reached by one group (its own tower, its head) keeps its plain gradient. Between which gradients:

    feature       of each sample, with respect to its embeddings that several groups reach: the losses are
                  differentiated for each group, towers once. An approximation, for towers do not keep angles.
    microbatch    of each rank and accumulation step, with respect to shared parameters: towers are differentiated
                  once for each group.
    batch         the same after averaging over ranks and accumulation steps.
    sample        of each sample, with respect to shared parameters: for small models and tests.

A sample's gradient, in `sample` and `feature`, is what flows through its own embeddings: these add up to that of the
batch, whatever the losses, where gradients of single rows would need each loss to give its rows. Parameters inside of
the losses (a scale, a fusion network) belong to no sample: there they keep their plain gradient.

A sample that the curriculum puts off gives no gradient through its embeddings: it stays in all contrasts as a negative
that does not move. Those that are left weigh more, so that the step keeps its size.

Shape legend: B samples of this rank, K groups of losses.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from collimate import distributed
from collimate.configurable import Configurable
from collimate.training import surgery

if TYPE_CHECKING:
    from collimate.training.method import Method

Granularity = Literal["feature", "microbatch", "batch", "sample"]
Rule = Literal["pcgrad", "gradvac", "cagrad", "mgda", "imtl_g", "aligned_mtl", "sum"]
Gradients = list[Tensor | None]


class Curriculum(Configurable):
    """Which samples take part in a step: gamma(k) = start + (end - start) k / K.

    Args:
        start, end: the cosine above which a sample takes part, at the first and at the last step. At first it is
            lenient, for early cosines are noise.
        least: the share of the batch, of all ranks, that takes part in any case: those of the largest cosines, and at
            least one. Samples without a cosine (where a gradient is zero) always do.
    """

    def __init__(self, start: float = -0.3, end: float = 0.0, least: float = 0.1) -> None:
        self.start, self.end, self.least = start, end, least

    def threshold(self, progress: float) -> float:
        """gamma at a share of the run."""
        return self.start + (self.end - self.start) * min(1.0, progress)

    def weights(self, cosines: Float[Tensor, " B"], known: Bool[Tensor, " B"], progress: float) -> Float[Tensor, " B"]:
        """Of each sample of this rank; 0 for those that are put off, and 1 on average over all ranks."""
        kept = self.above(cosines, self.threshold(progress), known, self.least)
        share = distributed.gather(kept.to(cosines.dtype)).mean()
        return kept / share

    @staticmethod
    def above(
        cosines: Float[Tensor, " B"], threshold: float, known: Bool[Tensor, " B"], least: float
    ) -> Bool[Tensor, " B"]:
        """The samples of this rank that take part."""
        every = distributed.gather(cosines.masked_fill(~known, torch.inf))
        floor = every.topk(max(1, math.ceil(least * len(every)))).values[-1]
        return ~known | (cosines > threshold) | (cosines >= floor)


class Harmonization(Configurable):
    """Gives a step's loss, whose value is the plain one and whose gradient is harmonized.

    Args:
        groups: name -> the loss terms of a group; each term alone if None. Terms that are not named keep their plain
            gradient.
        granularity: between which gradients; see above.
        rule: what is done with them; `sum` leaves them, so that a curriculum can stand alone, or the statistics.
            cagrad, mgda, imtl_g and aligned_mtl are rules for the mean of the losses, and are taken K times.
        curriculum: puts off samples by their cosine, the smallest of all pairs of groups; none if None. By the cosines
            of their embeddings' gradients, unless the granularity is `sample`.
        beta: of gradvac's average.
        seed: of the order in which pcgrad and gradvac go through three or more groups, drawn anew in each step.

    Attributes:
        vac: gradvac's memory.
    """

    def __init__(
        self,
        groups: Mapping[str, Sequence[str]] | None = None,
        granularity: Granularity = "microbatch",
        rule: Rule = "pcgrad",
        curriculum: Curriculum | None = None,
        beta: float = 0.01,
        seed: int = 0,
    ) -> None:
        self.groups = None if groups is None else {name: list(terms) for name, terms in groups.items()}
        self.granularity: Granularity = granularity
        self.rule: Rule = rule
        self.curriculum, self.seed = curriculum, seed
        self.vac = surgery.GradVac(beta)
        self._sums: list[Gradients] | None = None

    def loss(
        self, method: Method, embeddings: dict[str, Tensor], batch: dict[str, Any]
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """The loss of a step and its terms.

        Args:
            embeddings: what `method.embed` gave; their graph is differentiated here or in the backward pass.

        Raises:
            ValueError: the groups name a term that there is not, or one twice; or there are fewer than two.
        """
        leaves = {name: _leaf(value) for name, value in embeddings.items()}
        terms = method._terms(leaves, batch)
        total = method.total_loss(terms)
        groups, rest = self._grouped(terms, method.optimization.loss_weights)
        step = _Step(method, embeddings, leaves, groups, rest)
        gradient = getattr(self, f"_by_{self.granularity}")(step)
        return total.detach() + (gradient - gradient.detach()), terms

    # The granularities ------------------------------------------------------------------------------------

    def _by_feature(self, step: _Step) -> Tensor:
        gram = step.sample_gram()
        weights = self._row_weights(step, gram)
        factors = self._weights(step, gram) * weights[:, None]
        self._tell(step, gram, weights)
        towers = step.through_towers(step.mixed_rows(factors, weights))
        return towers + step.through(step.plain_parameters()) + step.rest_through(weights)

    def _by_microbatch(self, step: _Step) -> Tensor:
        gradients, weights = self._of_groups(step)
        return step.through(self._combined(step, gradients, weights)) + step.rest_through(weights)

    def _by_batch(self, step: _Step) -> Tensor:
        """As by micro-batch, with gradients that are summed until the optimizer steps; steps before it add nothing."""
        gradients, weights = self._of_groups(step)
        self._sums = (
            gradients if self._sums is None else [_added(*both) for both in zip(self._sums, gradients, strict=True)]
        )
        if _accumulates(step.method):
            nothing = [None if each is None else torch.zeros_like(each) for each in _added(*gradients)]
            return step.through(nothing) + step.rest_through(weights)
        sums, self._sums = _over_ranks(self._sums, step.parameters), None
        return step.through(self._combined(step, sums, weights)) + step.rest_through(weights)

    def _by_sample(self, step: _Step) -> Tensor:
        each = [step.tower_gradients(step.one_row(row), keep=True) for row in range(step.size)]
        shared = _shared(each[0])
        gram = torch.stack([_gram(own, shared) for own in each])
        weights = self._row_weights(step, gram)
        factors = self._weights(step, gram) * weights[:, None]
        self._tell(step, gram, weights)
        found = step.plain_parameters()
        for row, own in enumerate(each):
            found = _added(found, _mixed(own, shared, factors[row], weights[row]))
        return step.through(found) + step.rest_through(weights)

    # Their parts ------------------------------------------------------------------------------------------

    def _of_groups(self, step: _Step) -> tuple[list[Gradients], Tensor | None]:
        """The gradient of each group with respect to all parameters, and the weights of samples, if any."""
        weights = None if self.curriculum is None else self._row_weights(step, step.sample_gram())
        towers = step.tower_gradients(step.weighted_rows(weights), keep=step.rest is not None)
        return [_added(*both) for both in zip(step.of_parameters, towers, strict=True)], weights

    def _combined(self, step: _Step, gradients: list[Gradients], weights: Tensor | None) -> Gradients:
        shared = _shared(gradients)
        gram = _gram(gradients, shared)
        self._tell(step, gram[None], weights)
        factors = self._weights(step, gram)
        return _mixed(gradients, shared, factors, torch.ones_like(factors[0]))

    def _weights(self, step: _Step, gram: Tensor) -> Tensor:
        """What each group's gradient is multiplied by, (..., K), for their sum."""
        if self.rule in ("pcgrad", "gradvac"):
            rule = surgery.pcgrad if self.rule == "pcgrad" else self.vac
            return rule(gram, self._order(gram.shape[-1], step.method.global_step)).sum(-2)
        if self.rule == "sum":
            return torch.ones_like(gram[..., 0])
        return gram.shape[-1] * getattr(surgery, self.rule)(gram)

    def _order(self, count: int, step: int) -> list[list[int]]:
        """For each group, the others in the order in which they are visited; the same on all ranks."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        return [[j for j in torch.randperm(count, generator=generator).tolist() if j != i] for i in range(count)]

    def _row_weights(self, step: _Step, gram: Tensor) -> Tensor:
        """Of each sample, by the curriculum."""
        if self.curriculum is None:
            return torch.ones_like(gram[:, 0, 0])
        known = (gram.diagonal(dim1=1, dim2=2) > 0).all(1)
        pairs = _pairs(surgery.cosines(gram))
        return self.curriculum.weights(pairs.amin(1), known, _progress(step.method))

    def _tell(self, step: _Step, gram: Tensor, weights: Tensor | None) -> None:
        """Leave cosines and shares of conflicts for the step log, of this rank."""
        found = _pairs(surgery.cosines(gram))
        told = step.method.statistics
        names = list(combinations(step.names, 2))
        for place, pair in enumerate(names):
            suffix = "" if len(names) == 1 else f" {'-'.join(pair)}"
            told[f"conflict/cosine{suffix}"] = found[:, place].mean()
            told[f"conflict/share{suffix}"] = (found[:, place] < 0).float().mean()
        if self.curriculum is not None and weights is not None:
            told["conflict/kept"] = (weights > 0).float().mean()

    def _grouped(
        self, terms: dict[str, Tensor], weights: Mapping[str, float]
    ) -> tuple[dict[str, Tensor], Tensor | None]:
        """The weighted sum of each group, and that of all other terms."""
        groups = self.groups or {name: [name] for name in terms}
        named = [name for members in groups.values() for name in members]
        if len(groups) < 2 or len(set(named)) < len(named) or set(named) - terms.keys():
            raise ValueError(
                f"Harmonization needs two or more groups that share out the terms {', '.join(terms)}, not {groups}."
            )

        def total(names: Sequence[str]) -> Tensor:
            return torch.stack([weights.get(name, 1.0) * terms[name] for name in names]).sum()

        others = [name for name in terms if name not in named]
        return {name: total(members) for name, members in groups.items()}, total(others) if others else None


class _Step:
    """The graph of a step, cut between towers and losses, and the gradients of each group at the cut.

    Attributes:
        size: B.
        parameters: all that learn.
        of_rows: for each group, its gradient with respect to each embedding that has one; of all samples.
        of_parameters: for each group, its gradient with respect to parameters inside of the losses.
        rest: the same two of all other terms, or None.
    """

    def __init__(
        self,
        method: Method,
        embeddings: Mapping[str, Tensor],
        leaves: Mapping[str, Tensor],
        groups: Mapping[str, Tensor],
        rest: Tensor | None,
    ) -> None:
        self.method, self.names = method, list(groups)
        cut = [name for name, leaf in leaves.items() if leaf.requires_grad]
        self.embeddings = [embeddings[name] for name in cut]
        self.parameters = [parameter for parameter in method.parameters() if parameter.requires_grad]
        self.size = len(self.embeddings[0])
        inputs = [*(leaves[name] for name in cut), *self.parameters]
        sums = [*groups.values(), *([] if rest is None else [rest])]
        found = [_gradients(total, inputs, keep=total is not sums[-1]) for total in sums]
        self.rest = None if rest is None else (found[-1][: len(cut)], found.pop()[len(cut) :])
        self.of_rows = [own[: len(cut)] for own in found]
        self.of_parameters = [own[len(cut) :] for own in found]
        self._shared = _shared(self.of_rows)

    def sample_gram(self) -> Float[Tensor, "B K K"]:
        """Of the gradients of each sample with respect to the embeddings that several groups reach.

        Raises:
            ValueError: there are none.
        """
        grams = [
            torch.einsum("kbf,jbf->bkj", rows, rows)
            for rows in (
                torch.stack([_or_zeros(own[place], tensor).flatten(1).float() for own in self.of_rows])
                for place, (tensor, shared) in enumerate(zip(self.embeddings, self._shared, strict=True))
                if shared
            )
        ]
        if not grams:
            raise ValueError(
                f"No embedding is reached by two of the groups {', '.join(self.names)}: choose groups that meet in "
                "one, or the granularity microbatch without a curriculum."
            )
        return torch.stack(grams).sum(0)

    def mixed_rows(self, factors: Float[Tensor, "B K"], weights: Float[Tensor, " B"]) -> Gradients:
        """The sum over groups for each embedding: by factors where several groups reach it, else by weights."""
        return [
            _sum([_by_row(own[place], factors[:, k] if shared else weights) for k, own in enumerate(self.of_rows)])
            for place, shared in enumerate(self._shared)
        ]

    def weighted_rows(self, weights: Float[Tensor, " B"] | None) -> list[Gradients]:
        return [[_by_row(rows, weights) for rows in own] for own in self.of_rows]

    def one_row(self, row: int) -> list[Gradients]:
        only = torch.zeros(self.size, device=self.embeddings[0].device)
        only[row] = 1
        return self.weighted_rows(only)

    def tower_gradients(self, rows: list[Gradients], keep: bool) -> list[Gradients]:
        """Through the towers, once for each group; gradients are scaled meanwhile as those of the run's precision.

        Args:
            keep: whether the towers' graph is still needed afterwards.
        """
        scale = _loss_scale(self.method)
        found = []
        for group, own in enumerate(rows):
            pairs = [
                (tensor, rows * scale) for tensor, rows in zip(self.embeddings, own, strict=True) if rows is not None
            ]
            if not pairs:
                found.append([None] * len(self.parameters))
                continue
            outputs, cotangents = zip(*pairs, strict=True)
            gradients = torch.autograd.grad(
                outputs, self.parameters, cotangents, retain_graph=keep or group + 1 < len(rows), allow_unused=True
            )
            found.append([None if each is None else each / scale for each in gradients])
        return found

    def plain_parameters(self) -> Gradients:
        """The sum over groups for parameters inside of the losses."""
        return _added(*self.of_parameters)

    # What a backward pass will differentiate: its gradient is what was given, its value means nothing.

    def through(self, gradients: Gradients) -> Tensor:
        """To all parameters. In this way DDP and Lightning see one gradient of each, as always."""
        return _inner(self.parameters, gradients)

    def through_towers(self, rows: Gradients) -> Tensor:
        return _inner(self.embeddings, rows)

    def rest_through(self, weights: Float[Tensor, " B"] | None) -> Tensor:
        """What the terms outside of all groups give, of the samples that take part."""
        if self.rest is None:
            return torch.zeros((), device=self.embeddings[0].device)
        rows, parameters = self.rest
        return self.through_towers([_by_row(each, weights) for each in rows]) + self.through(parameters)


def _leaf(value: Tensor) -> Tensor:
    return value.detach().requires_grad_(value.requires_grad)


def _gradients(total: Tensor, inputs: Sequence[Tensor], keep: bool) -> Gradients:
    if not total.requires_grad:
        return [None] * len(inputs)
    return list(torch.autograd.grad(total, inputs, retain_graph=keep, allow_unused=True))


def _shared(gradients: Sequence[Gradients]) -> list[bool]:
    """Which of the places two groups or more reach."""
    return [sum(each is not None for each in place) > 1 for place in zip(*gradients, strict=True)]


def _gram(gradients: Sequence[Gradients], shared: Sequence[bool]) -> Float[Tensor, "K K"]:
    """Of the groups' gradients, over what is shared.

    Raises:
        ValueError: nothing is.
    """
    if not any(shared):
        raise ValueError("The groups of losses share no parameter: there is nothing to harmonize.")
    total = None
    for place, is_shared in enumerate(shared):
        if is_shared:
            like = next(each for own in gradients if (each := own[place]) is not None)
            rows = torch.stack([_or_zeros(own[place], like).flatten().float() for own in gradients])
            total = rows @ rows.T if total is None else total + rows @ rows.T
    assert total is not None
    return total


def _mixed(gradients: Sequence[Gradients], shared: Sequence[bool], factors: Tensor, plain: Tensor) -> Gradients:
    """The sum over groups: by factors (K,) where several reach a place, else by one number."""
    found: Gradients = []
    for place, is_shared in zip(zip(*gradients, strict=True), shared, strict=True):
        pairs = zip(place, factors, strict=True)
        found.append(_sum([None if each is None else each * (own if is_shared else plain) for each, own in pairs]))
    return found


def _added(*gradients: Gradients) -> Gradients:
    return [_sum(place) for place in zip(*gradients, strict=True)]


def _sum(values: Iterable[Tensor | None]) -> Tensor | None:
    given = [value for value in values if value is not None]
    return None if not given else given[0] if len(given) == 1 else torch.stack(given).sum(0)


def _or_zeros(value: Tensor | None, like: Tensor) -> Tensor:
    return torch.zeros_like(like) if value is None else value


def _by_row(rows: Tensor | None, weights: Float[Tensor, " B"] | None) -> Tensor | None:
    if rows is None or weights is None:
        return rows
    return rows * weights.to(rows.dtype).view(-1, *[1] * (rows.ndim - 1))


def _inner(tensors: Sequence[Tensor], gradients: Gradients) -> Tensor:
    products = [(t * g.to(t.dtype)).sum() for t, g in zip(tensors, gradients, strict=True) if g is not None]
    return (
        torch.stack([each.float() for each in products]).sum()
        if products
        else torch.zeros((), device=tensors[0].device)
    )


def _pairs(square: Float[Tensor, "B K K"]) -> Float[Tensor, "B pairs"]:
    """The entries above the diagonal, row by row."""
    rows, columns = torch.triu_indices(square.shape[-1], square.shape[-1], 1)
    return square[:, rows, columns]


def _over_ranks(gradients: list[Gradients], parameters: Sequence[Tensor]) -> list[Gradients]:
    """The mean over ranks; None where no rank has a gradient."""
    flags = torch.tensor([[each is not None for each in own] for own in gradients], device=parameters[0].device)
    reached = distributed.all_sum(flags.int()) > 0
    return [
        [
            distributed.all_mean(_or_zeros(each, parameter)) if there else None
            for each, parameter, there in zip(own, parameters, found.tolist(), strict=True)
        ]
        for own, found in zip(gradients, reached, strict=True)
    ]


def _progress(method: Method) -> float:
    """The share of the run that is over."""
    return 0.0 if method._trainer is None else method.global_step / method.trainer.estimated_stepping_batches


def _accumulates(method: Method) -> bool:
    """Whether the optimizer waits for further batches."""
    return method._trainer is not None and method.trainer.fit_loop._should_accumulate()


def _loss_scale(method: Method) -> float:
    """What the run's precision multiplies losses by, so that small gradients do not vanish in half precision."""
    scaler = None if method._trainer is None else getattr(method.trainer.precision_plugin, "scaler", None)
    return 1.0 if scaler is None else scaler.get_scale()
