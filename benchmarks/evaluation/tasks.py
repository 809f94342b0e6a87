"""What an evaluation is asked for: every combination of methods, data sets and seeds is a `Task`."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from pydantic import BaseModel

from adedge.data.labelled_sets import CLASSES, SETS
from adedge.data.layouts import classes_in, found_in
from adedge.errors import DataError, UsageError
from adedge.specs import Record

# What can be asked for: "<method>/<variant>", with the options that choose it. A method's first is its default.
SYSTEMS: Mapping[str, Mapping[str, Any]] = {
    "oesdn/oe-sdn": {"variant": "oe-sdn"},
    "oesdn/sdn": {"variant": "sdn"},
    "oesdn/ae": {"variant": "ae"},
    "students/p33": {"patches": [33]},
    "students/p17": {"patches": [17]},
    "students/p65": {"patches": [65]},
    "students/multi-scale": {"patches": [17, 33, 65]},
    "mkd/vgg16": {},
    "hfr/resnet18": {"encoder": "resnet18"},
    "hfr/wide-resnet50-2": {"encoder": "wide-resnet50-2"},
}


class Column(Record):
    """A data set, ``data`` as `load_dataset` takes it: class ``name`` of the ``collection`` that a table is about."""

    collection: str
    name: str
    data: str


class Task(Record):
    """One cell: ``system`` as `parse_systems` gives it, what it is trained with, on ``column``, from ``seed``."""

    system: str
    options: dict[str, Any]
    column: Column
    seed: int
    amp: bool = False

    @property
    def stem(self) -> str:
        """What the cell's files are called."""
        return f"{self.system.replace('/', '-')}.{self.column.collection}.{self.column.name}.{self.seed}"


def parse_systems(text: str) -> tuple[str, ...]:
    """ "oesdn,oesdn/ae" -> ("oesdn/oe-sdn", "oesdn/ae"). Raises `UsageError` naming the known ones.

    A method of another package is a system by its name alone.
    """
    from adedge.methods import method_names

    listed = {system.partition("/")[0] for system in SYSTEMS}
    known = (*SYSTEMS, *(name for name in method_names() if name not in listed))
    chosen = []
    for part in text.split(","):
        name = part.strip()
        found = next((system for system in known if name in (system, system.partition("/")[0])), None)
        if found is None:
            raise UsageError(f"unknown method '{name}': choose from {', '.join(known)}")
        chosen.append(found)
    return tuple(dict.fromkeys(chosen))


def parse_numbers(text: str, what: str) -> tuple[int, ...]:
    """ "0,3-5" -> (0, 3, 4, 5). Raises `UsageError`."""
    numbers: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()) or (dash and int(last) < int(first)):
            raise UsageError(f"{what}: give '{text}' as numbers, 0,1,2 or 0-2")
        numbers.extend(range(int(first), int(last or first) + 1))
    return tuple(dict.fromkeys(numbers))


def columns_from(texts: Sequence[str]) -> tuple[Column, ...]:
    """The data sets that each --data stands for.

    "mnist" and "mnist:0-9" are ten, a folder of MVTec AD's classes as many as it has, anything else one, of a
    collection called like its folder's parent. Raises `DataError` where a folder does not exist or has no test
    pictures, `UsageError` where two data sets would share their files.
    """
    found: dict[tuple[str, str], Column] = {}
    for text in texts:
        for column in _columns(text):
            other = found.setdefault((column.collection, column.name), column)
            if other != column:
                raise UsageError(f"{other.data} and {column.data} are called the same: rename one of the folders")
    return tuple(found.values())


def _columns(data: str) -> list[Column]:
    scheme, colon, chosen = data.partition(":")
    if scheme in SETS and not Path(data).exists():
        numbers = parse_numbers(chosen, data) if colon else range(CLASSES)
        return [Column(collection=scheme, name=str(number), data=f"{scheme}:{number}") for number in numbers]
    path = Path(data)
    if path.is_dir() and not (path / "train").is_dir() and (classes := classes_in(path)):
        return [Column(collection=path.resolve().name, name=one.name, data=str(one)) for one in classes]
    if not found_in(path).test:
        raise DataError(f"{data} has no test pictures, so nothing can be measured: see docs/data.md for the layouts")
    whole = path.resolve()
    return [Column(collection=whole.parent.name, name=whole.name if whole.is_dir() else whole.stem, data=data)]


def parse_options(texts: Sequence[str], systems: Sequence[str]) -> dict[str, dict[str, Any]]:
    """["hfr.iterations=400"] -> {"hfr": {"iterations": 400}}. Values are JSON where they can be, else text.

    Raises `UsageError` for an option that its method does not have, before anything is trained.
    """
    methods = {system.partition("/")[0] for system in systems}
    options: dict[str, dict[str, Any]] = {method: {} for method in methods}
    for text in texts:
        key, equals, value = text.partition("=")
        method, dot, name = key.partition(".")
        if not equals or not dot or not name:
            raise UsageError(f"--option '{text}': write METHOD.NAME=VALUE, for example hfr.iterations=400")
        if method not in methods:
            raise UsageError(f"--option '{text}': {method} is not among the methods, {', '.join(sorted(methods))}")
        name = name.replace("-", "_")
        known = _fields(method)
        if name not in known:
            raise UsageError(f"--option '{text}': {method} has no option '{name}': choose from {', '.join(known)}")
        try:
            options[method][name] = json.loads(value)
        except ValueError:
            options[method][name] = value
    return options


def _fields(method: str) -> Collection[str]:
    """The names of a method's options."""
    from adedge.methods import method_named

    return cast(type[BaseModel], method_named(method)).model_fields


def tasks_from(
    systems: Sequence[str],
    columns: Sequence[Column],
    seeds: Sequence[int],
    *,
    budget: str,
    options: Mapping[str, Mapping[str, Any]],
    amp: bool = False,
) -> list[Task]:
    """Every combination, whole tables of one seed after another; ``options`` by method, see `parse_options`.

    A method of another package need not have budgets.
    """
    chosen: dict[str, dict[str, Any]] = {}
    for system in systems:
        method = system.partition("/")[0]
        preset = {"budget": budget} if system in SYSTEMS or "budget" in _fields(method) else {}
        chosen[system] = {**preset, **SYSTEMS.get(system, {}), **options.get(method, {})}
    return [
        Task(
            system=system,
            options=chosen[system],
            column=column,
            seed=seed,
            amp=amp,
        )
        for seed in seeds
        for column in columns
        for system in systems
    ]
