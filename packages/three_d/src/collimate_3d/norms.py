"""How fast the averages of batch norms follow.

Detectors have them follow at 0.01 (OpenPCDet), which suits runs of tens of thousands of steps: after 200 of them an
eighth of what a norm was made with is still left, and evaluation sees another network than training.
"""

from __future__ import annotations

from torch import nn

SLOW = 0.01  # OpenPCDet


def set_norm_momentum(network: nn.Module, momentum: float) -> None:
    """Have all batch norms of a network follow at this rate.

    Raises:
        ValueError: it is no share.
    """
    if not 0 < momentum <= 1:
        raise ValueError(f"Averages follow at a share above 0 and at most 1 a step, not {momentum}.")
    for module in network.modules():
        if hasattr(module, "running_mean") and hasattr(module, "momentum"):
            module.momentum = momentum  # type: ignore[assignment]
