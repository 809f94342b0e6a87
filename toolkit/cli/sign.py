"""`adedge keygen`, `adedge sign` and `adedge keyring`: create keys, sign bundles, and choose whom a machine trusts."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from adedge.cli import app
from adedge.console import note, output

Keyring = Annotated[Path, typer.Argument(metavar="KEYRING", help="File of the keyring.")]


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
    product: Annotated[
        str | None,
        typer.Option(
            help="What the bundle inspects, for `--expect`.", show_default="the bundle's name, without suffix"
        ),
    ] = None,
    version: Annotated[
        int | None,
        typer.Option(
            min=0, help="Counts the releases of a product upwards.", show_default="the time, as YYYYMMDDhhmmss in UTC"
        ),
    ] = None,
    expires: Annotated[
        datetime | None,
        typer.Option(formats=["%Y-%m-%d"], help="Last day on which devices accept the bundle.", show_default="never"),
    ] = None,
) -> None:
    """Sign a bundle after checking every file in it. Any later change removes the signature.

    Devices that run with `--require-signature KEY.pub --expect PRODUCT` accept bundles of this product alone, and none
    with a smaller version than they have accepted before.
    """
    from adedge.bundle import Bundle
    from adedge.signing import sign as sign_bundle

    _, claim = sign_bundle(
        Bundle.open(bundle), key, product=product, version=version, expires=None if expires is None else expires.date()
    )
    until = "" if claim.expires is None else f", accepted until {claim.expires}"
    note(f"signed {bundle} as version {claim.version} of '{claim.product}'{until}")


keyring = typer.Typer(no_args_is_help=True, help="Trust several keys at once, replace and revoke them.")
app.add_typer(keyring, name="keyring")


@keyring.command("add")
def add(
    path: Keyring,
    public: Annotated[Path, typer.Argument(metavar="KEY.pub", help="Public key to trust.")],
    name: Annotated[str | None, typer.Option(help="Name of the key for people.", show_default="the file's")] = None,
) -> None:
    """Trust a public key; creates the keyring if need be.

    To replace a key, add the new one, sign with it, and revoke the old one once no machine needs it. Give the keyring
    to `--require-signature`.
    """
    from adedge.keyring import trust

    note(f"{path} trusts key {trust(path, public, name)[:16]}")


@keyring.command("revoke")
def revoke(
    path: Keyring,
    key: Annotated[str, typer.Argument(metavar="KEY", help="The key's name, the beginning of its id, or its file.")],
    reason: Annotated[str, typer.Option(help="Why, for whoever meets a bundle signed by it.")],
) -> None:
    """Refuse a key from now on, and every bundle that it alone has signed. It cannot be added again."""
    from adedge.keyring import revoke as revoke_key

    note(f"{path} refuses key {revoke_key(path, key, reason)[:16]}")


@keyring.command("show")
def show(path: Keyring) -> None:
    """List the keys that a keyring trusts, and those that it refuses."""
    from rich.table import Table

    from adedge.keyring import read_entries

    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    for column in ("key", "name", "state"):
        table.add_column(column)
    file = read_entries(path)
    for identity in {**file.keys, **file.revoked}:
        name = file.keys[identity].name if identity in file.keys else ""
        state = f"revoked: {file.revoked[identity]}" if identity in file.revoked else "trusted"
        table.add_row(identity[:16], name, state)
    output.print(table)
