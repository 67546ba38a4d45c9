"""Video methods: ALPRO, VATT with gradient harmonization, CoAVT, multigrid schedules."""

from collimate_video.alpro import ALPRO, ALPROAnswers, EntityPrompter, Prompter
from collimate_video.augmentation import ClipRandAugment, DenseClips, VideoAugmentation
from collimate_video.coavt import CoAVT, SpectrogramPatches
from collimate_video.convolutions import Convolutions3d
from collimate_video.frame_encoder import FrameEncoder
from collimate_video.mean_of_frames import MeanOfFrames
from collimate_video.processor import VideoProcessor
from collimate_video.reading import DecodedVideo, Frames, Framing, Video, open_video
from collimate_video.sampling import Draws, HalfDraws, Sampler, SegmentCentres, SegmentDraws, SegmentStarts, Window
from collimate_video.timesformer import TimeSformer, pooled_over_time
from collimate_video.transcoding import encode
from collimate_video.vatt import (
    VATT,
    Candidates,
    TokenEncoder,
    TokenTransformer,
    VideoPatches,
    Waveform,
    WaveformNoise,
    WavePatches,
    WaveSpectra,
    WordTokens,
)

__all__ = [
    "ALPRO",
    "VATT",
    "ALPROAnswers",
    "Candidates",
    "ClipRandAugment",
    "CoAVT",
    "Convolutions3d",
    "DecodedVideo",
    "DenseClips",
    "Draws",
    "EntityPrompter",
    "FrameEncoder",
    "Frames",
    "Framing",
    "HalfDraws",
    "MeanOfFrames",
    "Prompter",
    "Sampler",
    "SegmentCentres",
    "SegmentDraws",
    "SegmentStarts",
    "SpectrogramPatches",
    "TimeSformer",
    "TokenEncoder",
    "TokenTransformer",
    "Video",
    "VideoAugmentation",
    "VideoPatches",
    "VideoProcessor",
    "WavePatches",
    "WaveSpectra",
    "Waveform",
    "WaveformNoise",
    "Window",
    "WordTokens",
    "encode",
    "open_video",
    "pooled_over_time",
]
