"""Explanations drawn: what counts in the X-ray, along the ECG and in the words; the paper's millimetres; the page."""

import json

import numpy as np
import pytest
import torch
from matplotlib.collections import LineCollection

import collimate_medical
from collimate.checkpoints import save
from collimate.encoders import OpenClipTextEncoder
from collimate.evaluation.report import Report
from collimate.processing import ClipTokenizer
from collimate.processing.image import open_image
from collimate_medical import ECG, ECGProcessor, ECGTransformer, ImageTransformer, MoRE, XRayProcessor
from collimate_medical.ecg_paper import GAIN, MARGIN, SPACING, SPEED, ecg_paper, show_ecg
from collimate_medical.explain_report import explain, explain_sample, marked_spans, over_time
from collimate_medical.explanation import explain as rollout
from collimate_medical.reading import decode_ecg
from collimate_medical.relevance import explain_by_relevance
from collimate_world.patient_source import PatientSource


@pytest.fixture(scope="module")
def method():
    torch.manual_seed(0)
    sizes = {"width": 24, "depth": 2, "heads": 3, "dropkey": 0.0}
    return MoRE(
        ImageTransformer(32, 8, **sizes),
        ECGTransformer(500, 12, 16, **sizes),
        OpenClipTextEncoder(context_length=48, width=24, heads=3, layers=1),
        XRayProcessor(32),
        ECGProcessor(seconds=5.0, remove_baseline=False, scale="none"),
        ClipTokenizer(48),
        embed_dim=16,
    ).eval()


@pytest.fixture(scope="module")
def source():
    return PatientSource("test", patients=4, size=32, seconds=5.0)


# What counts ------------------------------------------------------------------------------------------------------


def test_a_sample_is_explained_by_the_methods_own_similarity(method, source):
    found = explain_sample(method, source, 1, "pleural effusion", device="cpu")
    assert found.maps["xray"].shape == (4, 4)
    assert found.maps["ecg"].shape == (1, 96)
    sample = source.read(1)
    with torch.no_grad():
        image, text = method.encode("xray", [sample["png"]]), method.encode("text", ["pleural effusion"])
        assert found.scores["xray"] == pytest.approx(method.similarity(image, text).item(), abs=1e-6)
        shorter = method.encode("text", ["effusion"])
        fall = (method.similarity(image, text) - method.similarity(image, shorter)).item()
    words, falls = zip(*found.words["xray"], strict=True)
    assert words == ("pleural", "effusion")
    assert falls[0] == pytest.approx(fall, abs=1e-6)


@pytest.mark.parametrize(("explainer", "attribute"), [("rollout", rollout), ("relevance", explain_by_relevance)])
def test_what_follows_the_tower_is_part_of_the_score(method, source, explainer, attribute):
    found = explain_sample(method, source, 0, explainer=explainer, device="cpu")
    inputs = method.processors["xray"].finish(method.processors["xray"](source.read(0)["png"])[None])
    with torch.no_grad():
        told = method.encode("text", [found.text]).pooled

    def score(encoding):
        projected = method.projections["xray"](encoding.pooled)
        return torch.nn.functional.cosine_similarity(projected, told)

    wanted = attribute(method.encoders["xray"], inputs, score)[0].view(4, 4)
    torch.testing.assert_close(found.maps["xray"], wanted, rtol=1e-4, atol=1e-8)
    assert isinstance(method.encoders["xray"], ImageTransformer)  # as it was
    assert all(parameter.grad is None for parameter in method.parameters())


def test_relevance_of_other_transformers_is_refused():
    with pytest.raises(TypeError, match="use the gradient rollout"):
        explain_by_relevance(torch.nn.Linear(2, 2), torch.zeros(1, 2), lambda encoding: encoding.pooled.sum(1))


def test_relevance_is_handed_down_whole():
    """What starts at the pooled vector is 1, and what reaches the attentions comes from it: samples do not mix."""
    torch.manual_seed(1)
    tower = ImageTransformer(16, 8, width=12, depth=2, heads=3, dropkey=0.0).eval()
    images = torch.randn(3, 3, 16, 16)
    found = explain_by_relevance(tower, images, lambda encoding: encoding.pooled[:, 0])
    alone = explain_by_relevance(tower, images[1:2], lambda encoding: encoding.pooled[:, 0])
    torch.testing.assert_close(found[1:2], alone, rtol=1e-3, atol=1e-8)
    assert (found >= 0).all()
    assert found.isfinite().all()


