"""`adedge keygen` and `adedge sign`: create keys and sign bundles."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from adedge.cli import app
from adedge.console import note


@app.command("keygen")
def keygen(
    key: Annotated[
        Path, typer.Argument(metavar="KEY", help="File for the private key; the public key is written to KEY.pub.")
    ],
) -> None:
    """Create an Ed25519 key pair for signing bundles.

    Keep KEY on the machine that signs; copy KEY.pub to the devices, for `--require-signature KEY.pub`.
    """
    from adedge.signing import create_key

    public = create_key(key)
    note(f"wrote {key} (keep it secret) and {public} (copy it to the devices)")


@app.command("sign")
def sign(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="Bundle to sign.")],
    key: Annotated[Path, typer.Option("--key", metavar="KEY", help="Private key written by 'adedge keygen'.")],
) -> None:
    """Sign a bundle after checking every file in it. Any later change removes the signature."""
    from adedge.bundle import Bundle
    from adedge.signing import sign as sign_bundle

    sign_bundle(Bundle.open(bundle), key)
    note(f"signed {bundle}")
