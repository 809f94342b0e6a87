"""What the site's reference is made of: every command, every option, every public name."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import typer

import adedge
from adedge.cli import COMMANDS, app

pytest.importorskip("mkdocs", reason="the site needs the extra: pip install -e '.[docs]'")
pytest.importorskip("griffe", reason="the site needs the extra: pip install -e '.[docs]'")
from docstring_tables import with_code_blocks
from site_pages import commands, public_names


def below(group: Any, name: str) -> list[tuple[str, Any]]:
    """Every command that does something, with its full name."""
    children = getattr(group, "commands", None)
    if not children:
        return [(name, group)]
    return [found for child, command in children.items() for found in below(command, f"{name} {child}")]


def test_every_command_and_option_is_in_the_reference() -> None:
    for module in COMMANDS:
        importlib.import_module(f"adedge.cli.{module}")
    text = "\n".join(commands())
    for name, command in below(typer.main.get_command(app), "adedge"):
        section = text.partition(f"## {name}\n")[2].partition("\n## ")[0]
        assert section, name
        options = [word for parameter in command.params for word in parameter.opts if word.startswith("-")]
        assert [word for word in options if f"`{word}`" not in section] == []
        assert section.count("\n| `") == len(command.params), name


def test_values_show_choices_and_bounds() -> None:
    text = "\n".join(commands())
    assert "| `--precision` <code>fp32 &#124; fp16 &#124; int8</code> |" in text
    assert "| `--batch` <code>1 &lt;= N</code> |" in text
    assert "| `--host-scoring` |" in text


def test_every_public_name_is_in_the_reference() -> None:
    lines = list(public_names())
    for name in getattr(adedge, "__all__", ()):
        if callable(getattr(adedge, name)):
            assert any(line.endswith(f".{name}\n") for line in lines), name


def test_docstrings_keep_their_columns() -> None:
    text = "One picture.\n\nindex  counted from 0\nname   file name\n\nProse follows.  It stays."
    assert with_code_blocks(text) == (
        "One picture.\n\n```text\nindex  counted from 0\nname   file name\n```\n\nProse follows.  It stays."
    )
