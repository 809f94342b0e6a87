"""The rooms of adedge and the rules of their imports, read from the sources. `.ci/import-graph` is the command.

Sources are parsed and never imported, so this needs nothing but Python. An arrow's number counts pairs of modules: who
imports, and what.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

# The rules. The code below only reads them.

ROOMS = {
    "adedge": "toolkit",
    "adedge.runtime": "runtime",
    "adedge.calibration": "calibration",
    "adedge.export": "export",
    "adedge.benchmarks": "benchmarks",
}
"""Import name of each room, and its folder."""

MAY_IMPORT: Mapping[str, set[str]] = {
    "adedge": set(),
    "adedge.runtime": {"adedge"},
    "adedge.calibration": {"adedge"},
    "adedge.export": {"adedge", "adedge.calibration", "adedge.runtime"},
    "adedge.benchmarks": {"adedge", "adedge.runtime"},
}
"""The other rooms that a room may import, be it inside a function or for types alone."""

FRONT_DOORS = ("adedge.cli", "adedge.__main__")
"""What may import every room, but only inside functions or for types."""

PUBLIC_INTERFACE = "adedge"
"""The package's own module names what the rooms offer: for types alone, since it loads them only when they are used."""

COMMAND_LINE = "adedge.cli"
"""Nothing but a front door imports it."""

NEVER = (
    ("adedge.runtime", "adedge.methods"),
    ("adedge.runtime", "onnx"),
)
"""(who, what) beyond the table: a device has neither the networks nor ONNX."""

NEVER_BUT = {("adedge.runtime.backends.reference", "adedge.methods")}
"""Exceptions, inside functions: the model itself behind the interface of an engine."""

TORCH = {"torch", "torchvision", "torchaudio", "safetensors"}
TORCH_ROOM = "adedge.methods"
TORCH_ELSEWHERE = {
    "adedge.benchmarks.studies": "scripts that measure PyTorch",
    "adedge.benchmarks.gpu": "compares the kernels with PyTorch where it is installed",
}
"""Modules and packages beside `TORCH_ROOM` that may import torch, inside functions or for types, and why."""

LONG_FILE = 400  # lines
LONG_FUNCTION = 50  # lines, decorators and docstring included

# Reading the sources.

When = Literal["at import", "inside a function", "for types"]


@dataclass(frozen=True)
class Import:
    """One import: a module of adedge, and what it imports (a module of adedge, or the top name of another package)."""

    importer: str
    imported: str
    line: int
    when: When


@dataclass(frozen=True)
class Module:
    """One source file: its name in Python, its path below the root, and what it imports."""

    name: str
    path: Path
    tree: ast.Module
    lines: int
    imports: tuple[Import, ...] = ()

    @property
    def package(self) -> bool:
        """Whether it is a package's ``__init__.py``."""
        return self.path.name == "__init__.py"

    @property
    def summary(self) -> str:
        """The docstring's first sentence."""
        text = " ".join((ast.get_docstring(self.tree) or "").split("\n\n")[0].split())
        return text.split(". ")[0].rstrip(".")


@dataclass(frozen=True)
class Room:
    """A folder with modules: one of `ROOMS`, or a package (or a folder of kernels) inside one."""

    name: str
    folder: str
    modules: tuple[Module, ...]
    kernels: tuple[Path, ...] = ()
    inside: tuple[Room, ...] = field(default=())

    @property
    def lines(self) -> int:
        """Lines of Python; those of kernels are not counted."""
        return sum(module.lines for module in self.modules)

    @property
    def summary(self) -> str:
        """What the room is for: its package's docstring, or the names of its kernels."""
        if not self.modules:
            return "CUDA: " + ", ".join(path.stem for path in self.kernels if path.suffix == ".cu")
        text = next((module.summary for module in self.modules if module.name == self.name), "")
        text = text.removeprefix(f"{self.name}: ")
        return text[:1].upper() + text[1:]


def within(name: str, package: str) -> bool:
    """Whether a module is ``package`` or lies inside it."""
    return name == package or name.startswith(f"{package}.")


def room_of(name: str) -> str:
    """The import name of the room that holds a module."""
    return next((room for room in ROOMS if room != "adedge" and within(name, room)), "adedge")


def read_modules(root: Path) -> dict[str, Module]:
    """Every module below the rooms' folders, by name."""
    found: dict[str, Module] = {}
    for room, folder in ROOMS.items():
        for path in sorted((root / folder).rglob("*.py")):
            parts = path.relative_to(root / folder).with_suffix("").parts
            name = ".".join((room, *(part for part in parts if part != "__init__")))
            text = path.read_text(encoding="utf-8")
            found[name] = Module(name, path.relative_to(root), ast.parse(text), len(text.splitlines()))
    return {
        name: Module(name, module.path, module.tree, module.lines, tuple(_imports(module, found)))
        for name, module in found.items()
    }


