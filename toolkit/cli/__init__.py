"""The command line, `adedge COMMAND`: one module per command, which imports what it needs when it runs."""

from __future__ import annotations

import importlib
import math
import os
import signal
import sys
from contextlib import suppress
from types import FrameType
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from adedge.console import escape_unencodable
from adedge.errors import AdedgeError, reason
from adedge.escaping import printable
from adedge.limits import PICTURE_PIXELS, VARIABLE, factor

# Each module adds its command to `app`; --help lists them in this order, the order of use.
COMMANDS = (
    "demo",
    "train",
    "import_",
    "export",
    "calibrate",
    "build_engine",
    "prove",
    "run",
    "benchmark",
    "evaluate",
    "inspect",
    "sign",
)


class _InOrderOfUse(TyperGroup):
    """Lists commands in the order of `COMMANDS`; Typer lists those with subcommands last."""

    def list_commands(self, ctx: Any) -> list[str]:
        modules = [module.rstrip("_").replace("_", "-") for module in COMMANDS]
        return sorted(self.commands, key=lambda name: modules.index(name) if name in modules else len(modules))


app = typer.Typer(
    cls=_InOrderOfUse,
    name="adedge",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Train a visual anomaly detector on pictures of good parts, compile it for edge devices, and prove that the "
    "engine gives the same verdicts as the model.\n\n"
    "Workflow: train → export → calibrate → build-engine → prove → run / benchmark. Every command reads a bundle "
    "(a directory) and adds to it. `adedge demo` runs the whole workflow on a sample photograph. Add `--debug` to any "
    "command for a traceback.",
)


@app.callback()
def _limits(
    limits: Annotated[
        float | None,
        typer.Option(
            min=1,
            metavar="FACTOR",
            help="Accept larger pictures, archives, graphs and JSON files: multiplies the size limits by this factor. "
            f"The environment variable {VARIABLE} does the same.",
        ),
    ] = None,
) -> None:
    if limits is not None:
        os.environ[VARIABLE] = str(finite(limits))
    # OpenCV reads these when it is loaded. Its own limit of pixels is a second guard, behind the one on headers; adedge
    # reports itself what OpenCV would log.
    os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(int(PICTURE_PIXELS.value * factor())))
    os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")


INTERRUPTED = 130  # as shells report a process ended by Ctrl-C


def main() -> None:
    """Entry point of the console script: turns errors into one line on stderr and an exit code."""
    debug = "--debug" in sys.argv
    if debug:
        sys.argv.remove("--debug")
    escape_unencodable()
    # While the commands are loaded there is nothing to tidy up, and a signal ends the process without a traceback.
    on_interrupt = signal.getsignal(signal.SIGINT)
    if on_interrupt is signal.default_int_handler:  # and not ignored, as in a job in the background
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    for command in COMMANDS:
        importlib.import_module(f"adedge.cli.{command}")
    signal.signal(signal.SIGINT, on_interrupt)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        code = _invoke()
    except AdedgeError as error:
        if debug:
            raise
        _complain(str(error))
        code = error.exit_code
    except KeyboardInterrupt:
        _complain("interrupted; nothing was left half-written")
        code = INTERRUPTED
    except BrokenPipeError:
        # The reader closed the pipe (| head), which is no error; without this, Python would complain at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except OSError as error:
        if debug:
            raise
        # Commands report bad input themselves; this catches the rest: missing permissions, a full disk.
        where = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, str | bytes) else ""
        _complain(f"{where}{reason(error)}")
        code = 1
    sys.exit(code)


def _complain(text: str) -> None:
    with suppress(OSError):  # the exit code says it too
        sys.stderr.write(f"adedge: {printable(text)}\n")


def finite(value: float | None) -> float | None:
    """Option callback that rejects "nan", which Typer's bounds let through, and "inf", which they do without a max."""
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"{value} is not a finite number")
    return value


def _invoke() -> int:
    """Run the command; handles only usage errors, which the command-line library words itself."""
    try:
        result = app(standalone_mode=False)
    except typer.Exit as stop:
        return stop.exit_code
    except typer.Abort:
        return INTERRUPTED
    except Exception as error:
        # Typer may vendor click: recognise usage errors of either copy by `show` and `exit_code`, not by class.
        show = getattr(error, "show", None)
        if show is None or isinstance(error, AdedgeError):
            raise
        if isinstance(message := getattr(error, "message", None), str):
            error.message = printable(message)  # type: ignore[attr-defined]
        show()
        return int(getattr(error, "exit_code", 2))
    return result if isinstance(result, int) else 0


def _interrupt(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
