"""`adedge run`: inspect what a camera, a video or a folder shows, and write the verdicts."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.live import Live
from rich.table import Table
from rich.text import Text

from adedge.bundle import open_bundle
from adedge.cli import app, finite
from adedge.cli.options import RequireSignature
from adedge.console import console, note, warn
from adedge.specs import Precision, Target

if TYPE_CHECKING:
    from adedge.runtime.sinks import Sink
    from adedge.runtime.sources import FrameSource
    from adedge.runtime.statistics import Statistics

REJECTS_FOUND = 3  # exit code of --fail-on-reject: neither a failure (1) nor a wrong call (2)

PERCENTILES = (50, 95, 99)


@app.command("run")
def run(
    bundle: Annotated[Path, typer.Argument(help="The bundle, with an engine and its threshold.")],
    source: Annotated[
        list[str],
        typer.Argument(
            help="0 or /dev/video0 (camera), csi://0 (Jetson), a video or picture file, a folder of pictures, "
            "rtsp://…, gst:PIPELINE, or synthetic:brick?seed=0&frames=200. Several share the engine."
        ),
    ],
    target: Annotated[
        Target | None, typer.Option(help="What executes the engine. Default: the best that runs.")
    ] = None,
    precision: Annotated[Precision | None, typer.Option(help="Precision of the engine. Default: as above.")] = None,
    threshold: Annotated[
        float | None,
        typer.Option(callback=finite, help="Reject above this raw score, instead of the calibrated threshold."),
    ] = None,
    policy: Annotated[
        Literal["latest", "every"] | None,
        typer.Option(
            help="latest: keep each source's newest frame and drop those before it, rather than fall behind (default "
            "for cameras); every: judge all (default for files)."
        ),
    ] = None,
    batch: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="The most frames that go through the engine at once. Default: one of each source, if the engine takes "
            "so many. More frames than sources need the policy 'every'.",
        ),
    ] = None,
    wait_ms: Annotated[
        float,
        typer.Option(
            min=0,
            callback=finite,
            help="Of several sources: the longest that a frame waits for the others' frames, to go through the engine "
            "with them.",
        ),
    ] = 5.0,
    max_frames: Annotated[
        int | None, typer.Option(min=1, help="Stop after so many frames, of all sources together.")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of ONNX Runtime. Default: all cores.")] = None,
    jsonl: Annotated[Path | None, typer.Option(help="Verdicts as JSON lines into this file, not to stdout.")] = None,
    video: Annotated[Path | None, typer.Option(help="Annotated video: .webm (browsers), .mp4, .avi or .mkv.")] = None,
    rejects: Annotated[Path | None, typer.Option(help="Folder for pictures of rejects: as seen, and overlay.")] = None,
    maps: Annotated[Path | None, typer.Option(help="Folder for raw anomaly maps (float32 .npy).")] = None,
    page: Annotated[
        str | None,
        typer.Option(
            metavar="[HOST:]PORT",
            help="Serve a live page, and /metrics for Prometheus, at this port: 8080 for this machine alone, "
            "0.0.0.0:8080 for the network.",
        ),
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Fail at an unreadable picture, do not skip it.")] = False,
    reconnect: Annotated[
        float, typer.Option(min=0, callback=finite, help="Wait so many seconds for a camera that is lost.")
    ] = 0.0,
    host_scoring: Annotated[
        bool,
        typer.Option("--host-scoring", help="Preprocess and score on the processor, also with an engine on a GPU."),
    ] = False,
    fail_on_reject: Annotated[
        bool, typer.Option("--fail-on-reject", help=f"Exit with {REJECTS_FOUND} when any frame was rejected.")
    ] = False,
    require_signature: RequireSignature = None,
) -> None:
    """Inspect every frame of a source; verdicts are JSON lines on stdout, a summary goes to stderr.

    Several sources are inspected side by side on one engine, their frames together in a batch where it takes one; each
    line then says which "camera" it is about, counted from 0.

    Ctrl-C (or SIGTERM) ends the run cleanly: waiting frames are judged, files are closed, the summary is printed. That
    is the normal end of a camera (exit code 0); a video or folder that was not finished exits with 130 (143).
    """
    _quiet_opencv()
    from adedge.runtime.capture import default_policy
    from adedge.runtime.inspection import open_inspector
    from adedge.runtime.page import page_address
    from adedge.runtime.pipeline import Stream
    from adedge.runtime.pipeline import run as run_pipeline
    from adedge.runtime.statistics import Statistics

    address = None if page is None else page_address(page)
    _show_logging()
    opened = open_bundle(bundle, require_signature)
    manifest = opened.manifest
    inspector = open_inspector(
        opened,
        target,
        precision,
        threshold=threshold,
        threads=threads,
        maps="always" if maps or video or page else "rejects" if rejects else "never",
        host_scoring=host_scoring,
        notify=note,
    )
    engine = str(inspector.key)
    frames = _open_sources(source, strict=strict, reconnect_s=reconnect)
    names = "; ".join(f"{one.name}, policy {policy or default_policy(one)}" for one in frames)
    note(f"{engine}, threshold {inspector.threshold:.6g}; {names}")
    if batch is None and inspector.batch < len(frames):
        note(
            f"the engine takes {inspector.batch} frame(s) at once: build it with --batch 1,{len(frames)},{len(frames)}"
        )
    statistics = Statistics()
    streams: list[Stream] = []
    try:
        about = {"bundle": opened.path.resolve().name, "engine": engine}
        outline = manifest.score.reduce == "max"
        sinks = _sinks(frames, jsonl, video, rejects, maps, address, about, outline=outline)
        streams = [Stream(*pair) for pair in zip(frames, sinks, strict=True)]
        with _stop_on_signals() as stop, _status_line(frames, stdout_is_used=jsonl is None) as watch:
            run_pipeline(
                streams,
                inspector,
                policy=policy,
                batch=batch,
                wait_ms=wait_ms,
                max_frames=max_frames,
                stop=stop.event,
                statistics=statistics,
                watch=watch,
            )
    except BrokenPipeError:
        # The reader of the verdicts left (| head): a way to end, and Python must not complain of it when it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    finally:
        for one in frames:
            one.close()
        inspector.close()
        if len(streams) > 1:
            for index, stream in enumerate(streams):
                note(f"camera {index}, {stream.source.name}: {_counts(stream.statistics)}")
        _summarise(statistics, engine)
    if stop.signal_number is not None and not all(one.live for one in frames):
        raise typer.Exit(128 + stop.signal_number)
    if fail_on_reject and statistics.rejects:
        raise typer.Exit(REJECTS_FOUND)


def _open_sources(sources: Sequence[str], *, strict: bool, reconnect_s: float) -> list[FrameSource]:
    """All of them, or none: where one cannot be opened those before it are closed again."""
    from adedge.runtime.sources import open_source

    opened: list[FrameSource] = []
    try:
        for source in sources:
            opened.append(open_source(source, strict=strict, reconnect_s=reconnect_s, notify=warn))
    except BaseException:
        for one in opened:
            one.close()
        raise
    return opened


def _sinks(
    frames: Sequence[FrameSource],
    jsonl: Path | None,
    video: Path | None,
    rejects: Path | None,
    maps: Path | None,
    page: tuple[str, int] | None,
    about: Mapping[str, str],
    *,
    outline: bool,
) -> list[list[Sink]]:
    """For each source those that were asked for, the verdicts first; all share them but for the video."""
    from adedge.runtime.page import PageSink
    from adedge.runtime.sinks import JsonLinesSink, MapsSink, RejectsSink, VideoSink

    shared: list[Sink] = [JsonLinesSink(jsonl or sys.stdout)]
    if rejects is not None:
        shared.append(RejectsSink(rejects, outline=outline))
    if maps is not None:
        shared.append(MapsSink(maps))
    if page is not None:
        served = PageSink(page, [one.name for one in frames], about, outline=outline)
        note(f"live page: {served.url}")
        shared.append(served)
    sinks = [[*shared] for _ in frames]
    if video is not None:
        for index, (source, own) in enumerate(zip(frames, sinks, strict=True)):
            path = video if len(frames) == 1 else video.with_stem(f"{video.stem}.camera{index}")
            own.append(VideoSink(path, fps=source.fps or 25.0, outline=outline))
    return sinks


class _Stop:
    """What a signal asks for; ``signal_number`` is None until one came."""

    def __init__(self) -> None:
        self.event = threading.Event()
        self.signal_number: int | None = None


@contextmanager
def _stop_on_signals() -> Iterator[_Stop]:
    """The first SIGINT or SIGTERM asks the run to end; a second one interrupts it at once."""
    stop = _Stop()

    def handle(number: int, frame: FrameType | None) -> None:
        stop.signal_number = number
        stop.event.set()
        restore()

    def restore() -> None:
        for number, handler in previous.items():
            signal.signal(number, handler)

    previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        restore()


@contextmanager
def _status_line(
    frames: Sequence[FrameSource], *, stdout_is_used: bool
) -> Iterator[Callable[[Statistics], None] | None]:
    """One line on the terminal that follows the run; none where verdicts scroll over the same terminal."""
    if not console.is_terminal or (stdout_is_used and sys.stdout.isatty()):
        yield None
        return
    drawn_at = 0.0
    totals = [one.total for one in frames if one.total is not None]
    total = sum(totals) if len(totals) == len(frames) else None
    # Live would otherwise put itself in the place of sys.stdout, which carries the verdicts.
    with Live(console=console, auto_refresh=False, transient=True, redirect_stdout=False) as live:

        def watch(statistics: Statistics) -> None:
            nonlocal drawn_at
            if time.monotonic() - drawn_at > 0.2:
                drawn_at = time.monotonic()
                live.update(_status(statistics, total), refresh=True)

        yield watch


def _status(statistics: Statistics, total: int | None) -> Text:
    position = f"{statistics.frames}" if total is None else f"{statistics.frames}/{total}"
    rate = statistics.frames_per_second if statistics.frames > 1 else 0.0
    return Text.assemble(
        (f"{position} frames", "bold"),
        f"  {rate:.1f}/s  verdict p50 {statistics.latency_ms('verdict', 50):.1f} ms  ",
        (f"{statistics.rejects} rejected", "bold red" if statistics.rejects else ""),
        f"  {statistics.dropped} dropped",
    )


def _summarise(statistics: Statistics, engine: str) -> None:
    from adedge.runtime.statistics import LATENCIES, WINDOW

    rate = f"; {statistics.frames_per_second:.1f}/s" if statistics.frames > 1 else ""
    note(f"{_counts(statistics)}{rate}")
    if statistics.frames == 0:
        return
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column(f"latency in ms, last {min(statistics.frames, WINDOW)} frames, {engine}", no_wrap=True)
    for percentile in PERCENTILES:
        table.add_column(f"p{percentile}", justify="right")
    for name in LATENCIES:
        table.add_row(name, *(f"{statistics.latency_ms(name, percentile):.1f}" for percentile in PERCENTILES))
    console.print(table)


def _counts(statistics: Statistics) -> str:
    return (
        f"{statistics.frames} frames: {statistics.frames - statistics.rejects} passed, "
        f"{statistics.rejects} rejected; {statistics.dropped} dropped, {statistics.skipped} skipped"
    )


class _Shown(logging.Handler):
    """What the runtime logs, on stderr; but for errors, which are raised and shown as such."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno < logging.ERROR:
            show = warn if record.levelno >= logging.WARNING else note
            show(record.getMessage())


def _show_logging() -> None:
    """Warnings of the runtime; that kernels are being compiled, which takes its time; that there is no CUDA graph."""
    logging.getLogger("adedge.runtime").addHandler(_Shown())
    for name in ("kernel_cache", "inspector"):
        logging.getLogger(f"adedge.runtime.cuda.{name}").setLevel(logging.INFO)


def _quiet_opencv() -> None:
    """OpenCV and its FFmpeg print their own view of every error; ours says it in one sentence.

    They look at the environment when they are loaded: how to tell them later differs from version to version.
    """
    os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
