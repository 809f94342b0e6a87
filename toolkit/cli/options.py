"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

RequireSignature = Annotated[
    Path | None,
    typer.Option("--require-signature", metavar="KEY.pub", help="Refuse a bundle that is not signed by this key."),
]
