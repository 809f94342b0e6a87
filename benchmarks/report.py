"""The report that sets latency against accuracy: JSON for machines, Markdown for repositories, HTML for people."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from adedge.benchmarks import plots
from adedge.benchmarks.accuracy import Accuracy, Scored
from adedge.benchmarks.latency import Latency
from adedge.data.datasets import Sample
from adedge.data.folders import first_few
from adedge.errors import DataError
from adedge.files import write_whole
from adedge.intervals import rate_bound
from adedge.runtime.engines import EngineRecord
from adedge.runtime.overlay import SheetRow, picture_sheet
from adedge.specs import Record

SHEET_PICTURES = 8  # in a sheet of heat maps; up to half as many more if verdicts differ
HEAD = ("engine", "network p50", "frame p50", "frame p99", "verdict p50", "frames/s", "AUROC", "95% interval")
HEAD_ACCURACY = ("pixel AUROC", "AUPRO", "best F1", "false alarms", "misses", "flips")


class Report(Record):
    """report.json: what was measured, on which machine and data, and by which command.

    ``input`` is the network input's (C, H, W), ``reference`` the contender that flips are counted against;
    ``trained_on`` names the test pictures that the detector was trained on.
    """

    report_version: int = 1
    bundle: str
    command: str
    created: str
    data: str | None
    data_digest: str | None
    threads: int
    input: tuple[int, int, int]
    resident_mib: float
    reference: str = "pytorch/fp32"
    machine: dict[str, str]
    latency: dict[str, Latency]
    accuracy: dict[str, Accuracy] = Field(default_factory=dict)
    trained_on: tuple[str, ...] = ()
    engines: dict[str, EngineRecord] = Field(default_factory=dict)
    notes: tuple[str, ...] = ()


def report_files(report: Report, sheets: Mapping[str, bytes]) -> dict[str, str]:
    """The contents of report.json, report.md and report.html by name; ``sheets`` are heat maps (JPEG) by contender."""
    return {
        "report.json": report.model_dump_json(indent=2) + "\n",
        "report.md": markdown(report),
        "report.html": page(report, sheets),
    }


def save_report(folder: Path, report: Report, sheets: Mapping[str, bytes]) -> None:
    """Write the report and its heat maps into a folder, each file atomically.

    Raises `DataError` if the folder cannot be written.
    """
    pictures = {f"heat-maps.{name.replace('/', '-')}.jpg": sheet for name, sheet in sheets.items()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in report_files(report, sheets).items():
            write_whole(folder / name, text)
        for name, picture in pictures.items():
            write_whole(folder / name, picture)
    except OSError as error:
        raise DataError(f"the report cannot be written to {folder} ({error}): choose another place with -o") from error


def headline(report: Report) -> str:
    """The report's conclusion in one sentence: whether the engines decide as the model did."""
    model = "PyTorch model" if report.reference.startswith("pytorch/") else f"imported model ({report.reference})"
    compared = {name: a for name, a in report.accuracy.items() if name != report.reference and a.flips is not None}
    if not compared:
        return (
            f"Verdicts are not compared with the {model}'s: that requires labelled pictures, thresholds and the model."
        )
    pictures = next(iter(compared.values())).pictures
    flips = ", ".join(f"{a.flips} ({name})" for name, a in compared.items())
    if all(a.flips == 0 for a in compared.values()):
        if all(a.one_verdict for a in compared.values()):
            verdict = next(iter(compared.values())).one_verdict
            return (
                f"Every engine {verdict} all {pictures} pictures, good and anomalous, as the {model} does: this proves "
                "nothing."
            )
        return (
            f"Every engine decides as the {model} did on all {pictures} pictures: with 95% confidence each differs "
            f"on at most {rate_bound(0, pictures):.2%} of such pictures."
        )
    return f"Verdicts that differ from the {model}'s, of {pictures} pictures: {flips}."


def caution(report: Report) -> str:
    """A sentence on test pictures that were trained on; empty if there are none."""
    if not report.trained_on:
        return ""
    pictures = next(iter(report.accuracy.values())).pictures
    return (
        f"The detector was trained on {len(report.trained_on)} of the {pictures} test pictures "
        f"({first_few(report.trained_on)}): accuracy on new pictures is lower than these figures say; test on others."
    )


