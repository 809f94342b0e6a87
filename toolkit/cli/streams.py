"""The sources of `adedge run` and the outputs of each, opened as its options say."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from adedge.console import note, warn
from adedge.errors import UsageError

if TYPE_CHECKING:
    from adedge.runtime.evidence import Retention
    from adedge.runtime.line_file import Rotation
    from adedge.runtime.page import PageSink
    from adedge.runtime.sinks import Sink
    from adedge.runtime.sources import FrameSource


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """What to write, and where; None leaves an output out, except that verdicts then go to stdout.

    ``outline`` is that of `adedge.runtime.overlay.overlay`. If ``strict``, every output is required: verdicts that
    cannot be written end the run, another output that is incomplete fails it at the end.
    """

    jsonl: Path | None
    video: Path | None
    rejects: Path | None
    maps: Path | None
    rotation: Rotation
    retention: Retention
    outline: bool
    strict: bool


def open_sources(
    sources: Sequence[str], names: Sequence[str], *, strict: bool, reconnect_s: float
) -> list[FrameSource]:
    """Open every source; if one fails, close those already open."""
    from adedge.runtime.sources import open_source
    from adedge.runtime.sources.address import distinct_names, resolve

    unfit = [n for i, n in enumerate(names) if not (n.strip() and n.isprintable()) or n in names[:i]]
    if names and (len(names) != len(sources) or unfit):
        why = f" ({unfit[0]!r} is not)" if unfit else ""
        raise UsageError(
            f"{len(names)} --name for {len(sources)} source(s): give each source one, all different and printable{why}"
        )
    addresses = [resolve(source, warn) for source in sources]
    opened: list[FrameSource] = []
    try:
        for address, name in zip(addresses, names or distinct_names(addresses), strict=True):
            opened.append(open_source(address, name=name, strict=strict, reconnect_s=reconnect_s, notify=warn))
    except BaseException:
        for one in opened:
            one.close()
        raise
    return opened


def open_sinks(frames: Sequence[FrameSource], outputs: Outputs, live_page: PageSink | None) -> list[list[Sink]]:
    """The requested sinks of each source, verdicts first. Sources share them, except that each has its own video.

    The file of verdicts is opened last, so that a call that another sink refuses leaves an existing file as it was.
    """
    from adedge.runtime.sinks import BestEffort, JsonLinesSink, MapsSink, RejectsSink, VideoSink
    from adedge.runtime.verdict import new_run_id

    run_id = new_run_id()
    outline, retention, strict = outputs.outline, outputs.retention, outputs.strict
    videos: list[list[Sink]] = [[] for _ in frames]
    if (video := outputs.video) is not None:
        for index, source in enumerate(frames):
            path = video if len(frames) == 1 else video.with_stem(f"{video.stem}.camera{index}")
            sink = VideoSink(path, fps=source.fps or 25.0, outline=outline, run_id=run_id, retention=retention)
            videos[index].append(BestEffort(sink, "the video", required=strict))
    shared: list[Sink] = []
    if outputs.rejects is not None:
        pictures = RejectsSink(outputs.rejects, outline=outline, run_id=run_id, retention=retention)
        shared.append(BestEffort(pictures, "rejects", required=strict))
    if outputs.maps is not None:
        shared.append(BestEffort(MapsSink(outputs.maps, run_id=run_id, retention=retention), "maps", required=strict))
    if live_page is not None:
        note(f"live page: {live_page.url}")
        shared.append(BestEffort(live_page.staying(), "the live page", required=strict))
    verdicts: Sink = JsonLinesSink(outputs.jsonl or sys.stdout, run_id=run_id, rotation=outputs.rotation)
    shared.insert(0, verdicts if strict else BestEffort(verdicts, "verdicts", required=True))
    return [[*shared, *own] for own in videos]


def report_failures(sinks: Sequence[Sequence[Sink]]) -> bool:
    """Warn of outputs that are incomplete; return whether one of them was required."""
    from adedge.runtime.sinks import BestEffort

    outputs = dict.fromkeys(sink for own in sinks for sink in own if isinstance(sink, BestEffort))
    failed = [sink for sink in outputs if sink.failures]
    for sink in failed:
        warn(f"{sink.name}: incomplete, {sink.failures} could not be written; the first warning says why")
    return any(sink.required for sink in failed)
