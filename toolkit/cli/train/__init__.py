"""`adedge train METHOD`: from pictures of good parts to a bundle. One sub-command a method, one file a sub-command."""

from __future__ import annotations

import typer

from adedge.cli import app
from adedge.cli.train.hfr import train_hfr
from adedge.cli.train.mkd import train_mkd
from adedge.cli.train.oesdn import train_oesdn
from adedge.cli.train.students import train_students

command = typer.Typer(no_args_is_help=True, help="Train a detector on pictures of good parts and write a bundle.")
app.add_typer(command, name="train")
command.command("oesdn")(train_oesdn)
command.command("hfr")(train_hfr)
command.command("mkd")(train_mkd)
command.command("students")(train_students)