def rows(report: Report) -> list[list[str]]:
    """One row of text per contender, with the columns `HEAD` and `HEAD_ACCURACY`."""
    table = []
    for name in dict.fromkeys([*report.latency, *report.accuracy]):
        latency, accuracy = report.latency.get(name), report.accuracy.get(name)
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
        if accuracy is None:
            row += ["–"] * 8
        else:
            row += [f"{accuracy.auroc:.4f}", f"{accuracy.auroc_low:.3f} to {accuracy.auroc_high:.3f}"]
            row += [_interval(accuracy.pixel_auroc, accuracy.pixel_auroc_interval)]
            row += [_interval(accuracy.aupro, accuracy.aupro_interval), f"{accuracy.best_f1:.3f}"]
            row += [_percent(accuracy.false_alarms), _percent(accuracy.misses)]
            row += ["–" if accuracy.flips is None else f"{accuracy.flips} of {accuracy.pictures}"]
        table.append(row)
    return table


def markdown(report: Report) -> str:
    """The report as Markdown."""
    head = [*HEAD, *HEAD_ACCURACY]
    lines = [f"# {report.bundle}", "", headline(report), "", _markdown_row(head), _markdown_row(["---"] * len(head))]
    lines += [_markdown_row(row) for row in rows(report)]
    if report.trained_on:
        lines += ["", f"**{caution(report)}**"]
    lines += ["", f"Latencies in milliseconds, {_at_once(report)}.", ""]
    lines += [f"- {note}" for note in report.notes]
    lines += ["", "| | |", "| --- | --- |", *(_markdown_row(pair) for pair in _facts(report))]
    return "\n".join(lines) + "\n"


