"""CLAP: losses by hand, equal captions, locked towers, ranks, chunks, folders, and evaluation of sounds."""

import io
import json

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from torch.nn.functional import normalize

import collimate
from collimate.checkpoints import save
from collimate.data import open_source
from collimate.encoders import Frozen, NoProjection, OpenClipTextEncoder
from collimate.evaluation import Report, evaluate_probe, evaluate_retrieval, evaluate_tagging, evaluate_zero_shot
from collimate.evaluation.embedding import write_embeddings
from collimate.evaluation.features import extract
from collimate.evaluation.prompts import prompts, template_list
from collimate.evaluation.tagging import indicators
from collimate.losses.negatives import text_ids
from collimate.processing import ClipTokenizer
from collimate.testing import assert_cached_equals_full, assert_same_on_ranks, oracles, run_on_ranks
from collimate_audio import (
    CLAP,
    BEATs,
    FilterBank,
    FourTermContrast,
    FrozenNeighbours,
    PairContrast,
    SigmoidContrast,
    show_sound,
)
from collimate_audio.contrasts import class_weights, four_term_loss
from collimate_audio.exhibits import sound_window

from .sounds import CLASSES, RATE, TonesAndNoises, sound

TEXTS = ["a dog barks", "rain", "a dog barks", "wind in the trees", "rain", "a bell"]


def text_tower():
    return OpenClipTextEncoder(width=24, heads=2, layers=1, context_length=16)


def clap(**given):
    torch.manual_seed(0)
    sizes = {"width": 32, "layers": 1, "heads": 2, "hidden": 48, "patch_width": 16, "position_kernel": 8}
    parts = {
        "audio_encoder": BEATs(**sizes, position_groups=4),
        "text_encoder": text_tower(),
        "audio_processor": FilterBank(0.5),
        "tokenizer": ClipTokenizer(16),
        "embed_dim": 24,
    }
    return CLAP(**{**parts, **given}).eval()


def locked(**given):
    frozen = {"text_encoder": Frozen(text_tower()), "text_projection": NoProjection(24)}
    return clap(**frozen, contrast=FrozenNeighbours("text"), **given)


METHODS = {
    "plain": clap,
    "positives": lambda: clap(contrast=PairContrast("positives")),
    "left out": lambda: clap(contrast=PairContrast("left_out")),
    "four terms": lambda: clap(contrast=FourTermContrast(24, kappa=0.7, dropout=0.0)),
    "sigmoid": lambda: clap(contrast=SigmoidContrast(), init_logit_scale=10.0),
    "locked text": locked,
}


@pytest.fixture
def batch():
    method = clap()
    sounds = [sound(CLASSES[n % 3], 0.3 + 0.05 * (n % 4), n) for n in range(6)]
    return {"audio": method.processors["audio"].batch(sounds), "text": method.processors["text"].batch(TEXTS)}


def embedded(method, batch):
    with torch.no_grad():
        return {name: each.double() for name, each in method.embed(batch).items()}


def test_the_plain_loss_is_the_papers(batch):
    method = clap()
    rows = embedded(method, batch)
    wanted = oracles.clip_loss(rows["audio"], rows["text"], method.logit_scale.detach().exp().double())
    torch.testing.assert_close(method.loss_terms(batch)["clap"].double(), wanted, rtol=1e-5, atol=1e-6)
    assert method.logit_scale.exp().item() == pytest.approx(1 / 0.07)


def test_equal_captions_as_positives_change_nothing_but_left_out_they_do(batch):
    found = {name: METHODS[name]().loss_terms(batch)["clap"].item() for name in ("plain", "positives", "left out")}
    assert found["positives"] == pytest.approx(found["plain"], abs=1e-6)
    rows, scale = embedded(clap(), batch), 1 / 0.07
    keep = torch.tensor([[a != b for b in TEXTS] for a in TEXTS]) | torch.eye(6, dtype=torch.bool)
    wanted = oracles.symmetric_info_nce(rows["audio"], rows["text"], scale, keep=keep)
    assert found["left out"] == pytest.approx(float(wanted), rel=1e-5)
    assert found["left out"] < found["plain"] - 0.01


def test_the_sigmoid_loss_takes_equal_captions_for_positives(batch):
    method = METHODS["sigmoid"]()
    rows = embedded(method, batch)
    targets = torch.tensor([[float(a == b) for b in TEXTS] for a in TEXTS])
    wanted = oracles.sigmoid_contrast(rows["audio"], rows["text"], 10.0, -10.0, targets=targets)
    torch.testing.assert_close(method.loss_terms(batch)["clap"].double(), wanted, rtol=1e-5, atol=1e-5)


