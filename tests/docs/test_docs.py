"""What README.md and docs/ say can be typed, imported, opened or clicked is there."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
import shlex
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer
from structure import ROOMS

from adedge.cli import COMMANDS, app

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
EVERYWHERE = {"--help", "-h", "--debug"}  # options of every command
NOT_OURS = {"calibration/good"}  # folders of a data set that look like ours


@dataclass(frozen=True)
class Page:
    """A page's prose without fenced code, its inline code, and its fenced blocks as (language, text)."""

    path: Path
    prose: str
    inline: tuple[str, ...]
    blocks: tuple[tuple[str, str], ...]


@cache
def read(path: Path) -> Page:
    text = path.read_text(encoding="utf-8")
    fence = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
    blocks = tuple((match[1], match[2]) for match in fence.finditer(text))
    prose = fence.sub("", text)
    assert "```" not in prose, f"{path}: a fence that is not closed"
    inline = tuple(match[2].strip() for match in re.finditer(r"(`+)(.+?)\1", prose, re.DOTALL))
    return Page(path, re.sub(r"(`+).+?\1", "", prose, flags=re.DOTALL), inline, blocks)


def command_lines(page: Page) -> Iterator[list[str]]:
    """Every command in a page, split into words: after a prompt in a block, and inline code that begins with one."""
    lines = [" ".join(code.split()) for code in page.inline]
    for _, text in page.blocks:
        lines += re.sub(r"\\\n\s*", " ", text).splitlines()
    for line in lines:
        line = re.sub(r"^\S*\$ ", "", line)
        for part in re.split(r" (?:&&|\|) ", re.sub(r" \\\|.*", "", line)):
            if re.match(r"(?:adedge|make|python3?|\.ci/[\w-]+) ", part):
                yield shlex.split(part, comments=True)


def modules_of_the_command_line() -> Any:
    for command in COMMANDS:
        importlib.import_module(f"adedge.cli.{command}")
    return typer.main.get_command(app)


CLI = modules_of_the_command_line()


PLUG_IN = "toy"  # the method of another package that docs/methods.md takes as its example


def options_of(command: Any) -> set[str]:
    """The options of a command, and of those below it."""
    own = {text for parameter in command.params for text in (*parameter.opts, *parameter.secondary_opts)}
    below = [options_of(child) for child in getattr(command, "commands", {}).values()]
    return {text for text in own.union(*below, EVERYWHERE) if text.startswith("-")}


def options_of_script(path: Path) -> set[str]:
    """The options that a script declares: by argparse, or as the parameters of a function for Typer."""
    text = path.read_text(encoding="utf-8")
    parameters = re.findall(r"(\w+): Annotated\[", text) if "typer.run(" in text else []
    return {*re.findall(r'"(--[a-z][\w-]*)"', text), *(f"--{name.replace('_', '-')}" for name in parameters)}


def problem_of_command(words: list[str]) -> str | None:
    """What is wrong with `adedge ...`, or None. Words in capitals stand for any."""
    command = CLI
    for word in words[1:]:
        children = getattr(command, "commands", {})
        if not children or word.startswith("-") or word.isupper() or word in ("…", PLUG_IN):
            break
        if word not in children:
            return f"no command '{word}' in '{' '.join(words)}'"
        command = children[word]
    for word in words[1:]:
        name = word.partition("=")[0]
        if re.fullmatch(r"--?[a-z][\w-]*", name) and name not in options_of(command):
            return f"no option '{name}' in '{' '.join(words)}'"
    return None


