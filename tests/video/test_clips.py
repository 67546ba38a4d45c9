"""Clips: which frames, how they are seen, what training draws, and videos written anew."""

import json
import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from collimate.configurable import build
from collimate.data import ClipShape, Mixture, TrainingPreparation, TrainLoader, open_source
from collimate.processing import ImageProcessor
from collimate.training.multigrid import MultigridSchedule
from collimate_video import (
    ClipRandAugment,
    DenseClips,
    Draws,
    HalfDraws,
    SegmentCentres,
    SegmentDraws,
    SegmentStarts,
    Video,
    VideoAugmentation,
    VideoProcessor,
    Window,
    encode,
)
from collimate_video.reading import shown_at
from collimate_video.transcoding import transcode
from collimate_video_app import commands

from .films import film, number_of, numbered

SAMPLERS = [SegmentStarts(), SegmentCentres(), SegmentDraws(), Draws(), HalfDraws(), Window(0.2), Window(0.2, True)]
EDGES = np.arange(11) / 10


def places(times) -> list[int]:
    return shown_at(EDGES, times)


@given(frames=st.integers(1, 40), count=st.integers(1, 20), seed=st.integers(0, 99))
def test_every_sampler_gives_rising_times(frames, count, seed):
    edges = np.sort(np.random.default_rng(seed).uniform(0.01, 9, frames + 1))
    edges -= edges[0]
    for sampler in SAMPLERS:
        times = sampler(edges, count)
        assert len(times) == count
        assert np.all(np.diff(times) >= 0)
        assert times[0] >= 0
        if not isinstance(sampler, Window):  # which alone may reach beyond a short video
            assert times[-1] < edges[-1]