# Moments ----------------------------------------------------------------------------------------------------------


def test_moments_are_those_that_tokens_see():
    tower = ECGTransformer(500, 12, 16, width=24, depth=1, heads=3)
    relevance = torch.zeros(96)
    relevance[40] = 1.0
    found = over_time(relevance, 500, tower)
    assert np.flatnonzero(found).tolist() == list(range(200, 225))
    torch.manual_seed(0)
    signal = torch.randn(1, 12, 500)
    changed = signal.clone()
    changed[:, :, 200:225] += 1.0
    with torch.no_grad():  # the stem, in evaluation mode, sees no further
        moved = (tower.eval().patch_embed(signal) - tower.patch_embed(changed)).abs().sum((0, 1))
    assert moved[40] > 0
    assert moved.nonzero().flatten().tolist() == list(range(36, 45))
    even = over_time(torch.arange(4.0), 8, torch.nn.Identity())
    assert even.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert np.allclose(over_time(torch.ones(96), 500, tower), 1)


def test_spans_are_marked_in_seconds():
    relevance = np.zeros(100)
    relevance[10:20], relevance[50:55], relevance[99] = 1.0, 0.6, 0.55
    assert marked_spans(relevance, 10.0) == [(1.0, 2.0), (5.0, 5.5), (9.9, 10.0)]
    assert marked_spans(np.ones(10), 1.0) == []  # nothing stands out
    assert marked_spans(np.zeros(0), 1.0) == []


# The paper --------------------------------------------------------------------------------------------------------


def test_the_paper_keeps_its_millimetres():
    rate, seconds = 200.0, 4.0
    signal = np.zeros((2, int(rate * seconds)), np.float32)
    signal[0, 200:400] = 1.0  # a millivolt for a second, from the first second on
    figure = ecg_paper(ECG(signal, rate, ("I", "V1")), np.linspace(0, 1, 40), [(1.0, 2.0)])
    width, height = MARGIN + SPEED * seconds, 3 * SPACING
    assert figure.get_size_inches() * 25.4 == pytest.approx([width, height])
    (axes,) = figure.axes
    assert axes.get_xlim() == (0, width)
    assert axes.get_ylim() == (0, height)
    fine, bold = (each for each in axes.collections if isinstance(each, LineCollection))
    for lines, step in ((fine, 1.0), (bold, 5.0)):
        upright = sorted({segment[0][0] for segment in lines.get_segments() if segment[0][0] == segment[1][0]})
        assert np.diff(upright) == pytest.approx(step)
    traces = {len(line.get_xdata()): line for line in axes.lines}
    pulse, trace = traces[6], next(line for line in axes.lines if len(line.get_xdata()) == signal.shape[1])
    assert np.ptp(pulse.get_ydata()) == GAIN  # a millivolt
    assert pulse.get_xdata()[4] - pulse.get_xdata()[1] == 0.2 * SPEED
    high = trace.get_xdata()[trace.get_ydata() > trace.get_ydata().min() + GAIN / 2]
    assert np.ptp(trace.get_ydata()) == pytest.approx(GAIN)
    assert (high[0], high[-1]) == pytest.approx((MARGIN + SPEED, MARGIN + 2 * SPEED), abs=0.2)


def test_what_was_not_recorded_is_a_gap():
    signal = np.zeros((1, 1000), np.float32)
    signal[0, 400:600] = np.nan
    (trace,) = [line for line in ecg_paper(ECG(signal, 500.0, ("I",))).axes[0].lines if len(line.get_xdata()) > 6]
    moments = (np.asarray(trace.get_xdata()) - MARGIN) / SPEED
    missing = moments[np.isnan(np.asarray(trace.get_ydata()))]
    assert (missing[0], missing[-1]) == pytest.approx((0.8, 1.2), abs=0.01)


