"""CoAVT: its streams, who sees whom, its step on ranks and in chunks, retrieval by frames, and what it refuses."""

import pytest
import torch
from torch.nn.functional import normalize

import collimate
from collimate.checkpoints import save
from collimate.encoders import Bert
from collimate.evaluation.retrieval import evaluate_retrieval
from collimate.processing import ClipTokenizer, ImageProcessor
from collimate.testing import assert_cached_equals_full, assert_same_on_ranks
from collimate.training import Optimization
from collimate_video import (
    CoAVT,
    SpectrogramPatches,
    TokenEncoder,
    TokenTransformer,
    VideoPatches,
    VideoProcessor,
    Waveform,
    WavePatches,
)
from collimate_video.coavt.method import query_text_loss
from collimate_video.coavt.streams import STREAMS
from collimate_world import ClipSource

CAPTIONS = ["a dog", "two cats run", "a red ball", "rain", "the sea at night", "it moves left"]
WRONG = {"negative_{}": [1, 2, 0, 4, 5, 3], "negative_text_{}": [2, 0, 1, 5, 3, 4]}


def tokenizer():
    return ClipTokenizer(8)


def bert(**given):
    sizes = {"vocab_size": 49409, "context_length": 8, "width": 16, "layers": 2, "heads": 2, "hidden": 24}
    return Bert(**{**sizes, "token_head": True, "dropout": 0.0, "init_std": 0.2, **given})


def tower(tokens, width=16):
    return TokenEncoder(tokens, TokenTransformer(width, 1, 2, 16, 0.0), dropout=0.0)


def coavt(**given):
    torch.manual_seed(0)
    parts = {
        "video_encoder": tower(VideoPatches(1, 16, (1, 8, 8), 16)),
        "audio_encoder": tower(WavePatches(800, 100, 16)),
        "text_encoder": bert(),
        "video_processor": VideoProcessor(2, ImageProcessor(16)),
        "audio_processor": Waveform(0.1, 8000),
        "tokenizer": tokenizer(),
    }
    sizes = {"embed_dim": 8, "queries": 3, "joint_heads": 2, "joint_hidden": 16, "init_std": 0.2}
    return CoAVT(**{**parts, **sizes, **given})


@pytest.fixture
def batch():
    """With everything that is else drawn."""
    generator = torch.Generator().manual_seed(1)
    wrong = {pattern.format(stream): torch.tensor(places) for stream in STREAMS for pattern, places in WRONG.items()}
    return {
        "video": torch.randint(0, 256, (6, 2, 3, 16, 16), generator=generator, dtype=torch.uint8),
        "audio": torch.randn(6, 800, generator=generator),
        "text": tokenizer().batch(CAPTIONS),
        "frame": torch.tensor([0, 1, 0, 1, 1, 0]),
        **wrong,
    }


# Streams and queries --------------------------------------------------------------------------------------------


def test_streams_share_weights_but_not_norms():
    layers = coavt().joint_layers
    video, audio = torch.randn(2, 4, 16), torch.randn(2, 8, 16)
    assert layers(video, audio).shape == (2, 12, 16)
    before = layers(video=video), layers(audio=audio), layers(video, audio)
    torch.nn.init.normal_(layers.blocks[0].norm1["audio"].weight)
    after = layers(video=video), layers(audio=audio), layers(video, audio)
    assert [torch.equal(*pair) for pair in zip(before, after, strict=True)] == [True, False, True]
    torch.nn.init.normal_(layers.blocks[0].attn.qkv.weight)
    assert not torch.equal(layers(video=video), before[0])


def test_both_streams_are_read_where_both_are_given(batch):
    method = coavt().eval()
    both = method.encode_joint("audiovisual", batch)
    silent = method.encode_joint("audiovisual", {**batch, "audio": torch.zeros_like(batch["audio"])})
    dark = method.encode_joint("audiovisual", {**batch, "video": torch.zeros_like(batch["video"])})
    assert not torch.allclose(both.pooled, silent.pooled)
    assert not torch.allclose(both.pooled, dark.pooled)


