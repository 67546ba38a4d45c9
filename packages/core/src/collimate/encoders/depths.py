"""How deep the parts of an encoder lie: its blocks, and how many layers stand between a parameter and the output."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from timm.models import group_parameters
from torch import nn


def blocks(module: nn.Module) -> dict[str, nn.Module]:
    """Name -> what is repeated: the children of module lists and sequences of at least two alike modules."""
    return {
        f"{name}.{child_name}".lstrip("."): child
        for name, parent in module.named_modules()
        if isinstance(parent, (nn.ModuleList, nn.Sequential)) and len(parent) >= 2
        for child_name, child in parent.named_children()
        if type(child) is type(parent[0]) and any(True for _ in child.children())
    }


def depths_by_blocks(module: nn.Module) -> dict[str, int]:
    """Parameter name -> depth, where blocks follow one another in the order in which they were made.

    Those of the last of n blocks lie at depth 1, of the first at n. What was made before all blocks (embeddings) lies
    at n + 1, what was made between or after them (a last norm) at the depth of the block before.
    """
    outermost: list[str] = []
    for name in blocks(module):
        if not any(name.startswith(f"{block}.") for block in outermost):
            outermost.append(name)
    found, passed = {}, 0
    for name, _ in module.named_parameters():
        number = next((place for place, block in enumerate(outermost, 1) if name.startswith(f"{block}.")), passed)
        found[name] = len(outermost) + 1 - number
        passed = max(passed, number)
    return found


def depths_by_timm(model: Any) -> dict[str, int]:
    """Parameter name -> depth of a timm model, by its own grouping, in which a classifier would have depth 0."""
    head = "classifier of whoever trains it"
    named = SimpleNamespace(named_parameters=lambda: [*model.named_parameters(), (head, None)])
    found: Any = group_parameters(named, model.group_matcher(coarse=False), reverse=True)  # type: ignore[arg-type]
    return {name: found[head] - group for name, group in found.items() if name != head}
