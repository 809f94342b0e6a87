"""`adedge keygen` and `adedge sign`: who vouches for a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from adedge.cli import app
from adedge.console import note


@app.command("keygen")
def keygen(
    key: Annotated[Path, typer.Argument(help="Where to write the private key; KEY.pub is written beside it.")],
) -> None:
    """Make an Ed25519 key pair for signing bundles.

    Keep KEY on the machine that signs; give KEY.pub to the devices, for `--require-signature KEY.pub`.
    """
    from adedge.signing import create_key

    public = create_key(key)
    note(f"wrote {key} (keep it secret) and {public} (give it to the devices)")


@app.command("sign")
def sign(
    bundle: Annotated[Path, typer.Argument(help="The bundle to sign.")],
    key: Annotated[Path, typer.Option("--key", help="The private key that 'adedge keygen' wrote.")],
) -> None:
    """Sign a bundle after checking every file in it. Any later change drops the signature."""
    from adedge.bundle import Bundle
    from adedge.signing import sign as sign_bundle

    sign_bundle(Bundle.open(bundle), key)
    note(f"signed {bundle}")
