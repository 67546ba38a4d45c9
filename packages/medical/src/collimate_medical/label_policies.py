"""What becomes of findings that a report leaves uncertain (-1) or does not mention (blank).

CheXpert (Irvin et al. 2019, arXiv 1901.07031, section 3) takes, for each finding, one of

- `ignore`: not known (NaN), which losses and metrics leave out;
- `zeros`, `ones`: absent, or present;
- `self`: the probability that a model says, which was trained while they were ignored;
- `multiclass`: a class of its own, 2, beside absent and present; `presence_of_three` reads a model of three classes.

Pham et al. 2021 (arXiv 1911.06475, section 3.2) soften two of them by draws from a range: `zeros-lsr`, U(0, 0.3), and
`ones-lsr`, U(0.55, 0.85).

To leave out every study in which any finding is uncertain, as MoRE's fine-tuning does, changes the test set: not here.

Shape legend: N studies, C findings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast, get_args

import torch
from jaxtyping import Float
from torch import Tensor

Policy = Literal["ignore", "zeros", "ones", "zeros-lsr", "ones-lsr", "self", "multiclass"]
Blank = Literal["zeros", "ignore"]
Findings = Mapping[str, float | int | str | None]
"""Label -> 1 present, 0 absent, -1 uncertain; blank ones are None, empty or not there."""

UNCERTAIN, THIRD_CLASS = -1.0, 2.0
RANGES = {"zeros-lsr": (0.0, 0.3), "ones-lsr": (0.55, 0.85)}  # Pham et al. 2021, section 4.3

GLORIA_POLICIES: Mapping[str, Policy] = {
    "Atelectasis": "ones",
    "Cardiomegaly": "zeros",
    "Consolidation": "zeros",
    "Edema": "ones",
    "Pleural Effusion": "ones",
}
"""GLoRIA's, which MoRE took over, of the five labels of CheXpert's competition."""


def label_targets(
    findings: Sequence[Findings],
    names: Sequence[str],
    policies: Policy | Mapping[str, Policy] = "ignore",
    blank: Blank = "zeros",
    predictions: Float[Tensor, "N C"] | None = None,
    seed: int = 0,
) -> Float[Tensor, "N C"]:
    """Findings as numbers for losses and metrics.

    Args:
        findings: of each study.
        names: of the C findings, the order of the columns.
        policies: of uncertain findings: one for all, or label -> its own, `ignore` for those that are not named.
        blank: what is not mentioned is absent, or not known.
        predictions: probabilities of a model, for the policy `self`.
        seed: of the draws of `zeros-lsr` and `ones-lsr`.

    Returns:
        1, 0, a probability or the class 2, as the policies say, and NaN where it is not known.

    Raises:
        ValueError: a value or a policy is none of those, policies name labels that are not in `names`, or `self` comes
            without predictions of this shape.
    """
    chosen = _policies(policies, names)
    values = torch.tensor(
        [[_value(study.get(name), name, row) for name in names] for row, study in enumerate(findings)]
    ).reshape(len(findings), len(names))
    if blank == "zeros":
        values = values.nan_to_num(0.0)
    elif blank != "ignore":
        raise ValueError(f"blank is zeros or ignore; got {blank!r}.")
    if "self" in chosen and (predictions is None or predictions.shape != values.shape):
        given = "none" if predictions is None else f"those given are {tuple(predictions.shape)}"
        raise ValueError(f"The policy self needs predictions of shape {tuple(values.shape)}; {given}.")
    generator = torch.Generator().manual_seed(seed)
    for column, policy in enumerate(chosen):
        uncertain = values[:, column] == UNCERTAIN
        own = None if predictions is None else predictions[uncertain, column]
        values[uncertain, column] = _replaced(policy, int(uncertain.sum()), own, generator)
    return values


def check_targets(targets: Float[Tensor, "N C"], names: Sequence[str]) -> None:
    """See that there is something to learn of each finding.

    Raises:
        ValueError: of some, nothing is known, or all studies say the same; it names them.
    """
    for name, column in zip(names, targets.T, strict=True):
        known = column[~column.isnan()]
        if not len(known):
            raise ValueError(
                f"Nothing is known of {name!r} in {len(column)} studies: all are uncertain or blank. Choose another "
                "policy than ignore, or leave the finding out."
            )
        if (known == known[0]).all():
            raise ValueError(f"{name!r} is {known[0]:g} in all {len(known)} studies where it is known.")


def presence_of_three(logits: Float[Tensor, "N C 3"]) -> Float[Tensor, "N C"]:
    """The probability of presence by a model of absent, present and uncertain: that of the first two alone."""
    return logits[..., :2].softmax(-1)[..., 1]


def _policies(policies: Policy | Mapping[str, Policy], names: Sequence[str]) -> list[Policy]:
    by_name = dict.fromkeys(names, policies) if isinstance(policies, str) else dict(policies)
    if unknown := sorted(by_name.keys() - set(names)):
        raise ValueError(
            f"There is a policy for {unknown[0]!r}, which is none of {', '.join(names)}: name one of these."
        )
    if wrong := [each for each in by_name.values() if each not in get_args(Policy)]:
        raise ValueError(f"A policy is one of {', '.join(get_args(Policy))}; got {wrong[0]!r}.")
    return [cast(Policy, by_name.get(name, "ignore")) for name in names]


def _value(value: Any, name: str, row: int) -> float:
    if value is None or (isinstance(value, str) and not value.strip()):
        return torch.nan
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = torch.inf
    if number != number:
        return torch.nan
    if number not in (0.0, 1.0, UNCERTAIN):
        raise ValueError(f"Study {row}: {name!r} is {value!r}, where 1, 0, -1 or nothing is expected.")
    return number


def _replaced(policy: Policy, count: int, predictions: Tensor | None, generator: torch.Generator) -> Any:
    """What uncertain findings of one label become."""
    if policy in RANGES:
        low, high = RANGES[policy]
        return low + (high - low) * torch.rand(count, generator=generator)
    if policy == "self":
        return predictions
    return {"ignore": torch.nan, "zeros": 0.0, "ones": 1.0, "multiclass": THIRD_CLASS}[policy]
