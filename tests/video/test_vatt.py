"""VATT: tokens, what is dropped, shared transformers, spaces, missing modalities, ranks, chunks, harmonization."""

import pytest
import torch
from torch.nn.functional import cosine_similarity

import collimate
from collimate.checkpoints import save
from collimate.configurable import build
from collimate.data import DataModule, open_source
from collimate.data.captions import Caption
from collimate.evaluation.retrieval import evaluate_retrieval
from collimate.processing import ClipTokenizer, ImageProcessor
from collimate.testing import assert_cached_equals_full, assert_close, assert_same_on_ranks
from collimate.training.harmonization import Curriculum, Harmonization
from collimate_video import (
    VATT,
    Candidates,
    TimeSformer,
    TokenEncoder,
    TokenTransformer,
    VideoPatches,
    VideoProcessor,
    Waveform,
    WaveformNoise,
    WavePatches,
    WaveSpectra,
    WordTokens,
)
from collimate_video.transcoding import transcode
from collimate_video.vatt.spaces import HierarchicalSpaces
from collimate_video.vatt.tokens import Positions
from collimate_video.vatt.transformer import kept_tokens

RATE = 8000
CAPTIONS = [["a dog", "it barks"], ["rain", ""], ["", ""], ["a bell", "it rings"], ["the sea", "waves"], ["a car", "x"]]


def tokenizer():
    return ClipTokenizer(6)


def trunk(**given):
    return TokenTransformer(**{"width": 16, "layers": 1, "heads": 2, "hidden": 32, "dropout": 0.0, **given})


def video_tokens(**given):
    return VideoPatches(**{"frames": 4, "image_size": 16, "patch": (2, 8, 8), "width": 16, **given})


def wave_tokens(**given):
    return WavePatches(**{"samples": 800, "patch": 100, "width": 16, **given})


def word_tokens(**given):
    return WordTokens(**{"vocab_size": 49408, "context_length": 6, "width": 16, "word_width": 8, **given})


def tower(tokens, transformer="own", **given):
    return TokenEncoder(tokens, trunk() if transformer == "own" else transformer, **{"dropout": 0.0, **given})


def vatt(shared=False, **given):
    torch.manual_seed(0)
    own = None if shared else "own"
    parts = {
        # With heads: where a batch norm follows at once, a tower's last bias has no gradient but that of rounding.
        "video_encoder": tower(video_tokens(projected=shared), own, head_width=24),
        "audio_encoder": tower(wave_tokens(projected=shared), own, head_width=24),
        "text_encoder": tower(word_tokens(projected=shared), own, head_width=24),
        "video_processor": VideoProcessor(4, ImageProcessor(16)),
        "audio_processor": Waveform(0.1, RATE),
        "tokenizer": tokenizer(),
        "shared": trunk() if shared else None,
    }
    return VATT(**{**parts, "fine_dim": 12, "coarse_dim": 8, "candidates": 2, **given})


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(1)
    sounds = torch.randn(6, 800, generator=generator) / 3
    sounds[4] = torch.nan
    return {
        "video": torch.randint(0, 256, (6, 4, 3, 16, 16), generator=generator, dtype=torch.uint8),
        "audio": sounds,
        "text": torch.stack([tokenizer().batch(each) for each in CAPTIONS]),
    }


# Tokens and towers ----------------------------------------------------------------------------------------------


def test_voxels_see_their_own_part_of_the_clip_alone():
    tokens = video_tokens()
    clips = torch.randn(1, 4, 3, 16, 16)
    before, grid = tokens(clips)
    assert grid == (2, 2, 2)
    changed = clips.clone()
    changed[:, 2:, :, 8:, :8] += 1  # the second half in time, the lower left
    differing = (tokens(changed)[0] != before).any(2)[0].nonzero().flatten().tolist()
    assert differing == [1 * 4 + 1 * 2 + 0]


