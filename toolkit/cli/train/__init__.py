"""`adedge train METHOD`: from pictures of good parts to a bundle. One sub-command a method, one file a sub-command."""

from __future__ import annotations

import typer

from adedge.cli import app
from adedge.cli.train.hfr import hfr
from adedge.cli.train.mkd import mkd
from adedge.cli.train.oesdn import oesdn
from adedge.cli.train.students import students

command = typer.Typer(no_args_is_help=True, help="Train a detector on pictures of good parts and write a bundle.")
app.add_typer(command, name="train")
command.command("oesdn")(oesdn)
command.command("hfr")(hfr)
command.command("mkd")(mkd)
command.command("students")(students)
