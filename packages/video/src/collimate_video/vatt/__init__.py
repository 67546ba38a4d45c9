"""VATT: videos, sounds and words by plain transformers on raw pieces of each.

Akbari et al. 2021, VATT: transformers for multimodal self-supervised learning from raw video, audio and text, arXiv
2104.11178; google-research/vatt. Voxels of pixels, pieces of waveforms and words become tokens; of video and sound a
random half is dropped in training; a learned token in front is each sample's feature, after a transformer of each
modality's own or after one that all three share. With z_va and z_vt of the common spaces, unit vectors and τ = 0.07,

    L = NCE(z_va of videos, z_va of sounds) + MIL-NCE(z_vt of videos, z_vt of C texts each)

as in `collimate.losses.mil_nce`. The space of words is reached through that of sounds: z_vt = BN(W ReLU(z_va)).

Departures: DropToken draws anew for each sample, where the released code has one draw a step (`drop_by="batch"`);
positives are counted once, as in the paper, where that code counts them twice; the mean is over the clips of all ranks
that have a modality; batch norms take their statistics over all ranks, exactly; texts have learned positions and a
learned embedding of word pieces or words, where the forms of one transformer a modality has T5's relative positions and
both have frozen word2vec vectors; tables of positions are resized linearly instead of by cubic splines; a clip's window
is the middle of its video, for pictures and sound alike, instead of a drawn one: cut long videos beforehand.
"""

from collimate_video.vatt.candidates import Candidates
from collimate_video.vatt.method import VATT
from collimate_video.vatt.tokens import VideoPatches, WavePatches, WaveSpectra, WordTokens
from collimate_video.vatt.transformer import TokenEncoder, TokenTransformer
from collimate_video.vatt.waveform import Waveform, WaveformNoise

__all__ = [
    "VATT",
    "Candidates",
    "TokenEncoder",
    "TokenTransformer",
    "VideoPatches",
    "WavePatches",
    "WaveSpectra",
    "Waveform",
    "WaveformNoise",
    "WordTokens",
]
