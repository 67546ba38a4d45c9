"""Synthetic patients: signals hold what was drawn, reports say it, splits share nobody, all is drawn alike twice."""

import io
import re

import numpy as np
import pytest
from scipy.signal import find_peaks

from collimate.data import open_source
from collimate_world import (
    ECG_FINDINGS,
    FINDINGS,
    XRAY_FINDINGS,
    PatientSource,
    chest_film,
    heartbeats,
    report,
    sample_visit,
)
from collimate_world.heartbeat import LEADS


def visits(count=200, **options):
    return [sample_visit("train", patient, 0, **options) for patient in range(count)]


def auroc(scores, present):
    """The share of pairs that are in the right order."""
    scores, present = np.asarray(scores), np.asarray(present)
    return float((scores[present][:, None] > scores[~present][None, :]).mean())


# What is drawn ----------------------------------------------------------------------------------------------------


def test_findings_are_independent_but_for_those_that_share_a_condition():
    found = np.array([[visit.has(finding) for finding in FINDINGS] for visit in visits(3000)])
    assert found.mean(0).min() > 0.3
    assert found.mean(0).max() < 0.4
    together = {
        (FINDINGS[i], FINDINGS[j])
        for i in range(len(FINDINGS))
        for j in range(i)
        if abs(np.corrcoef(found[:, i], found[:, j])[0, 1]) > 0.06
    }
    assert together == {("high voltage", "enlarged heart"), ("tachycardia", "lung opacity")}


def test_some_findings_last_and_others_pass():
    pairs = [(sample_visit("train", patient, 0), sample_visit("train", patient, 1)) for patient in range(300)]
    changed = {finding: np.mean([a.has(finding) != b.has(finding) for a, b in pairs]) for finding in FINDINGS}
    assert {finding for finding, share in changed.items() if share == 0} == {
        "enlarged heart",
        "high voltage",
        "wide qrs",
    }
    assert min(share for share in changed.values() if share) > 0.3
    with pytest.raises(ValueError, match="train, val, test"):
        sample_visit("validation", 0, 0)


# X-rays -----------------------------------------------------------------------------------------------------------


def part(film, across, down):
    """A part of a film; its sides as shares of the film's."""
    rows, columns = (slice(*(round(share * len(film)) for share in each)) for each in (down, across))
    return film[rows, columns]


def darkest(pixels):
    return np.percentile(pixels, 3)