def _imports(module: Module, modules: Mapping[str, Module]) -> Iterator[Import]:
    for node, when in _import_nodes(module.tree.body, "at import"):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            base = _absolute(node, module)
            names = [f"{base}.{alias.name}" for alias in node.names]
            names = [name if name in modules else base for name in names]
        for name in dict.fromkeys(names):
            imported = name if within(name, "adedge") else name.partition(".")[0]
            yield Import(module.name, imported, node.lineno, when)


def _absolute(node: ast.ImportFrom, module: Module) -> str:
    """The module that ``from ... import`` names, with leading dots resolved."""
    if node.level == 0:
        return node.module or ""
    parts = module.name.split(".")
    kept = parts[: len(parts) - node.level + module.package]
    return ".".join([*kept, *([node.module] if node.module else [])])


def _import_nodes(body: list[ast.stmt], when: When) -> Iterator[tuple[ast.Import | ast.ImportFrom, When]]:
    for node in body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node, when
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from _import_nodes(node.body, "for types")
            yield from _import_nodes(node.orelse, when)
        else:
            inner: When = "inside a function" if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) else when
            for name in ("body", "orelse", "finalbody"):
                yield from _import_nodes(getattr(node, name, []), inner)
            for part in (*getattr(node, "handlers", []), *getattr(node, "cases", [])):
                yield from _import_nodes(part.body, inner)


def read_rooms(root: Path, modules: Mapping[str, Module]) -> list[Room]:
    """The rooms with what is inside them, in the order of `ROOMS`."""
    rooms = []
    for name, folder in ROOMS.items():
        own = tuple(module for module in modules.values() if room_of(module.name) == name)
        inside = []
        for path in sorted(path for path in (root / folder).iterdir() if path.is_dir()):
            inner = f"{name}.{path.name}"
            kernels = tuple(sorted(file for file in path.iterdir() if file.suffix in (".cu", ".cuh")))
            held = tuple(module for module in own if within(module.name, inner))
            if held or kernels:
                inside.append(Room(inner, f"{folder}/{path.name}", held, kernels))
        rooms.append(Room(name, folder, own, inside=tuple(inside)))
    return rooms


def place_of(name: str) -> str:
    """Where an arrow begins or ends: the room, or the front door, which is a place of its own."""
    return next((door for door in FRONT_DOORS if within(name, door)), room_of(name))


def arrows(modules: Mapping[str, Module], place: Mapping[str, str]) -> Counter[tuple[str, str]]:
    """How many pairs of modules import each other from one place to another; ``place`` is that of every module."""
    pairs = {(item.importer, item.imported) for module in modules.values() for item in module.imports}
    between = [(place[importer], place[imported]) for importer, imported in pairs if imported in place]
    return Counter(pair for pair in between if pair[0] != pair[1])


# What breaks a rule: one sentence each.


def violations(modules: Mapping[str, Module]) -> list[str]:
    """Every import that breaks a rule, and every exception that is needed no more."""
    broken = [circle_sentence(circle) for circle in circles(modules)]
    for module in modules.values():
        for item in module.imports:
            reason = _forbidden(item)
            if reason:
                broken.append(f"{module.path.as_posix()}:{item.line} imports {item.imported}: {reason}")
    users = {module.name for module in modules.values() if any(item.imported in TORCH for item in module.imports)}
    for name in TORCH_ELSEWHERE:
        if name in modules and not any(within(user, name) for user in users):
            broken.append(f"{name} imports torch no more: remove it from TORCH_ELSEWHERE in .ci/structure.py")
    return broken


def _forbidden(item: Import) -> str | None:
    """Why an import is forbidden, or None."""
    if item.imported in TORCH:
        return _torch_forbidden(item)
    for who, what in NEVER:
        excepted = (item.importer, what) in NEVER_BUT and item.when != "at import"
        if within(item.importer, who) and within(item.imported, what) and not excepted:
            return f"{who} never imports {what}"
    if not within(item.imported, "adedge"):
        return None
    here, there = room_of(item.importer), room_of(item.imported)
    door = any(within(item.importer, name) for name in FRONT_DOORS)
    if not door and within(item.imported, COMMAND_LINE):
        return "nothing imports the command line"
    if here == there:
        return None
    if door:
        return "a front door imports other rooms inside functions only" if item.when == "at import" else None
    if item.importer == PUBLIC_INTERFACE and item.when == "for types":
        return None
    if there not in MAY_IMPORT[here]:
        allowed = ", ".join(sorted(MAY_IMPORT[here])) or "no other room"
        return f"{here} may import {allowed}"
    return None


def _torch_forbidden(item: Import) -> str | None:
    if within(item.importer, TORCH_ROOM):
        return None
    if not any(within(item.importer, name) for name in TORCH_ELSEWHERE):
        return f"PyTorch belongs in {TORCH_ROOM}"
    return "outside its room PyTorch is imported inside functions only" if item.when == "at import" else None


