"""The errors that adedge raises deliberately.

Each message says what is wrong, where, and what to do. The command line prints it on one line and exits with
``exit_code``.

AdedgeError                 1   a job failed
├── UsageError              2   the call itself is wrong
├── BundleError             1   a bundle is missing, damaged, stale or not signed
├── EngineError             1   an engine cannot be built, loaded or executed here
├── SourceError             1   a camera, video or folder delivers no frames
├── DataError               1   pictures, masks or labels cannot be used
├── OutputError             1   a result cannot be written: full disk, no permission
├── GateError               1   a result is worse than the requested tolerance
└── MissingDependency       1   an optional package is not installed
"""

from __future__ import annotations

from typing import ClassVar


class AdedgeError(Exception):
    """Root of all errors that adedge raises deliberately; ``exit_code`` is the exit code of the command line."""

    exit_code: ClassVar[int] = 1


class UsageError(AdedgeError):
    """The call itself is wrong: an unknown name, or contradictory options."""

    exit_code = 2


class BundleError(AdedgeError):
    """A bundle is missing, damaged, tampered with, stale, or not signed as required."""


class EngineError(AdedgeError):
    """An engine cannot be built, loaded or executed on this machine."""


class SourceError(AdedgeError):
    """A camera, video or folder delivers no frames, or has stopped delivering them."""


class DataError(AdedgeError):
    """Pictures, masks, labels or numbers cannot be used."""


class OutputError(AdedgeError):
    """A result cannot be written: the disk is full, or the destination is not writable."""


class GateError(AdedgeError):
    """A measured result is worse than the requested tolerance."""


class MissingDependency(AdedgeError):  # noqa: N818 - clearer without the suffix
    """An optional package is not installed."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs the package '{package}': in adedge's source folder, run pip install -e '.[{extra}]'"
        )
        self.package = package
        self.extra = extra


def reason(error: OSError) -> str:
    """Why the operating system refused, in its words: "No space left on device"; never empty, never "None"."""
    return error.strerror or str(error) or type(error).__name__