def test_positions_are_sums_of_tables_and_resized_where_needed():
    positions = Positions((2, 3), 4)
    found = positions((2, 3)).view(2, 3, 4)
    wanted = positions.norm(positions.tables[0][1] + positions.tables[1][2])
    torch.testing.assert_close(found[1, 2], wanted)
    assert positions((4, 3)).shape == (12, 4)
    audio = wave_tokens()
    assert audio(torch.randn(2, 1650))[0].shape == (2, 16, 16)
    assert video_tokens()(torch.randn(1, 8, 3, 24, 16))[1] == (4, 3, 2)


def test_spectra_tell_pitches_and_not_phases():
    """Samples at another phase make other tokens, spectra the same ones; silence is finite."""
    torch.manual_seed(0)
    time = torch.arange(800) * torch.pi / 25  # two periods a piece
    tones = torch.stack([time.sin(), (time + 1).sin(), (2 * time).sin(), 0 * time])

    def apart(tokens):
        found = tokens(tones)[0]
        return [(found[0] - each).abs().max().item() for each in found[1:]]

    phase, pitch, silence = apart(WaveSpectra(800, 100, 16))
    assert phase < 0.1 * pitch
    assert 0 < silence < 100
    phase, pitch, _ = apart(wave_tokens())
    assert phase > 0.5 * pitch


@pytest.mark.parametrize(("by", "one"), [("sample", False), ("batch", True)])
def test_what_is_dropped_is_drawn_for_each_sample_or_for_all(by, one):
    torch.manual_seed(0)
    numbers = torch.arange(40.0).view(1, 40, 1).expand(8, -1, -1)
    kept = kept_tokens(numbers, 0.5, by)[..., 0]
    assert kept.shape == (8, 20)
    assert all(len(row.unique()) == 20 for row in kept)
    assert len({tuple(row.sort().values.tolist()) for row in kept}) == (1 if one else 8)
    assert kept_tokens(numbers, 0.99, by).shape[1] == 1


def test_random_weights_are_as_wide_as_asked_for():
    wide, narrow = (trunk(width=64, hidden=128, init_std=std).layers[0].linear1.weight.std() for std in (0.1, 0.02))
    assert float(wide.detach() / narrow.detach()) == pytest.approx(5, rel=0.1)


def test_tokens_are_dropped_in_training_alone_and_never_of_texts():
    encoder = tower(video_tokens(), drop=0.5)
    clips = torch.randn(2, 4, 3, 16, 16)
    assert encoder.train()(clips).tokens.shape[1] == 4
    assert encoder(clips).grid is None
    whole = encoder.eval()(clips)
    assert (whole.tokens.shape[1], whole.grid) == (8, (2, 2, 2))
    with pytest.raises(ValueError, match="0 for words"):
        tower(word_tokens(), drop=0.5)


def test_padding_and_length_change_no_text():
    encoder = tower(word_tokens()).eval()
    ids = tokenizer().batch(["a dog"])
    mask = tokenizer().mask(ids)
    other = ids.masked_fill(~mask, 7)
    torch.testing.assert_close(encoder(ids, mask).pooled, encoder(other, mask).pooled)
    short = int(mask.sum())
    torch.testing.assert_close(encoder(ids[:, :short], mask[:, :short]).pooled, encoder(ids, mask).pooled)


def test_what_towers_refuse():
    with pytest.raises(ValueError, match="divide"):
        video_tokens(frames=3)
    with pytest.raises(ValueError, match="Clips are"):
        video_tokens()(torch.randn(2, 3, 16, 16))
    with pytest.raises(ValueError, match="Waveforms are"):
        wave_tokens()(torch.randn(2, 50))
    with pytest.raises(ValueError, match="at most 6"):
        word_tokens()(torch.zeros(1, 7, dtype=torch.long))
    with pytest.raises(ValueError, match="no transformer"):
        tower(video_tokens(), None)(torch.randn(1, 4, 3, 16, 16))
    with pytest.raises(ValueError, match="do not fit"):
        tower(video_tokens(width=8))
    with pytest.raises(ValueError, match="of its own"):
        vatt(shared=True, audio_encoder=tower(wave_tokens()))
    sizes = {"image_size": 16, "patch_size": 8, "frames": 4, "width": 16, "layers": 1, "heads": 2, "hidden": 16}
    with pytest.raises(ValueError, match="Only TokenEncoders"):
        vatt(shared=True, video_encoder=TimeSformer(**sizes))
    with pytest.raises(ValueError, match="once, twice or symmetric"):
        vatt(contrast="thrice")


