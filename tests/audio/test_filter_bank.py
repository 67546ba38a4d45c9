"""The filter bank: Kaldi's numbers for whole batches, and every kind of sound that it may be given."""

import io

import numpy as np
import pytest
import soundfile
import torch
import torchaudio

from collimate.data import open_source
from collimate.data.decoding import extensions_of, naming, value_of
from collimate.data.loading import TrainLoader
from collimate.data.mixture import Mixture
from collimate.data.preparation import TrainingPreparation
from collimate.data.source import CorruptSample
from collimate_audio import FilterBank
from collimate_audio.filter_bank import MEAN, SCALE, STD, filter_bank
from collimate_audio.reading import resampled

RATE = 16_000


def sound(seconds=1.0, rate=RATE, hertz=440.0):
    return (0.3 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def encoded(samples, rate=RATE, kind="FLAC"):
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=kind)
    return file.getvalue()


def unpadded(waveform):
    return waveform[~waveform.isnan()]


def test_what_evaluation_made_serves_training():
    """Tables are made once a process; one that was made in inference mode could not be trained with."""
    with torch.inference_mode():
        filter_bank(torch.randn(1, 4_000), 16_000, 17)
    waveforms = torch.randn(1, 4_000, requires_grad=True)
    filter_bank(waveforms, 16_000, 17).sum().backward()
    assert waveforms.grad is not None


@pytest.mark.parametrize(("rate", "bands", "samples"), [(16_000, 128, 7_777), (16_000, 64, 400), (8_000, 40, 4_001)])
def test_kaldi(rate, bands, samples):
    waveforms = torch.randn(3, samples, generator=torch.Generator().manual_seed(0)) * 0.2
    expected = [
        torchaudio.compliance.kaldi.fbank(
            waveform[None] * SCALE,
            num_mel_bins=bands,
            sample_frequency=rate,
            frame_length=25,
            frame_shift=10,
            dither=0.0,
        )
        for waveform in waveforms
    ]
    torch.testing.assert_close(filter_bank(waveforms, rate, bands), torch.stack(expected), rtol=0, atol=5e-4)


def test_the_default_dither_of_kaldi_is_none():
    waveform = torch.from_numpy(sound())[None] + 1e-3 * torch.randn(1, RATE, generator=torch.Generator().manual_seed(0))
    expected = torchaudio.compliance.kaldi.fbank(waveform * SCALE, num_mel_bins=128, sample_frequency=RATE)
    torch.testing.assert_close(filter_bank(waveform)[0], expected, rtol=0, atol=3e-3)


def formula(waveforms):
    """The equations one by one, in double precision."""
    frames = (waveforms.double() * SCALE).unfold(-1, 400, 160)
    frames = frames - frames.mean(-1, keepdim=True)
    frames = frames - 0.97 * torch.cat([frames[..., :1], frames[..., :-1]], -1)
    spectrum = torch.fft.rfft(frames * torch.hann_window(400, periodic=False, dtype=torch.float64).pow(0.85), 512)
    bands, _ = torchaudio.compliance.kaldi.get_mel_banks(128, 512, RATE, 20.0, 0.0, 100.0, -500.0, 1.0)
    bands = torch.nn.functional.pad(bands, (0, 1)).T.double()
    return (spectrum.abs().square() @ bands).clamp_min(torch.finfo(torch.float32).eps).log()


@pytest.mark.parametrize("offset", [0.0, 0.4])
@pytest.mark.parametrize("loudness", [0.2, 1e-3])
def test_no_further_from_the_formula_than_kaldi(offset, loudness):
    """Also for pure tones and large means, where most bands hold little but rounding."""
    noise = torch.randn(2, RATE, generator=torch.Generator().manual_seed(0))
    waveforms = torch.cat([noise, torch.from_numpy(sound())[None]]) * loudness + offset
    expected = formula(waveforms)
    kaldi = torch.stack(
        [
            torchaudio.compliance.kaldi.fbank(waveform[None] * SCALE, num_mel_bins=128, dither=0.0)
            for waveform in waveforms
        ]
    )
    ours, theirs = (filter_bank(waveforms) - expected).abs(), (kaldi - expected).abs()
    assert ours.mean() < 1.5 * theirs.mean() + 1e-5
    assert (ours.amax((1, 2)) < 2 * theirs.amax((1, 2)) + 1e-3).all()


