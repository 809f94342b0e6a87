"""Feeds mutated files and requests to everything that reads them; `.ci/fuzz` is the command.

Each target has valid inputs and a function that reads one. An input follows from (target, seed, number), so anyone can
make it again. A child process reads the inputs under a memory limit and, for each input, a time limit; success and
`AdedgeError` are the only outcomes allowed. Everything else is a failure: its input is stored under the name
<target>.<seed>.<number>, and `.ci/fuzz --replay FILE` reads that file again.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import resource
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import NamedTuple, TextIO

from fuzz_targets import LIMIT_S, PLANTED, TARGETS, Target

SECONDS = 60  # for all targets together
MEMORY_BYTES = 2 << 30  # beyond what the child has mapped before the first input: a picture may have 200 megapixels


class Failure(NamedTuple):
    """What went wrong, where, and the stored input."""

    outcome: str
    file: Path


def input_of(target: Target, name: str, seed: str, number: int) -> bytes:
    """Input ``number`` of a target: one of the valid ones, mutated."""
    random = Random(f"{name}/{seed}/{number}")
    return target.mutate(random.choice(target.valid), random)


def read_inputs(
    target: Target, inputs: Iterator[tuple[str, bytes]], limit_s: float, output: Path, reports: TextIO
) -> None:
    """Read each input, stored under its name; writes a line of JSON to ``reports`` before it and after it."""
    from adedge.errors import AdedgeError

    def report(**values: str | None) -> None:
        reports.write(json.dumps(values) + "\n")
        reports.flush()

    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # kills, wherever the process is
    for file, data in inputs:
        (output / file).write_bytes(data)  # so that it exists if this process dies
        report(started=file)
        signal.setitimer(signal.ITIMER_REAL, limit_s)
        outcome = None
        try:
            target.read(data)
        except AdedgeError:
            pass
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            outcome = f"{type(error).__name__} at {Path(where.filename).name}:{where.lineno}: {str(error)!r:.300}"
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        if outcome is None:
            (output / file).unlink()
        report(done=file, outcome=outcome)


def child(name: str, seed: str, first: int, count: int, seconds: float, limit_s: float, output: Path) -> None:
    """Read inputs ``first`` to ``count``, for at most ``seconds``, in this process; the reports are its stdout."""
    reports = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries print
    with tempfile.TemporaryDirectory() as folder:
        target = {**TARGETS, **PLANTED}[name](Path(folder))
        for data in target.valid:
            target.read(data)
        _limit_memory()
        deadline = time.monotonic() + seconds
        numbers = itertools.takewhile(lambda _: time.monotonic() < deadline, range(first, count))
        inputs = ((f"{name}.{seed}.{number}", input_of(target, name, seed, number)) for number in numbers)
        read_inputs(target, inputs, limit_s, output, reports)


def _limit_memory() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY_BYTES, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


# --- the parent -------------------------------------------------------------------------------------------------------


def fuzz(
    name: str, seed: str, output: Path, *, count: int = sys.maxsize, seconds: float = 1e9, limit_s: float = LIMIT_S
) -> tuple[int, list[Failure]]:
    """Read ``count`` inputs of a target, or as many as ``seconds`` allow; returns their number and the failures.

    Stores one input for each kind of failure in ``output``.
    """
    output.mkdir(parents=True, exist_ok=True)
    failures: dict[str, Failure] = {}
    done, deadline = 0, time.monotonic() + seconds
    returncode = 1
    while returncode:  # a child that dies is followed by another, from the next input on
        arguments = (name, seed, done, count, deadline - time.monotonic(), limit_s, output)
        command = [sys.executable, __file__, "--child", *map(str, arguments)]
        started = None
        with tempfile.TemporaryFile() as log:  # decoders are loud about damaged pictures
            with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True) as process:
                assert process.stdout is not None
                for line in process.stdout:
                    report = json.loads(line)
                    started = report.get("started")
                    if "done" in report:
                        done += 1
                        if report["outcome"] is not None:
                            _store(failures, Failure(report["outcome"], output / report["done"]))
            returncode = process.returncode
            log.seek(0)
            if returncode and started is None:
                raise SystemExit(f"{name}: a valid input is not read: {log.read()[-2000:].decode(errors='replace')}")
        if started is not None:
            done += 1
            how = signal.Signals(-returncode).name if returncode < 0 else f"exit code {returncode}"
            outcome = f"took longer than {limit_s:g} s" if how == "SIGALRM" else f"ended the process by {how}"
            _store(failures, Failure(outcome, output / started))
    return done, list(failures.values())


def _store(failures: dict[str, Failure], failure: Failure) -> None:
    """Keep a failure unless there is one of the same exception at the same line."""
    kind = failure.outcome.partition(": ")[0]
    if kind in failures:
        failure.file.unlink()
    else:
        failures[kind] = failure


def replay(file: Path, limit_s: float) -> int:
    """Read a stored input again, in this process, with its traceback."""
    name = file.name.partition(".")[0]
    with tempfile.TemporaryDirectory() as folder:
        target = {**TARGETS, **PLANTED}[name](Path(folder))
        _limit_memory()
        signal.setitimer(signal.ITIMER_REAL, limit_s)
        target.read(file.read_bytes())
    return 0


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def main() -> int:
    """The command: see the module's docstring."""
    parser = argparse.ArgumentParser(description="Feed mutated files and requests to everything that reads them.")
    parser.add_argument("seconds", nargs="?", type=float, default=SECONDS, help="for all targets together")
    parser.add_argument("--seed", default=None, help="repeat an earlier run; default: a new one")
    parser.add_argument("--target", action="append", choices=tuple(TARGETS), help="repeatable; default: all")
    parser.add_argument("--output", type=Path, default=Path("fuzz-failures"), help="folder for the inputs that fail")
    parser.add_argument("--replay", type=Path, metavar="FILE", help="read a stored input again")
    parser.add_argument("--child", nargs=7, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        name, seed, first, count, seconds, limit_s, output = arguments.child
        child(name, seed, int(first), int(count), float(seconds), float(limit_s), Path(output))
        return 0
    if arguments.replay:
        return replay(arguments.replay, LIMIT_S)
    seed = arguments.seed or secrets.token_hex(4)
    names = arguments.target or list(TARGETS)
    _say(f"seed {seed}")
    failed = False
    for name in names:
        count, failures = fuzz(name, seed, arguments.output, seconds=arguments.seconds / len(names))
        _say(f"{name}: {count} inputs, {len(failures)} failures")
        for failure in failures:
            failed = True
            _say(f"  {failure.outcome}\n    .ci/fuzz --replay {failure.file}")
    if not failed:
        shutil.rmtree(arguments.output, ignore_errors=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
