"""SPACE-2: utterances lie as near as their annotations agree, in one space for each view of an annotation tree.

He et al. 2022, arXiv 2209.06638; AlibabaResearch/DAMO-ConvAI, space-2. A turn is annotated by a tree of domains, acts,
slots and values, of which there are ten views (`collimate.losses.annotation_trees`): f_k(a, b) is how alike two trees
are in the k-th. An utterance is read twice under other dropout, and each reading cut into ten unit vectors z_k:

    L_tree  = mean_k L_out( z_k; f_k )      SupCon's loss with the weights f_k, τ = 0.07
    L_words = mean_c - log p(w_c | the text without the words c)
    L       = L_tree + 0.1 L_words          `loss_weights: {words: 0.1}`

An utterance without a tree is like nothing but itself, so that its own second reading is its only positive.

Departures: the tower is any BERT and its vector [CLS], where the paper's is a UniLM of ConvBERT's weights with five
prompt tokens; masked words are told in a third reading; annotated utterances and others contrast in one batch, where
the code has a batch of each. The contrast runs over all ranks. The subspaces are
dropped after training.

Shape legend: B utterances of this rank, L tokens, K views, D width of a space.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from collimate.encoders import Bert
from collimate.encoding import Encoding
from collimate.losses import Subspaces, tree_similarities, view_supcon_losses
from collimate.losses.annotation_trees import VIEWS
from collimate.losses.composition import composed
from collimate.losses.masked_tokens import choose_tokens, hide_tokens, mean_of_chosen, told_by_text
from collimate.processing import Tokenizer
from collimate.training import Method


@composed(
    similarity="cosine in each of ten subspaces",
    targets="similarity of annotation trees in each view; own second reading",
    negatives="both readings of all others of all ranks",
)
class SPACE2(Method):
    """A text tower trained on annotated utterances, and on others.

    A sample's metadata (`json`; the other columns of a table) may hold its tree: `{domain: {act: {slot: [{"value":
    value}]}}}`.

    Args:
        text_encoder: the tower; a `Bert` with dropout, and with a `token_head` for the masked words.
        tokenizer: how utterances become its input.
        key: of the metadata, under which trees lie.
        dim: D; 768 as published.
        temperature: τ.
        mask_rate: the share of tokens that are hidden.

    Raises:
        ValueError: the tower cannot tell words.
    """

    modalities = ("text",)
    views = MappingProxyType({"text_view": "text"})
    also = ("json",)

    def __init__(
        self,
        text_encoder: Bert,
        tokenizer: Tokenizer,
        key: str = "tree",
        dim: int = 768,
        temperature: float = 0.07,
        mask_rate: float = 0.15,
    ) -> None:
        super().__init__()
        if text_encoder.cls is None:
            raise ValueError("SPACE-2 has masked words told: build the Bert with token_head=True.")
        self.processors = {"text": tokenizer}
        self.encoders = nn.ModuleDict({"text": text_encoder})
        self.subspaces = Subspaces(text_encoder.width, len(VIEWS), dim)
        self.key, self.temperature, self.mask_rate = key, temperature, mask_rate

    def forward(self, modality: str, inputs: Tensor, mask: Tensor | None = None) -> Encoding:
        return self.encoders[modality](inputs, mask)

    def embed(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Both readings of each utterance, (B, K, D); and what is told of its hidden words."""
        readings = {key: self.subspaces(self.encode("text", batch[key]).pooled) for key in ("text", "text_view")}
        return readings | self._told(batch["text"].to(self.device))

    def losses(self, embeddings: dict[str, Tensor], batch: dict[str, Any]) -> dict[str, Tensor]:
        features = torch.stack([embeddings["text"], embeddings["text_view"]], 1)
        alike = tree_similarities([metadata.get(self.key) or {} for metadata in batch["json"]]).to(features)
        return {
            "tree": view_supcon_losses(features, alike, self.temperature).mean(),
            "words": mean_of_chosen(embeddings["masked_loss"], embeddings["masked_count"]),
        }

    def _told(self, ids: Tensor) -> dict[str, Tensor]:
        bert, tokenizer = self.encoders["text"], self.processors["text"]
        assert isinstance(bert, Bert)
        assert isinstance(tokenizer, Tokenizer)
        mask = tokenizer.mask(ids)
        eligible = mask.clone()
        eligible[:, 0] = False  # [CLS]
        chosen = choose_tokens(eligible, self.mask_rate)
        texts = hide_tokens(ids, chosen, tokenizer.mask_id, bert.embeddings.word_embeddings.num_embeddings)
        tokens = bert(texts.ids, mask).tokens
        return told_by_text(bert.token_logits(tokens[texts.chosen]), texts)
