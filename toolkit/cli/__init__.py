"""The command line: `adedge COMMAND`. One file a command; what a command needs is imported when it runs."""

from __future__ import annotations

import importlib
import math
import os
import signal
import sys
from types import FrameType
from typing import Any

import typer
from typer.core import TyperGroup

from adedge.errors import AdedgeError

# Each module adds its command to `app`; the order is the order of use, and the order in --help.
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
    """Typer would list the commands that have sub-commands last."""

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
    help="Train a visual anomaly detector on pictures of good parts, compile it for the edge, and prove that the "
    "engine decides as the model did.\n\n"
    "train → export → calibrate → build-engine → prove → run / benchmark: every command reads a bundle (a directory) "
    "and adds to it. "
    "`adedge demo` shows the whole path. Add `--debug` to any command to see a traceback.",
)


INTERRUPTED = 130  # what shells use for a process that Ctrl-C ended


def main() -> None:
    """Entry point of the console script: errors become one line on stderr and the right exit code."""
    debug = "--debug" in sys.argv
    if debug:
        sys.argv.remove("--debug")
    signal.signal(signal.SIGTERM, _interrupt)
    for command in COMMANDS:
        importlib.import_module(f"adedge.cli.{command}")
    try:
        code = _invoke()
    except AdedgeError as error:
        if debug:
            raise
        sys.stderr.write(f"adedge: {error}\n")
        code = error.exit_code
    except KeyboardInterrupt:
        sys.stderr.write("adedge: interrupted; nothing was left half-written\n")
        code = INTERRUPTED
    except BrokenPipeError:
        # The reader of our output left (| head): no error of ours, and Python must not complain at exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except OSError as error:
        if debug:
            raise
        # Commands say what is wrong with what they read; this is for the rest: no permission, a disk that fills up.
        where = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, str | bytes) else ""
        sys.stderr.write(f"adedge: {where}{error.strerror or error}\n")
        code = 1
    sys.exit(code)


def finite(value: float | None) -> float | None:
    """A callback for options: Typer's own bounds let "nan" pass, and "inf" where there is no upper one."""
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"{value} is not a finite number")
    return value


def _invoke() -> int:
    """Run the chosen command; only wrong calls are handled here, as the command-line library words them."""
    try:
        result = app(standalone_mode=False)
    except typer.Exit as stop:
        return stop.exit_code
    except typer.Abort:
        return INTERRUPTED
    except Exception as error:
        # Typer may carry its own copy of click; what both mark a wrong call with is `show` and `exit_code`.
        show = getattr(error, "show", None)
        if show is None or isinstance(error, AdedgeError):
            raise
        show()
        return int(getattr(error, "exit_code", 2))
    return result if isinstance(result, int) else 0


def _interrupt(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
