"""The app's own verbs. What is heavy is imported when they run."""

from __future__ import annotations


def transcode(
    data: str,
    output: str,
    side: int = 256,
    key_every: int = 12,
    quality: int = 23,
    samples_per_shard: int = 1000,
    max_bytes: int = 2**30,
    shuffle: bool = True,
    seed: int = 0,
    limit: int | None = None,
) -> None:
    """Write shards of the videos of any source anew, small and with many key frames: random clips are read faster.

    Scenes of the world become files, too. A shard appears under its name only when it is whole. Run the same command
    again after an interruption: finished shards are kept. Videos that cannot be read are left out and counted.

    Args:
        data: what to read: shards, a table, a folder (`clips?extensions=[mp4,mkv]`), `world:train?...`.
        output: the folder of the shards.
        side: of the shorter side of larger frames, in pixels.
        key_every: frames from one key frame to the next.
        quality: x264's constant rate factor: smaller is better and larger.
        samples_per_shard: at most so many samples a shard.
        max_bytes: at most so many bytes of samples a shard.
        shuffle: write in random order. Training shuffles windows of samples only, so sorted shards learn badly.
        seed: of that order.
        limit: the first so many samples of the order; all if not given.
    """
    from collimate.data import open_source
    from collimate.data.commands import write_shards
    from collimate_video.transcoding import Transcoded

    source = Transcoded(open_source(data), side, key_every, quality)
    plan = {"input": data, **source.options}
    write_shards(source, output, plan, samples_per_shard, max_bytes, shuffle, seed, limit)


def mean_of_frames(model: str, output: str, weights: str | None = None, frames: int = 8) -> None:
    """Make a video model of an image-text model: the mean over frames, which every video model is measured against.

    What is written can be evaluated, embedded, exported and trained on as any other model.

    Args:
        model: a model folder or a .ckpt of a training run with an image and a text tower; or the name of a model of
            open_clip, such as `PE-Core-B-16` or `ViT-B-32`.
        output: the folder of the model; replaced if it holds one.
        weights: of a named model: a file, or a tag such as `openai`, whose weights are downloaded unless cached.
        frames: of each video, from the middle of as many equal parts.
    """
    from pathlib import Path

    import collimate
    from collimate.checkpoints import save
    from collimate.console import say
    from collimate_video import MeanOfFrames

    if Path(model).exists():
        if weights is not None:
            raise ValueError(f"{model} has its weights beside it: --weights belongs to a name of open_clip.")
        built = MeanOfFrames.from_image_text(collimate.load(model), frames)
    else:
        if weights is None:
            raise ValueError(f"{model!r} is no file or folder. If it is a model of open_clip, say --weights too.")
        built = MeanOfFrames.from_open_clip(model, weights, frames)
    save(built, output)
    say(f"Model: {output}")
