"""`adedge train METHOD`: from pictures of good parts to a bundle. One sub-command per method, one file per sub-command.

A method without a file here, such as one from another package, gets its options from its class: see
`adedge.cli.train.generic`.
"""

from __future__ import annotations

import typer

from adedge.cli import app
from adedge.cli.train.generic import Methods
from adedge.cli.train.hfr import hfr_options
from adedge.cli.train.memory import memory_options
from adedge.cli.train.mkd import mkd_options
from adedge.cli.train.oesdn import oesdn_options
from adedge.cli.train.options import training_command
from adedge.cli.train.students import students_options

command = typer.Typer(
    cls=Methods, no_args_is_help=True, help="Train a detector on pictures of good parts and write a bundle."
)
app.add_typer(command, name="train")
command.command("oesdn")(training_command("oesdn", oesdn_options))
command.command("memory")(training_command("memory", memory_options))
command.command("hfr")(training_command("hfr", hfr_options))
command.command("mkd")(training_command("mkd", mkd_options))
command.command("students")(training_command("students", students_options))
