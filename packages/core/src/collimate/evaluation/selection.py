"""`collimate data select`: keep the samples whose loss a little training on good data lowers most.

Brandfonbrener et al. 2024, CoLoR-Filter, arXiv 2406.10670: with a model w and the same model w' after training on data
of the wanted kind, the share of samples kept is that with the largest

    score_i = ℓ_i(w) - ℓ_i(w'),

the reduction of loss by what was learned of the wanted kind. The authors' code (davidbrandfonbrener/color-filter-olmo)
takes the largest likewise, 1 of τ = 7 to 64 samples; shares are the user's to choose, and small ones pay most there.

Departure: the paper scores texts by their likelihood; here ℓ_i is a pair's loss in the contrast with random others, the
same for both models: the mean of both directions and of several draws of the others.

Shape legend: N samples, D width.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from collimate import distributed
from collimate.checkpoints import load
from collimate.console import say
from collimate.data import Source, class_names, open_source
from collimate.evaluation.embedding import Part
from collimate.evaluation.features import Precision, extract
from collimate.losses import symmetric_info_nce_losses
from collimate.training import Method

DRAWS = 4  # of the other samples; ours
LOGIT_SCALE = 1 / 0.07  # of methods without one of their own; CLIP's start


class Scores(NamedTuple):
    """Of the samples that could be read.

    Attributes:
        places: in the source.
        scores: ℓ(w) - ℓ(w'), larger is better.
    """

    places: Int64[Tensor, " N"]
    scores: Float[Tensor, " N"]


def select(
    prior: str,
    conditional: str,
    data: str,
    output: str,
    keep: float = 0.25,
    contrast_size: int = 256,
    batch_size: int = 64,
    num_workers: int = 0,
    device: str = "auto",
    precision: Precision = "float32",
    seed: int = 0,
) -> None:
    """Write the best share of a data set as shards, as two models tell it (CoLoR-Filter, arXiv 2406.10670).

    Args:
        prior: the folder of a model.
        conditional: the folder of the same model after some training on data of the wanted kind.
        data: what to select from: a table, a folder, shards, ...
        output: the folder of the shards to write; `scores.pt` beside them holds places and scores of all samples.
        keep: the share of samples to keep.
        contrast_size: samples that each pair is contrasted with.
        batch_size: samples encoded at a time.
        num_workers: processes that read and decode.
        device: `auto` is the first GPU where there is one, else the CPU.
        precision: of the encoders.
        seed: of the draws of other samples.
    """
    if not 0 < keep <= 1:
        raise ValueError(f"The share to keep is above 0 and at most 1, not {keep:g}.")
    from collimate.data.commands import write_shards

    source = open_source(data)
    options = (batch_size, num_workers, device, precision)
    found = loss_reduction(load_method(prior), load_method(conditional), source, contrast_size, seed, *options)
    best = found.scores.argsort(descending=True, stable=True)[: max(1, round(keep * len(found.scores)))]
    places = found.places[best].sort().values.tolist()
    part = Part(source, places)
    part.name = f"the best {keep:.0%} of {source.name}"
    if (names := class_names(source)) is not None:
        part.class_names = names  # type: ignore[attr-defined]
    plan = {"input": data, "prior": prior, "conditional": conditional, "keep": keep, "contrast_size": contrast_size}
    write_shards(part, output, {**plan, "selection_seed": seed})
    torch.save(found._asdict(), f"{output}/scores.pt")
    low, kept = found.scores[best[-1]], found.scores[best].mean()
    say(f"Kept {len(places)} of {len(source)}: those that gained {low:.3f} or more, {kept:.3f} on average.")


def loss_reduction(
    prior: Method,
    conditional: Method,
    source: Source,
    contrast_size: int = 256,
    seed: int = 0,
    batch_size: int = 64,
    num_workers: int = 0,
    device: str = "auto",
    precision: Precision = "float32",
) -> Scores:
    """How much lower each pair's loss is by the second model than by the first.

    Raises:
        ValueError: the methods do not pair the same two modalities.
    """
    if prior.modalities != conditional.modalities or len(prior.modalities) != 2:
        raise ValueError(
            f"Pairs are scored by two methods of the same two modalities; these have {', '.join(prior.modalities)} "
            f"and {', '.join(conditional.modalities)}."
        )
    losses, places = [], torch.empty(0)
    for method in (prior, conditional):
        features = extract(method, source, method.modalities, (), False, batch_size, num_workers, device, precision)
        places = features.index
        first, second = (features.encodings[modality].pooled.float() for modality in method.modalities)
        scale = getattr(method, "logit_scale", torch.tensor(LOGIT_SCALE).log()).detach().exp().cpu()
        losses.append(pair_losses(first, second, scale, contrast_size, seed))
    return Scores(places, losses[0] - losses[1])


@torch.no_grad()
def pair_losses(
    first: Float[Tensor, "N D"],
    second: Float[Tensor, "N D"],
    logit_scale: Tensor | float,
    contrast_size: int,
    seed: int = 0,
) -> Float[Tensor, " N"]:
    """Each pair's contrastive loss among random others, drawn alike for the same N and seed."""
    draw = torch.Generator().manual_seed(seed)
    total = torch.zeros(len(first))
    for _ in range(DRAWS):
        order = torch.randperm(len(first), generator=draw)
        for rows in order.tensor_split(max(1, round(len(first) / contrast_size))):
            losses = symmetric_info_nce_losses(first[rows], second[rows], logit_scale, group=distributed.LOCAL)
            total[rows] += (losses.queries + losses.keys) / 2
    return total / DRAWS


def load_method(folder: str) -> Method:
    """A method from a folder.

    Raises:
        TypeError: what lies there is an encoder.
    """
    loaded = load(folder)
    if not isinstance(loaded, Method):
        raise TypeError(f"{folder} holds a {type(loaded).__name__}; pairs are scored by a method of two modalities.")
    return loaded.eval()
