"""Two ways to the same loss: are value and gradients the same?"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

FLOOR = 1e-3  # below it an expected gradient is rounding noise around zero, and so is its relative error


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """The largest difference over the largest expected entry, or over FLOOR where all are smaller; NaN stays NaN."""
    actual, expected = actual.detach().double(), expected.detach().double()
    if expected.numel() == 0:
        return 0.0
    difference = (actual - expected).abs().max()
    return float(difference / expected.abs().max().clamp_min(FLOOR))


def assert_close(actual: Mapping[str, Tensor], expected: Mapping[str, Tensor], tolerance: float, what: str) -> None:
    """Fail with a table of relative errors where any is above the tolerance.

    Raises:
        AssertionError: names each tensor that differs, or is missing.
    """
    errors = {
        name: relative_error(actual[name], wanted) if name in actual else float("nan")
        for name, wanted in expected.items()
    }
    wrong = {name: error for name, error in errors.items() if not error <= tolerance}
    table = "\n".join(f"  {name}: relative error {error:.3g}" for name, error in wrong.items())
    assert not wrong, f"{what}: beyond {tolerance:g}\n{table}"


def assert_cached_equals_full(
    full: Callable[[], Tensor],
    cached: Callable[[], Tensor],
    parameters: Sequence[Tensor] | Mapping[str, Tensor],
    tolerance: float = 1e-6,
    seed: int = 0,
) -> None:
    """Assert that two computations of a loss, the full batch and one in chunks, agree in value and gradients.

    Args:
        full, cached: give the loss, ready for `backward()`; each is run once, from the same random seed.
        parameters: what gets gradients. A gradient of None counts as zero.
        tolerance: relative, against the largest entry of each gradient.

    Raises:
        AssertionError: names the value or the parameters that differ.
    """
    named = parameters if isinstance(parameters, Mapping) else {str(i): p for i, p in enumerate(parameters)}
    expected, actual = (_loss_and_gradients(run, named, seed) for run in (full, cached))
    assert_close(actual, expected, tolerance, "cached against full batch")


def _loss_and_gradients(run: Callable[[], Tensor], named: Mapping[str, Tensor], seed: int) -> dict[str, Tensor]:
    for parameter in named.values():
        parameter.grad = None
    torch.manual_seed(seed)
    loss = run()
    loss.backward()
    found = {f"gradient of {k}": torch.zeros_like(p) if p.grad is None else p.grad.clone() for k, p in named.items()}
    return {"loss": loss.detach(), **found}