def test_the_locked_towers_space_says_who_is_near(batch):
    method = locked()
    rows = embedded(method, batch)
    text, audio = normalize(rows["text"], dim=1), normalize(rows["audio"], dim=1)
    logits = method.logit_scale.exp().item() * text @ audio.T
    near = text @ text.T / 2 + 0.5
    wanted = oracles.softmax_losses(logits, near).mean() + oracles.softmax_losses(logits.T).mean()
    torch.testing.assert_close(method.loss_terms(batch)["clap"].double(), wanted, rtol=1e-5, atol=1e-5)
    method.train()
    method.loss_terms(batch)["clap"].backward()
    assert not method.encoders["text"].encoder.training
    assert all(p.grad is None for p in method.encoders["text"].parameters())
    assert all(p.grad is not None for p in method.projections["audio"].parameters())


def test_what_is_not_locked_cannot_teach():
    with pytest.raises(ValueError, match=r"text tower how near .* NoProjection\(24\)"):
        clap(contrast=FrozenNeighbours("text"))
    locked_text = {"text_encoder": Frozen(text_tower()), "text_projection": NoProjection(24)}
    with pytest.raises(ValueError, match="audio tower how near"):
        clap(**locked_text, contrast=FrozenNeighbours("audio"))


def test_the_four_terms_read_transforms_of_unit_vectors(batch):
    method = METHODS["four terms"]()
    wanted = method.loss_terms(batch)["clap"]
    contrast, rows = method.contrast.double(), {k: normalize(v, dim=1) for k, v in embedded(method, batch).items()}
    audio, text = rows["audio"], rows["text"]
    with torch.no_grad():
        audio_mlp, text_mlp = contrast.transforms["audio"](audio), contrast.transforms["text"](text)
        total = 0.0
        for one, other, by in ((audio, text_mlp, audio), (audio_mlp, text, text)):
            weights = ((by @ by.T).mean(1) / 0.7).exp()
            logits = one @ other.T / 0.07
            for each in (logits, logits.T):
                own = torch.nn.functional.cross_entropy(each, torch.arange(6), weights)
                total = total + own / 4
    torch.testing.assert_close(wanted.double(), total, rtol=1e-5, atol=1e-5)


def test_scales_stay_between_one_and_a_hundred():
    method = METHODS["four terms"]()
    with torch.no_grad():
        method.logit_scale.fill_(9.0), method.contrast.text_logit_scale.fill_(-1.0)
    method.after_optimizer_step()
    assert method.logit_scale.exp().item() == pytest.approx(100)
    assert method.contrast.text_logit_scale.item() == 0


def test_four_terms_are_exact_on_ranks():
    generator = torch.Generator().manual_seed(0)
    names = ("audio", "text", "audio_mlp", "text_mlp")
    rows = {name: normalize(torch.randn(7, 5, generator=generator), dim=1) for name in names}
    scales = {"audio_scale": torch.tensor(9.0), "text_scale": torch.tensor(11.0)}
    assert_same_on_ranks(lambda **given: four_term_loss(**given, kappa=0.5), rows, scales, ranks=(2,))
    weights = class_weights(rows["audio"], 0.5)
    parts = run_on_ranks(class_weights, [(rows["audio"][:2], 0.5), (rows["audio"][2:], 0.5)])
    torch.testing.assert_close(torch.cat(parts), weights)
    assert float(weights.mean()) == pytest.approx(1)


def own_gradients(name, batch):
    method = METHODS[name]()
    method.loss_terms(batch)["clap"].backward()
    return {key: parameter.grad for key, parameter in method.named_parameters() if parameter.grad is not None}


def test_ranks_give_the_gradients_of_one_process(batch):
    parts = [{name: rows[some] for name, rows in batch.items()} for some in (slice(0, 4), slice(4, 6))]
    for name in METHODS:
        whole, found = own_gradients(name, batch), run_on_ranks(own_gradients, [(name, part) for part in parts])
        assert whole.keys() == found[0].keys()
        for key, wanted in whole.items():
            mean = (found[0][key] + found[1][key]) / 2
            assert (mean - wanted).abs().max() <= 1e-4 * wanted.abs().max() + 1e-6, (name, key)


