"""What several commands ask for in the same words."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from adedge.bundle import Bundle

RequireSignature = Annotated[
    Path | None,
    typer.Option("--require-signature", metavar="KEY.pub", help="Refuse a bundle not signed by this key."),
]


def open_bundle(path: Path, key: Path | None) -> Bundle:
    """The bundle; with a ``key`` one that it signed. Raises `BundleError`."""
    from adedge.bundle import Bundle

    bundle = Bundle.open(path)
    if key is not None:
        from adedge.signing import require

        require(bundle, key)
    return bundle
