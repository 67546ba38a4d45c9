"""ECGs: leads by name, millivolts, rates, gaps; WFDB records and arrays; what is refused and why."""

import numpy as np
import pytest
import torch
import wfdb

from collimate.data import open_source
from collimate.data.decoding import Undecodable, decode, extensions_of
from collimate.data.preparation import Preparation
from collimate.data.source import CorruptSample
from collimate_medical.ecg import (
    ECG,
    LEADS,
    MIMIC_LEADS,
    filled,
    lead_name,
    missing_leads,
    resampled,
    with_leads,
)
from collimate_medical.ecg_augmentation import ECGAugmentation, permuted, warped
from collimate_medical.processing import ECGProcessor, without_baseline
from collimate_medical.reading import decode_ecg, encode_ecg, read_ecg
from collimate_medical.records import open_records
from collimate_medical.wfdb_records import decode_wfdb, read_wfdb

RATE = 500


def beats(samples=5000, rate=RATE, leads=LEADS):
    """An ECG whose lead k is a wave of k + 1 beats a second, but for limb leads, which follow from I and II."""
    moments = np.arange(samples) / rate
    rows = {name: np.sin(2 * np.pi * (place + 1) * moments) for place, name in enumerate(LEADS)}
    one, two = rows["I"], rows["II"]
    rows |= {"III": two - one, "aVR": -(one + two) / 2, "aVL": one - two / 2, "aVF": two - one / 2}
    return ECG(np.stack([rows[name] for name in leads]).astype(np.float32), rate, tuple(leads))


def record(folder, ecg, name="rec", unit="mV", gain=200.0, **settings):
    factor = {"mV": 1.0, "uV": 1000.0}.get(unit, 1.0)
    count = len(ecg.leads)
    wfdb.wrsamp(
        name,
        fs=ecg.rate,
        units=[unit] * count,
        sig_name=list(ecg.leads),
        p_signal=ecg.signal.T.astype(float) * factor,
        fmt=["16"] * count,
        adc_gain=[gain / factor] * count,
        baseline=[0] * count,
        write_dir=str(folder),
        **settings,
    )
    return folder / name


def reason(call, *args, error=Undecodable, **options):
    with pytest.raises(error) as caught:
        call(*args, **options)
    return str(caught.value)


# Leads ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("avl", "aVL"),
        ("AVF", "aVF"),
        (" v3 ", "V3"),
        ("Lead I (Einthoven)", "I"),
        ("MDC_ECG_LEAD_V6", "V6"),
        ("lead aVR (Goldberger)", "aVR"),
        ("MLII", "MLII"),
        ("ECG 1", "ECG 1"),
    ],
)
def test_names(text, name):
    assert lead_name(text) == name


def test_leads_are_taken_by_name():
    ecg = beats()
    shuffled = beats(leads=tuple(reversed(MIMIC_LEADS)))
    np.testing.assert_array_equal(with_leads(shuffled).signal, ecg.signal)
    swapped = with_leads(ecg, MIMIC_LEADS).signal
    np.testing.assert_array_equal(swapped[[4, 5]], ecg.signal[[5, 4]])


def test_limb_leads_follow_from_two():
    whole = beats()
    part = beats(leads=("II", "V1", "V2", "V3", "V4", "V5", "V6", "I"))
    assert missing_leads(part) == ()
    np.testing.assert_allclose(with_leads(part).signal, whole.signal, atol=1e-6)


def test_missing_leads_are_named():
    part = beats(leads=("I", "V1", "V2"))
    assert missing_leads(part) == ("II", "III", "aVR", "aVL", "aVF", "V3", "V4", "V5", "V6")
    assert "II, III, aVR" in reason(ECGProcessor(), part)
    found = ECGProcessor(missing="zero")(part)
    assert found.shape == (12, 1000)
    assert [LEADS[row] for row in found.abs().amax(1).nonzero()[:, 0]] == ["I", "V1", "V2"]
    vectors = ECG(np.zeros((3, 50), np.float32), RATE, ("vx", "vy", "vz"))
    assert "no standard lead (there are vx, vy, vz)" in reason(with_leads, vectors)


