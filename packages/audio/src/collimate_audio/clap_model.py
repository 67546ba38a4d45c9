"""The CLAP models of Hugging Face transformers, and LAION's own checkpoints by way of them.

The towers are transformers' own, HTSAT for sounds and RoBERTa with its pooler for texts; LAION's released models are in
that form. Needs the extra `collimate[huggingface]`.

Not covered: feature fusion of clips longer than the input (a model that was trained with it hears the first window, as
it hears any shorter clip); the transforms of the four-term loss, which inference does not use; PANN, and the towers of
Microsoft's CLAP. Sounds are not quantised to 16 bits, as LAION's own scripts do before the spectrogram and transformers
does not.

Shape legend: B clips or texts, K copies of a spectrogram (4 in models with fusion, else 1), F frames, M mel bands,
L tokens, D width.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from collimate.checkpoints.files import CheckpointError, read_state_dict
from collimate.checkpoints.two_towers import Rename, TwoTowers, to_ours
from collimate.encoders import Encoder, MLPProjection
from collimate.encoders.base import strides, waves
from collimate.encoding import Encoding
from collimate.processing import HuggingFaceTokenizer, Processor
from collimate_audio.filter_bank import RawSound
from collimate_audio.reading import read_sound, resampled

CONTEXT = 77  # LAION-AI/CLAP, training/data.py: the text's length in tokens
NAMES = [
    Rename("audio_model.", "encoders.audio.model."),
    Rename("text_model.", "encoders.text.model."),
    *(
        Rename(f"{side}_projection.linear{number + 1}.", f"projections.{side}.layers.{2 * number}.")
        for side in ("audio", "text")
        for number in (0, 1)
    ),
    Rename("logit_scale_a", "logit_scale"),
]
LAION = {  # as transformers' own conversion renames LAION's modules, in this order
    "text_branch": "text_model",
    "audio_branch": "audio_model.audio_encoder",
    "attn": "attention.self",
    "self.proj": "output.dense",
    "attention.self_mask": "attn_mask",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "bn0": "batch_norm",
    "_projection.0.": "_projection.linear1.",
    "_projection.2.": "_projection.linear2.",
}
LAION_OWN = (  # made anew from settings, or of no use to inference
    "audio_transform.",
    "text_transform.",
    "audio_branch.spectrogram_extractor.",
    "audio_branch.logmel_extractor.",
    "audio_branch.tscam_conv.",
    "audio_branch.head.",
)


class ClapSounds(Processor):
    """Any sound to the spectrogram of a ClapModel, by its own feature extractor.

    Sounds become mono and are resampled. Of what is longer than the input the first window is taken, so that the result
    is always the same; what is shorter is repeated or padded, as the extractor's settings say.

    Args:
        path: a folder with the extractor's `preprocessor_config.json`.

    Raises:
        FileNotFoundError: there is none.
    """

    modality = "audio"

    def __init__(self, path: str) -> None:
        from transformers import ClapFeatureExtractor

        if not (Path(path) / "preprocessor_config.json").is_file():
            raise FileNotFoundError(f"{path} has no preprocessor_config.json, which says how sounds become input.")
        self.extractor: Any = ClapFeatureExtractor.from_pretrained(path)
        self.sample_rate, self.samples = self.extractor.sampling_rate, self.extractor.nb_max_samples

    def __call__(self, raw: RawSound) -> Float[Tensor, "K F M"]:
        """One sound to its spectrogram in decibels, float32; errors as `collimate_audio.FilterBank` raises them."""
        sound, rate = read_sound(raw, self.sample_rate)
        sound = resampled(sound, rate, self.sample_rate)
        window = sound[: self.samples].double().numpy()
        found = self.extractor(window, sampling_rate=self.sample_rate, return_tensors="np")["input_features"]
        return torch.as_tensor(found[0], dtype=torch.float32)

    def example(self) -> np.ndarray:
        time = np.arange(self.sample_rate // 2) / self.sample_rate
        return (0.5 * np.sin(2000 * time * (1 + time))).astype(np.float32)

    def save_files(self, folder: Path) -> None:
        self.extractor.save_pretrained(folder)


class ClapAudioEncoder(Encoder):
    """HTSAT, as a ClapModel has it. `tokens` lie on the grid (time, bands).

    Args:
        settings: the fields of transformers' `ClapAudioConfig`.
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        from transformers import ClapAudioConfig, ClapAudioModel

        super().__init__()
        self.model: Any = ClapAudioModel(ClapAudioConfig(**settings))
        self.width = self.model.config.hidden_size

    def forward(self, inputs: Float[Tensor, "B K F M"], mask: Tensor | None = None) -> Encoding:
        none_is_longer = torch.zeros(len(inputs), 1, dtype=torch.bool, device=inputs.device)
        found = self.model(inputs, is_longer=none_is_longer)
        tokens = found.last_hidden_state.permute(0, 3, 2, 1)
        return Encoding(found.pooler_output, tokens.flatten(1, 2), grid=tuple(tokens.shape[1:3]))

    def example(self) -> Float[Tensor, "B K F M"]:
        settings = self.model.config
        frames = settings.spec_size * (settings.spec_size // settings.num_mel_bins) - settings.num_mel_bins // 2
        return waves(2, 4 if settings.enable_fusion else 1, frames, settings.num_mel_bins)


class ClapTextEncoder(Encoder):
    """RoBERTa, as a ClapModel has it: `pooled` is its pooler's output.

    Args:
        settings: the fields of transformers' `ClapTextConfig`.
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        from transformers import ClapTextConfig, ClapTextModel

        super().__init__()
        self.model: Any = ClapTextModel(ClapTextConfig(**settings))
        self.width = self.model.config.hidden_size

    def forward(self, inputs: Int64[Tensor, "B L"], mask: Bool[Tensor, "B L"] | None = None) -> Encoding:
        mask = torch.ones_like(inputs, dtype=torch.bool) if mask is None else mask
        found = self.model(input_ids=inputs, attention_mask=mask.long())
        return Encoding(found.pooler_output, found.last_hidden_state, mask)

    def example(self) -> Int64[Tensor, "B L"]:
        return strides(2, 16, below=self.model.config.vocab_size)


def read_transformers(folder: str | PathLike[str]) -> TwoTowers:
    """A ClapModel's folder in parts, ready to be built into `CLAP`.

    Args:
        folder: what transformers wrote: weights, config.json, tokenizer, preprocessor_config.json.

    Raises:
        ValueError: it holds another model.
        FileNotFoundError: nothing says how inputs are made.
    """
    from transformers import ClapModel

    config = _config(folder)
    network = ClapModel.from_pretrained(folder, dtype=torch.float32)
    weights = to_ours({name: value for name, value in network.state_dict().items() if name != "logit_scale_t"}, NAMES)
    return TwoTowers(_arguments(folder, config), weights)


def read_laion(checkpoint: str | PathLike[str] | Mapping[str, Tensor], folder: str | PathLike[str]) -> TwoTowers:
    """A checkpoint of LAION-AI/CLAP in parts, such as `630k-audioset-best.pt`.

    Args:
        checkpoint: the file, or its state dict.
        folder: a ClapModel's folder of the same architecture, which says what the checkpoint does not: sizes,
            tokenizer, spectrogram. Its weights are not read.

    Raises:
        CheckpointError: the checkpoint is damaged, or of another architecture than the folder.
    """
    from transformers import ClapModel

    config = _config(folder)
    weights = dict(checkpoint) if isinstance(checkpoint, Mapping) else read_state_dict(checkpoint)
    network = ClapModel(config)
    try:
        lacking = network.load_state_dict(from_laion(weights), strict=False)
    except RuntimeError as error:
        raise CheckpointError(f"The weights are of another architecture than {folder}: {error}") from error
    made = {name for name in network.state_dict() if name.endswith(("position_ids", "token_type_ids"))}
    made |= {name for name in network.state_dict() if name.endswith("relative_position_index")}
    if wrong := [*(set(lacking.missing_keys) - made), *(set(lacking.unexpected_keys) - made)]:
        raise CheckpointError(
            f"The weights are of another architecture than {folder}. Missing, or too many: "
            f"{', '.join(sorted(wrong)[:4])} ({len(wrong)} in all)."
        )
    found = {name: value for name, value in network.state_dict().items() if name != "logit_scale_t"}
    return TwoTowers(_arguments(folder, config), to_ours(found, NAMES))


def from_laion(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """LAION's weights under transformers' names: what its own conversion does."""
    renamed: dict[str, Tensor] = {}
    for name, value in weights.items():
        if name.startswith(LAION_OWN) or name.endswith("attn_mask"):
            continue
        for theirs, ours in LAION.items():
            name = name.replace(theirs, ours)
        if "qkv" in name:
            parts = zip(("query", "key", "value"), value.chunk(3), strict=True)
            renamed |= {name.replace("qkv", part): piece for part, piece in parts}
        else:
            renamed[name] = value
    return renamed


def _config(folder: str | PathLike[str]) -> Any:
    from transformers import ClapConfig

    path = Path(folder) / "config.json"
    try:
        kind = json.loads(path.read_text(encoding="utf-8")).get("model_type")
    except OSError as error:
        raise CheckpointError(f"{path} is missing: {folder} is no model folder of transformers.") from error
    if kind != "clap":
        raise ValueError(f"{folder} holds a {kind} model of transformers, not a CLAP.")
    return ClapConfig.from_pretrained(folder)


def _arguments(folder: str | PathLike[str], config: Any) -> dict[str, Any]:
    audio, text = (
        {name: value for name, value in each.to_diff_dict().items() if name not in ("transformers_version", "dtype")}
        for each in (config.audio_config, config.text_config)
    )
    audio_encoder, text_encoder = ClapAudioEncoder(audio), ClapTextEncoder(text)
    return {
        "audio_encoder": audio_encoder,
        "text_encoder": text_encoder,
        "audio_processor": ClapSounds(str(folder)),
        "tokenizer": HuggingFaceTokenizer(str(folder), min(CONTEXT, config.text_config.max_position_embeddings - 2)),
        "embed_dim": config.projection_dim,
        "audio_projection": _projection(audio_encoder.width, config.audio_config),
        "text_projection": _projection(text_encoder.width, config.text_config),
    }


def _projection(width: int, config: Any) -> MLPProjection:
    return MLPProjection(width, config.projection_dim, config.projection_dim, config.projection_hidden_act)
