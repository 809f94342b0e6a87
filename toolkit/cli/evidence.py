"""Options of `adedge run` that limit what its outputs take of the disk, and how they are written: "500MB", "1d"."""

from __future__ import annotations

import re
from typing import Annotated

import typer

_BYTES = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_NUMBER = r"(\d+(?:\.\d+)?)\s*"


def size_in_bytes(text: str) -> int:
    """Bytes of "500MB", "1.5 GB" or "1000000"; units are powers of 1000. Raises `typer.BadParameter`."""
    match = re.fullmatch(rf"{_NUMBER}([kmgt]?)b?", text.strip().lower(), re.ASCII)
    if match is None:
        raise typer.BadParameter(f"'{text}' is no size: give a number with a unit, such as 500MB or 5GB")
    return round(float(match[1]) * _BYTES[match[2]])


def age_in_seconds(text: str) -> float:
    """Seconds of "1d", "12h", "30m", "90s" or "2w". Raises `typer.BadParameter`."""
    match = re.fullmatch(rf"{_NUMBER}([smhdw])", text.strip().lower(), re.ASCII)
    if match is None or float(match[1]) == 0:
        raise typer.BadParameter(f"'{text}' is no age: give a number with a unit, such as 12h or 1d")
    return float(match[1]) * _SECONDS[match[2]]


RotateSize = Annotated[
    int | None,
    typer.Option(
        parser=size_in_bytes,
        metavar="SIZE",
        help="With --jsonl: set the file aside before it exceeds this size, such as 100MB, and begin a new one.",
    ),
]
RotateAge = Annotated[
    float | None,
    typer.Option(
        parser=age_in_seconds,
        metavar="AGE",
        help="With --jsonl: set the file aside when its first line is this old: 1d.",
    ),
]
KeepFiles = Annotated[
    int | None,
    typer.Option(
        min=0, help="With --rotate-size or --rotate-age: keep this many files that were set aside.  [default: all]"
    ),
]
EvidenceSize = Annotated[
    int | None,
    typer.Option(
        parser=size_in_bytes,
        metavar="SIZE",
        help="Largest size of the folder of rejects, and of that of maps: the oldest files are deleted first.  "
        "[default: no limit]",
    ),
]
KeepFree = Annotated[
    int | None,
    typer.Option(
        parser=size_in_bytes,
        metavar="SIZE",
        help="Keep this much of the disk free: the oldest rejects and maps are deleted, then no more are written, but "
        "the inspection goes on.  [default: 1% of the disk, at most 500MB]",
    ),
]
