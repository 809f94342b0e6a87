"""What several commands ask for in the same words."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

RequireSignature = Annotated[
    Path | None,
    typer.Option("--require-signature", metavar="KEY.pub", help="Refuse a bundle not signed by this key."),
]
