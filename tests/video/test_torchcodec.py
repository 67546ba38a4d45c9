"""torchcodec as the decoder: the frames of PyAV, or PyAV itself, and never another frame unsaid.

What needs torchcodec runs where it and FFmpeg's shared libraries are installed. The choice, and what becomes of a
decoder that errs, are tested with one that is made here.
"""

import io
import pickle
import re
import sys
import types
import warnings
from typing import ClassVar

import av
import numpy as np
import pytest
import torch

from collimate.data.decoding import Undecodable
from collimate.processing import ImageProcessor
from collimate_video import Video, VideoProcessor, by_torchcodec
from collimate_video.reading import DECODER_VARIABLE, Framing

from .films import film, number_of

VP9 = {"kind": "webm", "codec": "libvpx-vp9"}
LATE = {"frames": 7, "times": [2.5 + time for time in (0, 0.1, 0.2, 0.9, 1.0, 1.8, 3.0)]}
KINDS = {
    "vp9": VP9,
    "vp9 of key frames": {**VP9, "key_every": 1},
    "vp9 of one key frame": {**VP9, "key_every": 60},
    "vp9 with hidden frames": {**VP9, "auto-alt-ref": "1", "lag-in-frames": "16"},
    "vp9 with sound": {**VP9, "sound": (0, 3)},
    "vp9 in mp4": {**VP9, "kind": "mp4"},
    "vp9 in mkv, late and of variable rate": {**VP9, "kind": "mkv", **LATE},
    "vp9 in mp4, late and of variable rate": {**VP9, "kind": "mp4", **LATE},
    "vp9, a quarter turn": {**VP9, "kind": "mp4", "rotation": 90},
    "vp9, half a turn": {**VP9, "kind": "mkv", "rotation": 180},
    "vp9, three quarters": {**VP9, "kind": "mp4", "rotation": 270},
    "vp9 of odd sides": {**VP9, "size": (49, 65)},
    "vp9 with alpha": {**VP9, "pixels": "yuva420p"},
    "vp8": {"kind": "webm", "codec": "libvpx"},
    "av1": {"codec": "libsvtav1"},  # its frames are decoded in another order than they are shown
    "av1 of 10 bits": {"kind": "mkv", "codec": "libsvtav1", "pixels": "yuv420p10le", "key_every": 16},
}
OTHERS = {
    "h264": {},
    "hevc": {"codec": "libx265", "x265-params": "log-level=none"},
    "avi": {"kind": "avi", "codec": "libvpx"},
}


@pytest.fixture(autouse=True)
def loads_anew():
    by_torchcodec.load.cache_clear()
    yield
    by_torchcodec.load.cache_clear()


@pytest.fixture
def torchcodec():
    """Skip where it does not work."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        if by_torchcodec.load() is None:
            pytest.skip(str(told[-1].message))


@pytest.fixture
def only_torchcodec(torchcodec, monkeypatch):
    """Have no frame decoded by PyAV, so that it cannot stand in unseen."""
    monkeypatch.setattr("collimate_video.reading._decoded", lambda *_: pytest.fail("PyAV was asked"))


class FakeDecoder:
    """Grey frames, as bright as their number; `faults` says what is wrong with it."""

    faults: ClassVar[dict] = {}
    opened: ClassVar[list] = []

    def __init__(self, source, **_):
        self.opened.append(source)
        if "opens" in self.faults:
            raise self.faults["opens"]

    def __len__(self):
        return 8 + self.faults.get("more", 0)

    def get_frame_at(self, index):
        if "decodes" in self.faults:
            raise self.faults["decodes"]
        pixels = torch.full((3, 48, 64), index, dtype=torch.uint8)
        return types.SimpleNamespace(data=pixels, pts_seconds=index / 10 + self.faults.get("late", 0))


@pytest.fixture
def fake(monkeypatch):
    """A torchcodec that is installed, whose frames are no film's."""

    def installed(**faults):
        decoder = type("VideoDecoder", (FakeDecoder,), {"faults": faults, "opened": []})
        monkeypatch.setitem(sys.modules, "torchcodec", types.ModuleType("torchcodec"))
        monkeypatch.setitem(sys.modules, "torchcodec.decoders", types.SimpleNamespace(VideoDecoder=decoder))
        return decoder

    return installed


def middles(video) -> list[float]:
    return ((video.edges[:-1] + video.edges[1:]) / 2).tolist()


def shown(video) -> list[int]:
    return [number_of(frame.numpy()) for frame in video.frames(middles(video))]