def circles(modules: Mapping[str, Module]) -> list[list[str]]:
    """Modules that import each other at their top level: for each group of them a shortest way around."""
    graph = {name: _loads(module, modules) for name, module in modules.items()}
    found: list[list[str]] = []
    covered: set[str] = set()
    for start in graph:
        if start in covered:
            continue
        way = _way_around(start, graph)
        if way:
            found.append(way)
            covered.update(way)
    return found


def circle_sentence(circle: list[str]) -> str:
    """A circle in words."""
    return f"circle: {' -> '.join([*circle, circle[0]])}; import one of them inside the function that needs it"


def _loads(module: Module, modules: Mapping[str, Module]) -> list[str]:
    """What importing a module imports at once: its imports, and the packages around those, which Python runs first."""
    names: dict[str, None] = {}
    for item in module.imports:
        if item.when != "at import":
            continue
        parts = item.imported.split(".")
        around = [".".join(parts[: length + 1]) for length in range(len(parts))]
        # The packages around the module itself are running already; that a package loads its own parts is no circle.
        names.update(dict.fromkeys(n for n in around if n == item.imported or not within(module.name, n)))
    return [name for name in names if name in modules and name != module.name]


def _way_around(start: str, graph: Mapping[str, list[str]]) -> list[str]:
    """A shortest way from a module back to itself, or nothing."""
    came_from: dict[str, str] = {}
    edge = [start]
    while edge:
        following = []
        for name in edge:
            for target in graph[name]:
                if target == start:
                    way = [name]
                    while way[0] != start:
                        way.insert(0, came_from[way[0]])
                    return way
                if target not in came_from:
                    came_from[target] = name
                    following.append(target)
        edge = following
    return []


# What is printed.


def structure(rooms: list[Room], modules: Mapping[str, Module]) -> Iterator[str]:
    """The lines of the structure: rooms, arrows, circles, torch."""
    yield "rooms"
    for room in rooms:
        yield f"  {room.name:<26} {room.folder + '/':<22} {len(room.modules):>3} modules {room.lines:>6} lines"
        for inner in room.inside:
            what = f"{len(inner.modules):>3} modules {inner.lines:>6} lines"
            if inner.kernels:
                what = f"{len(inner.kernels):>3} files of CUDA"
            yield f"    {inner.name:<24} {inner.folder + '/':<22} {what}"
    yield "arrows between rooms"
    for (importer, imported), count in sorted(arrows(modules, {n: place_of(n) for n in modules}).items()):
        yield f"  {importer:<20} -> {imported:<20} {count:>3}"
    inner_names = [inner.name for room in rooms for inner in room.inside]
    inner_place = {n: next((inner for inner in inner_names if within(n, inner)), room_of(n)) for n in modules}
    yield "arrows between rooms inside rooms"
    for (importer, imported), count in sorted(arrows(modules, inner_place).items()):
        if importer in inner_names or imported in inner_names:
            yield f"  {importer:<26} -> {imported:<26} {count:>3}"
    yield "circles"
    yield from (f"  {' -> '.join(circle)}" for circle in circles(modules))
    yield f"torch outside {TORCH_ROOM}"
    for module in modules.values():
        when = sorted({item.when for item in module.imports if item.imported in TORCH})
        if when and not within(module.name, TORCH_ROOM):
            reason = next((why for name, why in TORCH_ELSEWHERE.items() if within(module.name, name)), "forbidden")
            yield f"  {module.name} ({', '.join(when)}): {reason}"


def counts(root: Path, modules: Mapping[str, Module]) -> Iterator[str]:
    """The lines of --counts: a number for each question, and below it what was counted."""
    files = [(module.lines, module.path.as_posix()) for module in modules.values() if module.lines > LONG_FILE]
    functions = []
    for module in modules.values():
        for node in ast.walk(module.tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
                length = (node.end_lineno or first) - first + 1
                if length > LONG_FUNCTION:
                    functions.append((length, f"{module.path.as_posix()}:{node.lineno} {node.name}"))
    untested = [module.path.as_posix() for module in modules.values() if not _tested(root, module)]
    yield f"modules: {len(modules)}"
    for title, found in (
        (f"files over {LONG_FILE} lines", files),
        (f"functions over {LONG_FUNCTION} lines", functions),
    ):
        yield f"{title}: {len(found)}"
        yield from (f"  {length:>4} {where}" for length, where in sorted(found, reverse=True))
    yield f"modules without a test file of their name: {len(untested)}"
    yield from (f"  {path}" for path in untested)


def _tested(root: Path, module: Module) -> bool:
    """Whether tests/ has a file of the module's name; one that defines nothing needs none."""
    if not any(isinstance(node, ast.FunctionDef | ast.ClassDef) for node in ast.walk(module.tree)):
        return True
    name = module.name.rpartition(".")[2] if module.package else module.path.stem
    return (root / "tests" / module.path.parent / f"test_{name.strip('_')}.py").exists()
