"""Video methods: ALPRO, VATT with gradient harmonization, multigrid schedules."""

from collimate_video.timesformer import TimeSformer, pooled_over_time

__all__ = [
    "TimeSformer",
    "pooled_over_time",
]
