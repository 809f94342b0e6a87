"""The tasks of an evaluation: every combination of methods, data sets and seeds is a `Task`."""

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

# Systems, "<method>/<variant>", with the options that select them. A method's first one is its default.
SYSTEMS: Mapping[str, Mapping[str, Any]] = {
    "oesdn/oe-sdn": {"variant": "oe-sdn"},
    "oesdn/sdn": {"variant": "sdn"},
    "oesdn/ae": {"variant": "ae"},
    "students/p33": {"patches": [33]},
    "students/p17": {"patches": [17]},
    "students/p65": {"patches": [65]},
    "students/multi-scale": {"patches": [17, 33, 65]},
    "memory/attention": {},
    "memory/nearest": {"form": "nearest"},
    "mkd/vgg16": {},
    "hfr/resnet18": {"encoder": "resnet18"},
    "hfr/wide-resnet50-2": {"encoder": "wide-resnet50-2"},
}


class Column(Record):
    """A data set, one column of a table: class ``name`` of ``collection``; `load_dataset` reads ``data``."""

    collection: str
    name: str
    data: str


class Task(Record):
    """One combination to measure: ``system``, as from `parse_systems`, trained with ``options`` on ``column``."""

    system: str
    options: dict[str, Any]
    column: Column
    seed: int
    amp: bool = False

    @property
    def stem(self) -> str:
        """The name of the task's files, without suffix."""
        return f"{self.system.replace('/', '-')}.{self.column.collection}.{self.column.name}.{self.seed}"


def parse_systems(text: str) -> tuple[str, ...]:
    """ "oesdn,oesdn/ae" -> ("oesdn/oe-sdn", "oesdn/ae"). Raises `UsageError` listing the available ones.

    For a method of another package, the system is just the method's name.
    """
    from adedge.methods import method_names

    built_in = {system.partition("/")[0] for system in SYSTEMS}
    available = (*SYSTEMS, *(name for name in method_names() if name not in built_in))
    systems = []
    for part in text.split(","):
        name = part.strip()
        match = next((system for system in available if name in (system, system.partition("/")[0])), None)
        if match is None:
            raise UsageError(f"unknown method '{name}': choose from {', '.join(available)}")
        systems.append(match)
    return tuple(dict.fromkeys(systems))


def parse_numbers(text: str, what: str) -> tuple[int, ...]:
    """ "0,3-5" -> (0, 3, 4, 5). Raises `UsageError` for other text, naming ``what`` it was given for."""
    numbers: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()) or (dash and int(last) < int(first)):
            raise UsageError(f"{what}: give '{text}' as numbers, such as 0,1,2 or 0-2")
        numbers.extend(range(int(first), int(last or first) + 1))
    return tuple(dict.fromkeys(numbers))


def columns_from(texts: Sequence[str]) -> tuple[Column, ...]:
    """The data sets that the values of --data stand for.

    "mnist" and "mnist:0-9" are ten data sets; a folder of classes, such as MVTec AD, is one per class; anything else is
    one, in a collection named after its parent folder. Raises `DataError` if a folder does not exist or has no test
    pictures, `UsageError` if two data sets have the same collection and name.
    """
    columns: dict[tuple[str, str], Column] = {}
    for text in texts:
        for column in _columns(text):
            other = columns.setdefault((column.collection, column.name), column)
            if other != column:
                raise UsageError(f"{other.data} and {column.data} are called the same: rename one of the folders")
    return tuple(columns.values())


def _columns(data: str) -> list[Column]:
    scheme, colon, class_numbers = data.partition(":")
    if scheme in SETS and not Path(data).exists():
        numbers = parse_numbers(class_numbers, data) if colon else range(CLASSES)
        return [Column(collection=scheme, name=str(number), data=f"{scheme}:{number}") for number in numbers]
    path = Path(data)
    if path.is_dir() and not (path / "train").is_dir() and (classes := classes_in(path)):
        return [Column(collection=path.resolve().name, name=folder.name, data=str(folder)) for folder in classes]
    if not found_in(path).test:
        raise DataError(f"{data} has no test pictures, which an evaluation requires: see docs/data.md for the layouts")
    absolute = path.resolve()
    name = absolute.name if absolute.is_dir() else absolute.stem
    return [Column(collection=absolute.parent.name, name=name, data=data)]


def parse_options(texts: Sequence[str], systems: Sequence[str]) -> dict[str, dict[str, Any]]:
    """["hfr.iterations=400"] -> {"hfr": {"iterations": 400}}. A value that is not valid JSON is text.

    Raises `UsageError` for an option that its method does not have.
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
        fields = _fields(method)
        if name not in fields:
            raise UsageError(f"--option '{text}': {method} has no option '{name}': choose from {', '.join(fields)}")
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
    """Every combination, ordered by seed, so that whole tables are finished early; for ``options`` see `parse_options`.

    ``budget`` is left out for a method that has no such option.
    """
    system_options: dict[str, dict[str, Any]] = {}
    for system in systems:
        method = system.partition("/")[0]
        preset = {"budget": budget} if "budget" in _fields(method) else {}
        system_options[system] = {**preset, **SYSTEMS.get(system, {}), **options.get(method, {})}
    return [
        Task(
            system=system,
            options=system_options[system],
            column=column,
            seed=seed,
            amp=amp,
        )
        for seed in seeds
        for column in columns
        for system in systems
    ]