def page(report: Report, sheets: Mapping[str, bytes]) -> str:
    """The report as one self-contained HTML page; ``sheets`` are pictures of heat maps (JPEG) by contender."""
    parts = [f"<h1>{_text(report.bundle)}</h1>", f'<p class="lead">{_text(headline(report))}</p>']
    parts += [_table([*HEAD, *HEAD_ACCURACY], rows(report))]
    if report.trained_on:
        parts += [f"<p><b>{_text(caution(report))}</b></p>"]
    parts += [
        f"<p>Latencies in milliseconds, {_at_once(report)}. <b>network</b>: the engine alone. <b>frame</b>: "
        "preprocess to score. <b>verdict</b>: capture to the verdict handed to the first sink.</p>"
    ]
    parts += ["<ul>", *(f"<li>{_text(note)}</li>" for note in report.notes), "</ul>"]
    if report.accuracy and report.latency:
        parts += [
            "<h2>Latency against accuracy</h2>",
            _picture(plots.latency_accuracy(report.latency, report.accuracy), "median frame latency against AUROC"),
        ]
    if report.latency:
        parts += ["<h2>Latency</h2>", _picture(plots.latency_histograms(report.latency), "histograms of latency")]
    if report.accuracy:
        parts += ["<h2>Accuracy</h2>", _picture(plots.curves(report.accuracy), "ROC and PRO curves")]
    if sheets:
        parts += [
            "<h2>Heat maps</h2>",
            "<p>The first pictures on which verdicts differ, then the good pictures with the highest and the lowest "
            "score and anomalous ones spread evenly by score: the same pictures for every engine.</p>",
        ]
        parts += [
            f"<details{' open' if number == 0 else ''}><summary>{_text(name)}</summary>"
            f"{_picture(sheet, f'heat maps of {name}', 'jpeg')}</details>"
            for number, (name, sheet) in enumerate(sheets.items())
        ]
    if report.engines:
        parts += [
            "<h2>Engines</h2>",
            _table(
                ("engine", "library", "path", "build time", "self-test"),
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


def telling_pictures(
    samples: Sequence[Sample], scored: Scored, verdicts: Sequence[NDArray[np.bool_] | None]
) -> list[int]:
    """Indices of the pictures to show.

    The first that contenders decide differently, the good pictures with the highest and the lowest score in ``scored``,
    and anomalous ones spread evenly over the ranks of their scores.
    """
    compared = [one for one in verdicts if one is not None]
    differing: NDArray[np.intp] | list[int] = []
    if compared:
        differing = np.flatnonzero(np.any([one != compared[0] for one in compared], axis=0))[: SHEET_PICTURES // 2]
    labels = np.array([sample.label for sample in samples])
    order = np.argsort(scored.scores)
    good, bad = order[labels[order] == 0], order[labels[order] == 1]
    evenly = bad[np.linspace(0, len(bad) - 1, SHEET_PICTURES - 2).round().astype(int)] if len(bad) else []
    return list(dict.fromkeys(int(number) for number in [*differing, *good[-1:], *good[:1], *evenly]))


def heat_maps(
    samples: Sequence[Sample],
    scored: Scored,
    shown: Sequence[int],
    threshold: float | None,
    *,
    outline: bool = True,
    margin: int = 0,
) -> bytes:
    """A JPEG of the pictures with the indices ``shown`` and their maps; ``threshold`` defaults to the median score.

    ``outline`` and ``margin`` are those of `adedge.runtime.overlay.overlay`.
    """
    limit = float(np.median(scored.scores)) if threshold is None else threshold
    sheet = picture_sheet(
        [
            SheetRow(
                frame=samples[number].read(),
                map=scored.maps[number],
                score=float(scored.scores[number]),
                threshold=limit,
                title=samples[number].kind,
                margin=margin,
                mask=samples[number].read_mask() if samples[number].label else None,
            )
            for number in shown
        ],
        outline=outline,
    )
    return bytes(cv2.imencode(".jpg", sheet, [cv2.IMWRITE_JPEG_QUALITY, 88])[1])


STYLE = """
:root{color-scheme:light dark}
body{font:16px/1.5 system-ui,sans-serif;max-width:1080px;margin:2rem auto;padding:0 1rem}
.lead{font-size:1.25rem;border-left:4px solid #0072B2;padding-left:.8rem}
table{border-collapse:collapse;font-size:.85rem;font-variant-numeric:tabular-nums;display:block;overflow-x:auto}
th,td{padding:.3rem .6rem;text-align:left;border-bottom:1px solid #8884;vertical-align:top}
img{max-width:100%;background:#fff;border-radius:6px}
@media print{body{max-width:none}}
"""


def _at_once(report: Report) -> str:
    batch = max((latency.batch for latency in report.latency.values()), default=1)
    return "one frame at a time" if batch == 1 else f"{batch} frames at a time (verdict: one frame)"


def _facts(report: Report) -> list[list[str]]:
    facts = {"command": report.command, "created": report.created, "data": report.data or "none"}
    if report.data_digest:
        facts["data digest"] = report.data_digest
    channels, height, width = report.input
    facts["input"] = f"{width} × {height} × {channels}"
    facts["flips counted against"] = report.reference
    facts["threads"] = str(report.threads)
    facts["resident memory"] = f"{report.resident_mib:.0f} MiB with all contenders loaded"
    if report.latency:
        facts["frame rate"] = f"{next(iter(report.latency.values())).paced_at:.1f} a second, while measuring verdict"
    return [[name, value] for name, value in {**facts, **report.machine}.items()]


def _table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    top = "".join(f"<th>{_text(cell)}</th>" for cell in head)
    lines = "".join("<tr>" + "".join(f"<td>{_text(cell)}</td>" for cell in row) + "</tr>" for row in body)
    return f"<table><thead><tr>{top}</tr></thead><tbody>{lines}</tbody></table>"


def _picture(data: bytes, text: str, kind: str = "png") -> str:
    return f'<img alt="{_text(text)}" src="data:image/{kind};base64,{base64.b64encode(data).decode()}">'


def _markdown_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _text(text: str) -> str:
    return html.escape(text)


def _interval(value: float | None, bounds: tuple[float, float] | None) -> str:
    if value is None:
        return "–"
    return f"{value:.4f}" if bounds is None else f"{value:.4f} ({bounds[0]:.3f} to {bounds[1]:.3f})"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"


def summary(report: Report) -> Mapping[str, list[str]]:
    """The columns that fit a terminal, by engine: frame latency, AUROC, AUPRO without its interval, flips."""
    columns = (2, 6, 9, 13)
    return {row[0]: [row[index].partition(" (")[0] for index in columns] for row in rows(report)}