# Sound and texts ------------------------------------------------------------------------------------------------


def test_sounds_of_files_videos_and_arrays():
    processor = Waveform(0.5, RATE)
    sample = open_source("world-clip:train?frames=10&size=32&sound=true&rate=8000&length=2").read(0)
    whole = Waveform(1.0, RATE)(sample["wav"])
    torch.testing.assert_close(processor(sample["wav"]), whole[2000:6000])  # the middle
    torch.testing.assert_close(processor(whole), whole[2000:6000])
    longer = Waveform(2.0, RATE)(sample["wav"])
    assert torch.equal(longer[:8000], whole)
    assert not longer[8000:].any()
    silent = [processor(sample["mp4"]), processor(transcode(sample["mp4"]))]
    batch = torch.stack([processor(sample["wav"]), *silent])
    assert processor.given(batch).tolist() == [True, False, False]
    assert not processor.finish(batch)[1:].any()
    with pytest.raises(ValueError, match="not a video"):
        processor(b"nothing")
    with pytest.raises(ValueError, match="finite"):
        processor(torch.full((100,), torch.inf))
    with pytest.raises(TypeError, match="waveform"):
        processor(3)


def test_noise_is_relative_to_the_peak():
    wave = Waveform(0.5, RATE)(0.1 * torch.sin(torch.arange(4000) * 0.3))
    noisy = WaveformNoise(0.05)(wave, Waveform(0.5, RATE))
    assert float((noisy - wave).std()) == pytest.approx(0.005, rel=0.1)


def test_candidates_come_in_order_and_empty_ones_fill_up():
    captions = [Caption("one"), Caption(" "), Caption("two"), Caption("three")]
    assert Candidates(2)(captions) == ["one", "two"]
    assert Candidates(4)(captions) == ["one", "two", "three", ""]
    assert Candidates(2)([Caption("")]) == ["", ""]
    with pytest.raises(ValueError, match="at least one"):
        Candidates(0)


# The step -------------------------------------------------------------------------------------------------------


def test_what_is_missing_is_no_negative_and_costs_nothing(batch):
    method = vatt().eval()
    rows = method.embed(batch)
    assert rows["audio_given"].tolist() == [True] * 4 + [False, True]
    assert rows["text_given"].tolist() == [[True, True], [True, False], [False, False]] + [[True, True]] * 3
    terms = method.losses(rows, batch)
    other = {**rows, "audio": rows["audio"].clone(), "text": rows["text"].clone()}
    other["audio"][4], other["text"][2], other["text"][1, 1] = 9.0, -9.0, 9.0
    assert_close(method.losses(other, batch), terms, 1e-6, "what is missing")


def test_without_sound_and_texts_the_loss_is_zero(batch):
    nothing = {**batch, "audio": torch.full_like(batch["audio"], torch.nan)}
    nothing["text"] = tokenizer()("").expand_as(batch["text"])
    method = vatt()
    terms = method.loss_terms(nothing)
    assert all(float(term.detach()) == 0 for term in terms.values())
    method.total_loss(terms).backward()
    assert all(not p.grad.any() for p in method.parameters() if p.grad is not None)


@pytest.mark.parametrize("given", [{}, {"shared": True}, {"space": "joint"}, {"contrast": "symmetric"}])
def test_every_parameter_learns_and_the_gradient_cache_changes_nothing(batch, given):
    method = vatt(**given)
    parameters = dict(method.named_parameters())

    def run(chunk):
        method.gradient_cache = chunk
        return method.total_loss(method.loss_terms(batch))

    assert_cached_equals_full(lambda: run(None), lambda: run(4), parameters, tolerance=1e-4)
    assert not [name for name, parameter in parameters.items() if parameter.grad is None]


