"""The report's plots as PNG bytes, in the colour-blind safe palette of Okabe and Ito."""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import TYPE_CHECKING

from adedge.errors import MissingDependency

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from adedge.benchmarks.accuracy import Accuracy
    from adedge.benchmarks.evaluation.tables import Table
    from adedge.benchmarks.latency import Latency

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


def require_matplotlib() -> None:
    """Raise `MissingDependency` unless matplotlib is installed; call it before measuring, not after."""
    if importlib.util.find_spec("matplotlib") is None:
        raise MissingDependency("matplotlib", "report", "the plots of a report")


def latency_accuracy(latencies: Mapping[str, Latency], accuracies: Mapping[str, Accuracy]) -> bytes:
    """Median frame latency against image AUROC with its 95% interval, one point per engine."""
    figure, (axes,) = _figure(1, (6.4, 3.6))
    for colour, (name, latency) in zip(cycle(COLOURS), latencies.items(), strict=False):
        if name not in accuracies:
            continue
        accuracy = accuracies[name]
        below, above = accuracy.auroc - accuracy.auroc_low, accuracy.auroc_high - accuracy.auroc
        axes.errorbar(
            [latency.frame.p50],
            [accuracy.auroc],
            yerr=[[max(0.0, below)], [max(0.0, above)]],
            xerr=[[0.0], [latency.frame.p95 - latency.frame.p50]],
            fmt="o",
            markersize=9,
            capsize=4,
            color=colour,
            label=name,
        )
    axes.set(xlabel="frame latency in ms (p50; bar to p95)", ylabel="image AUROC (95% interval)", xlim=(0, None))
    axes.legend(frameon=False)
    return _png(figure)


def latency_histograms(latencies: Mapping[str, Latency]) -> bytes:
    """Histograms of the three latencies, one panel each, with all engines."""
    figure, all_axes = _figure(3, (11, 3.2))
    for axes, boundary in zip(all_axes, ("network", "frame", "verdict"), strict=True):
        for colour, (name, latency) in zip(cycle(COLOURS), latencies.items(), strict=False):
            samples = getattr(latency, boundary).samples_ms
            axes.hist(samples, bins=40, histtype="step", linewidth=1.6, color=colour, label=name)
        axes.set(xlabel=f"{boundary} latency in ms", ylabel="frames")
    all_axes[0].legend(frameon=False, fontsize=8)
    return _png(figure)


def curves(accuracies: Mapping[str, Accuracy]) -> bytes:
    """ROC curves of pictures and, if there are masks, PRO curves of regions."""
    with_masks = any(accuracy.pro for accuracy in accuracies.values())
    figure, all_axes = _figure(2 if with_masks else 1, (9 if with_masks else 4.6, 3.8))
    for colour, (name, accuracy) in zip(cycle(COLOURS), accuracies.items(), strict=False):
        all_axes[0].plot(*zip(*accuracy.roc, strict=True), color=colour, label=name, linewidth=1.6)
        if accuracy.pro:
            all_axes[1].plot(*zip(*accuracy.pro, strict=True), color=colour, label=name, linewidth=1.6)
    all_axes[0].set(xlabel="false-positive rate of pictures", ylabel="true-positive rate", ylim=(0, 1.02))
    all_axes[0].legend(frameon=False, fontsize=8)
    if with_masks:
        all_axes[1].set(xlabel="false-positive rate of pixels", ylabel="mean overlap of regions", ylim=(0, 1.02))
    return _png(figure)


def seed_tables(tables: Sequence[Table], metrics: Mapping[str, str]) -> bytes:
    """One panel per table: means with their standard deviation over seeds, or one seed's interval.

    Rings are published values; ``metrics`` are axis labels by metric.
    """
    widest = max(len(table.columns) * len(table.systems) for table in tables)
    figure, all_axes = _figure(1, (max(6.4, 1.5 + 0.22 * widest), 3.2 * len(tables)), rows=len(tables))
    for axes, table in zip(all_axes, tables, strict=True):
        for number, (colour, system) in enumerate(zip(cycle(COLOURS), table.systems, strict=False)):
            shift = 0.7 * ((number + 0.5) / len(table.systems) - 0.5)
            for place, column in enumerate(table.columns):
                entry = table.entries.get((system, column))
                if entry is None:
                    continue
                low, high = entry.interval or (entry.mean - (entry.std or 0), entry.mean + (entry.std or 0))
                bars = [[max(0.0, entry.mean - low)], [max(0.0, high - entry.mean)]]
                axes.errorbar([place + shift], [entry.mean], yerr=bars, fmt="o", markersize=5, capsize=3, color=colour)
                if entry.published is not None:
                    axes.plot([place + shift], [entry.published[0]], "o", markersize=8, mfc="none", color=colour)
            axes.plot([], [], "o", color=colour, label=system)
        if any(entry.published for entry in table.entries.values()):
            axes.plot([], [], "o", markersize=8, mfc="none", color="grey", label="published")
        axes.set(ylabel=metrics[table.metric], title=table.collection, xlim=(-0.5, len(table.columns) - 0.5))
        axes.set_xticks(range(len(table.columns)), table.columns, rotation=30, ha="right")
        axes.set_ylim(top=min(axes.get_ylim()[1], 1.01))
    all_axes[0].legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    return _png(figure)


def _figure(columns: int, size: tuple[float, float], rows: int = 1) -> tuple[Figure, list[Axes]]:
    require_matplotlib()
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    all_axes = [figure.add_subplot(rows, columns, index + 1) for index in range(rows * columns)]
    for axes in all_axes:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    return figure, all_axes


def _png(figure: Figure) -> bytes:
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=130)
    return stream.getvalue()
