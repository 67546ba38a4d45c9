"""Video files: each asked-for frame is the right one, in every container and from any key frame; what is damaged is
told.
"""

import io
import pickle
import re

import av
import numpy as np
import pytest
import torch
from PIL import Image

from collimate.data import Preparation
from collimate.data.decoding import Undecodable, decode, extensions_of, value_of
from collimate.data.source import CorruptSample
from collimate.processing import ImageProcessor
from collimate_video import DecodedVideo, Framing, Video, VideoProcessor, open_video, reading
from collimate_video.reading import VIDEOS

from .films import film, number_of, numbered, only_sound

KINDS = {
    "mp4": {},
    "mp4 without frames between": {"bf": "0"},
    "mp4 of key frames": {"key_every": 1},
    "mp4 with open groups": {"x264-params": "open-gop=1:bframes=3:keyint=8:scenecut=0"},
    "hevc": {"codec": "libx265", "x265-params": "log-level=none"},
    "av1": {"codec": "libsvtav1"},
    "mov": {"kind": "mov"},
    "mkv": {"kind": "mkv"},
    "mkv with sound": {"kind": "mkv", "sound": (0, 3)},
    "webm": {"kind": "webm", "codec": "libvpx-vp9", "sound": (0, 3)},
    "avi": {"kind": "avi", "codec": "mpeg4"},
    "avi with frames between": {"kind": "avi", "codec": "libx264"},
    "mpg": {"kind": "mpg", "codec": "mpeg2video", "rate": 25, "bf": "2"},
    "interlaced": {"kind": "mpg", "codec": "mpeg2video", "rate": 25, "flags": "+ilme+ildct", "size": (64, 64)},
    "mpg of short groups": {"kind": "mpg", "codec": "mpeg2video", "rate": 25, "key_every": 3},
    "10 bits": {"pixels": "yuv420p10le"},
    "alpha": {"kind": "webm", "codec": "libvpx-vp9", "pixels": "yuva420p"},
    "odd sides": {"kind": "mkv", "codec": "ffv1", "pixels": "yuv444p", "size": (49, 65)},
}


@pytest.fixture(params=KINDS, scope="module")
def kept(request) -> Video:
    return Video(film(**KINDS[request.param]))


def shown(video, times) -> list[int]:
    return [number_of(frame.numpy()) for frame in video.frames(times)]


def middles(video) -> np.ndarray:
    return (video.edges[:-1] + video.edges[1:]) / 2


def test_every_frame_in_any_order(kept):
    assert len(kept) == 30
    assert kept.edges[0] == 0
    order = np.random.default_rng(0).permutation(30)
    assert shown(kept, middles(kept)[order]) == order.tolist()


def test_a_few_frames_far_apart(kept):
    assert shown(kept, middles(kept)[[29, 2, 17]]) == [29, 2, 17]
    assert shown(kept, [float(middles(kept)[23])]) == [23]


def test_a_frame_is_shown_from_its_time_on():
    video = Video(film())
    assert shown(video, [0.0, 0.0999, 0.1, 2.9, 2.95]) == [0, 0, 1, 29, 29]
    assert shown(video, [-1.0, 3.0, 100.0]) == [0, 29, 29]  # before the first, and after the last
    assert shown(video, [0.1 * number for number in range(30)]) == list(range(30))  # rounded as floats are


@pytest.mark.parametrize("kind", ["mp4", "mkv"])
def test_variable_rate_and_a_late_start(kind):
    times = [0, 0.1, 0.2, 0.9, 1.0, 1.8, 3.0]
    video = Video(film(7, kind, times=[2.5 + time for time in times]))
    np.testing.assert_allclose(video.edges[:-1], times, atol=1e-3)
    assert video.origin == pytest.approx(2.5, abs=1e-3)
    assert shown(video, [0.85, 0.95, 1.75, 2.9, 3.1]) == [2, 3, 4, 5, 6]