def test_one_text_a_clip_may_lie_flat(batch):
    method = vatt().eval()
    flat = method.loss_terms({**batch, "text": batch["text"][:, 0]})
    assert_close(flat, method.loss_terms({**batch, "text": batch["text"][:, :1]}), 1e-6, "flat texts")


@pytest.mark.parametrize("space", ["hierarchical", "joint"])
def test_on_ranks(batch, space):
    """Contrast and batch norms reach over all ranks, which hold unequal numbers of clips."""
    method = vatt(space=space).train()
    with torch.no_grad():
        rows = method.embed(batch)

    def loss(**rows):
        return torch.stack(list(method.losses(rows, {}).values())).sum()

    assert_same_on_ranks(loss, rows, splits=[[3, 3], [2, 4]], tolerance=1e-4)


def test_texts_are_reached_through_the_space_of_sounds():
    spaces = HierarchicalSpaces(6, 5, 4, 8, 3).eval()
    video, audio, text = torch.randn(4, 6), torch.randn(4, 5), torch.randn(4, 2, 4)
    found = spaces(video, audio, text)
    linear, norm = spaces.video_coarse, spaces.video_coarse_norm
    torch.testing.assert_close(found.video_coarse, norm(linear(found.video_fine.relu())))
    seen, heard, read = (spaces.pooled(*each) for each in (("video", video), ("audio", audio), ("text", text[:, 0])))
    cosine = cosine_similarity(found.video_fine, found.audio)
    torch.testing.assert_close(cosine_similarity(seen, heard), cosine / 2**0.5)
    cosine = cosine_similarity(found.video_coarse, found.text[:, 0])
    torch.testing.assert_close(cosine_similarity(seen, read), cosine / 2**0.5)
    assert not cosine_similarity(heard, read).any()


@pytest.mark.parametrize("granularity", ["feature", "microbatch"])
def test_terms_are_harmonized(batch, granularity):
    """The rule `sum` is the plain step; with pcgrad the shared video tower gets another gradient."""

    def gradients(harmonization):
        method = vatt(shared=True)
        method.harmonization = harmonization
        method.training_step(batch, 0)["loss"].backward()
        return {name: parameter.grad for name, parameter in method.named_parameters()}, method

    plain, _ = gradients(None)
    found, method = gradients(Harmonization(granularity=granularity, rule="sum"))
    assert_close(found, plain, 1e-4, granularity)
    assert "conflict/cosine" in method.statistics
    found, method = gradients(Harmonization(granularity=granularity, curriculum=Curriculum(start=0.0)))
    assert all(torch.isfinite(each).all() for each in found.values())
    assert float(method.statistics["conflict/kept"]) < 1
    name = "encoders.video.tokens.proj.weight"
    assert not torch.allclose(found[name], plain[name], rtol=1e-3)


@pytest.mark.parametrize("shared", [False, True])
def test_saved_and_loaded(tmp_path, batch, shared):
    method = vatt(shared).eval()
    trunks = [name for name in method.state_dict() if "linear1.weight" in name]
    assert len(trunks) == (1 if shared else 3)
    save(method, tmp_path / "model")
    again = collimate.load(tmp_path / "model").eval()
    for modality in ("video", "audio"):
        assert torch.equal(
            again.encode(modality, batch[modality]).pooled, method.encode(modality, batch[modality]).pooled
        )
    assert build(method.config()).config() == method.config()


def test_it_learns_from_the_world_that_is_seen_and_heard():
    method = vatt()
    data = DataModule(
        train="world-clip:train?frames=4&size=16&sound=true&rate=8000&length=32", batch_size=16, augmentations={}
    )
    data.trainer = type("Trainer", (), {"lightning_module": method})()
    batch = next(iter(data.train_dataloader()))
    assert batch["text"].shape == (16, 2, 6)
    optimizer = torch.optim.Adam(method.parameters(), 3e-3)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = method.total_loss(method.loss_terms(batch))
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.6 * losses[0]
    source = open_source("world-clip:test?frames=4&size=16&sound=true&rate=8000&length=12")
    assert "video_retrieval_recall@5" in evaluate_retrieval(method.eval(), source, resamples=2).metrics
