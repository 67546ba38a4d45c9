"""Findings without training: each is there or not by what its texts say; scores for any number of findings at once.

*Presence* (CheXzero, Tiu et al. 2022): with the cosines c+ of an image with "pneumonia" and c- with "no pneumonia",

    p = exp(s c+) / (exp(s c+) + exp(s c-)),    s = 1 as published, so that all p lie near 0.5: they rank, no more.

Of several pairs of texts, the mean of p. *Best text* (GLoRIA, MoRE): the largest cosine over a finding's texts. Both
say how findings rank images; to say which finding an image has, published code brings best-text scores to mean 0 and
deviation 1 over the images of the test set (`standardized`), which looks at all of them: not unless it is asked for.

Shape legend: N images, C findings, P texts of each, D width, R resamples.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from collimate.encoding import Encoding
from collimate.evaluation.features import encode_all
from collimate.evaluation.modalities import Exhibit, Manner, register_evaluation
from collimate.training import Method
from collimate_medical.ecg_paper import show_ecg
from collimate_medical.processing import grey_image
from collimate_medical.prompts import FindingTexts


def presence_scores(
    image: Float[Tensor, "N D"],
    present: Float[Tensor, "C P D"],
    absent: Float[Tensor, "C P D"],
    logit_scale: float = 1.0,
) -> Float[Tensor, "N C"]:
    """The probability of each finding for each image, the mean over its pairs of texts.

    Args:
        image: features, normalised inside, as the next two.
        present, absent: of the texts that say that a finding is there, and of those that say that it is not.
        logit_scale: s.
    """
    image, present, absent = (normalize(each.float(), dim=-1) for each in (image, present, absent))
    there, not_there = (torch.einsum("nd,cpd->ncp", image, side) for side in (present, absent))
    return presence(there, not_there, logit_scale)


def presence(
    present: Float[Tensor, "... P"], absent: Float[Tensor, "... P"], logit_scale: float = 1.0
) -> Float[Tensor, " ..."]:
    """The mean probability over pairs of texts.

    Args:
        present, absent: similarities with the texts of presence, and with those of absence.
        logit_scale: s.
    """
    return (logit_scale * (present - absent)).sigmoid().mean(-1)


def best_text_scores(image: Float[Tensor, "N D"], texts: Float[Tensor, "C P D"]) -> Float[Tensor, "N C"]:
    """The largest cosine of each image with the texts of each finding."""
    return torch.einsum("nd,cpd->ncp", normalize(image.float(), dim=-1), normalize(texts.float(), dim=-1)).amax(2)


def standardized(scores: Float[Tensor, "N C"]) -> Float[Tensor, "N C"]:
    """Each finding's scores with mean 0 and deviation 1 over the images; 0 where all are equal."""
    deviation = scores.std(0, correction=0)
    return torch.where(deviation > 0, (scores - scores.mean(0)) / deviation, 0.0)


def spread(scores: Float[Tensor, "N C"]) -> Float[Tensor, "N C"]:
    """Each finding's scores from 0, the smallest over the images, to 1, the largest; 0 where all are equal."""
    low, high = scores.amin(0), scores.amax(0)
    return torch.where(high > low, (scores - low) / (high - low), 0.0)


def finding_scores(
    method: Method, images: Encoding, texts: Mapping[str, FindingTexts], logit_scale: float = 1.0, device: str = "auto"
) -> Float[Tensor, "N C"]:
    """`presence_scores` of encoded images for findings by their texts, in the order of the mapping.

    Args:
        method: one that encodes text.
        images: N samples, as `method.encode` gives them.
        texts: label -> its texts (`collimate_medical.prompts.finding_texts`), equally many of each.
        logit_scale: s.
        device: where texts are encoded.

    Raises:
        ValueError: findings have unequally many texts.
    """
    counts = {len(each) for several in texts.values() for each in several}
    if len(counts) != 1:
        raise ValueError(f"Findings have equally many texts of presence and of absence; these have {sorted(counts)}.")
    sides = []
    for side in ("present", "absent"):
        flat = [text for several in texts.values() for text in getattr(several, side)]
        sides.append(encode_all(method, "text", flat, False, device=device).pooled.unflatten(0, (len(texts), -1)))
    return presence_scores(images.pooled.cpu(), sides[0].cpu(), sides[1].cpu(), logit_scale)


class OfficialInterval(NamedTuple):
    """Mean and bounds of each finding, to four places."""

    mean: Float[Tensor, " C"]
    lower: Float[Tensor, " C"]
    upper: Float[Tensor, " C"]


def official_interval(resampled: Float[Tensor, "R C"], level: float = 0.95) -> OfficialInterval:
    """CheXzero's interval of bootstrapped metrics, to compare with what was published by that rule.

    It takes sorted values one place below the percentiles, and sorts NaN, from resamples without a positive, to the
    end, so that an upper bound may be NaN. For reports there is `collimate.evaluation.bootstrap`, which resamples
    patients and leaves NaN out.
    """
    tail = (1 - level) / 2
    lower, upper = (int(share * len(resampled)) - 1 for share in (tail, 1 - tail))
    ordered = resampled.double().sort(0).values  # NaN comes last
    return OfficialInterval(
        *(each.round(decimals=4) for each in (resampled.nanmean(0), ordered[lower], ordered[upper]))
    )


def show_xray(raw: object) -> Exhibit:
    """What reports show of an X-ray: the picture, and nothing that a file says of it."""
    return Exhibit(grey_image(raw))


register_evaluation(
    "xray",
    Manner(
        show=show_xray,
        templates="chest",
        template_sets={
            "chest": ("{}", "There is {}.", "The radiograph shows {}.", "Findings are consistent with {}."),
        },
    ),
)
register_evaluation("ecg", Manner(show=show_ecg, templates="ecg", template_sets={"ecg": ("{}", "The ecg shows {}.")}))