@pytest.mark.parametrize("frames_between", ["0", "3"])  # where there are some, a key frame is shown after its time
def test_only_what_lies_between_is_decoded(monkeypatch, frames_between):
    video = Video(film(64, key_every=8, bf=frames_between))
    seen = []

    def counting(container, stream, wanted, stamped=reading._stamped):
        for frame in stamped(container, stream, wanted):
            seen.append(frame.pts)
            yield frame

    monkeypatch.setattr("collimate_video.reading._stamped", counting)
    assert shown(video, middles(video)[[3, 59]]) == [3, 59]
    assert len(seen) <= (3 + 1) + (59 - 56 + 1)


@pytest.mark.parametrize("codec", ["libx264", "libx265"])
def test_frames_on_which_no_other_rests_are_not_decoded_unless_wanted(monkeypatch, codec):
    options = {"x265-params": "log-level=none"} if codec == "libx265" else {}
    video = Video(film(64, codec=codec, key_every=64, **options))
    seen = []

    def counting(container, stream, wanted, stamped=reading._stamped):
        for frame in stamped(container, stream, wanted):
            seen.append(frame.pts)
            yield frame

    monkeypatch.setattr("collimate_video.reading._stamped", counting)
    for place in (40, 41, 42, 43, 63):
        seen.clear()
        assert shown(video, [middles(video)[place]]) == [place]
        assert len(seen) < 0.75 * place


def test_one_frame():
    video = Video(film(1))
    assert len(video) == 1
    assert video.duration > 0
    assert shown(video, [0, 5]) == [0, 0]


@pytest.mark.parametrize(("angle", "turns"), [(90, 1), (180, 2), (270, 3)])
def test_rotation_is_applied(angle, turns):
    plain, turned = (Video(film(2, rotation=each)).frames([0.0])[0] for each in (0, angle))
    options = [torch.rot90(plain, sign * turns, (1, 2)) for sign in (1, -1)]
    assert turned.shape == options[0].shape
    assert any(torch.equal(turned, option) for option in options)


def test_a_portrait_phone_video_stands_upright():
    """The matrix that phones write, a quarter turn clockwise, set by hand in the track's header."""
    data = bytearray(film(2))
    place = data.find(b"tkhd") + 44
    data[place : place + 36] = b"".join(
        number.to_bytes(4, "big", signed=True) for number in (0, 65536, 0, -65536, 0, 0, 48 * 65536, 0, 1 << 30)
    )
    plain, turned = Video(film(2)).frames([0.0])[0], Video(bytes(data)).frames([0.0])[0]
    assert torch.equal(turned, torch.rot90(plain, -1, (1, 2)))
    sizes = []
    Video(bytes(data)).frames([0.0], lambda width, height: sizes.append((width, height)) or framed(width, height))
    assert sizes == [(48, 64)]


def framed(width, height, **changes) -> Framing:
    return Framing(width, height, 0, 0, (height, width))._replace(**changes)


def test_frames_are_scaled_and_cut_while_they_are_decoded():
    video = Video(film(2, size=(96, 128)))
    whole = video.frames([0.0], lambda *_: framed(64, 48))
    assert whole.shape == (1, 3, 48, 64)
    assert number_of(whole[0].numpy()) == 0
    cut = video.frames([0.0], lambda *_: Framing(64, 48, -10, -8, (24, 32)))
    assert torch.equal(cut, whole[:, :, 8:32, 10:42])
    padded = video.frames([0.0], lambda *_: Framing(64, 48, 4, 6, (60, 72)))
    assert torch.equal(padded[:, :, 6:54, 4:68], whole)
    assert int(padded[:, :, :6].max()) == int(padded[..., 68:].max()) == 0


