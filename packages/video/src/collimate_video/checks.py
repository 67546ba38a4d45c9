"""What `collimate doctor` tries: that films can be written and read on this machine."""

from __future__ import annotations

from io import BytesIO

import av
import numpy as np

from .reading import open_video


def check() -> str:
    """Write three grey frames as an MP4 file and read the middle one back."""
    file = BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("h264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for level in (40, 120, 200):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), level, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    seen = open_video(file.getvalue()).frames([0.15]).float().mean().item()
    if abs(seen - 120) > 4:
        raise RuntimeError(f"a frame of grey 120 came back from H.264 as {seen:.0f}")
    return f"PyAV {av.__version__}, H.264"
