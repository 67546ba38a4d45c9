"""Figures of reports. They draw in the report's ink, so that they read in light and in dark.

Shape legend: N samples, C classes, D width, Q queries.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float, Int64
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn.functional import normalize

from collimate.evaluation.calibration import Calibration
from collimate.evaluation.report import INK

COLOURS = ("#4c72d6", "#d9773a", "#3f9e6b", "#c44e6a", "#8a63c9", "#a08040", "#3ba3b8", "#7c8796")
_BLUES = LinearSegmentedColormap.from_list("blues", [(0.30, 0.45, 0.84, 0.0), (0.30, 0.45, 0.84, 1.0)])
MAX_TICKS = 30  # more class names than that cannot be read
MAX_POINTS = 4000


def confusion(matrix: Int64[Tensor, "C C"], names: Sequence[str]) -> Figure:
    """Counts of (true, best) classes, each row as shares of its class."""
    shares = matrix / matrix.sum(1, keepdim=True).clamp_min(1)
    classes = len(names)
    side = min(8.0, 2.2 + 0.36 * classes)
    figure, axes = _axes(side, side * 0.86)
    axes.pcolormesh(shares.flip(0), cmap=_BLUES, vmin=0, vmax=1, rasterized=classes > MAX_TICKS)
    axes.set_aspect("equal")
    if classes <= MAX_TICKS:
        middles = [place + 0.5 for place in range(classes)]
        axes.set_xticks(middles, names, rotation=45, ha="right", rotation_mode="anchor")
        axes.set_yticks(middles, list(reversed(names)))
    else:
        axes.set_xticks([])
        axes.set_yticks([])
    if classes <= 15:
        for row in range(classes):
            for column in range(classes):
                if matrix[row, column]:
                    count = str(int(matrix[row, column]))
                    axes.text(column + 0.5, classes - row - 0.5, count, ha="center", va="center", fontsize=8, color=INK)
    axes.tick_params(length=0)
    return figure


def recall_curves(ranks: Mapping[str, Int64[Tensor, " Q"]], candidates: Mapping[str, int]) -> Figure:
    """For each direction, the share of queries whose right answer has rank k or better, against k.

    Args:
        ranks: direction -> ranks from 0.
        candidates: direction -> how many answers were ranked.
    """
    figure, axes = _axes(6.4, 3.6)
    for colour, (name, found) in zip(COLOURS, ranks.items(), strict=False):
        size = candidates[name]
        k = torch.arange(1, size + 1)
        curve = found.bincount(minlength=size).cumsum(0) / len(found)
        axes.plot(k, curve, color=colour, label=name, linewidth=2)
        axes.plot(k, k / size, color=colour, linestyle=(0, (2, 3)), linewidth=1)
    axes.set_xscale("log")
    axes.set(xlabel="k", ylabel="recall@k", ylim=(0, 1.02), xlim=(1, max(2, *candidates.values())))
    axes.grid(color=INK, alpha=0.12, linewidth=0.6)
    _legend(axes)
    return figure


def embedding_map(
    vectors: Float[Tensor, "N D"], labels: Int64[Tensor, " N"] | None = None, names: Sequence[str] = ()
) -> Figure:
    """Unit vectors on their first two principal components; coloured by label.

    Args:
        vectors: not normalised.
        labels: the class of each.
        names: of the classes; a legend is drawn for up to twenty.
    """
    step = max(1, -(-len(vectors) // MAX_POINTS))
    points = normalize(vectors[::step].double(), dim=-1)
    points = points - points.mean(0)
    spread, axes_of = torch.linalg.svd(points, full_matrices=False)[1:]
    plane = points @ axes_of[:2].T
    plane = torch.nn.functional.pad(plane, (0, 2 - plane.shape[1]))
    share = [*(spread**2 / spread.square().sum().clamp_min(1e-30))[:2].tolist(), 0.0, 0.0]
    figure, axes = _axes(6.4, 4.4)
    if labels is None:
        axes.scatter(*plane.T, s=9, color=COLOURS[0], alpha=0.8, linewidths=0, rasterized=True)
    else:
        wheel, classes = colormaps["tab20" if len(names) > 10 else "tab10"], max(len(names), int(labels.max()) + 1)
        for label in labels.unique().tolist():
            own = plane[labels[::step] == label]
            name = names[label] if label < len(names) else str(label)
            colour = wheel(label % wheel.N)
            axes.scatter(*own.T, s=12, color=colour, alpha=0.8, linewidths=0, label=name, rasterized=True)
        if classes <= 20:
            _legend(axes, loc="center left", bbox_to_anchor=(1.01, 0.5), markerscale=1.6)
    axes.set(xlabel=f"first component ({share[0]:.0%})", ylabel=f"second ({share[1]:.0%})")
    axes.set_xticks([])
    axes.set_yticks([])
    return figure


def curves(series: Mapping[str, Sequence[tuple[float, float]]], label: str = "step") -> Figure:
    """Small plots side by side, one for each quantity.

    Args:
        series: name -> (step, value) points.
        label: of the horizontal axis.
    """
    columns = min(3, len(series))
    rows = -(-len(series) // columns)
    figure = Figure(figsize=(3.2 * columns, 2.0 * rows), layout="constrained")
    for place, (name, points) in enumerate(series.items()):
        axes = figure.add_subplot(rows, columns, place + 1)
        _plain(axes)
        axes.plot(*zip(*points, strict=True), color=COLOURS[place % len(COLOURS)], linewidth=1.6)
        axes.set_title(name, fontsize=10, color=INK, loc="left")
        axes.grid(color=INK, alpha=0.12, linewidth=0.6)
        axes.margins(x=0)
        if place >= len(series) - columns:
            axes.set_xlabel(label)
    return figure


def histograms(panels: Mapping[str, Mapping[str, Float[Tensor, " N"]]]) -> Figure:
    """How quantities are distributed in groups of samples, a panel for each quantity.

    Args:
        panels: quantity -> group -> values; NaN are left out. Each group's bars are shares of the group.
    """
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(3.2 * columns, 2.2 * rows), layout="constrained")
    colours = dict(zip(dict.fromkeys(group for groups in panels.values() for group in groups), COLOURS, strict=False))
    for place, (name, groups) in enumerate(panels.items()):
        axes = figure.add_subplot(rows, columns, place + 1)
        _plain(axes)
        finite = {group: values[values.isfinite()] for group, values in groups.items()}
        every = torch.cat(list(finite.values()))
        edges = torch.linspace(*every.aminmax(), 41).tolist() if len(every.unique()) > 1 else 1
        for group, values in finite.items():
            share = torch.full_like(values, 1 / max(len(values), 1))
            options = {"weights": share, "color": colours[group], "alpha": 0.6, "label": group}
            axes.hist(values, edges, **options)  # type: ignore[arg-type]
        axes.set_title(name, fontsize=10, color=INK, loc="left")
        if place == 0 and len(colours) > 1:
            _legend(axes)
    return figure


def shares(
    rows: Mapping[str, tuple[float, float]], intervals: Mapping[str, tuple[float, float]] | None = None
) -> Figure:
    """Shares between 0 and 1 as bars, one below the other, with a stroke where chance is.

    Args:
        rows: name -> (share, chance).
        intervals: name -> (low, high), where there are any.
    """
    figure, axes = _axes(6.4, 0.7 + 0.28 * len(rows))
    for place, (name, (share, chance)) in enumerate(rows.items()):
        axes.barh(place, share, height=0.62, color=COLOURS[0])
        axes.plot([chance, chance], [place - 0.42, place + 0.42], color=INK, linewidth=2, solid_capstyle="butt")
        if intervals and name in intervals:
            axes.plot(intervals[name], [place, place], color=INK, alpha=0.55, linewidth=1.4)
    axes.set_yticks(range(len(rows)), list(rows))
    axes.set(xlim=(0, 1), ylim=(len(rows) - 0.4, -0.6))
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color=INK, alpha=0.12, linewidth=0.6)
    axes.set_axisbelow(True)
    return figure


def reliability(curves: Mapping[str, Calibration]) -> Figure:
    """Share of positives against mean probability, one line a label.

    Args:
        curves: label -> its calibration; empty bins are left out.
    """
    figure, axes = _axes(5.2, 4.0)
    axes.plot([0, 1], [0, 1], color=INK, alpha=0.5, linestyle=(0, (2, 3)), linewidth=1)
    for place, (name, curve) in enumerate(curves.items()):
        held = curve.counts > 0
        style = {"color": COLOURS[place % len(COLOURS)], "marker": "o", "markersize": 3.5, "linewidth": 1.4}
        axes.plot(curve.predicted[held], curve.observed[held], label=name, **style)
    axes.set(xlabel="probability", ylabel="share of positives", xlim=(0, 1), ylim=(0, 1.02))
    if len(curves) <= 20:
        _legend(axes, loc="center left", bbox_to_anchor=(1.01, 0.5))
    return figure


def by_share(lines: Mapping[str, Sequence[tuple[float, float, float, float]]]) -> Figure:
    """A metric against the share of labels that were used, on a logarithmic axis.

    Args:
        lines: name -> (per cent, value, low, high) of each share.
    """
    figure, axes = _axes(5.6, 3.6)
    for colour, (name, points) in zip(COLOURS, lines.items(), strict=False):
        percents, values, low, high = zip(*points, strict=True)
        axes.fill_between(percents, low, high, color=colour, alpha=0.15, linewidth=0)
        axes.plot(percents, values, color=colour, marker="o", markersize=4, linewidth=1.8, label=name)
    axes.set_xscale("log")
    ticks = sorted({point[0] for points in lines.values() for point in points})
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.set(xlabel="labels used (%)", ylabel="macro AUROC")
    axes.grid(color=INK, alpha=0.12, linewidth=0.6)
    _legend(axes)
    return figure


def _axes(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    _plain(axes)
    return figure, axes


def _plain(axes: Axes) -> None:
    axes.set_facecolor("none")
    axes.spines[["top", "right"]].set_visible(False)
    for spine in axes.spines.values():
        spine.set(color=INK, alpha=0.4)
    axes.tick_params(colors=INK, labelsize=9)
    axes.xaxis.label.set_color(INK)
    axes.yaxis.label.set_color(INK)


def _legend(axes: Axes, **options: object) -> None:
    axes.legend(frameon=False, labelcolor=INK, fontsize=9, **options)  # type: ignore[arg-type]
