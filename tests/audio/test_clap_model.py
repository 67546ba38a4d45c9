"""The CLAP models of transformers, and LAION's names for their weights: equal embeddings on random weights."""

import json

import numpy as np
import pytest
import torch

import collimate
from collimate.checkpoints import CheckpointError
from collimate.evaluation import evaluate_zero_shot
from collimate_audio import CLAP
from collimate_audio.clap_model import LAION, from_laion

from .sounds import TonesAndNoises

transformers = pytest.importorskip("transformers")

RATE = 8000
TEXT = {
    "vocab_size": 270, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48,
    "max_position_embeddings": 40,
}  # fmt: skip
AUDIO = {
    "hidden_size": 64, "patch_embeds_hidden_size": 8, "depths": [1, 1, 2, 1], "num_attention_heads": [1, 2, 2, 2],
    "window_size": 4, "spec_size": 128, "num_mel_bins": 32,
}  # fmt: skip


def tokenizer():
    from tokenizers.pre_tokenizers import ByteLevel

    letters = sorted(ByteLevel.alphabet())
    vocabulary = {each: place for place, each in enumerate(["<s>", "<pad>", "</s>", "<unk>", *letters, "<mask>"])}
    return transformers.RobertaTokenizer(vocab=vocabulary, merges=[])


def network(fusion=False):
    torch.manual_seed(0)
    fused = {"enable_fusion": True, "fusion_type": "aff_2d"} if fusion else {}
    config = transformers.ClapConfig(
        text_config=TEXT | {"projection_dim": 24},
        audio_config=AUDIO | fused | {"projection_dim": 24},
        projection_dim=24,
    )
    model = transformers.ClapModel(config).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
    model.audio_model.audio_encoder.batch_norm.running_mean.fill_(-20.0)  # decibels
    model.audio_model.audio_encoder.batch_norm.running_var.fill_(300.0)
    return model


def write(folder, fusion=False):
    """A tiny folder as transformers writes it, and the model and extractor it was written from."""
    model = network(fusion)
    extractor = transformers.ClapFeatureExtractor(
        feature_size=32, sampling_rate=RATE, hop_length=80, max_length_s=1, fft_window_size=256, frequency_max=4000,
        truncation="fusion" if fusion else "rand_trunc",
    )  # fmt: skip
    for each in (model, extractor, tokenizer()):
        each.save_pretrained(folder)
    return model, extractor