def resolve(name: str) -> None:
    """Import what a dotted name names. Raises `ImportError` or `AttributeError`."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        try:
            found: Any = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError as error:
            if error.name is None or not name.startswith(error.name):
                raise
            continue
        for part in parts[length:]:
            found = getattr(found, part)
        return
    raise ImportError(name)


def problem_of_name(name: str) -> str | None:
    try:
        resolve(name)
    except (ImportError, AttributeError) as error:
        return f"'{name}' is not there: {error}"
    return None


def commands(page: Page) -> Iterator[str | None]:
    for words in command_lines(page):
        if words[0] == "adedge":
            yield problem_of_command(words)


def bare_options(page: Page) -> Iterator[str | None]:
    """`--option` without a command: of some command, or of a script that the repository has."""
    scripts = [*(ROOT / "benchmarks").rglob("*.py"), *(path for path in (ROOT / ".ci").iterdir() if path.is_file())]
    known = options_of(CLI).union(*map(options_of_script, scripts))
    for code in page.inline:
        if code.startswith("--"):
            for name in re.findall(r"(?<!\S)(--[a-z][\w-]*)", code):
                yield None if name in known else f"no command has the option '{name}'"


def modules(page: Page) -> Iterator[str | None]:
    """`python -m adedge.X --option`: the module is there, and declares the option."""
    for words in command_lines(page):
        if not words[0].startswith("python") or words[1:2] != ["-m"] or not words[2].startswith("adedge"):
            continue
        if words[2].rpartition(".")[2].isupper():
            continue
        spec = importlib.util.find_spec(words[2])
        if spec is None or spec.origin is None:
            yield f"no module '{words[2]}'"
            continue
        known = options_of_script(Path(spec.origin))
        for word in words[3:]:
            if word.startswith("--"):
                yield None if word in known else f"'{words[2]}' has no option '{word}'"


def names(page: Page) -> Iterator[str | None]:
    """`adedge.module.name` in backticks, what the reference is made from, and what examples in Python import."""
    yield from (problem_of_name(name) for name in re.findall(r"^::: (\S+)", page.prose, re.MULTILINE))
    for code in page.inline:
        match = re.fullmatch(r"(adedge(?:\.\w+)+)(?:\(.*\))?", code)
        if match and not match[1].rpartition(".")[2].isupper():
            yield problem_of_name(match[1])
    for language, text in page.blocks:
        for node in ast.walk(ast.parse(text)) if language == "python" else ():
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("adedge"):
                yield from (problem_of_name(f"{node.module}.{alias.name}") for alias in node.names)
            elif isinstance(node, ast.Import):
                yield from (problem_of_name(alias.name) for alias in node.names if alias.name.startswith("adedge"))


def extras(page: Page) -> Iterator[str | None]:
    """The extras that pip is told to install."""
    declared = re.search(r"^\[project\.optional-dependencies\]\n(.*?)^\[", pyproject(), re.MULTILINE | re.DOTALL)
    assert declared
    known = set(re.findall(r"^([\w-]+) = \[", declared[1], re.MULTILINE))
    for text in (*page.inline, *(block for _, block in page.blocks)):
        for found in re.findall(r"(?:adedge|\.)\[([\w,-]+)\]", text):
            yield from (None if name in known else f"no extra '{name}'" for name in found.split(","))


@cache
def pyproject() -> str:
    return (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def targets(page: Page) -> Iterator[str | None]:
    """`make TARGET`."""
    known = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for words in command_lines(page):
        if words[0] == "make":
            asked = [word for word in words[1:] if "=" not in word and word.islower()]
            yield from (None if word in known else f"no target 'make {word}'" for word in asked)


def paths(page: Page) -> Iterator[str | None]:
    """Files of the repository in backticks."""
    folders = ("adedge", "toolkit", "runtime", "export", "calibration", "benchmarks", "tests", "docs", r"\.ci")
    form = re.compile(rf"(?:{'|'.join(folders)})/[\w./*-]*")
    for code in page.inline:
        if form.fullmatch(code) and code not in NOT_OURS:
            there = any(ROOT.glob(code)) if "*" in code else (ROOT / code).exists()
            yield None if there else f"no file '{code}'"


def slugs(path: Path) -> set[str]:
    """The anchors that GitHub gives a page's headings."""
    text = re.sub(r"^```.*?^```$", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links(page: Page) -> Iterator[str | None]:
    """Relative links and images: the file, and the heading in it."""
    for target in re.findall(r"\]\(([^)\s]+)\)", page.prose):
        if re.match(r"\w+:", target):
            continue
        name, _, anchor = target.partition("#")
        path = (page.path.parent / name).resolve() if name else page.path
        if not path.exists():
            yield f"no file behind the link '{target}'"
        elif anchor:
            yield None if anchor in slugs(path) else f"no heading behind the link '{target}'"
        else:
            yield None


CHECKS: tuple[Callable[[Page], Iterable[str | None]], ...] = (
    commands,
    bare_options,
    modules,
    names,
    extras,
    targets,
    paths,
    links,
)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_what_a_page_says_is_there(check: Callable[[Page], Iterable[str | None]], path: Path) -> None:
    problems = [problem for problem in check(read(path)) if problem]
    assert not problems, f"{path.relative_to(ROOT)}: " + "; ".join(dict.fromkeys(problems))


FOREIGN = re.compile(
    r"(?:pip install (?:-\S+ )*['\"]?|dependencies = \[['\"])adedge(?![\w-])(?!(?:\[[\w,]+\])? @ file:)"
)
"""The name on the public index is not ours: what it installs is somebody else's."""


def test_nobody_is_told_to_install_adedge_from_the_index() -> None:
    for bad in (
        "pip install adedge",
        "pip install 'adedge[cuda]'",
        "pip install -U adedge[cuda]",
        "dependencies = ['adedge']",
    ):
        assert FOREIGN.search(bad)
    assert not FOREIGN.search("pip install 'adedge[cuda] @ file:///wheels/adedge-0.1.0-py3-none-any.whl'")
    assert not FOREIGN.search("pip install -e '.[cuda]'")
    sources = [path for room in ROOMS.values() for path in (ROOT / room).rglob("*.py")]
    texts = {path: path.read_text(encoding="utf-8") for path in (*PAGES, *sources, ROOT / "Makefile")}
    assert len(texts) > 100
    assert [str(path) for path, text in texts.items() if FOREIGN.search(text)] == []


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_documentation_has_something_of_every_kind(check: Callable[[Page], Iterable[str | None]]) -> None:
    assert sum(1 for path in PAGES for _ in check(read(path))) > 3


@pytest.mark.parametrize(
    ("check", "text"),
    [
        (commands, "`adedge trian hfr DATA`"),
        (commands, "```console\n$ adedge run bottle.adedge 0 \\\n    --no-such-option\n```\n"),
        (commands, "`adedge train METHOD --no-such-option`"),
        (bare_options, "`--no-such-option`"),
        (modules, "`python -m adedge.benchmarks.nothing`"),
        (modules, "```\npython -m adedge.benchmarks.gpu --no-such-option\n```\n"),
        (names, "`adedge.scoring.no_such_function`"),
        (names, "```python\nfrom adedge.scoring import no_such_function\n```\n"),
        (extras, "`pip install -e '.[nothing]'`"),
        (targets, "`make nothing`"),
        (paths, "`runtime/nothing.py`"),
        (paths, "`tests/nothing/*.py`"),
        (links, "[there](nothing.md)"),
        (links, "[there](#nothing)"),
    ],
)
def test_what_is_not_there_is_found(check: Callable[[Page], Iterable[str | None]], text: str, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"# Page\n\n{text}\n", encoding="utf-8")
    assert [problem for problem in check(read(page)) if problem]
