"""The common spaces of VATT's modalities.

VATT, arXiv 2104.11178, section 3.5; google-research/vatt, modeling/heads/bridge.py, `FAC`. A fine space for videos and
sounds, and a coarse one for videos and texts, which is reached through the fine one:

    z_va(video) = BN(W2 ReLU(BN(W1 v)))        z_va(sound) = W a + b
    z_vt(video) = BN(W3 ReLU(z_va(video)))     z_vt(text)  = W t + b

Batch norms take their statistics over all ranks, with exact gradients, and over videos alone, which no clip lacks.

Shape legend: B clips, C texts of each, F and D widths of the fine and the coarse space, W of the towers.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import normalize, relu

from collimate.training.sub_batch_norm import SubBatchNorm

SpaceKind: TypeAlias = Literal["hierarchical", "joint"]


class InSpaces(NamedTuple):
    """What is compared: videos with sounds, and videos with texts. Not normalised."""

    video_fine: Float[Tensor, "B F"]
    audio: Float[Tensor, "B F"]
    video_coarse: Float[Tensor, "B D"]
    text: Float[Tensor, "B C D"]


class HierarchicalSpaces(nn.Module):
    """The fine space and, through it, the coarse one.

    Args:
        video, audio, text: the towers' widths.
        fine, coarse: F and D.
    """

    def __init__(self, video: int, audio: int, text: int, fine: int, coarse: int) -> None:
        super().__init__()
        self.video_hidden, self.video_hidden_norm = nn.Linear(video, fine, bias=False), _norm(fine)
        self.video_fine, self.video_fine_norm = nn.Linear(fine, fine, bias=False), _norm(fine)
        self.video_coarse, self.video_coarse_norm = nn.Linear(fine, coarse, bias=False), _norm(coarse)
        self.audio = nn.Linear(audio, fine)
        self.text = nn.Linear(text, coarse)

    def forward(
        self, video: Float[Tensor, "B Wv"], audio: Float[Tensor, "B Wa"], text: Float[Tensor, "B C Wt"]
    ) -> InSpaces:
        fine = self._fine(video)
        return InSpaces(fine, self.audio(audio), self._coarse(fine), self.text(text))

    def pooled(self, modality: str, feature: Float[Tensor, "B W"]) -> Float[Tensor, "B F+D"]:
        """One vector whose cosines rank as those of each space do: the two side by side, 0 where a modality is not.

        So sounds and texts, which are in no common space, have the cosine 0.
        """
        if modality == "video":
            fine = self._fine(feature)
            return torch.cat([normalize(fine, dim=1), normalize(self._coarse(fine), dim=1)], 1)
        found = normalize(self.audio(feature) if modality == "audio" else self.text(feature), dim=1)
        missing = self.text.out_features if modality == "audio" else self.audio.out_features
        empty = found.new_zeros(len(found), missing)
        return torch.cat([found, empty] if modality == "audio" else [empty, found], 1)

    def _fine(self, video: Tensor) -> Tensor:
        return self.video_fine_norm(self.video_fine(relu(self.video_hidden_norm(self.video_hidden(video)))))

    def _coarse(self, fine: Tensor) -> Tensor:
        return self.video_coarse_norm(self.video_coarse(relu(fine)))


class JointSpace(nn.Module):
    """One space of all three, BN(W ReLU(x)) of each: to compare with (modeling/heads/bridge.py, `Joint`).

    Args:
        video, audio, text: the towers' widths.
        width: F, which is D too.
    """

    def __init__(self, video: int, audio: int, text: int, width: int) -> None:
        super().__init__()
        widths = {"video": video, "audio": audio, "text": text}
        self.linear = nn.ModuleDict({name: nn.Linear(each, width, bias=False) for name, each in widths.items()})
        self.norm = nn.ModuleDict({name: _norm(width) for name in widths})

    def forward(
        self, video: Float[Tensor, "B Wv"], audio: Float[Tensor, "B Wa"], text: Float[Tensor, "B C Wt"]
    ) -> InSpaces:
        seen = self.pooled("video", video)
        read = self.pooled("text", text.flatten(0, 1)).unflatten(0, text.shape[:2])
        return InSpaces(seen, self.pooled("audio", audio), seen, read)

    def pooled(self, modality: str, feature: Float[Tensor, "B W"]) -> Float[Tensor, "B F"]:
        return self.norm[modality](self.linear[modality](relu(feature)))


def _norm(width: int) -> SubBatchNorm:
    norm = SubBatchNorm(width)
    norm.group, norm.plain = None, nn.BatchNorm1d
    return norm