# The choice -------------------------------------------------------------------------------------------------------


def test_pyav_decodes_unless_torchcodec_is_asked_for(monkeypatch, fake):
    monkeypatch.delenv(DECODER_VARIABLE, raising=False)
    decoder = fake()
    data = film(8, **VP9)
    assert shown(Video(data)) == list(range(8))
    assert not decoder.opened
    assert Video(data, "torchcodec").frames([0.35])[0].unique().tolist() == [3]
    monkeypatch.setenv(DECODER_VARIABLE, "torchcodec")
    assert Video(data).frames([0.35])[0].unique().tolist() == [3]
    assert VideoProcessor(2, ImageProcessor(32))(data).flatten(1).unique(dim=1).tolist() == [[0], [4]]
    assert shown(Video(data, "pyav")) == list(range(8))  # what is said in the call goes before the environment
    monkeypatch.setenv(DECODER_VARIABLE, "")
    assert Video(data).decoder == "pyav"


def test_a_decoder_that_there_is_not(monkeypatch):
    with pytest.raises(ValueError, match=r"pyav or torchcodec, not by 'decord'"):
        Video(film(2), "decord")
    monkeypatch.setenv(DECODER_VARIABLE, "Torchcodec")
    with pytest.raises(ValueError, match="'Torchcodec'"):
        Video(film(2))


@pytest.mark.parametrize("kind", OTHERS)
def test_what_torchcodec_would_not_tell_the_damage_of_is_decoded_by_pyav(kind, fake):
    decoder = fake()
    assert shown(Video(film(8, **OTHERS[kind]), "torchcodec")) == list(range(8))
    assert not decoder.opened


@pytest.mark.parametrize(
    "faults",
    [
        {"opens": RuntimeError("Could not open input file")},
        {"opens": ValueError("no stream")},
        {"decodes": RuntimeError("Could not push packet to decoder")},
        {"decodes": IndexError("Invalid frame index")},
        {"more": 1},
        {"late": 0.1},
        {"late": -0.001},  # of the file's clock, one unit
    ],
    ids=["not opened", "no stream", "not decoded", "no such frame", "another count", "the next frame", "close by"],
)
def test_what_torchcodec_refuses_or_mistakes_is_decoded_by_pyav(faults, fake):
    decoder = fake()
    by_torchcodec.load()
    decoder.faults = faults
    video = Video(film(8, **VP9), "torchcodec")
    assert shown(video) == list(range(8))
    tried = len(decoder.opened)
    assert shown(video) == list(range(8))
    assert len(decoder.opened) == tried == 2  # it is not tried again


