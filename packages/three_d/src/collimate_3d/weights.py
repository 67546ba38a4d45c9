"""Published weights for the networks of this package, under their published names."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike

from torch import Tensor, nn

from collimate.checkpoints.files import CheckpointError, read_state_dict, tidy
from collimate_3d.sparse.weights import fitted_weights


def published_weights(
    checkpoint: str | PathLike[str] | Mapping[str, Tensor], prefixes: Mapping[str, str]
) -> dict[str, Tensor]:
    """The weights of a checkpoint whose names begin with certain words, which are exchanged for others.

    Args:
        checkpoint: a file, or the state dict it holds.
        prefixes: what names begin with -> what they begin with here.

    Raises:
        CheckpointError: the file is damaged, or no name begins so.
    """
    weights = tidy(dict(checkpoint)) if isinstance(checkpoint, Mapping) else read_state_dict(checkpoint)
    found = {
        ours + name.removeprefix(theirs): value
        for theirs, ours in prefixes.items()
        for name, value in weights.items()
        if name.startswith(theirs)
    }
    if not found:
        raise CheckpointError(
            f"No weights begin with {' or '.join(map(repr, prefixes))}; the first are {', '.join(list(weights)[:3])}."
        )
    return found


def load_weights(network: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Take published weights, all of them, sparse kernels in whichever layout.

    Raises:
        CheckpointError: some are missing, too many, or of another shape.
    """
    fitted = fitted_weights(network, weights)
    try:
        network.load_state_dict(fitted)
    except RuntimeError as error:
        raise CheckpointError(f"The weights are not those of this {type(network).__name__}: {error}") from error
