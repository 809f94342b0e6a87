"""The command line: `adedge COMMAND`. One file a command; what a command needs is imported when it runs."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType

import typer

from adedge.errors import AdedgeError

app = typer.Typer(
    name="adedge",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Train a visual anomaly detector on pictures of good parts, compile it for the edge, and prove that the "
    "engine decides as the model did.\n\ntrain -> export -> calibrate -> build-engine -> run / benchmark; "
    "every command reads a bundle (a directory) and adds to it.",
)


def _register() -> None:
    # Imported for their decorators: each adds its command to `app`, in the order in which they are used.
    from adedge.cli import train  # noqa: F401


def main() -> None:
    """Entry point of the console script: errors become one line on stderr and the right exit code."""
    debug = "--debug" in sys.argv
    if debug:
        sys.argv.remove("--debug")
    signal.signal(signal.SIGTERM, _interrupt)
    _register()
    try:
        code = app(standalone_mode=True)
    except AdedgeError as error:
        if debug:
            raise
        sys.stderr.write(f"adedge: {error}\n")
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.stderr.write("adedge: interrupted; nothing was left half-written\n")
        sys.exit(130)
    except BrokenPipeError:
        # The reader of our output left (| head): not an error of ours, and Python must not complain at exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    sys.exit(code)


def _interrupt(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
