"""`adedge run`: inspect the frames of cameras, videos and folders, and write the verdicts."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from adedge.bundle import open_bundle
from adedge.cli import app, finite
from adedge.cli.evidence import EvidenceSize, KeepFiles, KeepFree, RotateAge, RotateSize
from adedge.cli.options import Expect, RequireSignature
from adedge.cli.status import quiet_opencv, show_logging, status_line, summarise
from adedge.cli.streams import Outputs, open_sinks, open_sources, report_failures
from adedge.console import note
from adedge.errors import UsageError
from adedge.processors import limit_opencv
from adedge.specs import Precision, Target

if TYPE_CHECKING:
    from adedge.runtime.capture import Policy
    from adedge.runtime.inspection import EngineInspector
    from adedge.runtime.line_file import Rotation
    from adedge.runtime.page import PageSink
    from adedge.runtime.sources import FrameSource

REJECTS_FOUND = 3  # exit code of --fail-on-reject: neither a failure (1) nor a usage error (2)


@app.command("run")
def run(
    bundle: Annotated[Path, typer.Argument(help="Bundle with an engine and its threshold.")],
    source: Annotated[
        list[str],
        typer.Argument(
            help="0 or /dev/video0 (camera), csi://0 (Jetson), a video or picture file, a folder of pictures, "
            "rtsp://…, gst:PIPELINE, or synthetic:brick?seed=0&frames=200. ${NAME} in it is an "
            "environment variable (for passwords), @PATH a file that holds the address."
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
    quiet_opencv()
    limit_opencv()
    from adedge.runtime.capture import default_policy
    from adedge.runtime.evidence import Retention
    from adedge.runtime.inspection import open_inspector
    from adedge.runtime.line_file import Rotation
    from adedge.runtime.page import PageSink, page_address
    from adedge.runtime.pipeline import Stream
    from adedge.runtime.pipeline import run as run_pipeline
    from adedge.runtime.statistics import Statistics

    _check_bundle(bundle)
    address = None if page is None else page_address(page)
    rotation = Rotation(size_bytes=rotate_size, age_s=rotate_age, keep_files=keep_files)
    _check_verdicts(jsonl, rotation)
    if evidence_size is not None and (rejects, maps) == (None, None):
        raise UsageError("--evidence-size limits rejects and maps: add --rejects DIR or --maps DIR")
    show_logging()
    opened = open_bundle(bundle, require_signature, expect, remember=True)
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
        frames = open_sources(source, name or [], strict=strict, reconnect_s=reconnect)
        for one in frames:
            cleanup.callback(one.close)
        policies = [policy or default_policy(one) for one in frames]
        _announce(inspector, frames, policies)
        _check_batch(batch, inspector, policies)  # before an output is created or replaced
        outline = opened.manifest.score.reduce == "max"
        live_page = None
        if address is not None:
            about = {"bundle": opened.path.resolve().name, "engine": engine}
            live_page = PageSink(address, [one.name for one in frames], about, outline=outline)
            cleanup.callback(live_page.close)
        outputs = Outputs(
            jsonl=jsonl,
            video=video,
            rejects=rejects,
            maps=maps,
            rotation=rotation,
            retention=Retention(folder_bytes=evidence_size, keep_free_bytes=keep_free),
            outline=outline,
            strict=strict,
        )
        sinks = open_sinks(frames, outputs, live_page)
        streams = [Stream(*pair) for pair in zip(frames, sinks, strict=True)]
        with _stop_on_signals() as stop:
            complete = False
            try:
                with status_line(frames, stdout_is_used=jsonl is None) as watch:
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
                summarise(streams, statistics, engine)
                incomplete = report_failures(sinks)
            signal_number = stop.signal_number
            if live_page is not None and complete and signal_number is None and _has_terminal():
                _show_until_stopped(live_page, stop)
    if incomplete:
        raise typer.Exit(1)
    if signal_number is not None and not all(one.live for one in frames):
        raise typer.Exit(128 + signal_number)
    if fail_on_reject and statistics.rejects:
        raise typer.Exit(REJECTS_FOUND)


def _check_bundle(bundle: Path) -> None:
    from adedge.runtime.sources.address import shown

    if shown(str(bundle)) != str(bundle) and not os.path.lexists(bundle):
        raise UsageError("BUNDLE looks like a source's address (not shown): give the bundle first, then the sources")


def _check_verdicts(jsonl: Path | None, rotation: Rotation) -> None:
    from adedge.runtime.line_file import NO_ROTATION

    if jsonl is None and sys.stdout is None:
        raise UsageError("stdout is closed, so verdicts have nowhere to go: add --jsonl FILE")
    if jsonl is None and rotation != NO_ROTATION:
        raise UsageError("--rotate-size, --rotate-age and --keep-files apply to a file of verdicts: add --jsonl FILE")
    if rotation.keep_files is not None and (rotation.size_bytes, rotation.age_s) == (None, None):
        raise UsageError("--keep-files counts files that were set aside: add --rotate-size or --rotate-age")


def _announce(inspector: EngineInspector, frames: Sequence[FrameSource], policies: Sequence[Policy]) -> None:
    names = "; ".join(f"{one.name}, policy {own}" for one, own in zip(frames, policies, strict=True))
    note(f"{inspector.key}, threshold {inspector.threshold:.6g}; {names}")


def _check_batch(batch: int | None, inspector: EngineInspector, policies: Sequence[Policy]) -> None:
    """Refuse a batch that cannot be; if none was asked for, tell how the engine could batch all sources."""
    from adedge.runtime.pipeline import check_batch

    sources = len(policies)
    if batch is not None:
        check_batch(batch, inspector, policies)
    elif inspector.batch < sources:
        note(
            f"the engine takes at most {inspector.batch} frame(s) at once: to batch all sources, build it with "
            f"--batch 1,{sources},{sources}"
        )


def _has_terminal() -> bool:
    """Whether somebody can press Ctrl-C: a service or a script must not wait for it."""
    return sys.stdin is not None and sys.stdin.isatty()


def _show_until_stopped(live_page: PageSink, stop: _Stop) -> None:
    note(f"the sources have ended; the live page stays at {live_page.url} until you press Ctrl-C")
    while not stop.event.is_set():  # not wait(): the signal handler that sets it must not take a lock
        time.sleep(0.1)


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