@pytest.mark.parametrize("count", [1, 3, 40])
def test_batches_are_cut_without_a_trace(count, monkeypatch):
    waveforms = torch.randn(count, 3000, generator=torch.Generator().manual_seed(0))
    whole = filter_bank(waveforms)
    monkeypatch.setattr("collimate_audio.filter_bank.CPU_ROWS", 40)
    torch.testing.assert_close(filter_bank(waveforms), whole, rtol=0, atol=1e-4)


def test_gradients_reach_the_waveform():
    waveforms = torch.randn(2, 700, generator=torch.Generator().manual_seed(0), requires_grad=True)
    weights = torch.randn(2, 2, 128, generator=torch.Generator().manual_seed(1))
    (filter_bank(waveforms) * weights).sum().backward()
    exact = waveforms.detach().double().requires_grad_()
    (formula(exact) * weights).sum().backward()
    error = (waveforms.grad - exact.grad).norm() / exact.grad.norm()
    assert error < 1e-3


def test_silence_is_the_floor_and_no_padding():
    processor = FilterBank(1.0)
    batch = processor.batch([np.zeros(RATE, np.float32)])
    bank = processor.finish(batch)
    assert bank.shape == (1, 98, 128)
    torch.testing.assert_close(bank, torch.full_like(bank, (np.log(1.1920929e-07) - MEAN) / (2 * STD)))
    assert processor.mask(batch).all()


def test_autocast_leaves_float32():
    waveforms = torch.from_numpy(sound())[None]
    with torch.autocast("cpu", torch.bfloat16):
        found = filter_bank(waveforms)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, filter_bank(waveforms), rtol=0, atol=0)


def test_padding_changes_no_frame():
    processor = FilterBank(1.0)
    batch = processor.batch([sound(0.6), sound(1.0)])
    bank, mask = processor.finish(batch), processor.mask(batch)
    alone = filter_bank(torch.from_numpy(sound(0.6))[None])
    assert mask.sum(1).tolist() == [alone.shape[1], 98]
    torch.testing.assert_close(bank[0, mask[0]], (alone[0] - MEAN) / (2 * STD))
    assert bank.isfinite().all()


def test_trimming_loses_no_frame_and_little_of_sorted_clips_is_padding():
    processor = FilterBank(10.0)
    batch = processor.batch([sound(0.6), sound(1.0)])
    short = processor.trimmed(batch)
    assert RATE <= short.shape[1] < RATE + 2560
    mask = processor.mask(short)
    assert torch.equal(mask.sum(1), processor.mask(batch).sum(1))
    torch.testing.assert_close(processor.finish(short)[mask], processor.finish(batch)[processor.mask(batch)])
    assert processor.trimmed(processor.batch([sound(11.0)])).shape == (1, 10 * RATE)

    source = open_source("world-sound:train?seconds=1-10&length=400&rate=8000")
    stream = TrainLoader(
        Mixture([source]), TrainingPreparation({"audio": FilterBank(10.0, 8000)}), 8, bucket_batches=16
    )
    waveforms = [next(stream)["audio"] for _ in range(16)]
    share = sum(int(each.isnan().sum()) for each in waveforms) / sum(each.numel() for each in waveforms)
    assert share < 0.1


def test_the_official_rule_is_another():
    exact, official = FilterBank(1.0), FilterBank(1.0, padding="official")
    batch = exact.batch([sound(0.6)])
    assert int(official.mask(batch).sum()) > int(exact.mask(batch).sum())


@pytest.mark.parametrize("kind", ["FLAC", "WAV", "OGG"])
def test_files(tmp_path, kind):
    data = encoded(sound(), kind=kind)
    path = tmp_path / f"sound.{kind.lower()}"
    path.write_bytes(data)
    processor = FilterBank(1.0)
    for raw in (data, path, str(path)):
        torch.testing.assert_close(
            processor(raw), torch.from_numpy(sound()), rtol=0, atol=0.02 if kind == "OGG" else 1e-4
        )