def test_where_segments_are_sampled():
    assert places(SegmentStarts()(EDGES, 4)) == [0, 2, 5, 7]  # arange(0, 10, 2.5), truncated, as officially
    assert places(SegmentCentres()(EDGES, 5)) == [1, 3, 5, 7, 9]
    assert [place // 2 for place in places(SegmentDraws()(EDGES, 5))] == [0, 1, 2, 3, 4]


def test_draws_are_distinct_while_there_are_frames():
    for _ in range(50):
        assert len(set(places(Draws()(EDGES, 10)))) == 10
        halves = [place // 5 for place in places(HalfDraws()(EDGES, 4))]
        assert halves == [0, 0, 1, 1]
        assert len(set(places(HalfDraws()(EDGES, 10)))) == 10
    assert sorted(np.bincount(places(Draws()(EDGES, 25)))) == [2] * 5 + [3] * 5


def test_every_frame_is_drawn_sometimes():
    seen = {place for _ in range(200) for place in places(HalfDraws()(EDGES, 2))}
    assert seen == set(range(10))


def test_a_window():
    for _ in range(20):
        found = places(Window(0.2)(EDGES, 3))
        assert np.diff(found).tolist() == [2, 2]
    assert places(Window(0.1, centred=True)(EDGES, 4)) == [3, 4, 5, 6]
    assert places(Window(0.5)(EDGES, 4)) == [0, 5, 9, 9]  # longer than the video
    with pytest.raises(ValueError, match="stride"):
        Window(0)


# Processor --------------------------------------------------------------------------------------------------------


def test_the_clip_of_a_processor():
    processor = VideoProcessor(4, ImageProcessor(32, resize="squash"))
    clip = processor(film(16))
    assert clip.shape == (4, 3, 32, 32)
    assert clip.dtype == torch.uint8
    assert [number_of(frame.numpy()) for frame in clip] == [0, 4, 8, 12]


def test_frames_are_seen_as_pictures_are():
    for resize in ("shortest", "squash", "longest"):
        images = ImageProcessor(40, resize=resize)
        frames = np.stack([numbered(number, 60, 100) for number in (5, 9)])
        clip = VideoProcessor(2, images)((frames, 10.0))
        wanted = torch.stack([images(frame) for frame in frames])
        assert (clip.int() - wanted.int()).abs().float().mean() < 1.5, resize


def test_finish_normalises_as_for_pictures():
    images = ImageProcessor(8)
    batch = torch.randint(0, 256, (2, 3, 3, 8, 8), dtype=torch.uint8)
    finished = VideoProcessor(3, images).finish(batch)
    assert torch.equal(finished[1, 2], images.finish(batch[1, 2:3])[0])
    assert torch.equal(VideoProcessor(3, images).finish(finished), finished)


def test_a_processor_says_how_it_was_built():
    processor = VideoProcessor(6, ImageProcessor(16), Window(0.25, True))
    rebuilt = build(processor.config())
    assert torch.equal(rebuilt(processor.example()), processor(processor.example()))
    with pytest.raises(ValueError, match="at least one frame"):
        VideoProcessor(0)


# Augmentation -----------------------------------------------------------------------------------------------------


def still(height=60, width=80, frames=6) -> tuple[np.ndarray, float]:
    picture = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    return np.repeat(picture[None], frames, axis=0), 10.0


@pytest.mark.parametrize("then", [[], [ClipRandAugment(2, 9)]], ids=["crop and flip", "randaugment"])
def test_all_frames_of_a_clip_are_changed_alike(then):
    augmentation = VideoAugmentation(scale=(0.2, 0.8), horizontal_flip=0.5, then=then)
    processor = VideoProcessor(4, ImageProcessor(24))
    clips = []
    for seed in range(12):
        random.seed(seed)
        torch.manual_seed(seed)
        clip = augmentation(still(), processor)
        assert clip.shape == (4, 3, 24, 24)
        assert torch.equal(clip, clip[:1].expand_as(clip))
        clips.append(clip)
    assert len({clip.numpy().tobytes() for clip in clips}) == 12


def test_a_crop_is_nowhere_black():
    """Whatever is drawn, the crop lies within the frame, for arrays and for files."""
    white = np.full((6, 47, 61, 3), 255, np.uint8)
    augmentation = VideoAugmentation(scale=(0.05, 1.0), ratio=(0.5, 2.0))
    processor = VideoProcessor(2, ImageProcessor(17, interpolation="bilinear"))
    for seed in range(200):
        random.seed(seed)
        assert int(augmentation((white, 10.0), processor).min()) == 255


def test_alpros_crop_keeps_the_frames_own_shape():
    """256 squashed pixels, of which 224 are cut."""
    augmentation = VideoAugmentation(scale=(0.765625, 0.765625), ratio=None)
    row = np.broadcast_to(np.arange(160, dtype=np.uint8)[None, None, :, None], (2, 80, 160, 3))
    clip = augmentation((np.ascontiguousarray(row), 10.0), VideoProcessor(2, ImageProcessor(56))).float()
    across = clip[0, 0, 20]
    assert (across[-4] - across[3]) / 49 == pytest.approx(160 * 0.875 / 56, rel=0.03)


def test_the_same_position_gives_the_same_clip(tmp_path):
    for number in range(4):
        (tmp_path / f"{number}.mp4").write_bytes(film(12 + number))
    source = open_source(f"{tmp_path}?extensions=[mp4]")
    preparation = TrainingPreparation(
        {"video": VideoProcessor(4, ImageProcessor(16))}, augmentations={"video": VideoAugmentation(scale=(0.3, 1.0))}
    )
    batches = [next(iter(TrainLoader(Mixture([source], None, 3), preparation, 4)))["video"] for _ in range(2)]
    assert batches[0].shape == (4, 4, 3, 16, 16)
    assert torch.equal(*batches)


def test_dense_clips_are_a_drawn_distance_apart_and_a_square_of_a_drawn_scale():
    frames = np.stack([numbered(number) for number in range(60)])
    processor = VideoProcessor(8, ImageProcessor(48)).shaped(ClipShape(4, 32, 3, 5, 32, 40))
    assert (processor.frames, processor.size) == (4, 32)
    strides, first, clips = set(), set(), set()
    for seed in range(40):
        random.seed(seed)
        clip = DenseClips()(
            (np.broadcast_to(np.arange(60, dtype=np.uint8)[:, None, None, None], (60, 48, 64, 3)), 10.0), processor
        )
        assert clip.shape == (4, 3, 32, 32)
        shown = clip[:, 0, 16, 16].tolist()
        steps = set(np.diff(shown))
        assert len(steps) == 1
        strides |= steps
        first.add(shown[0])
        random.seed(seed)
        clips.add(DenseClips()((frames, 10.0), processor).numpy().tobytes())
    assert strides == {3, 4, 5}
    assert len(first) > 10
    assert len(clips) == 40


def test_a_dense_clip_longer_than_its_video_repeats_the_last_frame():
    grey = np.broadcast_to(np.arange(5, dtype=np.uint8)[:, None, None, None], (5, 20, 20, 3))
    clip = DenseClips(stride=2, sides=(16, 16))((grey, 10.0), VideoProcessor(4, ImageProcessor(16)))
    assert clip[:, 0, 8, 8].tolist() == [0, 2, 4, 4]


def test_a_multigrid_run_reads_clips_of_every_shape(tmp_path):
    for number in range(8):
        (tmp_path / f"{number}.mp4").write_bytes(film(24))
    schedule = MultigridSchedule(
        frames=8, crop=32, lr_steps=[0, 2], epochs=3, stride=2, sides=(32, 40), modality="video"
    )
    plan = schedule.plan(samples=16, batch_size=1, ranks=1)
    preparation = TrainingPreparation(
        {"video": VideoProcessor(8, ImageProcessor(32))}, augmentations={"video": DenseClips()}
    )
    source = open_source(f"{tmp_path}?extensions=[mp4]")
    loader = TrainLoader(Mixture([source], None, 3), preparation, 1, plan=plan)
    shapes = {tuple(batch["video"].shape) for _, batch in zip(range(plan.steps), loader, strict=False)}
    assert {shape[1] for shape in shapes} == {2, 4, 8}
    assert {shape[-1] for shape in shapes} == {16, 23, 32}
    assert max(shape[0] for shape in shapes) >= 8


# Written anew -----------------------------------------------------------------------------------------------------


def test_frames_survive_being_written():
    video = Video(encode(np.stack([numbered(number) for number in range(20)]), 12.5, key_every=5))
    assert len(video) == 20
    np.testing.assert_allclose(video.edges, np.arange(21) / 12.5, atol=1e-3)
    found = video.frames(((video.edges[:-1] + video.edges[1:]) / 2).tolist())
    assert [number_of(frame.numpy()) for frame in found] == list(range(20))
    assert len(video._index.keys) == 4


def test_transcoding_keeps_times_sound_and_uprightness():
    times = [1.5, 1.6, 2.4, 2.5, 3.0, 4.4]
    original = Video(film(6, "mkv", times=times, size=(480, 640), sound=(2.0, 4.0)))
    video = Video(transcode(original, side=240, key_every=3))
    np.testing.assert_allclose(video.edges[:-1], original.edges[:-1], atol=2e-3)
    shown = video.frames([0.0, 1.55])
    assert shown.shape == (2, 3, 240, 320)
    assert [number_of(frame.numpy()) for frame in shown] == [0, 4]
    heard = video.sound(0.0, 3.0, 8000).abs()
    assert heard[:3600].max() < 0.05
    assert heard[4800:19000].max() > 0.4
    turned = Video(transcode(film(2, rotation=90, size=(48, 64)))).frames([0.0])
    assert turned.shape == (1, 3, 64, 48)


def test_transcoded_videos_are_cheaper_to_seek_in():
    original = film(120, key_every=120, size=(120, 160), sc_threshold="0")
    assert len(Video(original)._index.keys) == 1
    assert len(Video(transcode(original, key_every=12))._index.keys) == 10


def test_the_verb_writes_shards_and_goes_on_after_an_interruption(tmp_path, capsys):
    clips = tmp_path / "clips"
    clips.mkdir()
    for number in range(5):
        (clips / f"{number}.mkv").write_bytes(film(4 + number, "mkv"))
        (clips / f"{number}.txt").write_text(f"clip {number}")
    (clips / "5.mkv").write_bytes(b"no video at all")
    arguments = {"data": f"{clips}?extensions=[mkv]", "output": str(tmp_path / "shards"), "samples_per_shard": 2}
    commands.transcode(**arguments, limit=2)
    stamp = (tmp_path / "shards" / "000000.tar").stat().st_mtime_ns
    commands.transcode(**arguments)
    assert (tmp_path / "shards" / "000000.tar").stat().st_mtime_ns == stamp
    source = open_source(str(tmp_path / "shards"))
    found = {sample["txt"].decode(): len(Video(sample["mp4"])) for sample in map(source.read, range(len(source)))}
    assert found == {f"clip {number}": 4 + number for number in range(5)}
    manifest = json.loads((tmp_path / "shards" / "shards.json").read_text())
    assert manifest["corrupt"] == {"not a video": 1}
    assert manifest["key_every"] == 12
    with pytest.raises(ValueError, match="key_every was 12"):
        commands.transcode(**arguments, key_every=6)