def test_a_token_is_told_from_queries_and_what_stands_before_it():
    method = coavt().eval()
    clip, words = torch.randn(1, 5, 16), torch.randn(1, 4, 16)
    mask = torch.ones(1, 4, dtype=torch.bool)
    states = method.query_encoder.look(clip)
    before = method.query_encoder.tell(states, words, mask)
    later = words.clone()
    later[:, 2] += 1
    after = method.query_encoder.tell(states, later, mask)
    torch.testing.assert_close(after[:, :2], before[:, :2])
    assert not torch.allclose(after[:, 2], before[:, 2])
    assert not torch.allclose(after[:, 3], before[:, 3])
    elsewhere = method.query_encoder.tell(method.query_encoder.look(clip + 1), words, mask)
    assert not torch.allclose(elsewhere[:, 0], before[:, 0])


def test_queries_read_the_text_in_matching_alone():
    method = coavt().eval()
    clip, words = torch.randn(2, 5, 16), torch.randn(2, 4, 16)
    mask = torch.tensor([[True, True, True, False]] * 2)
    before = method.query_encoder.match(clip, words, mask)
    changed, padded = words.clone(), words.clone()
    changed[:, 1] += 1
    padded[:, 3] += 1
    assert not torch.allclose(method.query_encoder.match(clip, changed, mask), before)
    torch.testing.assert_close(method.query_encoder.match(clip, padded, mask), before)


def test_queries_differ_and_attend_in_every_second_layer():
    method = coavt(text_encoder=bert(layers=4))
    assert [layer.cross is not None for layer in method.query_encoder.layers] == [True, False, True, False]
    state = method.query_encoder.look(torch.randn(1, 5, 16))[-1][0]
    assert torch.pdist(state).min() > 1e-3


def test_the_mlps_of_queries_begin_as_the_berts():
    method = coavt()
    for own, shared in zip(method.query_encoder.layers, method.encoders["text"].layers, strict=True):
        torch.testing.assert_close(own.mlp.fc1.weight, shared.intermediate.dense.weight)
        assert own.mlp.fc1.weight is not shared.intermediate.dense.weight


def test_spectrograms_in_squares():
    patches = SpectrogramPatches(64, 32, 16, 8)
    tokens, grid = patches(torch.randn(2, 64, 32))
    assert tokens.shape == (2, 8, 8)
    assert grid == (4, 2)
    assert patches(torch.randn(2, 50, 32))[1] == (3, 2)
    with pytest.raises(ValueError, match="32"):
        patches(torch.randn(2, 64, 16))
    with pytest.raises(ValueError, match="no squares"):
        SpectrogramPatches(8, 32)


# The step -------------------------------------------------------------------------------------------------------


def test_contrast_by_the_nearest_query():
    queries, texts = torch.randn(5, 3, 8), torch.randn(5, 8)
    scores = torch.einsum("ine,je->ijn", normalize(queries, dim=2), normalize(texts, dim=1)).amax(2) * 7
    own = torch.arange(5)
    wanted = (torch.nn.functional.cross_entropy(scores, own) + torch.nn.functional.cross_entropy(scores.T, own)) / 2
    torch.testing.assert_close(query_text_loss(queries, texts, torch.tensor(7.0)), wanted)


def test_equal_texts_are_no_negatives():
    texts = torch.randn(4, 8)
    texts[1] = texts[0]
    queries = torch.randn(4, 3, 8)
    ids = torch.tensor([0, 0, 1, 2])
    apart = query_text_loss(queries, texts, torch.tensor(5.0))
    assert query_text_loss(queries, texts, torch.tensor(5.0), ids) < apart


def test_terms_of_each_stream(batch):
    terms = coavt().loss_terms(batch)
    assert set(terms) == {f"{stream}_{kind}" for stream in STREAMS for kind in ("contrastive", "matching", "language")}
    fewer = coavt(bimodal_losses=["contrastive"]).loss_terms(batch)
    assert set(fewer) == {f"audiovisual_{kind}" for kind in ("contrastive", "matching", "language")} | {
        "audio_contrastive",
        "video_contrastive",
    }
    assert all(bool(term.isfinite()) for term in terms.values())


def test_one_drawn_frame_is_seen(batch):
    method = coavt()
    before = method.embed(batch)
    other = {**batch, "video": batch["video"].clone()}
    other["video"][torch.arange(6), 1 - batch["frame"]] = 0
    after = method.embed(other)
    torch.testing.assert_close(after["video"], before["video"])