def test_integers_count_from_their_range():
    whole = (sound() * 2**15).astype(np.int16)
    processor = FilterBank(1.0)
    expected = torch.from_numpy(whole.astype(np.float32) / 2**15)
    torch.testing.assert_close(processor(whole), expected)
    torch.testing.assert_close(processor(whole.astype(np.int32) * 2**16), expected)
    torch.testing.assert_close(processor((whole // 256 + 128).astype(np.uint8)), expected, rtol=0, atol=1 / 128)


def test_channels_become_one_and_rates_one():
    processor = FilterBank(1.0)
    left, right = sound(), sound(hertz=200.0)
    torch.testing.assert_close(processor(np.stack([left, right])), torch.from_numpy((left + right) / 2))
    torch.testing.assert_close(
        processor(encoded(np.stack([left, right], 1))), processor(np.stack([left, right])), atol=1e-4, rtol=0
    )
    found = unpadded(processor((sound(rate=44_100), 44_100)))
    assert len(found) == RATE
    torch.testing.assert_close(found[500:-500], torch.from_numpy(sound())[500:-500], rtol=0, atol=1e-2)


@pytest.mark.parametrize(("rate", "wanted"), [(8000, 16_000), (11_025, 32_000), (22_050, 48_000), (96_000, 16_000)])
def test_usual_rates_are_resampled_exactly(rate, wanted):
    found = torch.from_numpy(sound(rate=rate))
    expected = torchaudio.functional.resample(found, rate, wanted)
    torch.testing.assert_close(resampled(found, rate, wanted), expected, rtol=0, atol=0)


def test_odd_rates_are_resampled_by_the_nearest_ratio():
    found = resampled(torch.from_numpy(sound(rate=47_999)), 47_999, RATE)
    assert abs(len(found) - RATE) <= 1
    torch.testing.assert_close(found[500:15_500], torch.from_numpy(sound())[500:15_500], rtol=0, atol=0.03)


def test_short_sounds_repeat_to_one_patch_and_long_ones_are_cut():
    processor = FilterBank(0.5)
    short = unpadded(processor(sound(0.05)))
    assert len(short) == 2800
    assert torch.equal(short[:800], short[800:1600])
    assert torch.equal(processor(sound(3.0)), torch.from_numpy(sound(3.0))[:8000])
    one = processor.batch([np.ones(1, np.float32)])
    assert processor.finish(one).isfinite().all()
    assert int(processor.mask(one).sum()) == 16


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (np.zeros(0, np.float32), "holds no sample"),
        (np.array([0.0, np.nan] * 4000, np.float32), "NaN or infinity"),
        (np.array([0.0, np.inf] * 4000, np.float32), "NaN or infinity"),
        (np.zeros((RATE, 2), np.float32), "channels last"),
        (np.zeros((1, 2, RATE), np.float32), "channels, samples"),
        (b"this is no sound at all", "no sound|needs PyAV"),
        (b"", "empty file"),
        ((np.zeros(RATE, np.float32), 352_000_000), "352000000 samples a second; expected 100 to 400000"),
        ((np.zeros(RATE, np.float32), 0), "0 samples a second"),
    ],
)
def test_bad_sounds(raw, message):
    with pytest.raises(ValueError, match=message):
        FilterBank(1.0)(raw)


def test_truncated_flac():
    data = encoded(np.random.default_rng(0).normal(size=4 * RATE).astype(np.float32).clip(-1, 1) * 0.5)
    with pytest.raises(ValueError, match=r"truncated|cannot read"):
        FilterBank(1.0)(data[: len(data) // 2])


def test_samples_of_a_data_set():
    """Sound under any of its keys; what is damaged is a corrupt sample, which streams pass over."""
    extensions = extensions_of("audio")
    processor = FilterBank(1.0)
    for extension, kind in (("flac", "FLAC"), ("wav", "WAV"), ("ogg", "OGG")):
        sample = {"__key__": "0", extension: encoded(sound(), kind=kind)}
        assert processor(value_of(sample, extensions)).shape == (RATE,)
    with pytest.raises(CorruptSample, match="3"), naming({"__key__": "3"}, "audio"):
        processor(b"this is no sound at all")


def test_missing_files_and_wrong_types(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.wav"):
        FilterBank(1.0)(tmp_path / "nowhere.wav")
    with pytest.raises(TypeError, match="a dict"):
        FilterBank(1.0)({"array": 1})
    with pytest.raises(TypeError, match="bool"):
        FilterBank(1.0)(np.ones(RATE, bool))


def test_floats_that_are_integers_are_noticed():
    with pytest.warns(UserWarning, match="divide it by 32768"):
        FilterBank(1.0)(sound() * 2**15)


def test_too_short():
    with pytest.raises(ValueError, match=r"0\.175 s"):
        FilterBank(0.1)
    with pytest.raises(ValueError, match="shorter than one frame"):
        filter_bank(torch.zeros(1, 399))


def test_real_sounds(shared_data):
    paths = sorted((shared_data / "audio_captions_mixed" / "audio").iterdir())
    if not paths:
        pytest.skip("no sounds in audio_captions_mixed")
    processor = FilterBank(2.0)
    batch = processor.batch(paths[:4])
    bank = processor.finish(batch)[processor.mask(batch)]
    assert bank.isfinite().all()
    assert -2.5 < float(bank.mean()) < 2.5
