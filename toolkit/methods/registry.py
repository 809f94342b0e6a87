"""Names of methods and their classes: those of this package, and those that other packages provide.

A package provides a method by an entry point in the group `GROUP`, "name = module:Class". A method, and with it torch,
is imported only when it is asked for by name.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points
from types import MappingProxyType

from pydantic import BaseModel

from adedge.errors import AdedgeError, MissingDependency, UsageError
from adedge.manifest import IMPORTED
from adedge.methods.protocol import Method

GROUP = "adedge.methods"

# In the order of --help.
BUILT_IN: Mapping[str, str] = MappingProxyType(
    {
        "oesdn": "adedge.methods.oesdn.method:OeSdn",
        "memory": "adedge.methods.memory:Memory",
        "hfr": "adedge.methods.hfr:Hfr",
        "mkd": "adedge.methods.mkd:Mkd",
        "students": "adedge.methods.students.method:UninformedStudents",
    }
)


def method_names() -> tuple[str, ...]:
    """The names of this package's methods, then those of installed packages; imports none of them."""
    return (*BUILT_IN, *sorted(entry_points(group=GROUP).names - BUILT_IN.keys()))


def method_named(name: str) -> type[Method]:
    """The class of the method called ``name``.

    Raises `UsageError` listing the available methods if there is none of that name, or naming the package whose method
    has the name of another, cannot be imported or does not implement `Method`; `MissingDependency` without torch.

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
    return _load(points[0])


def origin(point: EntryPoint) -> str:
    """The package and version that an entry point comes from, for messages: "toy 1.0"."""
    return point.value if point.dist is None else f"{point.dist.name} {point.dist.version}"


def require_torch() -> None:
    """Raise `MissingDependency` if torch or safetensors is not installed."""
    for package in ("torch", "safetensors"):
        try:
            importlib.import_module(package)
        except ModuleNotFoundError as error:
            raise MissingDependency(package, "train", "training and running networks in PyTorch") from error


def _load(point: EntryPoint) -> type[Method]:
    """Import the class that an entry point names. Raises `UsageError` if it cannot be imported or is not a method."""
    description = f"the method '{point.name}' of {origin(point)}"
    try:
        candidate = point.load()
    except AdedgeError:
        raise
    except Exception as error:  # importing a module runs it, and it may raise anything
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise UsageError(
            f"{description} cannot be imported ({reason}): reinstall that package, or uninstall it"
        ) from error
    if problem := _problem(candidate, point.name):
        raise UsageError(f"{description} cannot be used: {problem}; see docs/methods.md")
    method: type[Method] = candidate
    return method


def _problem(candidate: object, name: str) -> str | None:
    """Why ``candidate`` is not the class of a method called ``name``; None if it is."""
    if not (isinstance(candidate, type) and issubclass(candidate, BaseModel)):
        return "it is not a pydantic model"
    members = (*Method.__annotations__, *(member for member in vars(Method) if not member.startswith("_")))
    missing = [member for member in members if not hasattr(candidate, member) and member not in candidate.model_fields]
    if missing:
        return f"it has no {', '.join(missing)}"
    class_name = getattr(candidate, "name", None)
    return None if class_name == name else f"its class calls it '{class_name}'"
