"""The report that sets latency against accuracy: JSON for machines, Markdown for repositories, a page for people."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from adedge.benchmarks import plots
from adedge.benchmarks.accuracy import Accuracy, Scored
from adedge.benchmarks.latency import Latency
from adedge.datasets import Sample
from adedge.runtime.engines import EngineRecord
from adedge.runtime.overlay import SheetRow, picture_sheet
from adedge.specs import Model

REFERENCE = "pytorch/fp32"
SHOWN = 8  # pictures in the sheet
HEAD = ("engine", "network p50", "frame p50", "frame p99", "verdict p50", "frames/s", "AUROC", "95% interval")
HEAD_ACCURACY = ("pixel AUROC", "AUPRO", "best F1", "false alarms", "misses", "flips against PyTorch")


class Report(Model):
    """report.json: what was measured, on what, and with which call; latencies in milliseconds, one frame at a time."""

    report_version: int = 1
    bundle: str
    command: str
    created: str
    data: str | None
    data_digest: str | None
    threads: int
    input: tuple[int, int, int]
    resident_mib: float
    machine: dict[str, str]
    latency: dict[str, Latency]
    accuracy: dict[str, Accuracy] = Field(default_factory=dict)
    engines: dict[str, EngineRecord] = Field(default_factory=dict)
    notes: tuple[str, ...] = ()


def headline(report: Report) -> str:
    """The one sentence that the report is for."""
    judged = {name: a for name, a in report.accuracy.items() if name != REFERENCE and a.flips is not None}
    if not judged:
        return "Latency only: no labelled pictures, or no thresholds, to compare verdicts with PyTorch's."
    pictures = next(iter(judged.values())).pictures
    flips = ", ".join(f"{a.flips} ({name})" for name, a in judged.items())
    if all(a.flips == 0 for a in judged.values()):
        return f"Every engine decides as the PyTorch model did on all {pictures} pictures."
    return f"Of {pictures} pictures, so many are decided otherwise than by the PyTorch model: {flips}."


def rows(report: Report) -> list[list[str]]:
    """One row of text for each contender, under `HEAD` and `HEAD_ACCURACY`."""
    table = []
    for name in dict.fromkeys([*report.latency, *report.accuracy]):
        latency, found = report.latency.get(name), report.accuracy.get(name)
        row = [name]
        row += (
            ["–"] * 5
            if latency is None
            else [
                f"{latency.network.p50:.2f}",
                f"{latency.frame.p50:.2f}",
                f"{latency.frame.p99:.2f}",
                f"{latency.verdict.p50:.2f}",
                f"{latency.frames_per_second:.1f}",
            ]
        )
        if found is None:
            row += ["–"] * 8
        else:
            row += [f"{found.auroc:.4f}", f"{found.auroc_low:.3f} to {found.auroc_high:.3f}"]
            row += [_number(found.pixel_auroc), _number(found.aupro), f"{found.best_f1:.3f}"]
            row += [_percent(found.false_alarms), _percent(found.misses)]
            row += ["–" if found.flips is None else f"{found.flips} of {found.pictures}"]
        table.append(row)
    return table


def markdown(report: Report) -> str:
    """The report as Markdown."""
    head = [*HEAD, *HEAD_ACCURACY]
    lines = [f"# {report.bundle}", "", headline(report), "", _markdown_row(head), _markdown_row(["---"] * len(head))]
    lines += [_markdown_row(row) for row in rows(report)]
    lines += ["", "Latencies in milliseconds, one frame at a time.", ""]
    lines += [f"- {note}" for note in report.notes]
    lines += ["", "| | |", "| --- | --- |", *(_markdown_row(pair) for pair in _facts(report))]
    return "\n".join(lines) + "\n"


def page(report: Report, sheet: bytes | None) -> str:
    """The report as one self-contained HTML page; ``sheet`` is a PNG of heat maps."""
    parts = [f"<h1>{_text(report.bundle)}</h1>", f'<p class="lead">{_text(headline(report))}</p>']
    parts += [_table([*HEAD, *HEAD_ACCURACY], rows(report))]
    parts += [
        "<p>Latencies in milliseconds, one frame at a time. <b>network</b>: the engine alone. <b>frame</b>: "
        "preprocess to score. <b>verdict</b>: capture to the verdict handed to the first sink.</p>"
    ]
    parts += ["<ul>", *(f"<li>{_text(note)}</li>" for note in report.notes), "</ul>"]
    if report.accuracy and report.latency:
        parts += [
            "<h2>Latency against accuracy</h2>",
            _picture(plots.latency_accuracy(report.latency, report.accuracy)),
        ]
    if report.latency:
        parts += ["<h2>Latency</h2>", _picture(plots.latency_histograms(report.latency))]
    if report.accuracy:
        parts += ["<h2>Accuracy</h2>", _picture(plots.curves(report.accuracy))]
    if sheet is not None:
        parts += [
            "<h2>What it sees</h2>",
            "<p>The good picture with the highest score, the anomalous one with the "
            "lowest, and others drawn evenly by score.</p>",
            _picture(sheet),
        ]
    if report.engines:
        parts += [
            "<h2>Engines</h2>",
            _table(
                ("engine", "library", "path", "built in", "self-test"),
                [
                    [name, e.library_version, e.path, f"{e.build_seconds:.1f} s", e.status]
                    for name, e in report.engines.items()
                ],
            ),
        ]
    parts += ["<h2>Measured on</h2>", _table(("", ""), _facts(report))]
    style = "".join(STYLE.split("\n"))
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{_text(report.bundle)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{style}</style></head>\n<body>\n'
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def heat_maps(samples: Sequence[Sample], scored: Scored, threshold: float) -> bytes:
    """A PNG of pictures with their maps: the worst of either kind, and others drawn evenly by score."""
    labels = np.array([sample.label for sample in samples])
    order = np.argsort(scored.scores)
    good, bad = order[labels[order] == 0], order[labels[order] == 1]
    evenly = bad[np.linspace(0, len(bad) - 1, SHOWN - 2).round().astype(int)] if len(bad) else []
    chosen = dict.fromkeys(int(i) for i in [*good[-1:], *good[:1], *evenly])
    sheet = picture_sheet(
        [
            SheetRow(
                frame=samples[i].read(),
                map=scored.maps[i],
                score=float(scored.scores[i]),
                threshold=threshold,
                title=samples[i].kind,
                mask=samples[i].read_mask() if samples[i].label else None,
            )
            for i in chosen
        ]
    )
    return _png(sheet)


STYLE = """
:root{color-scheme:light dark}
body{font:16px/1.5 system-ui,sans-serif;max-width:1080px;margin:2rem auto;padding:0 1rem}
.lead{font-size:1.25rem;border-left:4px solid #0072B2;padding-left:.8rem}
table{border-collapse:collapse;font-size:.85rem;font-variant-numeric:tabular-nums;display:block;overflow-x:auto}
th,td{padding:.3rem .6rem;text-align:left;border-bottom:1px solid #8884;vertical-align:top}
img{max-width:100%;background:#fff;border-radius:6px}
@media print{body{max-width:none}}
"""


def _facts(report: Report) -> list[list[str]]:
    facts = {"command": report.command, "created": report.created, "data": report.data or "none"}
    if report.data_digest:
        facts["data digest"] = report.data_digest
    channels, height, width = report.input
    facts["input"] = f"{width} × {height} × {channels}"
    facts["threads"] = str(report.threads)
    facts["resident memory"] = f"{report.resident_mib:.0f} MiB with all contenders loaded"
    for name, latency in report.latency.items():
        facts[f"verdict rate, {name}"] = f"{latency.paced_at:.1f} frames/s"
    return [[name, value] for name, value in {**facts, **report.machine}.items()]


def _table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    top = "".join(f"<th>{_text(cell)}</th>" for cell in head)
    lines = "".join("<tr>" + "".join(f"<td>{_text(cell)}</td>" for cell in row) + "</tr>" for row in body)
    return f"<table><thead><tr>{top}</tr></thead><tbody>{lines}</tbody></table>"


def _picture(png: bytes) -> str:
    return f'<img alt="" src="data:image/png;base64,{base64.b64encode(png).decode()}">'


def _png(picture: NDArray[np.uint8]) -> bytes:
    return bytes(cv2.imencode(".png", picture)[1])


def _markdown_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _text(text: str) -> str:
    return html.escape(text)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"


def summary(report: Report) -> Mapping[str, list[str]]:
    """What fits a terminal: engine, frame latency, AUROC, AUPRO, flips; keyed by engine."""
    chosen = (2, 6, 9, 13)
    return {row[0]: [row[index] for index in chosen] for row in rows(report)}
