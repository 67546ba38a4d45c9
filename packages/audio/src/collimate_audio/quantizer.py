"""The vector quantizer of BEATs' tokenizer, whose codes are moving averages.

Chen et al. 2023, BEATs, arXiv 2212.09058, section 3.2; microsoft/unilm, beats/quantizer.py. With e~ = e / ||e|| and
unit codes v,

    z = argmin_i ||v_i - e~||^2,    q = e~ + sg[v_z - e~],    L = β mean_d (e~ - sg[v_z])^2
    n_i = count of code i,    m_i = unit mean of its e~, or v_i where n_i = 0
    v_i <- unit(0.99 v_i + 0.01 m_i),    usage <- 0.99 usage + 0.01 n

the codes that are looked up being those before the update, and counts and means those of all ranks. Gradients of q and
L reach e through its normalisation.

Departures:
- The paper has a term that draws codes to encodings, which the moving average stands for, and no β; its weight is that
  of β = D, since L is a mean over D. Both as in the released code.
- Padding takes part in nothing, where a mask is given; in the released code it does.
- Evaluation changes nothing; in the released code it moves the usage, and starts the codebook.
- Codes that are hardly used can be restarted at encodings of the batch.

Shape legend: B clips, L tokens, D width, K codes, N real tokens of this rank.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.nn.functional import normalize

from collimate import distributed
from collimate.losses.masked_tokens import UNSCORED, mean_of_chosen
from collimate_audio.codebook import cluster_means, code_counts, nearest_codes, spherical_kmeans

KMEANS_ROUNDS = 10  # beats/quantizer.py


class Quantized(NamedTuple):
    """What a quantizer makes of encodings.

    Attributes:
        vectors: q, with the gradient of the encodings.
        codes: z; `UNSCORED` at padding.
        loss: this rank's share of L, whose mean over ranks is the mean over all real tokens.
    """

    vectors: Float[Tensor, "B L D"]
    codes: Int64[Tensor, "B L"]
    loss: Float[Tensor, ""]


class EMAQuantizer(nn.Module):
    """Unit codes that follow the encodings; always float32, and buffers, so that no optimizer touches them.

    Args:
        codes: K.
        width: D.
        beta: β. The released code has 1, ESPnet's recipes 10; D is the paper's weight.
        decay: 0.99 above.
        restart_below: a code whose share is less than this part of an even one (by its moving average) is restarted at
            an encoding of the batch; 0 restarts none, as published.

    Attributes:
        codebook: (K, D), unit rows.
        usage: (K,), the moving average of counts.
        updates: how many batches have moved the codes.
        started: whether there are codes; the first batch in training begins with those of k-means.
    """

    codebook: Tensor
    usage: Tensor
    updates: Tensor
    started: Tensor

    def __init__(
        self, codes: int = 1024, width: int = 256, beta: float = 1.0, decay: float = 0.99, restart_below: float = 0.0
    ) -> None:
        super().__init__()
        if not 0 <= restart_below < 1:
            raise ValueError(f"restart_below is a part of an even share, from 0 to below 1; got {restart_below}.")
        if not 0 <= decay < 1:
            raise ValueError(f"decay is from 0 to below 1; got {decay}.")
        self.beta, self.decay, self.restart_below = beta, decay, restart_below
        self.register_buffer("codebook", torch.zeros(codes, width))
        self.register_buffer("usage", torch.zeros(codes))
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))
        self.register_buffer("started", torch.zeros((), dtype=torch.bool))

    def forward(self, encodings: Float[Tensor, "B L D"], mask: Bool[Tensor, "B L"] | None = None) -> Quantized:
        """Quantize, and in training move the codes.

        Args:
            encodings: e, of any length.
            mask: True where a token is real; padding is quantized too, but has no code and counts nowhere.

        Raises:
            RuntimeError: in evaluation, where there are no codes yet.
        """
        unit = normalize(encodings.float(), dim=-1)
        real = unit.detach().flatten(0, 1) if mask is None else unit.detach()[mask]
        if not bool(self.started):
            self.start(real)
        looked_up = self.codebook.clone() if self.training else self.codebook  # those before the update
        codes = nearest_codes(unit, looked_up)
        chosen = looked_up[codes]
        if self.training:
            self.update(real, codes.flatten() if mask is None else codes[mask])
        errors = (unit - chosen).square().mean(-1)
        errors = errors if mask is None else errors[mask]
        loss = self.beta * mean_of_chosen(errors, torch.tensor(errors.numel(), device=errors.device))
        codes = codes if mask is None else codes.masked_fill(~mask, UNSCORED)
        return Quantized(unit + (chosen - unit).detach(), codes, loss)

    def codes(self, encodings: Float[Tensor, "B L D"]) -> Int64[Tensor, "B L"]:
        """The code of each encoding, by the codebook as it is."""
        return nearest_codes(normalize(encodings.float(), dim=-1), self.codebook)

    @torch.no_grad()
    def start(self, vectors: Float[Tensor, "N D"], rows: Int64[Tensor, " K"] | None = None) -> None:
        """Begin with the means of k-means over the vectors of all ranks; every rank gets the same.

        Args:
            vectors: of length 1. Twenty for each code or more make codes that differ.
            rows: those of all ranks' vectors that begin as means; drawn unless given, none twice where they suffice.

        Raises:
            RuntimeError: in evaluation, or there is no vector on any rank.
        """
        if not self.training:
            raise RuntimeError("The codebook is empty. Load a trained tokenizer, or let it see a batch in training.")
        vectors = distributed.gather(vectors.contiguous())
        if not len(vectors):
            raise RuntimeError("The first batch holds nothing but padding: the codebook cannot begin with it.")
        count = len(self.codebook)
        if rows is None:
            rows = _same_on_ranks(
                torch.randperm(len(vectors), device=vectors.device)[:count]
                if len(vectors) >= count
                else torch.randint(len(vectors), (count,), device=vectors.device)
            )
        self.codebook.copy_(_same_on_ranks(spherical_kmeans(vectors, rows, KMEANS_ROUNDS)))
        self.started.fill_(True)

    @torch.no_grad()
    def update(self, vectors: Float[Tensor, "N D"], codes: Int64[Tensor, " N"]) -> None:
        """Move codes and usage by the vectors of all ranks, of length 1, and their codes."""
        counts = code_counts(codes, len(self.codebook))
        means = cluster_means(vectors, codes, self.codebook)
        self.codebook.copy_(normalize(self.codebook.lerp(means, 1 - self.decay), dim=1))
        self.usage.lerp_(counts, 1 - self.decay)
        self.updates += 1
        if self.restart_below > 0 and int(self.updates) * (1 - self.decay) >= 1:  # the average means something by then
            self._restart(vectors)

    def _restart(self, vectors: Float[Tensor, "N D"]) -> None:
        even = self.usage.mean()
        rare = self.usage < self.restart_below * even
        drawn = torch.randperm(len(vectors), device=vectors.device)[: len(self.codebook)]
        pool = distributed.gather(vectors[drawn])
        pool = pool[_same_on_ranks(torch.randperm(len(pool), device=pool.device))][: int(rare.sum())]
        places = rare.nonzero()[: len(pool), 0]
        self.codebook[places] = pool
        self.usage[places] = even


def _same_on_ranks(value: Tensor) -> Tensor:
    """What rank 0 has, whose shape is that of all."""
    return distributed.gather(value)[: len(value)]