def test_no_ecg():
    assert "0 Hz" in reason(ECG, np.zeros((1, 9), np.float32), 0.0, ("I",))
    assert "2 names" in reason(ECG, np.zeros((1, 9), np.float32), RATE, ("I", "II"))
    assert "without samples" in reason(ECG, np.zeros((1, 0), np.float32), RATE, ("I",))
    assert "of one name (I)" in reason(ECG, np.zeros((2, 9), np.float32), RATE, ("I", "I"))


# Gaps, rates ------------------------------------------------------------------------------------------------------


def test_short_gaps_are_bridged_and_long_ones_marked():
    signal = np.tile(np.arange(100, dtype=np.float32), (3, 1))
    signal[0, 10:15] = signal[1, 40:80] = signal[2] = np.nan
    signal[0, :3] = np.nan
    found, believed = filled(signal, 100, longest=0.1)
    np.testing.assert_allclose(found[0, 3:], np.arange(3, 100), atol=1e-5)
    assert believed[0, 3:].all()
    assert not believed[0, :3].any()
    assert not believed[1, 40:80].any()
    assert not found[1, 40:80].any()
    assert not believed[2].any()
    assert np.isfinite(found).all()


def test_dead_leads():
    ecg = beats(200)
    signal = ecg.signal.copy()
    signal[2], signal[7] = 0.5, np.nan
    dead = ECG(signal, RATE)
    assert dead.dead_leads == ("III", "V2")
    processed = ECGProcessor(rate=100, seconds=0.4)(dead)
    assert not processed[[2, 7]].any()
    official = ECGProcessor(rate=100, seconds=0.4, official=True, remove_baseline=False)(dead)
    assert (official[7] == -1).all()


@pytest.mark.parametrize("rate", [100, 257, 360, 1000])
def test_a_wave_is_the_same_at_any_rate(rate):
    wave = np.sin(2 * np.pi * 3 * np.arange(10 * rate) / rate)[None].astype(np.float32)
    found = resampled(wave, rate, 500)
    expected = np.sin(2 * np.pi * 3 * np.arange(5000) / 500)
    assert found.shape == (1, 5000)
    assert np.abs(found[0] - expected)[250:-250].max() < 5e-3


def test_the_processor_forgets_rates_and_lengths():
    processor = ECGProcessor()
    fast, slow = processor(beats(5000, 500)), processor(beats(2500, 250))
    assert fast.shape == slow.shape == (12, 1000)
    assert fast.dtype == torch.float32
    assert (fast - slow)[:, 50:-50].abs().max() < 0.05
    assert processor(beats(20000, 500)).shape == (12, 1000)
    short = ECGProcessor(remove_baseline=False, scale="none")(beats(2500, 500))
    assert not short[:, 500:].any()
    assert processor(processor.example()).isfinite().all()


def test_scales():
    ecg = beats()
    each, together, plain = (ECGProcessor(scale=scale, remove_baseline=False)(ecg) for scale in ("lead", "all", "none"))
    assert torch.allclose(each.amax(1), torch.ones(12))
    assert together.abs().max() == 1
    assert torch.allclose(together * plain.abs().max(), plain, atol=1e-6)
    assert "scale is one of lead, all, none" in reason(ECGProcessor, scale="z", error=ValueError)


def test_the_baseline_goes_at_every_rate():
    for rate in (100, 257, 500):
        moments = np.arange(10 * rate) / rate
        drift = (0.5 * moments)[None].astype(np.float32)
        assert np.abs(without_baseline(drift, rate)[:, rate:-rate]).max() < 0.02


# WFDB -------------------------------------------------------------------------------------------------------------


def test_a_record_in_microvolts(tmp_path):
    ecg = beats(500)
    found = read_wfdb(record(tmp_path, ecg, unit="uV"))
    np.testing.assert_allclose(found.signal, ecg.signal, atol=5e-3)
    part = read_wfdb(tmp_path / "rec.hea", 100, 200)
    np.testing.assert_array_equal(part.signal, found.signal[:, 100:200])


def test_what_is_no_voltage_is_left_out(tmp_path):
    both = ECG(np.ones((2, 100), np.float32), RATE, ("II", "ABP"))
    path = record(tmp_path, both)
    header = path.with_suffix(".hea")
    header.write_text(header.read_text().replace("/mV 16 0 200 20000 0 ABP", "/mmHg 16 0 200 20000 0 ABP"))
    assert "mmHg" in header.read_text()
    assert read_wfdb(path).leads == ("II",)
    header.write_text(header.read_text().replace("/mV", "/NU"))
    assert "none of them a voltage" in reason(read_wfdb, path)


