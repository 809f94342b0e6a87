"""`adedge run`: inspect the frames of cameras, videos and folders, and write the verdicts."""

from __future__ import annotations

import logging
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.live import Live
from rich.table import Table
from rich.text import Text

from adedge.bundle import open_bundle
from adedge.cli import app, finite
from adedge.cli.evidence import EvidenceSize, KeepFiles, KeepFree, RotateAge, RotateSize
from adedge.cli.options import Expect, RequireSignature
from adedge.console import console, note, warn
from adedge.errors import UsageError
from adedge.processors import limit_opencv
from adedge.specs import Precision, Target

if TYPE_CHECKING:
    from adedge.runtime.evidence import Retention
    from adedge.runtime.line_file import Rotation
    from adedge.runtime.page import PageSink
    from adedge.runtime.pipeline import Stream
    from adedge.runtime.sinks import Sink
    from adedge.runtime.sources import FrameSource
    from adedge.runtime.statistics import Statistics

REJECTS_FOUND = 3  # exit code of --fail-on-reject: neither a failure (1) nor a usage error (2)

PERCENTILES = (50, 95, 99)


@app.command("run")
def run(
    bundle: Annotated[Path, typer.Argument(help="Bundle with an engine and its threshold.")],
    source: Annotated[
        list[str],
        typer.Argument(
            help="0 or /dev/video0 (camera), csi://0 (Jetson), a video or picture file, a folder of pictures, "
            "rtsp://…, gst:PIPELINE, or synthetic:brick?seed=0&frames=200. Several sources share the engine. ${NAME} "
            "in it is an environment variable (for passwords), @PATH a file that holds the address."
        ),
    ],
    name: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LABEL",
            help="The source's name in messages, verdicts, page and metrics. With several sources: once for each, in "
            "their order. Default: the file, the camera, or scheme, host and port of an address.",
        ),
    ] = None,
    target: Annotated[
        Target | None, typer.Option(help="Runtime of the engine. Default: the best one that runs here.")
    ] = None,
    precision: Annotated[Precision | None, typer.Option(help="Precision of the engine. Default: the best one.")] = None,
    threshold: Annotated[
        float | None,
        typer.Option(callback=finite, help="Reject above this raw score instead of the calibrated threshold."),
    ] = None,
    policy: Annotated[
        Literal["latest", "every"] | None,
        typer.Option(
            help="latest: keep only the newest waiting frame of each source and drop older ones, so that verdicts do "
            "not lag behind (default for cameras); every: inspect all frames (default for files)."
        ),
    ] = None,
    batch: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Maximum number of frames per engine call. Default: one per source, or the engine's maximum if "
            "smaller. More than one per source requires the policy 'every'.",
        ),
    ] = None,
    wait_ms: Annotated[
        float,
        typer.Option(
            min=0,
            callback=finite,
            help="With several sources: the longest time in ms that a frame waits for frames of the others, to share "
            "an engine call with them.",
        ),
    ] = 5.0,
    max_frames: Annotated[
        int | None, typer.Option(min=1, help="Stop after this many frames, counted over all sources.")
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(min=1, help="Threads for ONNX Runtime. Default: the physical cores, or a container's quota."),
    ] = None,
    jsonl: Annotated[Path | None, typer.Option(help="Append verdicts (JSON lines) to this file, not stdout.")] = None,
    rotate_size: RotateSize = None,
    rotate_age: RotateAge = None,
    keep_files: KeepFiles = None,
    video: Annotated[
        Path | None, typer.Option(help="Annotated video: .webm (for browsers), .mp4, .avi or .mkv.")
    ] = None,
    rejects: Annotated[Path | None, typer.Option(help="Folder for rejects: original frame and overlay.")] = None,
    maps: Annotated[Path | None, typer.Option(help="Folder for the raw anomaly maps (float32 .npy).")] = None,
    evidence_size: EvidenceSize = None,
    keep_free: KeepFree = None,
    page: Annotated[
        str | None,
        typer.Option(
            metavar="[HOST:]PORT",
            help="Serve a live page, and /metrics for Prometheus, on this port: 8080 for this machine only, "
            "0.0.0.0:8080 for the whole network.",
        ),
    ] = None,
    strict: Annotated[
        bool,
        typer.Option(
            "--strict",
            help="Fail on pictures that cannot be read or are of another kind, and on damaged videos, instead of "
            "skipping. Fail at once if verdicts cannot be written, and at the end if another output could not.",
        ),
    ] = False,
    reconnect: Annotated[
        float,
        typer.Option(min=0, callback=finite, help="Seconds to wait for a camera that is not there yet, or is lost."),
    ] = 0.0,
    camera_timeout: Annotated[
        float,
        typer.Option(
            min=0,
            callback=finite,
            help="Report a camera that delivers no frame for this many seconds; 0: never, for a triggered camera.",
        ),
    ] = 2.0,
    on_camera_fault: Annotated[
        Literal["warn", "reject", "stop"],
        typer.Option(
            help="A camera that is silent, frozen, covered or changes its frame size: warn: report it; reject: also "
            "judge its frames anomalous; stop: end the run with an error."
        ),
    ] = "warn",
    host_scoring: Annotated[
        bool,
        typer.Option("--host-scoring", help="Preprocess and score on the CPU even if the engine runs on a GPU."),
    ] = False,
    fail_on_reject: Annotated[
        bool, typer.Option("--fail-on-reject", help=f"Exit with {REJECTS_FOUND} if any frame is rejected.")
    ] = False,
    require_signature: RequireSignature = None,
    expect: Expect = None,
) -> None:
    """Inspect the frames of one or more sources: verdicts go to stdout as JSON lines, a summary to stderr.

    Several sources share one engine, in batches if it supports them; each line then names its "camera", from 0.

    Ctrl-C (or SIGTERM) ends the run cleanly: waiting frames are inspected, files are closed, the summary is printed.
    For cameras this is the normal end (exit code 0); an unfinished video or folder exits with 130 (143).
    In a terminal, the live page stays after the last frame until Ctrl-C.
    """
    _quiet_opencv()
    limit_opencv()
    from adedge.runtime.capture import default_policy
    from adedge.runtime.evidence import Retention
    from adedge.runtime.inspection import open_inspector
    from adedge.runtime.line_file import Rotation
    from adedge.runtime.page import PageSink, page_address
    from adedge.runtime.pipeline import Stream, check_batch
    from adedge.runtime.pipeline import run as run_pipeline
    from adedge.runtime.sources.address import shown
    from adedge.runtime.statistics import Statistics

    if shown(str(bundle)) != str(bundle) and not os.path.lexists(bundle):
        raise UsageError("BUNDLE looks like a source's address (not shown): give the bundle first, then the sources")
    address = None if page is None else page_address(page)
    if jsonl is None and sys.stdout is None:
        raise UsageError("stdout is closed, so verdicts have nowhere to go: add --jsonl FILE")
    if jsonl is None and (rotate_size, rotate_age, keep_files) != (None, None, None):
        raise UsageError("--rotate-size, --rotate-age and --keep-files apply to a file of verdicts: add --jsonl FILE")
    _show_logging()
    opened = open_bundle(bundle, require_signature, expect, remember=True)
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
    statistics = Statistics()
    with ExitStack() as cleanup:
        cleanup.callback(inspector.close)
        frames = _open_sources(source, name or [], strict=strict, reconnect_s=reconnect)
        for one in frames:
            cleanup.callback(one.close)
        policies = [policy or default_policy(one) for one in frames]
        names = "; ".join(f"{one.name}, policy {own}" for one, own in zip(frames, policies, strict=True))
        note(f"{engine}, threshold {inspector.threshold:.6g}; {names}")
        if batch is not None:
            check_batch(batch, inspector, policies)  # before an output is created or replaced
        elif inspector.batch < len(frames):
            note(
                f"the engine takes at most {inspector.batch} frame(s) at once: to batch all sources, build it with "
                f"--batch 1,{len(frames)},{len(frames)}"
            )
        about = {"bundle": opened.path.resolve().name, "engine": engine}
        outline = manifest.score.reduce == "max"
        live_page = None if address is None else PageSink(address, [one.name for one in frames], about, outline=outline)
        if live_page is not None:
            cleanup.callback(live_page.close)
        rotation = Rotation(size_bytes=rotate_size, age_s=rotate_age, keep_files=keep_files)
        retention = Retention(folder_bytes=evidence_size, keep_free_bytes=keep_free)
        sinks = _open_sinks(
            *(frames, jsonl, video, rejects, maps, live_page, rotation, retention), outline=outline, strict=strict
        )
        streams = [Stream(*pair) for pair in zip(frames, sinks, strict=True)]
        with _stop_on_signals() as stop:
            complete = False
            try:
                with _status_line(frames, stdout_is_used=jsonl is None) as watch:
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
                        camera_timeout_s=camera_timeout,
                        on_camera_fault=on_camera_fault,
                    )
                complete = max_frames is None or statistics.frames < max_frames
            except BrokenPipeError:
                # The reader of the verdicts closed the pipe (| head): a normal end. Without this redirection Python
                # would complain when it flushes stdout at exit.
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            finally:
                _summarise(streams, statistics, engine)
                incomplete = _report_failures(sinks)
            signal_number = stop.signal_number
            if live_page is not None and complete and signal_number is None and _has_terminal():
                note(f"the sources have ended; the live page stays at {live_page.url} until you press Ctrl-C")
                while not stop.event.is_set():  # not wait(): the signal handler that sets it must not take a lock
                    time.sleep(0.1)
    if incomplete:
        raise typer.Exit(1)
    if signal_number is not None and not all(one.live for one in frames):
        raise typer.Exit(128 + signal_number)
    if fail_on_reject and statistics.rejects:
        raise typer.Exit(REJECTS_FOUND)


