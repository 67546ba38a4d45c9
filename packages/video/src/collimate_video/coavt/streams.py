"""What is seen, what is heard, and both: the joint layers of CoAVT, which read each of the three.

CAV-MAE, Gong et al. 2023, arXiv 2210.07839, section 2.3, on which CoAVT (arXiv 2401.12264) builds. Attention and MLPs
are the same for every stream, the norms each stream's own:

    x <- x + A(LN_X(x))        x <- x + MLP(LN_X(x))        for X = V, A, AV; a last LN_X behind the layers.

Shape legend: B clips, V tokens of a frame, A of a sound, N of a stream, D width.
"""

from __future__ import annotations

from jaxtyping import Float
from timm.layers import Mlp  # type: ignore[attr-defined]
from torch import Tensor, cat, nn, zeros

from collimate_video.divided_attention import LAYER_NORM_EPS, SequenceAttention, lean_mlp

VIDEO, AUDIO, BOTH = "video", "audio", "audiovisual"
STREAMS = (BOTH, AUDIO, VIDEO)


class JointLayers(nn.Module):
    """The layers behind both towers.

    Args:
        width: D, of the towers.
        layers: 1 in CoAVT.
        heads: attention heads.
        hidden: width of the MLPs.
        init_std: of random weights.
    """

    def __init__(self, width: int, layers: int, heads: int, hidden: int, init_std: float) -> None:
        super().__init__()
        self.kinds = nn.ParameterDict({name: nn.Parameter(zeros(width)) for name in (VIDEO, AUDIO)})
        self.blocks = nn.ModuleList(_Block(width, heads, hidden) for _ in range(layers))
        self.norm = _norms(width)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=init_std)
                nn.init.zeros_(module.bias)
        for kind in self.kinds.values():
            nn.init.trunc_normal_(kind, std=init_std)

    def forward(
        self, video: Float[Tensor, "B V D"] | None = None, audio: Float[Tensor, "B A D"] | None = None
    ) -> Float[Tensor, "B N D"]:
        """One stream: E_V, E_A, or E_AV where both are given, the tokens of the frame first."""
        given = {VIDEO: video, AUDIO: audio}
        parts = {name: tokens + self.kinds[name] for name, tokens in given.items() if tokens is not None}
        stream = BOTH if len(parts) == 2 else next(iter(parts))
        tokens = cat(list(parts.values()), 1)
        for block in self.blocks:
            tokens = block(tokens, stream)
        return self.norm[stream](tokens)


class _Block(nn.Module):
    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.attn, self.mlp = SequenceAttention(width, heads), Mlp(width, hidden)
        self.norm1, self.norm2 = _norms(width), _norms(width)

    def forward(self, tokens: Tensor, stream: str) -> Tensor:
        tokens = tokens + self.attn(tokens[:, None], self.norm1[stream])[:, 0]
        return tokens + lean_mlp(self.mlp, tokens, self.norm2[stream])


def _norms(width: int) -> nn.ModuleDict:
    return nn.ModuleDict({name: nn.LayerNorm(width, LAYER_NORM_EPS) for name in STREAMS})