def test_not_installed_is_said_once(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchcodec", None)
    with pytest.warns(UserWarning, match=r"PyAV decodes videos.*torchcodec.*collimate-video\[torchcodec\]") as told:
        assert [shown(Video(film(4, **VP9), "torchcodec")) for _ in range(2)] == [[0, 1, 2, 3]] * 2
    assert len(told) == 1


def test_installed_without_ffmpeg_is_said_once_with_the_reason(fake):
    fake(opens=RuntimeError("Could not load libtorchcodec. Likely causes:\n  1. FFmpeg is not properly installed"))
    with pytest.warns(UserWarning, match="Could not load libtorchcodec") as told:
        assert [shown(Video(film(4, **VP9), "torchcodec")) for _ in range(2)] == [[0, 1, 2, 3]] * 2
    assert len(told) == 1
    assert "\n" not in str(told[0].message)


def test_the_choice_goes_to_other_processes(fake):
    fake()
    video = pickle.loads(pickle.dumps(Video(film(8, **VP9), "torchcodec")))
    assert video.frames([0.35])[0].unique().tolist() == [3]


# The frames -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("torchcodec")
def test_the_same_frames_in_any_order(kind, monkeypatch):
    data = film(**{"frames": 30, **KINDS[kind]})
    ours = Video(data, "pyav").frames(middles(Video(data)))
    monkeypatch.setattr("collimate_video.reading._decoded", lambda *_: pytest.fail("PyAV was asked"))
    video = Video(data, "torchcodec")
    times = middles(video)
    order = np.random.default_rng(0).permutation(len(times))
    for places in (range(len(times)), order, order[:3], order[3:4]):
        frames = video.frames([times[place] for place in places])
        assert (frames.int() - ours[list(places)].int()).abs().max() <= 2  # another FFmpeg may round otherwise
    if "rotation" not in KINDS[kind]:
        assert shown(video) == list(range(len(times)))


@pytest.mark.usefixtures("only_torchcodec")
def test_a_file_and_its_bytes_are_read_alike(tmp_path):
    data = film(8, **VP9)
    (tmp_path / "film.webm").write_bytes(data)
    from_file = Video(tmp_path / "film.webm", "torchcodec")
    assert shown(from_file) == list(range(8))
    assert shown(Video(str(tmp_path / "film.webm"), "torchcodec")) == shown(Video(data, "torchcodec"))


@pytest.mark.usefixtures("torchcodec")
def test_a_file_that_is_gone(tmp_path):
    (tmp_path / "film.webm").write_bytes(film(8, **VP9))
    video = Video(tmp_path / "film.webm", "torchcodec")
    (tmp_path / "film.webm").unlink()
    with pytest.raises(FileNotFoundError, match="no video"):
        video.frames([0.0])


def coloured(codec: str, width: int, pixels: str) -> bytes:
    """A film of smooth random colours: what two ways to scale differ most in."""
    draws = torch.from_numpy(np.random.default_rng(0).normal(size=(1, 3, 20, 30)).astype(np.float32))
    wide = torch.nn.functional.interpolate(draws, (240, 2 * width), mode="bilinear")[0]
    picture = ((wide - wide.min()) / (wide.max() - wide.min()) * 255).byte().permute(1, 2, 0).numpy()
    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as output:
        stream = output.add_stream(codec, rate=10)
        stream.width, stream.height, stream.pix_fmt = width, 240, pixels
        for place in range(0, width // 2, 40):
            shifted = np.ascontiguousarray(picture[:, place : place + width])
            output.mux(stream.encode(av.VideoFrame.from_ndarray(shifted, format="rgb24")))
        output.mux(stream.encode())
    return file.getvalue()


@pytest.mark.parametrize("width", [320, 328])  # torchcodec converts the colours another way where 32 is no divisor
@pytest.mark.parametrize(("codec", "pixels"), [("libvpx-vp9", "yuv420p"), ("libsvtav1", "yuv420p10le")])
def test_how_far_colours_differ(codec, width, pixels, monkeypatch, torchcodec):
    data = coloured(codec, width, pixels)
    video = Video(data, "pyav")
    times = middles(video)

    def framing(*_):
        return Framing(150, 112, -19, 0, (112, 112))

    whole, small = video.frames(times), video.frames(times, framing)
    monkeypatch.setattr("collimate_video.reading._decoded", lambda *_: pytest.fail("PyAV was asked"))
    other = Video(data, "torchcodec")
    for ours, theirs, mean, most in [
        (whole, other.frames(times), 2, 32),
        (small, other.frames(times, framing), 4, 40),
    ]:
        assert ours.shape == theirs.shape
        difference = (ours.int() - theirs.int()).abs()
        assert difference.float().mean() <= mean
        assert difference.max() <= most
        moved = (ours[:-1].int() - theirs[1:].int()).abs().float().mean()
        assert moved > 5 * difference.float().mean()  # or the bound would let the next frame pass


# What is damaged --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind", [VP9, {**VP9, "key_every": 30}, {"kind": "webm", "codec": "libvpx"}, {"kind": "mkv", "codec": "libsvtav1"}]
)
def test_damage_is_told_as_pyav_tells_it(kind, torchcodec):
    """Of films damaged at random, each frame is PyAV's, or neither gives it."""
    draws = np.random.default_rng(0)
    clean = film(30, size=(96, 128), **kind)
    with av.open(io.BytesIO(clean)) as container:
        packets = [bytes(packet) for packet in container.demux(video=0) if packet.size]
    told = 0
    for _ in range(6):
        data = bytearray(clean)
        packet = packets[draws.integers(len(packets))]
        place, first = clean.find(packet), int(draws.integers(len(packet)))
        data[place + first : place + len(packet)] = draws.bytes(len(packet) - first)
        ours, theirs = (Video(bytes(data), decoder) for decoder in ("pyav", "torchcodec"))
        for time in middles(ours):
            try:
                wanted = ours.frames([time])
            except Undecodable as error:
                told += 1
                with pytest.raises(Undecodable, match=re.escape(str(error))):
                    theirs.frames([time])
                theirs.decoder = "torchcodec"  # and not PyAV from here on
            else:
                assert (theirs.frames([time]).int() - wanted.int()).abs().max() <= 2
    assert told