def test_scaling_is_antialiased_and_near_to_pictures():
    noise = np.random.default_rng(0).integers(0, 256, (1, 160, 160, 3), np.uint8)
    small = open_video(noise).frames([0.0], lambda *_: framed(20, 20))
    assert small.float().std() < 0.25 * noise.std()
    smooth = Video(film(1, size=(480, 640))).frames([0.0], lambda *_: framed(64, 48))[0].int()
    wanted = DecodedVideo(Video(film(1, size=(480, 640))).frames([0.0]).permute(0, 2, 3, 1).numpy())
    assert (smooth - wanted.frames([0.0], lambda *_: framed(64, 48))[0].int()).abs().float().mean() < 2


def test_memory_is_bounded_by_the_clip_not_by_the_frames():
    """Sixteen frames of 4 megapixels seen at 32 x 32: only the frames seen are kept."""
    video = Video(film(16, size=(1600, 2400), preset="ultrafast"))
    clip = video.frames(list(middles(video)), lambda *_: framed(32, 32))
    assert clip.shape == (16, 3, 32, 32)
    assert clip.untyped_storage().nbytes() == 16 * 3 * 32 * 32


def test_arrays():
    frames = np.stack([numbered(number) for number in range(5)])
    video = open_video((frames, 2.0))
    assert video.edges.tolist() == [0, 0.5, 1.0, 1.5, 2.0, 2.5]
    assert shown(video, [2.4, 0.6]) == [4, 1]
    assert open_video(frames).edges[1] == 0.1
    assert open_video(video) is video


def test_sound():
    video = Video(film(30, sound=(0.5, 2.5)))
    assert video.has_sound
    heard = video.sound(0.0, 3.0, 8000)
    assert heard.shape == (24000,)
    assert heard[:3800].abs().max() < 0.05  # silence before it, and after
    assert heard[-3600:].abs().max() < 0.05
    tone = heard[6000:18000]
    spectrum = torch.fft.rfft(tone).abs()
    assert abs(int(spectrum.argmax()) * 8000 / len(tone) - 440) < 2
    assert tone.pow(2).mean().sqrt() == pytest.approx(0.5 / 2**0.5, rel=0.1)


def test_a_piece_of_the_sound_lies_where_it_lies_in_the_whole():
    video = Video(film(60, rate=10, kind="mkv", sound=(0.0, 6.0)))
    whole, piece = video.sound(0.0, 6.0, 16000), video.sound(3.25, 4.0, 16000)
    torch.testing.assert_close(piece, whole[52000:64000], atol=0.02, rtol=0)
    assert video.sound(5.5, 7.0, 16000)[-8000:].abs().max() == 0  # beyond the end


def test_no_sound():
    video = Video(film())
    assert not video.has_sound
    with pytest.raises(Undecodable, match="no sound"):
        video.sound(0, 1, 16000)


# What is damaged --------------------------------------------------------------------------------------------------


def test_what_is_no_video():
    for data, told in [(b"hello" * 100, "not a video"), (film()[:300], "video"), (only_sound(), "only sound")]:
        with pytest.raises(Undecodable, match=told):
            Video(data)
    with pytest.raises(Undecodable, match="empty file"):
        decode("mp4", b"")
    with pytest.raises(FileNotFoundError, match="no video"):
        Video("absent.mp4")
    with pytest.raises(TypeError, match="Expected a video"):
        open_video(3)
    with pytest.raises(Undecodable, match="of bytes"):
        open_video(np.zeros((2, 4, 4, 3), np.float32))


def test_a_video_without_a_frame():
    with pytest.raises(Undecodable, match=r"no frames|not a video"):
        Video(film(0, "mkv"))