def test_channels_of_one_name(tmp_path):
    path = record(tmp_path, ECG(np.ones((3, 100), np.float32), RATE, ("one", "two", "three")))
    header = path.with_suffix(".hea")
    text = header.read_text()
    header.write_text(text.replace(" one", " ECG").replace(" two", " ECG").replace(" three", " V1"))
    assert read_wfdb(path).leads == ("ECG", "ECG (2)", "V1")
    header.write_text(text.replace(" one", " V1").replace(" two", " v1"))
    assert "leads of one name (V1)" in reason(read_wfdb, path)


def test_bad_records(tmp_path):
    path = record(tmp_path, beats(500))
    assert "rec has 500 samples; 900 to 950 were asked for" in reason(read_wfdb, path, 900, 950, error=ValueError)
    assert "There is no header nobody.hea" in reason(read_wfdb, tmp_path / "p1" / "nobody", error=FileNotFoundError)
    signal, header = path.with_suffix(".dat"), path.with_suffix(".hea")
    data, text = signal.read_bytes(), header.read_text()
    signal.write_bytes(data[: len(data) // 2])
    assert "rec: " in reason(read_wfdb, path)
    signal.unlink()
    assert "rec.hea names a signal file" in reason(read_wfdb, path, error=FileNotFoundError)
    header.write_text("rec x y\n")
    assert "damaged WFDB header" in reason(read_wfdb, path)
    header.write_text("rec 0 500 0\n")
    assert "lists no signal" in reason(read_wfdb, path)
    header.write_text(text.replace("rec 12 500 500", "rec 12 500 900000000"))
    assert "read it in pieces" in reason(read_wfdb, path)


def test_a_record_of_bytes_stays_in_its_place(tmp_path):
    path = record(tmp_path, beats(500))
    header, signal = path.with_suffix(".hea").read_bytes(), path.with_suffix(".dat").read_bytes()
    np.testing.assert_array_equal(decode_wfdb(header, signal).signal, read_wfdb(path).signal)
    outside = header.replace(b"rec.dat", b"../rec.dat")
    assert "another folder" in reason(decode_wfdb, outside, signal)
    two = header.replace(b"rec.dat", b"other.dat", 1)
    assert "2 signal files" in reason(decode_wfdb, two, signal)


def test_comments_reach_no_sample(tmp_path):
    record(tmp_path, beats(500), comments=["Age: 64", "Name: JANE DOE"])
    sample = open_records(str(tmp_path)).read(0)
    assert set(sample) == {"__key__", "__source__", "ecg.npz"}
    assert b"DOE" not in b"".join(value for value in sample.values() if isinstance(value, bytes))
    assert "DOE" not in str(decode("ecg.npz", sample["ecg.npz"]).__dict__)


def test_records_of_a_folder_a_table_and_pairs_of_bytes(tmp_path):
    first, second = record(tmp_path, beats(500), "a"), record(tmp_path, beats(500, leads=MIMIC_LEADS), "b")
    (tmp_path / "table.csv").write_text("file,text\na.hea,one\nb.hea,two\n")
    folder, table = (open_source(f"wfdb:{spec}") for spec in (tmp_path, tmp_path / "table.csv"))
    assert [folder.read(place)["__key__"] for place in range(len(folder))] == ["a", "b"]
    sample = table.read(1)
    assert "hea" not in sample
    assert sample["txt"] == "two"
    assert table.peek(1, ["txt"])["txt"] == "two"
    np.testing.assert_array_equal(decode_ecg(sample["ecg.npz"]).signal, read_wfdb(second).signal)
    row = Preparation({"ecg": ECGProcessor(seconds=1)})(sample)
    torch.testing.assert_close(row["ecg"], ECGProcessor(seconds=1)(read_wfdb(second)))
    first.with_suffix(".dat").unlink()
    with pytest.raises(CorruptSample, match="missing file"):
        folder.read(0)


# Arrays -----------------------------------------------------------------------------------------------------------


def test_arrays_either_way_round():
    ecg = beats(500)
    for array in (ecg.signal, ecg.signal.T.astype(np.float64)):
        np.testing.assert_array_equal(read_ecg((array, RATE)).signal, ecg.signal)
        np.testing.assert_array_equal(read_ecg(array, array_rate=RATE).signal, ecg.signal)


def test_bad_arrays():
    signal = beats(500).signal
    assert "does not tell its rate" in reason(read_ecg, signal, error=ValueError)
    assert "500 Hz, and array_rate is 100" in reason(read_ecg, (signal, 500), array_rate=100, error=ValueError)
    assert "in no unit" in reason(read_ecg, (signal.astype(np.int16), RATE))
    assert "divide microvolts by 1000" in reason(read_ecg, (signal * 1000, RATE))
    assert "(12, T) or (T, 12)" in reason(read_ecg, (signal[:5], RATE))
    assert "does not tell" in reason(read_ecg, (np.zeros((12, 12)), RATE))
    assert "got a list" in reason(read_ecg, [1, 2], error=TypeError)


def test_npz_and_npy_files(tmp_path):
    ecg = beats(500, leads=MIMIC_LEADS)
    (tmp_path / "x.npz").write_bytes(encode_ecg(ecg))
    np.save(tmp_path / "x.npy", ecg.signal)
    assert read_ecg(tmp_path / "x.npz").leads == MIMIC_LEADS
    assert read_ecg(tmp_path / "x.npy", RATE).rate == RATE
    assert encode_ecg(ecg) == encode_ecg(ecg)
    assert extensions_of("ecg") == ("ecg.npz", "ecg.npy", "ecg.dcm")
    damaged = (tmp_path / "x.npz").read_bytes()[:-50]
    assert "damaged array" in reason(decode, "ecg.npz", damaged)
    with open(tmp_path / "y.npz", "wb") as file:
        np.savez(file, signal=ecg.signal)
    assert "needs `signal`, `rate` and `leads`" in reason(read_ecg, tmp_path / "y.npz")


# Augmentation -----------------------------------------------------------------------------------------------------


def test_leads_stay_together_unless_they_are_not_to():
    ecg = ECG(np.tile(np.random.RandomState(0).randn(1000).astype(np.float32), (12, 1)), 100)
    processor = ECGProcessor(scale="none", remove_baseline=False)
    torch.manual_seed(0)
    for options in ({"warp": 1.0, "permute": 0.0}, {"warp": 0.0, "permute": 1.0}):
        found = ECGAugmentation(**options)(ecg, processor)
        assert found.shape == (12, 1000)
        assert (found == found[:1]).all()
        assert not torch.equal(found, processor(ecg))
        apart = ECGAugmentation(**options, independent=True)(ecg, processor)
        assert not (apart == apart[:1]).all()
    assert torch.equal(ECGAugmentation(0, 0)(ecg, processor), processor(ecg))
    assert "together at most 1" in reason(ECGAugmentation, 0.7, 0.7, error=ValueError)


def test_a_change_of_nothing():
    signal = torch.randn(2, 1003)
    assert torch.equal(permuted(signal, torch.arange(4).expand(2, -1)), signal)
    assert warped(signal, torch.tensor([[0, 1], [2, 3]])).shape == signal.shape


# Real records -----------------------------------------------------------------------------------------------------


def test_real_records(shared_data):
    folder = shared_data / "medical_ecg_12lead" / "records"
    paths = sorted(folder.glob("*.hea"))
    processor = ECGProcessor()
    for path in paths[:5]:
        ecg = read_wfdb(path)
        assert (ecg.signal.shape, ecg.rate) == ((12, 5000), 500)
        limbs = dict(zip(ecg.leads, ecg.signal, strict=True))
        np.testing.assert_allclose(limbs["II"] - limbs["I"], limbs["III"], atol=0.02)
        found = processor(path)
        assert found.isfinite().all()
        assert found.abs().max() <= 1
    samples = shared_data / "medical_wfdb_samples"
    fifteen = read_wfdb(samples / "s0010_re")
    assert missing_leads(fifteen) == ()
    assert with_leads(fifteen).leads == LEADS
    assert read_wfdb(samples / "03700181").leads == ("MCL1", "RESP")  # ABP is in mmHg