def test_every_parameter_learns(batch):
    method = coavt()
    method.total_loss(method.loss_terms(batch)).backward()
    assert not [name for name, parameter in method.named_parameters() if parameter.grad is None]
    held = {id(p) for group in Optimization().optimizer(method).param_groups for p in group["params"]}
    assert held == {id(parameter) for parameter in method.parameters()}


@pytest.mark.parametrize("chunk", [1, 4])
def test_the_gradient_cache_changes_nothing(batch, chunk):
    method = coavt()

    def run(chunk):
        method.gradient_cache = chunk
        return method.total_loss(method.loss_terms(batch))

    # A softmax does not see the bias of its keys: their gradient is rounding alone.
    parameters = {name: each for name, each in method.named_parameters() if not name.endswith("key.bias")}
    assert_cached_equals_full(lambda: run(None), lambda: run(chunk), parameters, tolerance=1e-4)


def test_on_ranks():
    """Contrast reaches over all ranks, by text and by clip."""
    queries, texts = torch.randn(6, 3, 8), torch.randn(6, 8)

    def loss(queries, texts):
        return query_text_loss(queries, texts, torch.tensor(5.0))

    assert_same_on_ranks(loss, {"queries": queries, "texts": texts}, splits=[[3, 3], [2, 4]], tolerance=1e-5)


def test_a_few_steps_lower_all_terms(batch):
    method = coavt()
    optimizer = torch.optim.Adam(method.parameters(), lr=1e-2)
    first = {name: float(term.detach()) for name, term in method.loss_terms(batch).items()}
    for _ in range(8):
        optimizer.zero_grad()
        method.total_loss(method.loss_terms(batch)).backward()
        optimizer.step()
    last = method.loss_terms(batch)
    assert not [name for name in first if float(last[name].detach()) >= first[name]]


# Evaluation -----------------------------------------------------------------------------------------------------


def test_scores_are_means_over_frames(batch):
    method = coavt().eval()
    text = method.encode("text", batch["text"])
    found = method.similarity(method.encode("video", batch["video"]), text)
    single = [method.similarity(method.encode("video", batch["video"][:, [frame]]), text) for frame in range(2)]
    torch.testing.assert_close(found, sum(single) / 2)
    torch.testing.assert_close(method.similarity(text, method.encode("video", batch["video"])), found.T)
    odds = method.rerank(method.encode("video", batch["video"]), text)
    assert odds.shape == (6,)
    apart = [method.rerank(method.encode("video", batch["video"][:, [frame]]), text) for frame in range(2)]
    torch.testing.assert_close(odds, sum(apart) / 2)


def test_what_is_heard_finds_what_is_seen(batch):
    method = coavt().eval()
    scores = method.similarity(method.encode("audio", batch["audio"]), method.encode("video", batch["video"]))
    assert scores.shape == (6, 6)
    assert float(scores.detach().abs().max()) <= 1 + 1e-5


@pytest.mark.parametrize("modality", ["audiovisual", "audio", "video"])
def test_retrieval_on_each_stream(modality):
    source = ClipSource("test", length=8, frames=4, size=16, sound=True, rate=8000)
    found = evaluate_retrieval(coavt().eval(), source, modality=modality, rerank=4, resamples=10)
    assert all(0 <= value <= 1 for name, value in found.metrics.items() if "recall" in name.lower())


def test_a_saved_method_is_the_same(batch, tmp_path):
    method = coavt().eval()
    save(method, tmp_path)
    loaded = collimate.load(tmp_path)
    found, wanted = (each.encode_joint("audiovisual", batch).pooled for each in (loaded, method))
    torch.testing.assert_close(found, wanted)
    assert len(loaded.state_dict()) == len(method.state_dict())


def test_what_it_refuses():
    with pytest.raises(ValueError, match="one width"):
        coavt(audio_encoder=tower(WavePatches(800, 100, 8), 8))
    with pytest.raises(ValueError, match="fuse"):
        coavt(text_encoder=bert(fusion_layer=1))
    with pytest.raises(ValueError, match="token_head"):
        coavt(text_encoder=bert(token_head=False))
    with pytest.raises(ValueError, match="contrastive, matching, language"):
        coavt(bimodal_losses=["masked"])