@pytest.mark.parametrize("name", ["plain", "locked text"])
def test_the_gradient_cache_changes_nothing(name, batch):
    method = METHODS[name]()

    def loss(chunk):
        method.gradient_cache = chunk
        return method.loss_terms(batch)["clap"]

    learning = {key: each for key, each in method.named_parameters() if each.requires_grad}
    assert_cached_equals_full(lambda: loss(None), lambda: loss(4), learning, tolerance=1e-4)


def test_padding_is_not_heard():
    short = sound("noise", 0.3)
    alone, longer = (clap(audio_processor=FilterBank(seconds)) for seconds in (0.3, 0.5))
    torch.testing.assert_close(alone.encode("audio", [short]).pooled, longer.encode("audio", [short]).pooled)


@pytest.mark.parametrize("name", METHODS)
def test_a_folder_gives_the_same_back(name, batch, tmp_path):
    method = METHODS[name]()
    save(method, tmp_path)
    again = collimate.load(tmp_path)
    torch.testing.assert_close(again.loss_terms(batch), method.loss_terms(batch))


# Evaluation -----------------------------------------------------------------------------------------------------


OPTIONS = {"device": "cpu", "resamples": 5}


class Tags(TonesAndNoises):
    def read(self, index):
        sample = super().read(index)
        label = sample.pop("cls")
        return {**sample, "labels.json": [CLASSES[label], "noise"] if index % 4 == 0 and label < 2 else [label]}


@pytest.fixture(scope="module")
def taught():
    """A method whose text tower is replaced by what it should have learnt: each class's mean sound."""
    method, source = clap(), TonesAndNoises(12)
    found = extract(method, source, ["audio"], ["label"], device="cpu")
    vectors = normalize(found.encodings["audio"].pooled, dim=1)
    vectors = vectors - vectors.mean(0)
    means = torch.stack([vectors[found.extras["label"] == label].mean(0) for label in range(3)])
    words = [text_ids(method.processors["text"].batch([f"This is a sound of {c.replace('_', ' ')}."])) for c in CLASSES]
    plain = method.forward

    def forward(modality, inputs, mask=None):
        if modality == "audio":
            encoding = plain(modality, inputs, mask)
            offset = normalize(found.encodings["audio"].pooled, dim=1).mean(0)
            return collimate.Encoding(normalize(encoding.pooled, dim=1) - offset)
        ids = text_ids(inputs)
        return collimate.Encoding(torch.stack([means[[int(w) for w in words].index(int(each))] for each in ids]))

    method.forward = forward
    return method


def test_zero_shot_speaks_of_sounds(taught, tmp_path):
    found = evaluate_zero_shot(taught, TonesAndNoises(12), **OPTIONS)
    assert found.modality == "audio"
    assert "This is a sound of low tone." in found.protocol["prompts"]
    assert found.metrics["acc1"] > 0.6
    assert found.metrics["map@10"] >= found.metrics["acc1"]
    assert 1 <= found.metrics["median_rank"] <= found.metrics["mean_rank"] + 1 <= 4
    report = Report("Sounds", "of a toy")
    found.add_to(report)
    page = report.save(tmp_path).read_text()
    assert page.count("<audio controls") == page.count('<img alt=""') > 0
    assert "data:audio/flac;base64," in page
    assert (
        json.loads((tmp_path / "report.json").read_text())["Zero-shot classification"]["per_class"][0]["samples"] == 4
    )


def test_tagging_reports_average_precision(taught):
    found = evaluate_tagging(taught, Tags(12), **OPTIONS)
    assert found.labels.sum() == 12 + sum(1 for n in range(0, 12, 4) if n % 3 < 2)
    assert found.metrics["mean_average_precision"] > 0.6
    assert found.details["per_class"][2]["samples"] == 4 + 2
    report = Report("Tags")
    found.add_to(report)
    assert "<audio" in report.html()
    with pytest.raises(ValueError, match="'rain', which is none of the 3 classes"):
        indicators([["noise"], ["rain"]], CLASSES)


def test_retrieval_probe_and_embeddings_of_sounds(tmp_path):
    method, source = clap(), TonesAndNoises(12)
    found = evaluate_retrieval(method, source, **OPTIONS)
    keys = {"audio_retrieval_recall@1", "text_retrieval_map@10", "audio_retrieval_mean_rank"}
    assert keys <= found.metrics.keys()
    assert found.metrics["text_retrieval_map@10"] >= found.metrics["text_retrieval_recall@1"]
    report = Report("Retrieval")
    found.add_to(report)
    assert "find the audio" in report.html()
    encoder = method.encoders["audio"]
    encoder.processor = method.processors["audio"]
    probed = evaluate_probe(
        method, TonesAndNoises(24), source, kinds=["knn"], random_encoder=False, device="cpu", resamples=5
    )
    assert probed.metrics["knn/acc1"] > 0.6  # three pitches are told apart by random features already
    assert write_embeddings(method, source, tmp_path / "joint", device="cpu") == 12
    assert write_embeddings(encoder, source, tmp_path / "alone", ["audio"], device="cpu") == 12


