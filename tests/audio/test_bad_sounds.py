"""Sounds as they come: every rate, depth and channel count trains; what is damaged is counted, named, and replaced."""

import io
import sys
import warnings

import numpy as np
import pytest
import soundfile
import torch
from lightning.pytorch import Trainer

from collimate.data import DataModule
from collimate.processing import ClassLabels
from collimate_audio import AudioClassifier, BEATs, FilterBank, Mixup, SoundAugmentation, SpectrogramMasks

from .beats_toys import ENCODER

RATE = 16_000


def tone(seconds=0.5, rate=RATE, channels=1):
    time = np.arange(round(seconds * rate)) / rate
    wave = 0.4 * np.sin(2 * np.pi * 440 * time)
    return wave if channels == 1 else np.repeat(wave[:, None], channels, 1)


def file_of(sound, rate=RATE, format="WAV", subtype=None):
    held = io.BytesIO()
    soundfile.write(held, sound, rate, format=format, subtype=subtype)
    return held.getvalue()


FLAC = file_of(tone(2.0), format="FLAC")
GOOD = {
    "plain.wav": file_of(tone()),
    "silent.wav": file_of(np.zeros(RATE // 2)),
    "short.wav": file_of(tone(0.01)),  # less than one window
    "one_sample.wav": file_of(tone(1 / RATE)),
    "long.wav": file_of(tone(3.0)),
    "8k.wav": file_of(tone(rate=8_000), 8_000),
    "44k.wav": file_of(tone(rate=44_100), 44_100),
    "48k.flac": file_of(tone(rate=48_000), 48_000, "FLAC"),
    "96k.wav": file_of(tone(rate=96_000), 96_000),
    "stereo.wav": file_of(tone(channels=2)),
    "surround.wav": file_of(tone(channels=6)),
    "int24.wav": file_of(tone(), subtype="PCM_24"),
    "bytes.wav": file_of(tone(), subtype="PCM_U8"),
    "float.wav": file_of(tone(), subtype="FLOAT"),
    "double.wav": file_of(tone(), subtype="DOUBLE"),
    "a.ogg": file_of(tone(), format="OGG"),
    "a.mp3": file_of(tone(), format="MP3"),
    "called_flac.flac": file_of(tone()),  # a WAV by its content, which counts
    "called_wav.wav": file_of(tone(), format="FLAC"),
}
BAD = {
    "nan.wav": (file_of(np.full(RATE, np.nan), subtype="FLOAT"), "undecodable audio"),
    "infinite.wav": (file_of(np.full(RATE, np.inf), subtype="FLOAT"), "undecodable audio"),
    "zero_length.wav": (file_of(np.zeros(0)), "undecodable audio"),
    "empty.wav": (b"", "empty file"),
    "truncated.flac": (FLAC[: len(FLAC) // 3], "truncated file"),
    "text.wav": (b"<html>404: not found</html>", "undecodable audio"),
}


def classifier():
    torch.manual_seed(0)
    labels = ClassLabels(["a", "b"], exclusive=True)
    processor = FilterBank(0.3, mel_bands=32)
    return AudioClassifier(BEATs(**ENCODER), labels, processor, mixup=Mixup(), masks=SpectrogramMasks(1, 0.5, 1, 0.5))


def loaders(folder, files, method, **options):
    lines = ["file,label"]
    for number, (name, content) in enumerate(files.items()):
        (folder / name).write_bytes(content)
        lines.append(f"{name},{'ab'[number % 2]}")
    (folder / "manifest.csv").write_text("\n".join(lines) + "\n")
    table = str(folder / "manifest.csv")
    data = DataModule(
        table, table, augmentations={"audio": SoundAugmentation(roll=0)}, batch_size=len(files), **options
    )
    data.trainer = Trainer(logger=False, enable_checkpointing=False, accelerator="cpu", enable_progress_bar=False)
    data.trainer.strategy.connect(method)
    return data


@pytest.mark.filterwarnings("ignore:.*num_workers")
@pytest.mark.parametrize("workers", [0, 1])
def test_every_kind_of_sound_trains_without_a_nan(tmp_path, workers):
    method = classifier()
    data = loaders(tmp_path, GOOD, method, num_workers=workers)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # none of these is out of range
        loader = data.train_dataloader()
        batch = next(loader)
    assert not loader.corrupt
    method.total_loss(method.loss_terms(method.mixup(batch))).backward()
    for name, parameter in method.named_parameters():
        assert parameter.grad.isfinite().all(), name
    for batch in data.val_dataloader():
        assert batch["valid"].all()
        assert batch["audio"].shape == (len(GOOD), round(0.3 * RATE))
        assert method.eval().embed(batch)["logits"].isfinite().all()
    loader.close()


def test_one_tone_is_one_tone_in_whatever_file(tmp_path):
    """Rate, depth, channels and format change the filter bank of a tone by little; another scale would by 20."""
    processor = FilterBank(0.3, mel_bands=32)
    different = {"silent.wav", "short.wav", "one_sample.wav"}
    expected = processor.finish(processor.batch([GOOD["plain.wav"]]))
    band = int(expected.mean((0, 1)).argmax())
    for name in GOOD.keys() - different:
        found = processor.finish(processor.batch([GOOD[name]]))
        assert float((found - expected)[:, 5:-5, band].abs().max()) < 0.05, name


def test_silence_is_quiet_and_no_padding():
    processor = FilterBank(0.3, mel_bands=32)
    batch = processor.batch([GOOD["silent.wav"], GOOD["short.wav"]])
    found, real = processor.finish(batch), processor.mask(batch)
    assert found.isfinite().all()
    assert float(found[0].max()) == pytest.approx(
        (np.log(np.finfo(np.float32).eps) - 15.41663) / (2 * 6.55582), abs=1e-4
    )
    assert real[0].all()
    assert int(real[1].sum()) == 16  # repeated until there is one patch


@pytest.mark.parametrize("name", BAD)
def test_damaged_sounds_are_named_counted_and_replaced(tmp_path, name, caplog):
    content, reason = BAD[name]
    files = {"good.wav": GOOD["plain.wav"], name: content, "other.wav": GOOD["8k.wav"]}
    method = classifier()
    data = loaders(tmp_path, files, method)
    loader = data.train_dataloader()
    batch = next(loader)
    assert len(batch["audio"]) == 3
    assert {found for _, found in loader.corrupt} == {reason}
    assert name in caplog.text
    assert method.embed(batch)["logits"].isfinite().all()
    for batch in data.val_dataloader():
        assert batch["valid"].tolist() == [True, False, True]


def test_labels_that_are_none_spoil_their_sample_only(tmp_path):
    method = classifier()
    data = loaders(tmp_path, {"good.wav": GOOD["plain.wav"], "other.wav": GOOD["8k.wav"]}, method)
    (tmp_path / "manifest.csv").write_text('file,labels\ngood.wav,a\nother.wav,"a,b"\ngood.wav,\ngood.wav,b\n')
    found = {}
    for batch in data.val_dataloader():
        found |= dict(zip(batch["index"].tolist(), batch["valid"].tolist(), strict=True))
    assert found == {0: True, 1: False, 2: False, 3: True}


def video(path, seconds=0.5, sound=True):
    """A film of a grey picture, with a tone or without."""
    av = pytest.importorskip("av")
    with av.open(str(path), "w") as container:
        pictures = container.add_stream("mpeg4", rate=10)
        pictures.width = pictures.height = 32
        track = container.add_stream("aac", rate=RATE) if sound else None
        for _ in range(round(10 * seconds)):
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 128, np.uint8))
            container.mux(pictures.encode(frame))
        container.mux(pictures.encode())
        if track is not None:
            frame = av.AudioFrame.from_ndarray(tone(seconds).astype(np.float32)[None], "fltp", "mono")
            frame.rate = RATE
            container.mux(track.encode(frame))
            container.mux(track.encode())
    return path


def test_the_sound_of_a_video(tmp_path):
    processor = FilterBank(0.3, mel_bands=32)
    path = video(tmp_path / "film.mp4")
    plain = processor.finish(processor.batch([GOOD["plain.wav"]]))
    for raw in (path, path.read_bytes()):
        found = processor.finish(processor.batch([raw]))
        assert int(found.mean((0, 1)).argmax()) == int(plain.mean((0, 1)).argmax())


def test_a_video_without_sound_is_a_corrupt_sample(tmp_path):
    path = video(tmp_path / "silent_film.mp4", sound=False)
    files = {"good.wav": GOOD["plain.wav"], "film.mp4": path.read_bytes()}
    loader = loaders(tmp_path, files, classifier()).train_dataloader()
    assert len(next(loader)["audio"]) == 2
    assert {reason for _, reason in loader.corrupt} == {"no sound in the file"}


def test_a_video_that_was_opened_for_its_frames_is_heard_too(tmp_path):
    from collimate_video import Video

    path = video(tmp_path / "film.mp4")
    assert torch.equal(FilterBank(0.3)(Video(path.read_bytes())), FilterBank(0.3)(path))


def test_without_pyav_containers_say_what_is_missing(tmp_path, monkeypatch):
    path = video(tmp_path / "film.mp4")
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ValueError, match="install `av`"):
        FilterBank(0.3)(path)


DIGITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
INSTRUMENTS = "audio_instruments10/manifest.csv?columns={cls: label}"


@pytest.mark.parametrize(
    ("train", "names"),
    [("audio_fsdd/train-{000000..000001}.tar", DIGITS), (f"{INSTRUMENTS}&split=train", INSTRUMENTS)],
    ids=["digits", "instruments"],
)
def test_real_sounds_train(shared_data, train, names):
    """Spoken digits at 8 kHz in shards, drawn in balance; instruments of 0.3 to 5 s in a table."""
    torch.manual_seed(0)
    labels = ClassLabels(f"{shared_data}/{names}" if isinstance(names, str) else names, exclusive=True)
    assert len(labels) == 10
    method = AudioClassifier(BEATs(**ENCODER), labels, FilterBank(0.5, mel_bands=32))
    data = DataModule(
        f"{shared_data}/{train}", augmentations={"audio": SoundAugmentation()}, batch_size=16, balanced=True
    )
    data.trainer = Trainer(logger=False, enable_checkpointing=False, accelerator="cpu")
    data.trainer.strategy.connect(method)
    loader = data.train_dataloader()
    batch = next(loader)
    assert not loader.corrupt
    assert batch["labels"].sum(1).eq(1).all()
    assert method.total_loss(method.loss_terms(batch)).isfinite()