def _open_sources(
    sources: Sequence[str], names: Sequence[str], *, strict: bool, reconnect_s: float
) -> list[FrameSource]:
    """Open every source; if one fails, close those already open."""
    from adedge.runtime.sources import open_source
    from adedge.runtime.sources.address import distinct_names, resolve

    printable = all(name.strip() and name.isprintable() for name in names)
    if names and (len(names) != len(sources) or len(set(names)) < len(names) or not printable):
        raise UsageError(
            f"{len(names)} --name for {len(sources)} source(s): give each source one, all different and printable"
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


def _open_sinks(
    frames: Sequence[FrameSource],
    jsonl: Path | None,
    video: Path | None,
    rejects: Path | None,
    maps: Path | None,
    live_page: PageSink | None,
    rotation: Rotation,
    retention: Retention,
    *,
    outline: bool,
    strict: bool,
) -> list[list[Sink]]:
    """The requested sinks of each source, verdicts first. Sources share them, except that each has its own video.

    The file of verdicts is opened last, so that a call that another sink refuses leaves an existing file as it was.
    """
    from adedge.runtime.sinks import BestEffort, JsonLinesSink, MapsSink, RejectsSink, VideoSink
    from adedge.runtime.verdict import new_run_id

    run_id = new_run_id()
    videos: list[list[Sink]] = [[] for _ in frames]
    if video is not None:
        for index, source in enumerate(frames):
            path = video if len(frames) == 1 else video.with_stem(f"{video.stem}.camera{index}")
            sink = VideoSink(path, fps=source.fps or 25.0, outline=outline, run_id=run_id, retention=retention)
            videos[index].append(BestEffort(sink, "the video", required=strict))
    shared: list[Sink] = []
    if rejects is not None:
        pictures = RejectsSink(rejects, outline=outline, run_id=run_id, retention=retention)
        shared.append(BestEffort(pictures, "rejects", required=strict))
    if maps is not None:
        shared.append(BestEffort(MapsSink(maps, run_id=run_id, retention=retention), "maps", required=strict))
    if live_page is not None:
        note(f"live page: {live_page.url}")
        shared.append(BestEffort(live_page.staying(), "the live page", required=strict))
    verdicts: Sink = JsonLinesSink(jsonl or sys.stdout, run_id=run_id, rotation=rotation)
    shared.insert(0, verdicts if strict else BestEffort(verdicts, "verdicts", required=True))
    return [[*shared, *own] for own in videos]


def _report_failures(sinks: Sequence[Sequence[Sink]]) -> bool:
    """Warn of outputs that are incomplete; return whether one of them was required."""
    from adedge.runtime.sinks import BestEffort

    outputs = dict.fromkeys(sink for own in sinks for sink in own if isinstance(sink, BestEffort))
    failed = [sink for sink in outputs if sink.failures]
    for sink in failed:
        warn(f"{sink.name}: incomplete, {sink.failures} could not be written; the first warning says why")
    return any(sink.required for sink in failed)


def _has_terminal() -> bool:
    """Whether somebody can press Ctrl-C: a service or a script must not wait for it."""
    return sys.stdin is not None and sys.stdin.isatty()


class _Stop:
    """Request to end the run; ``signal_number`` is None until a signal arrives."""

    def __init__(self) -> None:
        self.event = threading.Event()
        self.signal_number: int | None = None


@contextmanager
def _stop_on_signals() -> Iterator[_Stop]:
    """Ask the run to end at the first SIGINT or SIGTERM; a second one interrupts it immediately."""
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
    """Show a status line on the terminal, unless verdicts scroll over the same terminal."""
    if not console.is_terminal or (stdout_is_used and sys.stdout.isatty()):
        yield None
        return
    drawn_at = 0.0
    totals = [one.total for one in frames if one.total is not None]
    total = sum(totals) if len(totals) == len(frames) else None
    # By default Live replaces sys.stdout, which carries the verdicts.
    with Live(console=console, auto_refresh=False, transient=True, redirect_stdout=False) as live:

        def watch(statistics: Statistics) -> None:
            nonlocal drawn_at
            if time.monotonic() - drawn_at > 0.2:
                drawn_at = time.monotonic()
                try:
                    live.update(_status(statistics, total), refresh=True)
                except Exception as error:  # it only shows what happens
                    drawn_at = math.inf
                    warn(f"the status line failed and is gone ({error}); the inspection goes on")

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


def _summarise(streams: Sequence[Stream], statistics: Statistics, engine: str) -> None:
    from adedge.runtime.statistics import LATENCIES, WINDOW

    if len(streams) > 1:
        for index, stream in enumerate(streams):
            note(f"camera {index}, {stream.source.name}: {_counts(stream.statistics)}")
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


class _ConsoleHandler(logging.Handler):
    """Prints what the runtime logs to stderr, except errors: those are raised and printed as such."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno < logging.ERROR:
            show = warn if record.levelno >= logging.WARNING else note
            show(record.getMessage())


def _show_logging() -> None:
    """Print the runtime's warnings, and the notices that kernels are being compiled or no CUDA graph is used."""
    logging.getLogger("adedge.runtime").addHandler(_ConsoleHandler())
    for name in ("kernel_cache", "inspector"):
        logging.getLogger(f"adedge.runtime.cuda.{name}").setLevel(logging.INFO)


def _quiet_opencv() -> None:
    """Silence OpenCV and its FFmpeg, which print errors that adedge reports itself.

    Both read the environment when they are loaded; the ways to set this later differ between versions.
    """
    os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