def measured_ratio(film):
    """Width of the heart's shadow over that of the chest: the bright middle and the dark lungs of a row."""
    size = len(film)
    profile = film[round(0.60 * size) : round(0.64 * size)].mean(0)
    inner = profile[round(0.08 * size) : round(0.92 * size)]
    dark = inner < (inner.min() + inner[len(inner) // 2]) / 2
    middle = len(inner) // 2
    left, right = middle - np.argmax(dark[middle::-1]), middle + np.argmax(dark[middle:])
    lungs = np.flatnonzero(dark)
    return (right - left) / (lungs[-1] - lungs[0])


def test_a_large_heart_is_wide_in_the_picture():
    clear = [
        visit
        for visit in visits(900)
        if not any(visit.has(finding) for finding in ("lung opacity", "pleural effusion", "pneumothorax"))
    ]
    measured = [measured_ratio(chest_film(visit, 128)) for visit in clear]
    true = [visit.cardiothoracic for visit in clear]
    assert np.corrcoef(measured, true)[0, 1] > 0.9
    assert auroc(measured, [visit.has("enlarged heart") for visit in clear]) > 0.98


@pytest.mark.parametrize(
    ("finding", "rows", "measure", "sign"),
    [
        ("pleural effusion", (0.62, 0.72), np.mean, 1),
        ("lung opacity", (0.25, 0.65), np.mean, 1),
        ("pneumothorax", (0.15, 0.45), darkest, -1),
    ],
)
def test_what_is_in_a_lung_is_seen_where_it_is(finding, rows, measure, sign):
    """The one lung is brighter than the other with fluid or opacity, and darker around a collapse."""
    several = visits(400)
    films = [chest_film(visit, 64) for visit in several]
    right, left = (
        np.array([measure(part(film, columns, rows)) for film in films]) for columns in ((0.18, 0.36), (0.64, 0.82))
    )
    for side, difference in (("left", left - right), ("right", right - left)):
        there = [visit.place.get(finding, "").startswith(side) for visit in several]
        assert auroc(sign * difference, there) > 0.75


# ECGs -------------------------------------------------------------------------------------------------------------


def peaks(signal, rate):
    lead = signal[LEADS.index("II")]
    return find_peaks(lead, height=0.55 * np.percentile(lead, 99.7), distance=round(0.3 * rate))[0]


def test_the_heart_rate_is_that_of_the_peaks():
    for visit in visits(60):
        if visit.has("t wave inversion") or visit.has("st elevation"):
            continue
        found = 60 * 250 / np.diff(peaks(heartbeats(visit, 250), 250)).mean()
        assert found == pytest.approx(visit.heart_rate, rel=0.03)
        assert (visit.heart_rate > 100) == visit.has("tachycardia")


def test_limb_leads_follow_from_two_of_them():
    signal = dict(zip(LEADS, heartbeats(sample_visit("test", 3, 0)), strict=True))
    noise = 0.4
    assert np.abs(signal["III"] - (signal["II"] - signal["I"])).max() < noise
    assert np.abs(signal["aVR"] + (signal["I"] + signal["II"]) / 2).max() < noise
    assert heartbeats(sample_visit("test", 3, 0), 500, 4).shape == (12, 2000)


@pytest.mark.parametrize("finding", ECG_FINDINGS)
def test_each_finding_changes_what_it_is_named_after(finding):
    rate, found, there = 250, [], []
    for visit in visits(150):
        signal = heartbeats(visit, rate)
        beats = [at for at in peaks(signal, rate) if 70 < at < signal.shape[1] - 130]
        beat = np.median([signal[:, at - 70 : at + 130] for at in beats], axis=0)
        beat = beat - np.median(beat[:, 40:55], axis=1, keepdims=True)  # between P and Q
        period = 60 / visit.heart_rate
        recovery = 70 + round((0.20 + 0.09 * period) * rate)
        leads = ["V2", "V3"] if visit.place.get(finding, "anterior") == "anterior" else ["II", "aVF"]
        towards = [LEADS.index(lead) for lead in leads]
        measures = {
            "high voltage": signal[LEADS.index("V5")].max(),
            "tachycardia": -period,
            "wide qrs": (np.abs(beat[LEADS.index("II"), 55:85]) > 0.3 * beat[LEADS.index("II"), 60:80].max()).sum(),
            "st elevation": beat[towards, 70 + round(0.12 * rate)].mean(),
            "t wave inversion": -beat[towards, recovery].mean(),
        }
        found.append(measures[finding])
        there.append(visit.has(finding))
    assert auroc(found, there) > 0.9


# Reports ----------------------------------------------------------------------------------------------------------


def said(text, finding):
    """True, False, or None where the report does not speak of it."""
    other = {"enlarged heart": "cardiomegaly", "tachycardia": "a fast heart rate"}.get(finding, finding)
    normal = {"enlarged heart": "the heart is of normal size", "tachycardia": "the heart rate is normal"}.get(finding)
    for sentence in re.split(r"[.:]", text.lower()):
        if normal and normal in sentence:
            return False
        if finding in sentence or other in sentence:
            return not re.search(r"\b(no|not)\b", sentence)
    return None


def test_reports_agree_with_the_findings():
    spoken = 0
    for visit in visits(300):
        text = report(visit, "xray", "ecg")
        for finding in FINDINGS:
            word = said(text, finding)
            assert word is True if visit.has(finding) else word is not True, (finding, text)
            spoken += word is not None
        for finding, place in visit.place.items():
            assert place in next(each for each in re.split(r"[.:]", text.lower()) if finding in each)
    assert 0.8 < spoken / (300 * len(FINDINGS)) < 0.87
    alone = report(visits(1)[0], "ecg")
    assert "ECG:" not in alone
    assert not any(finding in alone.lower() for finding in XRAY_FINDINGS)


# The source -------------------------------------------------------------------------------------------------------


def test_the_source():
    source = open_source("world-patients:train?patients=40&visits=1-3&size=32")
    assert isinstance(source, PatientSource)
    assert 40 < len(source) < 120
    sample, again = source.read(7), PatientSource("train", 40, "1-3", 32).read(7)
    assert sample["png"].shape == (32, 32)
    assert sample["png"].dtype == np.uint8
    assert np.array_equal(sample["png"], again["png"])
    assert {key: value for key, value in sample.items() if key != "png"} == {
        key: value for key, value in again.items() if key != "png"
    }
    signal = np.load(io.BytesIO(sample["ecg.npz"]))
    assert signal["signal"].shape == (12, 1000)
    assert tuple(signal["leads"]) == LEADS
    assert sample["json"]["synthetic"]
    assert sample["labels.json"] == source.visit(7).findings()
    assert [caption["kind"] for caption in sample["captions.json"]] == ["xray", "ecg"]
    with pytest.raises(IndexError, match="no sample"):
        source.read(len(source))


def test_a_patients_visits_stand_together_and_splits_share_nobody():
    patients = {}
    for split in ("train", "val", "test"):
        source = PatientSource(split, 30, "2-3", 8, seconds=1)
        patients[split] = [source.read(place)["patient.cls"] for place in range(len(source))]
        assert patients[split] == sorted(patients[split])
        assert len(set(patients[split])) == 30
    assert len({number for numbers in patients.values() for number in numbers}) == 90


def test_films_of_16_bits_are_the_same_films():
    fine, coarse = (PatientSource(bits=bits, size=24).read(3)["png"] for bits in (16, 8))
    assert fine.dtype == np.uint16
    assert np.abs(fine / 65535 - coarse / 255).max() < 1 / 255


def test_what_is_missing_is_not_reported():
    source = PatientSource(patients=400, size=8, seconds=1, missing=0.5)
    kinds = [tuple(key in source.read(place) for key in ("png", "ecg.npz")) for place in range(len(source))]
    shares = {kind: kinds.count(kind) / 400 for kind in set(kinds)}
    assert shares.keys() == {(True, True), (True, False), (False, True)}
    assert shares[True, True] == pytest.approx(0.5, abs=0.06)
    film_alone, ecg_alone = (source.read(kinds.index(kind)) for kind in ((True, False), (False, True)))
    assert not any(finding in film_alone["txt"].lower() for finding in ECG_FINDINGS)
    assert [caption["kind"] for caption in ecg_alone["captions.json"]] == ["ecg"]


def test_shuffled_reports_say_nothing_of_what_is_shown():
    source = PatientSource(patients=300, size=8, seconds=1, shuffled=True)
    samples = [source.read(place) for place in range(300)]
    right = [set(sample["labels.json"]) == set(sample["json"]["report"]) for sample in samples]
    assert np.mean(right) < 0.05
    pairs = [("enlarged heart" in sample["labels.json"], "high voltage" in sample["labels.json"]) for sample in samples]
    assert abs(np.corrcoef(np.array(pairs).T)[0, 1]) < 0.15


def test_a_finding_may_be_the_class():
    source = open_source("world-patients:test?patients=60&size=8&seconds=1&label=wide qrs")
    assert source.class_names == ["no wide qrs", "wide qrs"]
    for place in range(20):
        sample = source.read(place)
        assert sample["cls"] == ("wide qrs" in sample["labels.json"])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"split": "dev"}, "train, val, test"),
        ({"visits": "3-1"}, "one visit or more"),
        ({"bits": 12}, "8 or 16"),
        ({"missing": 1.5}, "a share"),
        ({"label": "gout"}, "enlarged heart, lung"),
        ({"patients": 0}, "There are patients"),
        ({"patients": 2, "shuffled": True}, "Three visits"),
    ],
)
def test_what_cannot_be_is_refused(options, said):
    with pytest.raises(ValueError, match=said):
        PatientSource(**options)
