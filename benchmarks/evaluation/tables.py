"""Tables of an evaluation: methods by data sets, mean and spread over seeds, beside published values."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from adedge.benchmarks.evaluation.cells import METRICS, Cell
from adedge.benchmarks.evaluation.published import published_mean, published_value

MEAN = "mean"  # name of the last column

SOURCES = """\
[1] Chung et al., "Unsupervised Anomaly Detection Using Style Distillation", IEEE Access 2020. \
[2] Bergmann et al., "Uninformed Students", CVPR 2020. \
[3] Salehi et al., "Multiresolution Knowledge Distillation for Anomaly Detection", CVPR 2021. \
[4] Chen et al., "A Hierarchically Feature Reconstructed Autoencoder for Unsupervised Anomaly Detection", 2024."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One table entry: a value per seed, and the published (value, source).

    ``interval`` is the 95% confidence interval (low, high) of a single seed's value; None for several seeds or a mean.
    """

    values: tuple[float, ...]
    published: tuple[float, str] | None
    interval: tuple[float, float] | None = None

    @property
    def mean(self) -> float:
        """Mean over seeds."""
        return float(np.mean(self.values))

    @property
    def std(self) -> float | None:
        """Sample standard deviation over seeds; None for a single seed."""
        return float(np.std(self.values, ddof=1)) if len(self.values) > 1 else None


@dataclass(frozen=True, kw_only=True)
class Table:
    """One metric of `METRICS` on one collection: entries by (system, column). Several columns are followed by `MEAN`.

    ``seeds`` is the number of different seeds in the table.
    """

    collection: str
    metric: str
    systems: tuple[str, ...]
    columns: tuple[str, ...]
    entries: dict[tuple[str, str], Entry]
    seeds: int


def tables_from(cells: Sequence[Cell]) -> list[Table]:
    """One table per collection and metric that occurs in the cells; rows and columns follow the order of the cells."""
    tables = []
    for collection in dict.fromkeys(cell.task.column.collection for cell in cells):
        for metric in METRICS:
            own = [cell for cell in cells if cell.task.column.collection == collection and metric in cell.metrics]
            if own:
                tables.append(_table(collection, metric, own))
    return tables


def _table(collection: str, metric: str, cells: Sequence[Cell]) -> Table:
    systems = tuple(dict.fromkeys(cell.task.system for cell in cells))
    columns = tuple(dict.fromkeys(cell.task.column.name for cell in cells))
    seeds = tuple(dict.fromkeys(cell.task.seed for cell in cells))
    entries: dict[tuple[str, str], Entry] = {}
    for system in systems:
        own = [cell for cell in cells if cell.task.system == system]
        for name in columns:
            if repeats := [cell for cell in own if cell.task.column.name == name]:
                first = repeats[0].metrics[metric]
                entries[system, name] = Entry(
                    values=tuple(cell.metrics[metric].value for cell in repeats),
                    published=published_value(repeats[0].system, metric, repeats[0].known),
                    interval=(first.low, first.high) if len(repeats) == 1 else None,
                )
        # A seed that lacks a class has no mean, because it would cover other classes than the means of other rows.
        by_seed = [[cell.metrics[metric].value for cell in own if cell.task.seed == seed] for seed in seeds]
        complete = [float(np.mean(values)) for values in by_seed if len(values) == len(columns)]
        if len(columns) > 1 and complete:
            classes = [next(cell.known for cell in own if cell.task.column.name == name) for name in columns]
            entries[system, MEAN] = Entry(
                values=tuple(complete), published=published_mean(own[0].system, metric, classes)
            )
    return Table(
        collection=collection,
        metric=metric,
        systems=systems,
        columns=(*columns, MEAN) if len(columns) > 1 else columns,
        entries=entries,
        seeds=len(seeds),
    )


def markdown(cells: Sequence[Cell], command: str) -> str:
    """All tables in Markdown, followed by remarks on how to read them."""
    parts = [f"# Evaluation\n\n```console\n$ {command}\n```"]
    for table in tables_from(cells):
        head = ["method", *table.columns]
        lines = [_row(head), _row(["---"] * len(head))]
        lines += [
            _row([f"`{system}`", *(_text(table.entries.get((system, name)), table.seeds) for name in table.columns)])
            for system in table.systems
        ]
        parts.append(f"## {table.collection}: {METRICS[table.metric]}\n\n" + "\n".join(lines))
    return "\n\n".join([*parts, *_remarks(cells)]) + "\n"


def csv_text(cells: Sequence[Cell]) -> str:
    """One CSV line per table entry, for spreadsheets and scripts."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(
        ("collection", "metric", "method", "class", "seeds", "mean", "std", "low", "high", "published", "source")
    )
    for table in tables_from(cells):
        for (system, name), entry in table.entries.items():
            std = "" if entry.std is None else f"{entry.std:.6f}"
            value, source = ("", "") if entry.published is None else (f"{entry.published[0]:g}", entry.published[1])
            seeds, mean = len(entry.values), f"{entry.mean:.6f}"
            bounds = ("", "") if entry.interval is None else tuple(f"{bound:.6f}" for bound in entry.interval)
            writer.writerow((table.collection, table.metric, system, name, seeds, mean, std, *bounds, value, source))
    return stream.getvalue()


def _remarks(cells: Sequence[Cell]) -> list[str]:
    """What the figures mean, how they were obtained, and the sources of published values."""
    seeds = sorted({cell.task.seed for cell in cells})
    published = any(entry.published for table in tables_from(cells) for entry in table.entries.values())
    remarks = [
        (
            "Mean over seeds, ± the sample standard deviation over them"
            if len(seeds) > 1
            else "One seed, with a 95% bootstrap interval over test pictures"
        )
        + (", and in parentheses the value that the paper reports" if published else "")
        + ". Measured with the reference (PyTorch, FP32) on the whole test set, none of which was used in training.",
        f"Seeds: {', '.join(map(str, seeds))}. Budget: {', '.join(sorted({cell.budget for cell in cells}))}"
        + (
            ", a fraction of the papers' training"
            if any(cell.budget not in ("paper", "none") for cell in cells)
            else ""
        )
        + (", bfloat16" if any(cell.task.amp for cell in cells) else "")
        + ".",
    ]
    for method in dict.fromkeys(cell.task.system.partition("/")[0] for cell in cells):
        options = {
            name: value
            for cell in cells
            if cell.task.system.partition("/")[0] == method
            for name, value in cell.task.options.items()
            if name not in ("budget", "variant", "patches", "encoder")
        }
        if options:
            remarks.append(f"`{method}`: " + ", ".join(f"{name} {value}" for name, value in options.items()) + ".")
    machines = {cell.machine.get("processor", "unknown") for cell in cells}
    trained = sum(cell.training_s or 0 for cell in cells)
    remarks.append(f"On {', '.join(sorted(machines))}; {trained / 60:.0f} minutes of training.")
    if published:
        remarks.append(SOURCES)
    return remarks


def _text(entry: Entry | None, seeds: int) -> str:
    if entry is None:
        return "–"
    text = f"{entry.mean:.3f}" + ("" if entry.std is None else f" ± {entry.std:.3f}")
    if entry.interval is not None:
        text += f" [{entry.interval[0]:.3f}, {entry.interval[1]:.3f}]"
    if len(entry.values) < seeds:
        text += f" of {len(entry.values)} seed" + ("s" if len(entry.values) > 1 else "")
    return text if entry.published is None else f"{text} ({entry.published[0]:.3f})"


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
