"""What `mkdocs build` adds to docs/: reference pages made from the code, and the pages that lie in the root.

docs/reference/*.md hold a comment, `<!-- public names -->` or `<!-- commands -->`, that is replaced here.
"""

from __future__ import annotations

import importlib
import inspect
import posixpath
import re
import shutil
import types
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from structure import ROOMS

import adedge
from adedge.cli import COMMANDS, app

ROOT = Path(__file__).resolve().parent.parent
FROM_ROOT = {name: name.lower() for name in ("CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")}


def on_startup(command: str, dirty: bool) -> None:
    """Arrange the rooms as in the wheel, since the reference is read from sources (`paths` in mkdocs.yml).

    This has to be done before mkdocstrings is configured: it ignores paths that do not exist then.
    """
    tree = ROOT / "build/reference"
    shutil.rmtree(tree, ignore_errors=True)
    for name, folder in ROOMS.items():
        shutil.copytree(
            ROOT / folder,
            tree.joinpath(*name.split(".")),
            dirs_exist_ok=True,
            ignore=shutil.ignore_patterns("__pycache__"),
        )


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that lie in the root, because people and code hosts look for them there."""
    for source, target in FROM_ROOT.items():
        files.append(File.generated(config, target, content=(ROOT / source).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Fill the reference pages in, and turn links to the root's pages and from them into links within the site."""
    if page.file.src_uri in FROM_ROOT.values():
        markdown = re.sub(r"\]\(docs/", "](", markdown)
    for source, target in FROM_ROOT.items():
        here = posixpath.relpath(target, posixpath.dirname(page.file.src_uri) or ".")
        markdown = re.sub(rf"\]\((?:\.\./)*{re.escape(source)}", f"]({here}", markdown)
    markdown = markdown.replace("<!-- public names -->", "\n".join(public_names()))
    return markdown.replace("<!-- commands -->", "\n".join(commands()))


def public_names() -> Iterator[str]:
    """What `adedge.__all__` lists, each from its docstring."""
    for name in getattr(adedge, "__all__", ()):
        found = getattr(adedge, name)
        if hasattr(found, "__qualname__"):
            yield f"::: adedge.{name}\n"


def commands() -> Iterator[str]:
    """The command line in words: every command with its arguments and options, as `--help` has them."""
    for module in COMMANDS:
        importlib.import_module(f"adedge.cli.{module}")
    root: Any = typer.main.get_command(app)
    yield from _below(root, "adedge")


def _below(group: Any, name: str) -> Iterator[str]:
    for child in group.list_commands(None):
        command = group.commands[child]
        if getattr(command, "commands", None):
            yield from _below(command, f"{name} {child}")
        else:
            yield from _command(command, f"{name} {child}")


def _command(command: Any, name: str) -> Iterator[str]:
    """One command, told from its function's signature: what Typer makes of that differs between its versions."""
    signature = inspect.signature(command.callback, eval_str=True)
    parameters = [(parameter, signature.parameters[parameter.name]) for parameter in command.params]
    arguments = [(parameter, told) for parameter, told in parameters if not parameter.opts[0].startswith("-")]
    options = [(parameter, told) for parameter, told in parameters if parameter.opts[0].startswith("-")]
    usage = " ".join([name, *(_value(told) for _, told in arguments), "[OPTIONS]"])
    yield f"## {name}\n"
    yield (command.help or "").replace("\b", "").strip() + "\n"
    yield f"```\n{usage}\n```\n"
    if arguments:
        yield "| argument | |\n| --- | --- |"
        yield from (f"| `{_value(told)}` | {_cell(parameter.help)} |" for parameter, told in arguments)
        yield ""
    if options:
        yield "| option | | default |\n| --- | --- | --- |"
        yield from (_option(parameter, told) for parameter, told in options)
        yield ""


def _option(parameter: Any, told: inspect.Parameter) -> str:
    names = ", ".join(f"`{name}`" for name in (*parameter.opts, *parameter.secondary_opts))
    text, _, stated = (parameter.help or "").partition("[default: ")
    default = stated.rstrip("] ")
    if told.default is inspect.Parameter.empty:
        default = "must be given"
    elif not default and told.default is not None and not isinstance(told.default, bool):
        default = f"`{told.default}`"
    value = "" if isinstance(told.default, bool) else f" <code>{escape(_value(told)).replace('|', ' &#124; ')}</code>"
    return f"| {names}{value} | {_cell(text)} | {_cell(default)} |"


def _value(told: inspect.Parameter) -> str:
    """How a value is written: the words to choose from, or what kind it is, and its bounds."""
    kind, info = get_args(told.annotation)[:2]
    if info.metavar:
        return str(info.metavar)
    if isinstance(info, typer.models.ArgumentInfo):
        return told.name.upper() + (" ..." if get_origin(kind) is list else "")
    kinds = [part for part in (get_args(kind) if _is_union(kind) else (kind,)) if part is not type(None)]
    if get_origin(kinds[0]) is Literal:
        return "|".join(map(str, get_args(kinds[0])))
    word = {int: "N", float: "X", Path: "PATH"}.get(kinds[0], "TEXT")
    bounds = [f"{info.min:g} <= " if info.min is not None else "", f" <= {info.max:g}" if info.max is not None else ""]
    return word.join(bounds)


def _is_union(kind: Any) -> bool:
    return get_origin(kind) in (Union, types.UnionType)


def _cell(text: str | None) -> str:
    return re.sub(r"\s+", " ", text or "").replace("|", "\\|").rstrip()
