"""ECGs as they are printed: on millimetre paper, 25 mm a second and 10 mm a millivolt.

All leads run over the whole time, one below the other, after a calibration pulse of 1 mV and 0.2 s. What is drawn keeps
to the paper's millimetres whatever size a page shows it in: a large square is 0.2 s and 0.5 mV.

Shape legend: C leads, T samples of a lead, t moments of a relevance.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from collimate.data.decoding import decode
from collimate.evaluation.modalities import Exhibit
from collimate_medical.dicom_waveforms import read_dicom_ecg
from collimate_medical.ecg import ECG, filled, resampled, with_leads
from collimate_medical.reading import read_ecg

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SPEED, GAIN = 25.0, 10.0  # mm a second, mm a millivolt
SPACING, MARGIN = 15.0, 20.0  # mm between two leads; in front of them, for names and the pulse
RATE = 250.0  # Hz: what is drawn, to keep pages small
LONGEST = 20.0  # seconds that are drawn
GLANCE, GLANCE_LEADS = 2.8, ("I", "II", "V1", "V3", "V5")  # of what is shown among many: it is square
GLANCE_DPI = 80
_MM = 1 / 25.4  # of an inch
_PAPER, _FINE, _BOLD, _TRACE, _SHADE = "#fff9f6", "#f7dcd4", "#e9aa9b", "#16181d", (0.95, 0.5, 0.05)


def ecg_paper(
    ecg: ECG, relevance: Float[np.ndarray, " t"] | None = None, spans: Sequence[tuple[float, float]] = ()
) -> Figure:
    """An ECG on paper, with shade where something counts.

    Args:
        ecg: of any leads; of its first 20 seconds. What was not recorded is a gap, not a flat line.
        relevance: 0 or more, of moments spread evenly from the first sample of the ECG on, `relevance.size` of which
            last as long as what is drawn; the largest is shaded most.
        spans: seconds from and to, between which a line is drawn above the leads.
    """
    from matplotlib.collections import LineCollection
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    signal, seconds = _to_draw(ecg)
    width, height = MARGIN + SPEED * seconds, SPACING * (len(signal) + 1)
    figure = Figure(figsize=(width * _MM, height * _MM))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(0, height))
    axes.axis("off")
    axes.add_patch(Rectangle((0, 0), width, height, color=_PAPER, linewidth=0))
    for step, colour, line in ((1.0, _FINE, 0.3), (5.0, _BOLD, 0.55)):
        upright = [[(x, 0), (x, height)] for x in np.arange(0, width + 0.01, step)]
        level = [[(0, y), (width, y)] for y in np.arange(0, height + 0.01, step)]
        axes.add_collection(LineCollection(upright + level, colors=colour, linewidths=line))
    if relevance is not None and relevance.max() > 0:
        shade = np.zeros((1, len(relevance), 4))
        shade[..., :3], shade[..., 3] = _SHADE, 0.6 * relevance / relevance.max()
        axes.imshow(shade, extent=(MARGIN, width, 0, height), aspect="auto", interpolation="nearest", zorder=2)
    for start, end in spans:
        axes.plot([MARGIN + SPEED * start, MARGIN + SPEED * end], [height - 2] * 2, color=_SHADE, linewidth=2.4)
    moments = MARGIN + SPEED * seconds * np.arange(signal.shape[1]) / signal.shape[1]
    for row, (name, lead) in enumerate(zip(ecg.leads, signal, strict=True)):
        ground = height - SPACING * (row + 1)
        pulse = [(x, ground + GAIN * up) for x, up in ((11, 0), (12, 0), (12, 1), (17, 1), (17, 0), (18, 0))]
        axes.plot(*zip(*pulse, strict=True), color=_TRACE, linewidth=0.6, zorder=3)
        axes.plot(moments, ground + GAIN * lead, color=_TRACE, linewidth=0.75, zorder=3)
        axes.text(1, ground + 4, name, fontsize=8, color=_TRACE, zorder=4, weight="bold")
    return figure


def show_ecg(raw: Any) -> Exhibit:
    """What reports show of an ECG among many: five leads for 2.8 seconds, on the same paper.

    Args:
        raw: what a sample holds, decoded or not. An array, which does not tell its rate, is bare paper.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    if isinstance(raw, bytes):
        raw = read_dicom_ecg(raw) if raw[128:132] == b"DICM" else decode("ecg.npz" if raw[:2] == b"PK" else "npy", raw)
    known = not isinstance(raw, np.ndarray)
    ecg = read_ecg(raw) if known else ECG(np.full((12, 1), np.nan, np.float32), RATE)
    samples = round(GLANCE * ecg.rate)
    signal = with_leads(ecg, GLANCE_LEADS).signal[:, :samples]
    signal = np.pad(signal, ((0, 0), (0, samples - signal.shape[1])), constant_values=np.nan)
    file = io.BytesIO()
    FigureCanvasAgg(ecg_paper(ECG(signal, ecg.rate, GLANCE_LEADS))).figure.savefig(file, format="png", dpi=GLANCE_DPI)
    return Exhibit(file.getvalue())


def _to_draw(ecg: ECG) -> tuple[Float[np.ndarray, "C T"], float]:
    """The leads as they are drawn, with gaps where nothing was recorded, and how long they last."""
    recorded = ecg.signal[:, : round(LONGEST * ecg.rate)]
    signal, _ = filled(recorded, ecg.rate, 0.0)
    if ecg.rate > RATE:
        signal = resampled(signal, ecg.rate, RATE)
    places = np.arange(signal.shape[1]) * recorded.shape[1] // signal.shape[1]
    return np.where(np.isfinite(recorded[:, places]), signal, np.nan), recorded.shape[1] / ecg.rate