@pytest.mark.parametrize(("kind", "share"), [("mp4", 0.98), ("mp4", 0.6), ("mov", 0.8), ("mkv", 0.7), ("avi", 0.7)])
def test_a_cut_tail_is_told(tmp_path, kind, share):
    data = film(60, kind, path=tmp_path / "film")
    assert len(Video(data)) == 60
    with pytest.raises(Undecodable, match=r"truncated video .* are there"):
        Video(data[: int(len(data) * share)])


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("mkv", {"codec": "libx264"}),
        ("webm", {"codec": "libvpx-vp9"}),
        ("mkv", {"codec": "libx265", "x265-params": "log-level=none"}),
        ("mkv", {"codec": "mjpeg", "pixels": "yuvj420p"}),
    ],
    ids=["h264", "vp9", "hevc", "mjpeg"],
)
def test_a_damaged_frame_is_told_where_it_is_met(kind, options):
    data = bytearray(film(60, kind, size=(96, 128), **options))
    with av.open(io.BytesIO(data)) as container:
        packet = bytes([packet for packet in container.demux(video=0) if packet.size][32])
    place = bytes(data).find(packet)
    data[place + len(packet) // 4 : place + len(packet) - len(packet) // 8] = b"\xa5" * (
        len(packet) - len(packet) // 8 - len(packet) // 4
    )
    video = Video(bytes(data))
    assert shown(video, [0.05, 5.95]) == [0, 59]
    with pytest.raises(Undecodable, match="damaged video"):
        video.frames(middles(video)[28:36].tolist())


def test_huge_frames_are_refused_before_they_are_decoded(monkeypatch):
    monkeypatch.setattr("collimate_video.reading.MAX_PIXELS", 64 * 48 - 1)
    with pytest.raises(Undecodable, match="decompression bomb"):
        Video(film(2))


@pytest.mark.parametrize("times", [[], [float("nan")], [0.0, float("inf")]])
def test_times_that_are_none(times):
    with pytest.raises(ValueError, match="finite times"):
        Video(film(2)).frames(times)


# Samples ----------------------------------------------------------------------------------------------------------


def test_videos_are_decoded_as_samples():
    assert extensions_of("video")[: len(VIDEOS)] == VIDEOS
    sample = {"__key__": "7", "mp4": film(8), "txt": "numbers"}
    opened = value_of(sample, VIDEOS)
    assert isinstance(opened, Video)
    row = Preparation({"video": VideoProcessor(4)}, also=["id"])(sample)
    assert row["video"].shape == (4, 3, 224, 224)
    assert row["video"].dtype == torch.uint8
    again = Preparation({"video": VideoProcessor(4)}, also=["id"])({**sample, "__key__": "8"})
    assert row["id"] == again["id"]


def test_pictures_are_videos_that_stand_still():
    picture = Image.fromarray(numbered(5))
    clip = VideoProcessor(3, ImageProcessor(32, resize="squash"))(picture)
    assert [number_of(frame.numpy()) for frame in clip] == [5, 5, 5]
    file = io.BytesIO()
    picture.save(file, "PNG")
    prepared = Preparation({"video": VideoProcessor(3, ImageProcessor(32, resize="squash"))})
    for value in (file.getvalue(), numbered(5)):
        assert torch.equal(prepared({"__key__": "0", "png": value})["video"], clip)


def test_a_damaged_video_is_a_corrupt_sample():
    with pytest.raises(CorruptSample, match=re.escape("sample: 7.mp4: not a video")):
        Preparation({"video": VideoProcessor(4)})({"__key__": "7", "mp4": b"none"})


def test_an_opened_video_goes_to_other_processes():
    video = Video(film(4))
    assert shown(pickle.loads(pickle.dumps(video)), [0.35]) == [3]


@pytest.mark.parametrize("folder", ["video_clips_captioned", "video_grid_speech", "video_signs20"])
def test_real_videos(shared_data, folder):
    if not (shared_data / folder).is_dir():
        pytest.skip(f"no {folder} among the real data sets")
    paths = sorted((shared_data / folder / "clips").iterdir())[:4]
    processor = VideoProcessor(8)
    for path in paths:
        video = Video(path)
        assert video.duration > 1
        clip = processor(path)
        assert clip.shape == (8, 3, 224, 224)
        assert clip.float().std() > 10
        far = [float(middles(video)[-2])]
        onwards = video.frames([*middles(video)[-12:].tolist()])[-2]
        assert torch.equal(video.frames(far)[0], onwards)
