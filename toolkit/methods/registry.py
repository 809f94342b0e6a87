"""Names of methods and the classes behind them: those of this package, and those that other packages bring.

A package brings a method by an entry point of the group `GROUP`, "name = module:Class". Entry points are looked up when
a name is asked for, and nothing of a method, and no torch, is imported before that.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points
from types import MappingProxyType

from pydantic import BaseModel

from adedge.bundle import IMPORTED
from adedge.errors import AdedgeError, MissingDependency, UsageError
from adedge.methods.protocol import Method

GROUP = "adedge.methods"

# Where each method lives, in the order of --help.
BUILT_IN: Mapping[str, str] = MappingProxyType(
    {
        "oesdn": "adedge.methods.oesdn.method:OeSdn",
        "hfr": "adedge.methods.hfr:Hfr",
        "mkd": "adedge.methods.mkd:Mkd",
        "students": "adedge.methods.students.method:UninformedStudents",
    }
)


def method_names() -> tuple[str, ...]:
    """The names of this package's methods, then those of installed packages; imports nothing of either."""
    return (*BUILT_IN, *sorted(entry_points(group=GROUP).names - BUILT_IN.keys()))


def method_named(name: str) -> type[Method]:
    """The class of a method.

    Raises `UsageError` listing the known ones, or naming the package whose method takes another's name, cannot be
    imported or does not keep the `Method` protocol; `MissingDependency` without torch.

    >>> from adedge import load_dataset
    >>> method = method_named("oesdn").for_dataset(load_dataset("photos"), variant="ae", size=32)
    >>> method.variant, method.plan().input.shape
    ('ae', (1, 32, 32))
    """
    points = tuple(entry_points(group=GROUP, name=name))
    if points and (name in BUILT_IN or name == IMPORTED):
        raise UsageError(f"{origin(points[0])} has a method '{name}', a name of adedge's own: uninstall that package")
    if len(points) > 1:
        raise UsageError(f"{' and '.join(map(origin, points))} both have a method '{name}': uninstall one of them")
    if name in BUILT_IN:
        points = (EntryPoint(name, BUILT_IN[name], GROUP),)
    if not points:
        raise UsageError(f"unknown method '{name}': choose from {', '.join(sorted(method_names()))}")
    require_torch()
    return _loaded(points[0])


def origin(point: EntryPoint) -> str:
    """The package that an entry point comes from, for messages: "toy 1.0"."""
    return point.value if point.dist is None else f"{point.dist.name} {point.dist.version}"


def require_torch() -> None:
    """Raise `MissingDependency` where torch or safetensors is not installed."""
    for package in ("torch", "safetensors"):
        try:
            importlib.import_module(package)
        except ModuleNotFoundError as error:
            raise MissingDependency(package, "train", "training and running networks in PyTorch") from error


def _loaded(point: EntryPoint) -> type[Method]:
    """The class that an entry point names. Raises `UsageError` where there is none, or it is no method."""
    whose = f"the method '{point.name}' of {origin(point)}"
    try:
        found = point.load()
    except AdedgeError:
        raise
    except Exception as error:  # importing a module runs it, and it may raise anything
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise UsageError(f"{whose} cannot be imported ({reason}): reinstall that package, or uninstall it") from error
    if problem := _problem(found, point.name):
        raise UsageError(f"{whose} cannot be used: {problem}; see docs/methods.md")
    method: type[Method] = found
    return method


def _problem(found: object, name: str) -> str | None:
    """Why something is not the class of a method called ``name``; None where it is."""
    if not (isinstance(found, type) and issubclass(found, BaseModel)):
        return "it is not a pydantic model"
    members = (*Method.__annotations__, *(member for member in vars(Method) if not member.startswith("_")))
    missing = [member for member in members if not hasattr(found, member) and member not in found.model_fields]
    if missing:
        return f"it has no {', '.join(missing)}"
    called = getattr(found, "name", None)
    return None if called == name else f"its class calls it '{called}'"
