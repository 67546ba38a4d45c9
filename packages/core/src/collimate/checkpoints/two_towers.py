"""What the converters have in common: an image-text method in parts, and tables of names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

from torch import Tensor, nn

from collimate.checkpoints.files import CheckpointError
from collimate.processing import Processor

M = TypeVar("M", bound=nn.Module)


@runtime_checkable
class ImageTextMethod(Protocol):
    """What the converters need of a method: CLIP and SigLIP are such."""

    encoders: nn.ModuleDict
    projections: nn.ModuleDict
    processors: dict[str, Processor]
    logit_scale: nn.Parameter

    def state_dict(self) -> dict[str, Tensor]: ...


@dataclass(frozen=True)
class TwoTowers:
    """A method's constructor arguments and its weights, by its own names; None leaves random weights."""

    arguments: dict[str, Any]
    weights: dict[str, Tensor] | None

    def build(self, method: type[M]) -> M:
        """An instance of `method` with these weights, in evaluation mode.

        Raises:
            CheckpointError: the weights do not fit the model.
        """
        built = method(**self.arguments)
        if self.weights is not None:
            own = built.state_dict()
            weights = {**{name: own[name] for name in objective_names(own)}, **self.weights}
            for name in set(objective_names(weights)) - own.keys():
                del weights[name]  # of another objective: a bias on every logit changes no softmax
            try:
                built.load_state_dict(weights)
            except RuntimeError as error:
                raise CheckpointError(f"The weights do not fit the model: {error}") from error
        return built.eval()


class Rename(NamedTuple):
    """A name, or all that starts with it if it ends in a dot, there and here."""

    theirs: str
    ours: str
    transposed: bool = False


def objective_names(names: Iterable[str]) -> list[str]:
    """The weights that serve a method's objective alone: a bias on all logits, a history of batches, a further head.

    A published model may lack them: the method then starts with its own. Those of other methods are dropped.
    """
    return [name for name in names if not name.startswith(("encoders.", "projections.")) and name != "logit_scale"]


def to_ours(weights: Mapping[str, Tensor], names: Iterable[Rename]) -> dict[str, Tensor]:
    """Foreign weights under our names.

    Raises:
        CheckpointError: there are weights that have no place here.
    """
    return _renamed(weights, [(name.theirs, name.ours, name.transposed) for name in names])


def to_theirs(weights: Mapping[str, Tensor], names: Iterable[Rename]) -> dict[str, Tensor]:
    """Our weights under foreign names; what serves the objective alone and has none there is left out.

    Raises:
        CheckpointError: there are weights that have no place there.
    """
    pairs = [(name.ours, name.theirs, name.transposed) for name in names]
    nameless = set(objective_names(weights)) - {ours for ours, *_ in pairs}
    return _renamed({name: value for name, value in weights.items() if name not in nameless}, pairs)


def _renamed(weights: Mapping[str, Tensor], names: list[tuple[str, str, bool]]) -> dict[str, Tensor]:
    names = sorted(names, key=lambda name: -len(name[0]))  # the most particular first
    renamed, unknown = {}, []
    for key, value in weights.items():
        for old, new, transposed in names:
            if key == old or (old.endswith(".") and key.startswith(old)):
                renamed[new + key[len(old) :]] = value.mT.contiguous() if transposed else value
                break
        else:
            unknown.append(key)
    if unknown:
        raise CheckpointError(
            f"Weights without a place in the model: {', '.join(unknown[:5])} ({len(unknown)} in all)."
        )
    return renamed