def sounds():
    noise = np.random.default_rng(0).normal(size=RATE).astype(np.float32) / 4
    return [noise, noise[:3000], noise[: RATE // 7]]


@pytest.mark.parametrize("fusion", [False, True], ids=["unfused", "fused"])
def test_embeddings_are_those_of_transformers(fusion, tmp_path):
    model, extractor = write(tmp_path / "theirs", fusion)
    method = CLAP.from_transformers(tmp_path / "theirs")
    texts = ["a dog barks", "rain", "someone plays the piano in a hall"]
    words = tokenizer()(texts, return_tensors="pt", padding=True)
    with torch.no_grad():
        features = extractor(sounds(), sampling_rate=RATE, return_tensors="pt")["input_features"].float()
        audio = model.get_audio_features(features, is_longer=torch.zeros(3, 1, dtype=torch.bool)).pooler_output
        text = model.get_text_features(words["input_ids"], words["attention_mask"]).pooler_output
        ours = method.encode("audio", [(sound, RATE) for sound in sounds()])
        found = method.encode("text", texts)
    unit = torch.nn.functional.normalize
    assert torch.equal(unit(ours.pooled, dim=-1), audio)
    torch.testing.assert_close(
        unit(found.pooled, dim=-1), text, rtol=1e-5, atol=1e-6
    )  # padded further, otherwise equal
    assert ours.grid is not None
    assert ours.tokens.shape[1] == ours.grid[0] * ours.grid[1]
    collimate.checkpoints.save(method, tmp_path / "ours")
    again = collimate.load(tmp_path / "ours")
    torch.testing.assert_close(again.encode("audio", sounds()).pooled, ours.pooled)


def test_a_longer_clip_is_its_first_window_every_time(tmp_path):
    write(tmp_path)
    method = CLAP.from_transformers(tmp_path)
    long = np.concatenate([sounds()[0], 0.1 * sounds()[0][::-1]])
    first, again, cut = (method.encode("audio", [each]).pooled for each in (long, long, long[:RATE]))
    assert torch.equal(first, again)
    assert torch.equal(first, cut)


def test_a_folder_of_transformers_is_a_checkpoint(tmp_path, monkeypatch):
    class Entry:
        name = "clap"

        @staticmethod
        def load():
            return CLAP.from_transformers

    write(tmp_path)
    monkeypatch.setattr("collimate.checkpoints.foreign.entry_points", lambda group: [Entry])
    method = collimate.load(tmp_path)
    found = evaluate_zero_shot(method, TonesAndNoises(6), device="cpu", resamples=5)
    assert 0 <= found.metrics["acc1"] <= 1
    monkeypatch.setattr("collimate.checkpoints.foreign.entry_points", lambda group: [])
    with pytest.raises(CheckpointError, match="holds a 'clap' model of transformers"):
        collimate.load(tmp_path)


def test_the_reader_is_registered():
    from importlib.metadata import entry_points

    (entry,) = (each for each in entry_points(group="collimate.readers") if each.name == "clap")
    assert entry.load().__self__ is CLAP


def to_laion(weights):
    """transformers' weights under LAION's names, with what LAION's checkpoints hold beside them."""
    renamed = {}
    for name, value in weights.items():
        if name.endswith(("position_ids", "token_type_ids")):
            continue
        if name.startswith("audio_model"):
            for part in ("query", "key", "value"):
                name = name.replace(f"attention.self.{part}", "attention.self.qkv")
            for theirs, ours in (
                ("attention.self", "attn"), ("attention.output.dense", "attn.proj"), ("output.dense", "mlp.fc2"),
                ("intermediate.dense", "mlp.fc1"), ("layernorm_before", "norm1"), ("layernorm_after", "norm2"),
                ("batch_norm", "bn0"), ("audio_model.audio_encoder", "audio_branch"),
            ):  # fmt: skip
                name = name.replace(theirs, ours)
        name = name.replace("text_model", "text_branch")
        name = name.replace("_projection.linear1", "_projection.0").replace("_projection.linear2", "_projection.2")
        renamed[name] = torch.cat([renamed[name], value]) if name in renamed else value
    extra = {"audio_transform.sequential.0.weight": torch.ones(1), "audio_branch.head.weight": torch.ones(1)}
    return renamed | extra


def test_laions_names(tmp_path):
    write(tmp_path / "folder")
    theirs = network()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    weights = to_laion(theirs.state_dict())
    assert any("attn.qkv" in name for name in weights)
    assert any("text_branch.encoder.layer.0.attention.self.query" in name for name in weights)
    torch.save({"epoch": 1, "state_dict": {f"module.{k}": v for k, v in weights.items()}}, tmp_path / "laion.pt")
    method = CLAP.from_laion(tmp_path / "laion.pt", tmp_path / "folder")
    theirs.save_pretrained(tmp_path / "folder")
    wanted = CLAP.from_transformers(tmp_path / "folder")
    assert method.state_dict().keys() == wanted.state_dict().keys()
    for name, value in wanted.state_dict().items():
        assert torch.equal(method.state_dict()[name], value), name
    del weights["audio_branch.norm.weight"]
    with pytest.raises(CheckpointError, match=r"another architecture.*audio_encoder\.norm\.weight"):
        CLAP.from_laion(weights, tmp_path / "folder")
    assert set(LAION.values()) & {"text_model", "batch_norm"}
    assert not any("head" in name for name in from_laion(weights))


def test_what_is_no_clap_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ValueError, match="bert model of transformers, not a CLAP"):
        CLAP.from_transformers(tmp_path)
    with pytest.raises(CheckpointError, match="is missing"):
        CLAP.from_transformers(tmp_path / "nowhere")
