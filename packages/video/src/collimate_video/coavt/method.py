"""CoAVT as a method; see the package's docstring."""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import MappingProxyType
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from collimate import distributed
from collimate.distributed import LOCAL
from collimate.encoders import Bert, Encoder, LinearProjection
from collimate.encoding import Encoding
from collimate.kernels.late_interaction import pair_late_interaction
from collimate.losses import late_interaction
from collimate.losses.composition import composed
from collimate.losses.masked_tokens import mean_of_chosen
from collimate.losses.matching import draw_negatives, matching_accuracy, matching_loss, negative_weights
from collimate.losses.negatives import text_ids
from collimate.losses.scores import symmetric_info_nce_of_scores
from collimate.processing import Processor, Tokenizer
from collimate.training import Method
from collimate_video.coavt.query_encoder import QUERY_STD, QueryEncoder
from collimate_video.coavt.streams import AUDIO, BOTH, STREAMS, VIDEO, JointLayers

Objective = Literal["contrastive", "matching", "language"]
OBJECTIVES: tuple[Objective, ...] = ("contrastive", "matching", "language")


@composed(
    similarity="nearest of several queries; a head on queries that read the text",
    targets="own pair",
    negatives="all others of all ranks, but equal texts; one hard one of the rank, fused",
)
class CoAVT(Method):
    """Two towers and joint layers behind them, a BERT, and queries between.

    A batch holds `video`, `audio` and `text`. For tests, it may also hold what is else drawn: `frame`, (B,), which
    frame of each clip is seen; and for each stream X, `negative_X` and `negative_text_X`, (B,), the index of each
    text's wrong clip and each clip's wrong text. Terms are `<stream>_<objective>`.

    `pooled` holds all queries of all frames side by side, as `similarity` reads them, and for texts one vector;
    `tokens` are what `rerank` reads: those of the stream, frame by frame, and the embeddings of a text's tokens.

    Args:
        video_encoder: the tower of frames, with tokens; it is given clips of one frame.
        audio_encoder: the tower of sounds, with tokens, of the same width.
        text_encoder: a BERT without layers that fuse; with a token head unless no stream has the language loss.
        video_processor: how videos become clips.
        audio_processor: how sounds become the audio tower's input.
        tokenizer: how texts become ids; BERT's.
        embed_dim: the width of the space of queries and texts.
        queries: N.
        cross_every: the queries attend to the clip in a layer in so many.
        joint_layers, joint_heads, joint_hidden: of the layers behind both towers; hidden is the width of their MLPs.
        bimodal_losses: what is asked of the frame alone and the sound alone; of both together, all three are.
        label_smoothing: of the language loss.
        hardness_warmup: optimizer steps in which matching's negatives become hard, from any at first; ours. 0, as
            published: the hard ones from the start.
        temperature: 1 / s at the start.
        max_logit_scale: s is held between 1 and this.
        init_std: of the random weights of joint layers and cross-attention; see `collimate.encoders.Bert`.

    Raises:
        ValueError: the towers do not fit each other, or there is no such objective.
    """

    modalities = (VIDEO, AUDIO, "text")
    shardable = False  # its queries read words by the BERT's embeddings alone
    joint = MappingProxyType({BOTH: (VIDEO, AUDIO)})

    def __init__(
        self,
        video_encoder: Encoder,
        audio_encoder: Encoder,
        text_encoder: Bert,
        video_processor: Processor,
        audio_processor: Processor,
        tokenizer: Tokenizer,
        embed_dim: int = 256,
        queries: int = 32,
        cross_every: int = 2,
        joint_layers: int = 1,
        joint_heads: int = 12,
        joint_hidden: int = 3072,
        bimodal_losses: Sequence[Objective] = OBJECTIVES,
        label_smoothing: float = 0.1,
        hardness_warmup: int = 0,
        temperature: float = 0.07,
        max_logit_scale: float = 100.0,
        init_std: float = QUERY_STD,
    ) -> None:
        super().__init__()
        _check(video_encoder, audio_encoder, text_encoder, bimodal_losses)
        self.processors = {VIDEO: video_processor, AUDIO: audio_processor, "text": tokenizer}
        self.encoders = nn.ModuleDict({VIDEO: video_encoder, AUDIO: audio_encoder, "text": text_encoder})
        width = video_encoder.width
        self.joint_layers = JointLayers(width, joint_layers, joint_heads, joint_hidden, init_std)
        self.query_encoder = QueryEncoder(text_encoder, queries, width, cross_every, init_std)
        heads = {name: LinearProjection(text_encoder.width, embed_dim, bias=True) for name in ("query", "text")}
        self.projections = nn.ModuleDict(heads)
        self.itm_head = nn.Linear(text_encoder.width, 2)
        self.logit_scale = nn.Parameter(torch.tensor(-math.log(temperature)))  # the logarithm of s
        self.max_logit_scale = max_logit_scale
        self.objectives = {name: OBJECTIVES if name == BOTH else tuple(bimodal_losses) for name in STREAMS}
        self.label_smoothing, self.embed_dim, self.hardness_warmup = label_smoothing, embed_dim, hardness_warmup

    def forward(self, modality: str, inputs: Tensor, mask: Tensor | None = None) -> Encoding:
        if modality == "text":
            bert = self._bert
            return Encoding(self.projections["text"](bert(inputs, mask).pooled), bert.embeddings(inputs), mask)
        if modality == VIDEO:
            return self._looked_at(self.joint_layers(video=self._seen(inputs.flatten(0, 1))), inputs.shape[1])
        return self._looked_at(self.joint_layers(audio=self._heard(inputs)), 1)

    def encode_joint(self, name: str, inputs: dict[str, Tensor]) -> Encoding:
        """Clips that are seen and heard: the sound beside each of the frames."""
        clips = self.processors[VIDEO].finish(inputs[VIDEO])
        sounds = self._heard(self.processors[AUDIO].finish(inputs[AUDIO])).repeat_interleave(clips.shape[1], 0)
        return self._looked_at(self.joint_layers(self._seen(clips.flatten(0, 1)), sounds), clips.shape[1])

    def similarity(self, query: Encoding, key: Encoding) -> Float[Tensor, "Q K"]:
        """The cosine of the nearest queries, or of the text and the nearest query; the mean over frames."""
        left, right = self._vectors(query), self._vectors(key)
        return torch.einsum("afne,bgme->abfgnm", left, right).amax((4, 5)).mean((2, 3))

    def rerank(self, sample: Encoding, text: Encoding) -> Float[Tensor, " pairs"]:
        """The logarithm of the odds that text i belongs to clip i, the mean over frames; see `collimate.evaluation`."""
        assert sample.tokens is not None
        assert text.tokens is not None
        frames = self._vectors(sample).shape[1]
        clips = sample.tokens.unflatten(1, (frames, -1)).flatten(0, 1)
        words, mask = (each.repeat_interleave(frames, 0) for each in (text.tokens, text.token_mask))
        logits = self._matched(clips, words, mask).unflatten(0, (-1, frames)).mean(1)
        return logits[:, 1] - logits[:, 0]

    # The step ---------------------------------------------------------------------------------------------

    def embed(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """What is computed sample by sample: all streams, their queries, and what these tell of the text."""
        clips, text = batch[VIDEO], batch["text"]
        frame = batch["frame"] if "frame" in batch else torch.randint(clips.shape[1], (len(clips),)).to(clips.device)
        finished = self.processors[VIDEO].finish(clips[torch.arange(len(clips), device=clips.device), frame][:, None])
        seen = self._seen(finished[:, 0])
        heard = self._heard(self.processors[AUDIO].finish(batch[AUDIO]))
        mask: Any = self.processors["text"].mask(text)
        found = {"text": self.projections["text"](self._bert(text, mask).pooled), "text_mask": mask}
        for name, given in {BOTH: (seen, heard), AUDIO: (None, heard), VIDEO: (seen, None)}.items():
            tokens = self.joint_layers(*given)
            states = self.query_encoder.look(tokens)
            found |= {f"{name}_tokens": tokens, name: self.projections["query"](states[-1])}
            if "language" in self.objectives[name]:
                found[f"{name}_told"] = self._told(states, text, mask)
        return found

    def losses(self, embeddings: dict[str, Tensor], batch: dict[str, Any]) -> dict[str, Tensor]:
        terms: dict[str, Tensor] = {}
        self.statistics = {}
        ids = text_ids(batch["text"])
        texts = normalize(embeddings["text"], dim=1)
        for name, objectives in self.objectives.items():
            if "contrastive" in objectives:
                terms[f"{name}_contrastive"] = query_text_loss(embeddings[name], texts, self.logit_scale.exp(), ids)
            if "matching" in objectives:
                logits, true = self._pairs(name, embeddings, batch, ids), len(ids)
                terms[f"{name}_matching"] = matching_loss(logits, true)
                self.statistics[f"accuracy/matching {name}"] = matching_accuracy(logits, true)
            if "language" in objectives:
                count = (embeddings["text_mask"].sum(1) - 1).clamp_min(0)
                terms[f"{name}_language"] = mean_of_chosen(embeddings[f"{name}_told"], count, LOCAL)
        return terms

    def _seen(self, frames: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B V D"]:
        return _tokens(self.encoders[VIDEO](frames[:, None]))

    def _heard(self, sounds: Tensor) -> Float[Tensor, "B A D"]:
        return _tokens(self.encoders[AUDIO](sounds))

    def _looked_at(self, tokens: Float[Tensor, "BT M D"], frames: int) -> Encoding:
        """A stream and its queries, the frames of a clip side by side."""
        queries = self.projections["query"](self.query_encoder.look(tokens)[-1])
        return Encoding(queries.unflatten(0, (-1, frames)).flatten(1), tokens.unflatten(0, (-1, frames)).flatten(1, 2))

    def _vectors(self, encoding: Encoding) -> Float[Tensor, "B F N E"]:
        """The unit vectors of each frame; a text has one."""
        each = 1 if encoding.pooled.shape[1] == self.embed_dim else self.query_encoder.queries.shape[1]
        return normalize(encoding.pooled.float().unflatten(1, (-1, each, self.embed_dim)), dim=-1)

    def _told(self, states: list[Tensor], text: Int[Tensor, "B L"], mask: Tensor) -> Float[Tensor, " B"]:
        """Of each text, the sum of the losses of all tokens but the first."""
        begun = text.clone()
        begun[:, 0] = self.processors["text"].mask_id  # type: ignore[union-attr]
        hidden = self.query_encoder.tell(states, self._bert.embeddings(begun), mask)[:, :-1]
        asked = mask[:, 1:]
        logits = self._bert.token_logits(hidden[asked]).float()
        losses = cross_entropy(logits, text[:, 1:][asked], reduction="none", label_smoothing=self.label_smoothing)
        return losses.new_zeros(len(text)).index_add(0, asked.nonzero()[:, 0], losses)

    def _pairs(
        self, name: str, embeddings: dict[str, Tensor], batch: dict[str, Any], ids: Int[Tensor, " B"]
    ) -> Float[Tensor, "P 2"]:
        """The logits of true pairs, texts with wrong clips, and clips with wrong texts, of a stream."""
        clips = texts = own = torch.arange(len(ids), device=ids.device)
        # The last batch of validation may be one sample: there are true pairs alone.
        if self.training or len(own) > 1:
            with torch.no_grad():
                by_text = late_interaction(embeddings["text"][:, None], embeddings[name]) * self.logit_scale.exp()
            hardness = self.warmed_up(self.hardness_warmup)
            wrong_clip, wrong_text = (
                batch[key] if key in batch else draw_negatives(negative_weights(scores, ids, hardness))
                for key, scores in ((f"negative_{name}", by_text), (f"negative_text_{name}", by_text.T))
            )
            clips, texts = torch.cat([own, wrong_clip, own]), torch.cat([own, own, wrong_text])
        rows = {"clip": embeddings[f"{name}_tokens"][clips], "text": batch["text"][texts]}
        rows["mask"] = embeddings["text_mask"][texts]
        with self.tower_precision():
            return self.in_chunks(self._match, rows)["logits"]

    def _match(self, rows: dict[str, Any]) -> dict[str, Tensor]:
        clips = rows["clip"].to(self.itm_head.weight.dtype)
        return {"logits": self._matched(clips, self._bert.embeddings(rows["text"]), rows["mask"])}

    def _matched(self, clips: Tensor, words: Tensor, mask: Tensor) -> Float[Tensor, "P 2"]:
        return self.itm_head(self.query_encoder.match(clips, words, mask)).mean(1)

    @property
    def _bert(self) -> Any:
        return self.encoders["text"]


def query_text_loss(
    queries: Float[Tensor, "n N E"],
    texts: Float[Tensor, "n E"],
    logit_scale: Float[Tensor, ""],
    ids: Int[Tensor, " n"] | None = None,
) -> Float[Tensor, ""]:
    """The symmetric contrast of texts with clips, by the cosine of a text and the clip's nearest query.

    Texts stay where they are; the queries of all ranks are gathered with gradient.

    Args:
        queries, texts: of this rank, brought to unit length inside.
        logit_scale: the multiplier s, not its logarithm.
        ids: pairs of equal id are no negatives of each other.
    """
    counts = distributed.row_counts(queries)
    by_text, _ = pair_late_interaction(texts[:, None], distributed.gather(queries, None, counts))
    return symmetric_info_nce_of_scores(by_text, by_text.T, logit_scale, key_counts=counts, ids=ids)


def _tokens(encoding: Encoding) -> Float[Tensor, "B M D"]:
    if encoding.tokens is None or encoding.mask is not None:
        raise ValueError("CoAVT reads the tokens of frames and sounds: its towers must give them, and mask none.")
    return encoding.tokens


def _check(video: Encoder, audio: Encoder, text: Bert, objectives: Sequence[str]) -> None:
    if video.width != audio.width:
        raise ValueError(f"The towers of frames and sounds are of one width, not {video.width} and {audio.width}.")
    if text.cross_width is not None or text.fusion_layer < len(text.layers):
        raise ValueError("CoAVT's BERT has no layers that fuse: build it without fusion_layer and cross_width.")
    if text.cls is None:
        raise ValueError("CoAVT tells texts token by token: build its Bert with token_head=True.")
    if set(objectives) - set(OBJECTIVES):
        raise ValueError(f"bimodal_losses are some of {', '.join(OBJECTIVES)}; got {list(objectives)}.")
