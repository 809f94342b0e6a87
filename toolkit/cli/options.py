"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

RequireSignature = Annotated[
    Path | None,
    typer.Option(
        "--require-signature",
        metavar="KEY.pub",
        help="Refuse a bundle that is not signed by this key, or by one of this keyring (see 'adedge keyring').",
    ),
]
Expect = Annotated[
    str | None,
    typer.Option(
        "--expect",
        metavar="PRODUCT",
        help="With --require-signature: refuse a bundle that was signed for another product, or whose version is older "
        "than one that this machine has run.",
    ),
]