def test_long_clips_are_heard_whole_where_asked(tmp_path):
    """Two seconds of which the first half is a tone and the second noise: four windows of half a second."""
    method = clap()
    tone, noise = sound("low_tone", 1.0), sound("noise", 1.0)

    class Long(TonesAndNoises):
        def read(self, index):
            both = np.concatenate([tone, noise]) if index == 0 else tone[: RATE // 2]
            return {**super().read(index), "wav": (both, RATE)}

    first, every = (extract(method, Long(2), ["audio"], ["label"], device="cpu", windows=count) for count in (1, 4))
    windows = [method.encode("audio", [each]).pooled for each in (tone[: RATE // 2], tone[RATE // 2 :])]
    windows += [method.encode("audio", [each]).pooled for each in (noise[: RATE // 2], noise[RATE // 2 :])]
    wanted = normalize(torch.cat([normalize(each, dim=1) for each in windows]).mean(0), dim=0)
    torch.testing.assert_close(every.encodings["audio"].pooled[0], wanted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(first.encodings["audio"].pooled[0], windows[0][0], rtol=1e-5, atol=1e-5)
    short = normalize(first.encodings["audio"].pooled[1], dim=0)
    torch.testing.assert_close(every.encodings["audio"].pooled[1], short, rtol=1e-5, atol=1e-5)
    assert every.extras["label"].tolist() == first.extras["label"].tolist() == [0, 1]
    assert every.keys == first.keys
    assert every.settings["samples"] == 2
    with pytest.raises(ValueError, match="one modality"):
        extract(method, Long(2), ["audio", "text"], device="cpu", windows=2)
    with pytest.raises(ValueError, match="no windows of 'text'"):
        extract(method, Long(2), ["text"], device="cpu", windows=2)


def test_windows_begin_at_the_begin_and_end_at_the_end():
    ramp = np.arange(20_000, dtype=np.float32) / 20_000
    bank = FilterBank(0.5)
    cut = [sound_window((ramp, RATE), bank, number, 3)[0] for number in range(3)]
    assert [len(each) for each in cut] == [8000] * 3
    assert [int(each[0] * 20_000 + 0.5) for each in cut] == [0, 6000, 12_000]
    assert sound_window((ramp[:5000], RATE), bank, 2, 3)[0].shape == (5000,)
    assert len(sound_window((ramp, 8000), bank, 1, 3)[0]) == 4000


def test_prompts_of_sounds():
    assert template_list("sound") == ["This is a sound of {}."]
    assert len(template_list("sounds")) == 5
    assert prompts(["hand_saw"], "sound", spaced=True) == {"hand_saw": ["This is a sound of hand saw."]}
    assert prompts(["hand_saw"], "{}") == {"hand_saw": ["hand_saw"]}


def test_a_sound_in_a_report():
    shown = show_sound((sound("high_tone", 0.5), RATE))
    assert isinstance(shown.picture, Image.Image)
    played, rate = soundfile.read(io.BytesIO(shown.sound))
    assert (len(played), rate) == (8000, RATE)
    rows = np.asarray(shown.picture.convert("L")).mean(1)
    assert rows[: len(rows) // 2].max() > rows[-10:].max()  # a high tone lies above the middle
    noise = np.random.default_rng(0).normal(size=44_100 * 12).astype(np.float32) / 4
    assert show_sound((noise, 44_100)).sound is None  # too large for a page, and drawn all the same
    assert show_sound((np.zeros(100, np.float32), RATE)).picture.size == shown.picture.size


def test_real_captions(shared_data):
    manifest = shared_data / "audio_captions_mixed" / "manifest.jsonl"
    if not manifest.exists():
        pytest.skip(f"no captioned sounds at {manifest}")
    method = clap(audio_processor=FilterBank(2.0))
    found = evaluate_retrieval(method, open_source(str(manifest)), **OPTIONS, windows=2)
    assert len(found.text_ranks) == 21
    assert "2 of each longer sample" in found.protocol["windows"]
    report = Report("Sounds")
    found.add_to(report)
    assert "<audio" in report.html()
