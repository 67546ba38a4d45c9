"""VATT as a method; see the package's docstring."""

from __future__ import annotations

from typing import Any, Literal

from jaxtyping import Bool, Float
from torch import Tensor, nn

from collimate.encoders import Encoder
from collimate.encoding import Encoding
from collimate.losses import mil_nce_loss, symmetric_mil_nce_loss
from collimate.losses.composition import composed
from collimate.processing import Processor, Tokenizer
from collimate.training import Method
from collimate_video.vatt.candidates import Candidates
from collimate_video.vatt.spaces import HierarchicalSpaces, JointSpace, SpaceKind
from collimate_video.vatt.transformer import TokenEncoder, TokenTransformer
from collimate_video.vatt.waveform import Waveform

Contrast = Literal["once", "twice", "symmetric"]


@composed(
    similarity="cosine, in a space for each pair of modalities",
    targets="own sound; any of several texts",
    negatives="all others of all ranks",
)
class VATT(Method):
    """Three towers, whose videos find their sounds and their texts in a batch.

    A batch holds `video`; `audio`, NaN where a clip has no sound; and `text`, (B, C, L) for C candidates of each, or
    (B, L), where an empty text is one that is not there. Terms are `video_audio` and `video_text`; their gradients meet
    in the video tower, and in a shared transformer: the callback `Harmonize` realigns them (Wu et al. 2022, arXiv
    2211.02077). The released code takes the mean of the terms, so loss weights of 0.5; the paper their sum.

    With harmonization by feature, the gradients are those at the video's feature before the common spaces.

    Args:
        video_encoder: the video tower; `TokenEncoder` on `VideoPatches`, or any other, such as `TimeSformer`.
        audio_encoder: the tower of waveforms.
        text_encoder: the text tower.
        video_processor: how videos become clips.
        audio_processor: how sounds become waveforms.
        tokenizer: how texts become ids.
        shared: the one transformer of all towers, which are then `TokenEncoder`s without one; None where each has its
            own.
        space: `hierarchical`, or `joint` to compare with.
        fine_dim: width of the space of videos and sounds, and of the joint one.
        coarse_dim: width of the space of videos and texts.
        candidates: C, the texts of a sample that batches hold.
        contrast: positives counted `once`, as in the paper, or `twice`, or the `symmetric` form; see
            `collimate.losses.mil_nce`.
        temperature: τ, which does not learn.

    Raises:
        ValueError: an encoder cannot share a transformer, or there is no such space or contrast.
    """

    modalities = ("video", "audio", "text")

    def __init__(
        self,
        video_encoder: Encoder,
        audio_encoder: Encoder,
        text_encoder: Encoder,
        video_processor: Processor,
        audio_processor: Waveform,
        tokenizer: Tokenizer,
        shared: TokenTransformer | None = None,
        space: SpaceKind = "hierarchical",
        fine_dim: int = 512,
        coarse_dim: int = 256,
        candidates: int = 5,
        contrast: Contrast = "once",
        temperature: float = 0.07,
    ) -> None:
        super().__init__()
        if contrast not in ("once", "twice", "symmetric") or space not in ("hierarchical", "joint"):
            raise ValueError(
                f"contrast is once, twice or symmetric, and space hierarchical or joint; got {contrast!r}, {space!r}."
            )
        self.processors = {"video": video_processor, "audio": audio_processor, "text": tokenizer}
        self.captions = {"text": Candidates(candidates)}
        self.encoders = nn.ModuleDict({"video": video_encoder, "audio": audio_encoder, "text": text_encoder})
        self.shared = shared
        if shared is not None:
            _share(shared, video_encoder, audio_encoder, text_encoder)
        widths = (video_encoder.width, audio_encoder.width, text_encoder.width)
        self.space = (
            HierarchicalSpaces(*widths, fine_dim, coarse_dim)
            if space == "hierarchical"
            else JointSpace(*widths, fine_dim)
        )
        self.contrast: Contrast = contrast
        self.temperature = temperature
        self.register_buffer("_no_text", tokenizer(""), persistent=False)

    def forward(self, modality: str, inputs: Tensor, mask: Tensor | None = None) -> Encoding:
        """`pooled` has both spaces side by side, so that cosines rank in the one that two modalities share."""
        return Encoding(self.space.pooled(modality, self.encoders[modality](inputs, mask).pooled))

    def embed(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """The towers' features, and which of them are there. Batch norms see all samples: they are in `losses`."""
        texts = batch["text"] if batch["text"].ndim == 3 else batch["text"][:, None]
        audio: Any = self.processors["audio"]
        return {
            "video": self._feature("video", batch["video"]),
            "audio": self._feature("audio", batch["audio"]),
            "text": self._feature("text", texts.flatten(0, 1)).unflatten(0, texts.shape[:2]),
            "audio_given": audio.given(batch["audio"]),
            "text_given": (texts != self._no_text[: texts.shape[2]]).any(2),  # type: ignore[index]
        }

    def losses(self, embeddings: dict[str, Tensor], batch: dict[str, Any]) -> dict[str, Tensor]:
        found = self.space(embeddings["video"], embeddings["audio"], embeddings["text"])
        sounds, texts = embeddings["audio_given"][:, None], embeddings["text_given"]
        self.statistics = {"given/audio": sounds.float().mean(), "given/text": texts.any(1).float().mean()}
        return {
            "video_audio": self._contrasted(found.video_fine, found.audio[:, None], sounds),
            "video_text": self._contrasted(found.video_coarse, found.text, texts),
        }

    def _feature(self, modality: str, raw: Tensor) -> Float[Tensor, "B W"]:
        processor = self.processors[modality]
        return self.encoders[modality](processor.finish(raw), processor.mask(raw)).pooled

    def _contrasted(
        self, video: Float[Tensor, "B D"], others: Float[Tensor, "B C D"], given: Bool[Tensor, "B C"]
    ) -> Float[Tensor, ""]:
        if self.contrast == "symmetric":
            return symmetric_mil_nce_loss(video, others, 1 / self.temperature, given=given)
        return mil_nce_loss(video, others, 1 / self.temperature, given=given, positives=self.contrast)


def _share(transformer: TokenTransformer, *encoders: Encoder) -> None:
    for encoder in encoders:
        if not isinstance(encoder, TokenEncoder):
            raise ValueError(f"Only TokenEncoders can share a transformer, not a {type(encoder).__name__}.")
        encoder.share(transformer)