def test_an_ecg_at_a_glance(source):
    raw = source.read(0)["ecg.npz"]
    shown = [open_image(show_ecg(each).picture).convert("L") for each in (raw, decode_ecg(raw))]
    assert np.array_equal(*shown)
    width, height = shown[0].size
    assert width == pytest.approx(height, abs=2)
    dark = (np.asarray(shown[0]) < 60).sum()
    bare = open_image(show_ecg(np.zeros((12, 500), np.float32)).picture).convert("L")
    assert dark > 1.5 * (np.asarray(bare) < 60).sum()  # names and pulses alone: an array does not tell its rate
    short = decode_ecg(raw)
    short = ECG(short.signal[:2, :100], short.rate, short.leads[:2])
    assert open_image(show_ecg(short).picture).size == shown[0].size


@pytest.mark.parametrize("kind", ["ConVIRT", "GLoRIA", "MERL"])
def test_other_methods_are_explained_by_their_own_similarity(method, source, kind):
    torch.manual_seed(0)
    modality = "ecg" if kind == "MERL" else "xray"
    made = getattr(collimate_medical, kind)(
        method.encoders[modality],
        OpenClipTextEncoder(context_length=48, width=24, heads=3, layers=1),
        method.processors[modality],
        method.processors["text"],
        embed_dim=16,
    ).eval()
    found = explain_sample(made, source, 0, "pleural effusion", device="cpu")
    assert set(found.maps) == {modality}
    assert found.maps[modality].max() > 0
    sample = source.read(0)
    raw = decode_ecg(sample["ecg.npz"]) if modality == "ecg" else sample["png"]
    with torch.no_grad():
        similarity = made.similarity(made.encode(modality, [raw]), made.encode("text", ["pleural effusion"]))
    assert found.scores[modality] == pytest.approx(similarity.item(), abs=1e-5)


def test_words_are_tinted_and_escaped(tmp_path):
    report = Report("Words")
    report.add_words([("<b>good</b>", 1.0), ("bad", -0.5), ("even", 0.0), ("much", 7.0)], "All & more")
    page = report.save(tmp_path).read_text()
    assert "&lt;b&gt;good&lt;/b&gt;" in page
    assert "rgba(52, 89, 199, 0.75)" in page
    assert "rgba(192, 69, 59, 0.38)" in page or "rgba(192, 69, 59, 0.37)" in page
    assert "All &amp; more" in page


# From a checkpoint to a page --------------------------------------------------------------------------------------


def test_the_page(method, tmp_path, capsys):
    save(method, tmp_path / "model")
    explain(
        str(tmp_path / "model"),
        "world-patients:test?patients=4&size=32&seconds=5&missing=1.0",
        samples=(0, 1, 2, 3),
        output=str(tmp_path / "page"),
        device="cpu",
    )
    assert "report.html" in capsys.readouterr().out
    page = (tmp_path / "page/report.html").read_text()
    found = json.loads((tmp_path / "page/report.json").read_text())
    samples = [found[f"explanation{suffix}"] for suffix in ("", " 2", " 3", " 4")]
    ecgs, xrays = (sum(name in each["maps"] for each in samples) for name in ("ecg", "xray"))
    assert ecgs + xrays == 4  # each lacks one of the two
    assert min(ecgs, xrays) > 0
    assert page.count("25 mm/s, 10 mm/mV") == ecgs
    assert page.count("the cross is its maximum") == xrays
    assert page.count('class="words"') == 4
    assert "not a medical device" in page
    report = explain_sample(method, PatientSource("test", patients=4, size=32, seconds=5.0), 0, device="cpu").text
    assert report not in json.dumps(found)  # what reports say stays on the page


def test_what_is_refused(method, source, tmp_path):
    with pytest.raises(ValueError, match="4 samples, counted from 0; there is no sample 4"):
        explain_sample(method, source, 4)

    class Silent(PatientSource):
        def read(self, index):
            sample = super().read(index)
            return {
                key: value for key, value in sample.items() if not key.startswith(("txt", "captions", *self.without))
            }

    silent = Silent("test", patients=2, size=32, seconds=5.0)
    silent.without = ()
    with pytest.raises(ValueError, match="sample 0 has no report: give a text"):
        explain_sample(method, silent, 0)
    silent.without = ("png", "ecg")
    with pytest.raises(ValueError, match="sample 1 has no xray or ecg"):
        explain_sample(method, silent, 1, "edema")
    method.encoders["xray"].save_pretrained(tmp_path / "tower", method.processors["xray"])
    with pytest.raises(ValueError, match="holds a ImageTransformer alone"):
        explain(str(tmp_path / "tower"), "world-patients:test?patients=1")
