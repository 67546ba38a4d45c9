"""How alike annotations are that form trees: domain, act, slot, value (He et al. 2022, SPACE-2, arXiv 2209.06638).

Ten views of a tree are sets: its nodes by level, D I S V, and its paths over neighbouring levels, DI IS SV DIS ISV
DISV. Two trees are as alike in a view as the Jaccard index of their sets says: |a ∩ b| / |a ∪ b|, and 0 where both are
empty. What the similarities do in a loss is `view_supcon_losses`.

As in AlibabaResearch/DAMO-ConvAI, space-2, space/utils/scores.py: names are stripped and lower-cased; an element that
holds a placeholder (`IGNORED`) is left out of each view in which it stands; an empty tree is like nothing but itself.

Shape legend: n trees of this rank, N of all ranks in rank order, K views.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from collimate import distributed
from collimate.distributed import LOCAL, Group

Tree: TypeAlias = Mapping[str, Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]]]
"""{domain: {act: {slot: [{"value": value}]}}}, as DialoGLUE's annotations are."""

LEVELS = "DISV"
VIEWS = ("D", "I", "S", "V", "DI", "IS", "SV", "DIS", "ISV", "DISV")
IGNORED = ("default_domain", "default_intent")

Path: TypeAlias = tuple[str, ...]


def tree_similarities(trees: Sequence[Tree], group: Group = None) -> Float[Tensor, "K n N"]:
    """How alike this rank's trees and those of all ranks are in each view, from 0 to 1; a tree and itself 1.

    Args:
        trees: of this rank.
    """
    rows = [views_of(tree) for tree in trees]
    parts = distributed.gather_objects(rows, group)
    columns = [sets for part in parts for sets in part]
    found = torch.stack([_jaccard([row[view] for row in rows], [column[view] for column in columns]) for view in VIEWS])
    own = distributed.own(tuple(map(len, parts)), group)
    found[:, :, own].diagonal(dim1=1, dim2=2).fill_(1.0)
    return found


def combined_similarities(trees: Sequence[Tree]) -> Float[Tensor, "N N"]:
    """The mean over the views in which either tree has an element; 1 on the diagonal, 0 for two without any."""
    sets = [views_of(tree) for tree in trees]
    shared = torch.tensor([[[bool(a[v] | b[v]) for b in sets] for a in sets] for v in VIEWS])
    combined = tree_similarities(trees, LOCAL).mul(shared).sum(0) / shared.sum(0).clamp_min(1)
    return combined.fill_diagonal_(1.0)


def views_of(tree: Tree) -> dict[str, frozenset[Path]]:
    """View -> its set of paths."""
    paths = list(_paths(tree))
    found = {}
    for view in VIEWS:
        first = LEVELS.index(view[0])
        cut = {path[first : first + len(view)] for path in paths}
        found[view] = frozenset(
            path
            for path in cut
            if len(path) == len(view) and not any(name in part for part in path for name in IGNORED)
        )
    return found


def _paths(tree: Tree) -> Iterator[Path]:
    """From the root to each leaf; a branch that ends early is a short path."""
    for domain, acts in tree.items():
        if not acts:
            yield (_clean(domain),)
        for act, slots in acts.items():
            if not slots:
                yield _clean(domain), _clean(act)
            for slot, values in slots.items():
                if not values:
                    yield _clean(domain), _clean(act), _clean(slot)
                for value in values:
                    yield _clean(domain), _clean(act), _clean(slot), _clean(value["value"])


def _clean(name: Any) -> str:
    return str(name).strip().lower()


def _jaccard(rows: Sequence[frozenset[Path]], columns: Sequence[frozenset[Path]]) -> Float[Tensor, "N M"]:
    """Each two sets' Jaccard index, from the incidences of their elements: one matrix product for all pairs."""
    places = {path: place for place, path in enumerate(sorted(set().union(*rows, *columns)))}
    left, right = (_incidences(sets, places) for sets in (rows, columns))
    common = left @ right.T
    union = left.sum(1)[:, None] + right.sum(1) - common
    return common / union.clamp_min(1)


def _incidences(sets: Sequence[frozenset[Path]], places: Mapping[Path, int]) -> Float[Tensor, "N elements"]:
    found = torch.zeros(len(sets), max(len(places), 1))
    for row, paths in enumerate(sets):
        found[row, [places[path] for path in paths]] = 1.0
    return found
