"""Objects that have read a sentence, and words that have seen a scene.

Layers of cross-attention with the residual and the norm after it, and no feed-forward between them, as in leolyj/3D-VLP
(models/pretrain_module/fusion_module.py).

Shape legend: N sentences, each with its scene; M objects, L words, D width.
"""

from __future__ import annotations

from jaxtyping import Bool, Float
from torch import Tensor, nn

from collimate_3d.graphs.attention import Attention


class CrossAttention(nn.Module):
    """Layers in which one side looks at the other.

    Args:
        width: D.
        heads: of attention.
        layers: how many.
        dropout: in training.
    """

    def __init__(self, width: int, heads: int = 4, layers: int = 2, dropout: float = 0.1) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Attention(width, heads, dropout) for _ in range(layers))

    def forward(
        self, rows: Float[Tensor, "N M D"], others: Float[Tensor, "N L D"], mask: Bool[Tensor, "N L"]
    ) -> Float[Tensor, "N M D"]:
        """What looks, and what it looks at, of which `mask` says what is there."""
        for layer in self.layers:
            rows = layer(rows, others, mask)
        return rows


def head(width: int, outputs: int, dropout: float) -> nn.Sequential:
    """Two layers to numbers of each row; 3D-VLP's, with a layer norm for its batch norm, so that rows stay apart."""
    return nn.Sequential(
        nn.Linear(width, width), nn.LayerNorm(width), nn.PReLU(), nn.Dropout(dropout), nn.Linear(width, outputs)
    )
