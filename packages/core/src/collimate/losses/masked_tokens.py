"""Masked language modelling: some tokens of a text are hidden, and what they were is to be told.

Devlin et al. 2019, BERT, arXiv 1810.04805, section 3.1. Of the tokens chosen, 80 % become the mask token, 10 % a token
drawn uniformly from the whole vocabulary, and 10 % stay. With a momentum model (Li et al. 2021, ALBEF, arXiv
2107.07651, equation 7; Yang et al. 2022, TCL, arXiv 2202.10401), which gives q over the vocabulary, the loss of a
chosen token y is

    L = (1 - α) CE(y, p) + α CE(q, p)

Departure, as in the code of ALBEF and TCL: tokens are chosen one by one with the same probability, where BERT chooses a
fixed share of each text; some texts have none, and a batch may.

Which tokens are chosen is one draw, what they become another; tests and golden sets may give the result of both.

Shape legend: B texts, L tokens of a text, K chosen tokens of a batch, V vocabulary, n samples of this rank.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from collimate import distributed

RATE = 0.15  # BERT, section 3.1
MASK_SHARE, RANDOM_SHARE = 0.8, 0.1  # BERT, section 3.1; the rest stays
UNSCORED = -100  # the label of a token that is not to be told; torch's and transformers' number for it


class MaskedTokens(NamedTuple):
    """Texts of which some tokens are hidden.

    Attributes:
        ids: (B, L), what the model reads.
        labels: (B, L), what the chosen tokens were; `UNSCORED` elsewhere.
    """

    ids: Int64[Tensor, "B L"]
    labels: Int64[Tensor, "B L"]

    @property
    def chosen(self) -> Bool[Tensor, "B L"]:
        """Where a token is to be told."""
        return self.labels != UNSCORED


def choose_tokens(
    eligible: Bool[Tensor, "B L"], rate: float = RATE, generator: torch.Generator | None = None
) -> Bool[Tensor, "B L"]:
    """Choose each token with the same probability.

    Args:
        eligible: True where a token may be chosen: no padding, no [CLS].
        rate: the probability.
        generator: of the draws, on the device of `eligible`.
    """
    return _below(eligible, rate, generator) & eligible


def choose_words(
    eligible: Bool[Tensor, "B L"],
    continues: Bool[Tensor, "B L"],
    rate: float = RATE,
    generator: torch.Generator | None = None,
) -> Bool[Tensor, "B L"]:
    """Choose each word with the same probability, with all its pieces, so that none gives another away.

    As the whole-word masking of google-research/bert (May 2019), but for the departure named above.

    Args:
        eligible: as of `choose_tokens`.
        continues: True where a token goes on with the word of the token before it; `Tokenizer.continues`.
        rate: the probability.
        generator: as of `choose_tokens`.
    """
    positions = torch.arange(eligible.shape[1], device=eligible.device)
    starts = positions.masked_fill(continues, 0).cummax(1).values  # of each token, where its word begins
    return _below(eligible, rate, generator).gather(1, starts) & eligible


def hide_tokens(
    ids: Int64[Tensor, "B L"],
    chosen: Bool[Tensor, "B L"],
    mask_id: int,
    vocab_size: int,
    generator: torch.Generator | None = None,
) -> MaskedTokens:
    """Hide the chosen tokens: 80 % behind the mask token, 10 % behind a random one, 10 % not at all.

    Args:
        ids: the texts.
        chosen: of `choose_tokens` or `choose_words`.
        mask_id: the mask token's id.
        vocab_size: V; random tokens are any of them, special ones and the old one included.
        generator: of the draws, on the device of `ids`.
    """
    fate = torch.rand(ids.shape, generator=generator, device=ids.device)
    drawn = torch.randint(vocab_size, ids.shape, generator=generator, device=ids.device, dtype=ids.dtype)
    hidden = torch.where(fate < MASK_SHARE, mask_id, torch.where(fate < MASK_SHARE + RANDOM_SHARE, drawn, ids))
    return MaskedTokens(torch.where(chosen, hidden, ids), ids.masked_fill(~chosen, UNSCORED))


def masked_token_losses(
    logits: Float[Tensor, "K V"],
    labels: Int64[Tensor, " K"],
    momentum_logits: Float[Tensor, "K V"] | None = None,
    alpha: float = 0.0,
) -> Float[Tensor, " K"]:
    """L of each chosen token; at least float32.

    Args:
        logits: of p, at the chosen tokens alone.
        labels: what these were.
        momentum_logits: of q; no gradient flows to them.
        alpha: α, the share of q.

    Raises:
        ValueError: α is not in [0, 1], or there is no q to share.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha is a share, from 0 to 1; got {alpha}.")
    if alpha > 0 and momentum_logits is None:
        raise ValueError(f"alpha is the share of momentum_logits: give them, or leave alpha at 0; got {alpha}.")
    log_p = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(1)
    hard = -log_p.gather(1, labels[:, None])[:, 0]
    if momentum_logits is None or alpha == 0:
        return hard
    soft = -(momentum_logits.detach().to(log_p.dtype).softmax(1) * log_p).sum(1)
    return (1 - alpha) * hard + alpha * soft


def told_by_text(
    logits: Float[Tensor, "K V"],
    texts: MaskedTokens,
    momentum_logits: Float[Tensor, "K V"] | None = None,
    alpha: float = 0.0,
) -> dict[str, Tensor]:
    """What each text adds to the mean over all chosen tokens, so that a batch may be computed text by text.

    Args:
        logits, momentum_logits, alpha: as of `masked_token_losses`.
        texts: in which the tokens were chosen.

    Returns:
        `masked_loss`, the sum of a text's losses, `masked_count`, how many they are, and `masked_right`, how many of
        its tokens are told; each (B,), for `mean_of_chosen`.
    """
    labels, row = texts.labels[texts.chosen], texts.chosen.nonzero()[:, 0]
    losses = masked_token_losses(logits, labels, momentum_logits, alpha)
    none = losses.new_zeros(len(texts.ids))
    return {
        "masked_loss": none.index_add(0, row, losses),
        "masked_count": texts.chosen.sum(1),
        "masked_right": none.index_add(0, row, (logits.argmax(1) == labels).to(none.dtype)),
    }


def mean_of_chosen(
    totals: Float[Tensor, " n"], counts: Int64[Tensor, " n"], group: distributed.Group = None
) -> Float[Tensor, ""]:
    """The mean over all chosen tokens of all ranks, of which each may have chosen another number.

    Args:
        totals: the sum of the losses of each sample's chosen tokens; or anything else that adds up to all of them.
        counts: how many these are.
        group: ranks whose tokens count together.

    Returns:
        this rank's share: its mean over ranks is the mean over tokens. Where no rank has chosen any it is 0, with
        gradients of 0 for whatever `totals` came from.
    """
    every = distributed.all_sum(counts.sum(), group).clamp_min(1)
    return totals.sum() * (distributed.world_size(group) / every)


def _below(eligible: Tensor, rate: float, generator: torch.Generator | None) -> Bool[Tensor, "B L"]:
    """Independent draws that are True with probability `rate`."""
    return torch.rand(eligible.shape, generator=generator, device=eligible.device) < rate
