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
