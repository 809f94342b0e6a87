"""Every member of TensorRT that adedge touches exists in every version it claims, or is asked for first.

tensorrt_api.json holds facts: for each version, which of these members NVIDIA's own Python bindings have (introspected
from the wheels; 8.5.2's from its sources). The uses are read from our sources, so that a new one cannot slip past.
"""

from __future__ import annotations

import ast
import json
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import pytest

from adedge.export.builders.tensorrt import WEAK

API: dict[str, dict[str, list[str]]] = json.loads((Path(__file__).parent / "tensorrt_api.json").read_text())

SOURCES = ("adedge.export.builders.tensorrt", "adedge.runtime.backends.tensorrt")

# Our names for TensorRT's objects. Every expression that ends in one of these is an object of that class.
CLASSES = {
    "trt": "top",
    "_trt": "top",
    "creation": "NetworkDefinitionCreationFlag",
    "builder": "Builder",
    "config": "IBuilderConfig",
    "network": "INetworkDefinition",
    "parser": "OnnxParser",
    "error": "ParserError",
    "tensor": "ITensor",
    "profile": "IOptimizationProfile",
    "cache": "ITimingCache",
    "runtime": "Runtime",
    "engine": "ICudaEngine",
    "_engine": "ICudaEngine",
    "context": "IExecutionContext",
    "inspector": "EngineInspector",
}

# Uses whose condition stands in another function than the use.
GUARDED_ELSEWHERE = {
    ("IBuilderConfig", "progress_monitor"): "set only to the monitor that _monitor makes where the version has one",
    ("IBuilderConfig", "hardware_compatibility_level"): "set only to a level that _member found",
    ("IProgressMonitor", "__init__"): "the class is defined only where the version has its base",
    ("ExecutionContextAllocationStrategy", "USER_MANAGED"): "taken where the version has strategies",
    ("ICudaEngine", "create_execution_context_without_device_memory"): "called where the version has no strategies",
    ("ICudaEngine", "device_memory_size"): "read where the version has no device_memory_size_v2",
}

# Where the executor asks for the first, every version has it or the second.
ONE_OR_THE_OTHER = [
    (
        ("ExecutionContextAllocationStrategy", "USER_MANAGED"),
        ("ICudaEngine", "create_execution_context_without_device_memory"),
    ),
    (("ICudaEngine", "device_memory_size_v2"), ("ICudaEngine", "device_memory_size")),
    (("IExecutionContext", "set_device_memory"), ("IExecutionContext", "device_memory")),
]


class Use(NamedTuple):
    owner: str
    member: str
    asked_first: bool


def owner_of(node: ast.expr) -> str | None:
    """The TensorRT class that an expression is of, by its last name: trt, self._context, trt.BuilderFlag."""
    if isinstance(node, ast.Name):
        return CLASSES.get(node.id)
    if isinstance(node, ast.Attribute):
        if owner_of(node.value) == "top":
            return node.attr
        return CLASSES.get(node.attr)
    return None


def uses_in(tree: ast.Module) -> set[Use]:
    """Every attribute of a TensorRT object, and whether its outermost function probes it with hasattr or getattr."""
    found: set[Use] = set()
    for scope in functions_in(tree):
        plain, probed = set(), set()
        for node in ast.walk(scope):
            if isinstance(node, ast.Attribute) and (owner := owner_of(node.value)):
                plain.add((owner, node.attr))
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and len(node.args) >= 2:
                name = node.args[1]
                if not (isinstance(name, ast.Constant) and isinstance(name.value, str)):
                    continue
                if node.func.id in ("hasattr", "getattr") and (owner := owner_of(node.args[0])):
                    probed.add((owner, name.value))
                member = node.args[2] if len(node.args) > 2 else None
                if node.func.id == "_member" and isinstance(member, ast.Constant):
                    probed.add((name.value, member.value))
        found |= {Use(*pair, pair in probed) for pair in plain | probed}
    return found


def functions_in(tree: ast.Module) -> list[ast.FunctionDef]:
    """The module's functions and its classes' methods."""
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    bodies = [tree.body, *(node.body for node in classes)]
    return [node for body in bodies for node in body if isinstance(node, ast.FunctionDef)]


def all_uses() -> set[Use]:
    uses: set[Use] = set()
    for source in SOURCES:
        spec = find_spec(source)
        assert spec is not None
        assert spec.origin is not None
        uses |= uses_in(ast.parse(Path(spec.origin).read_text()))
    # The weak ways' flags are data; they are tried only where the version has the first of them.
    return uses | {Use("BuilderFlag", flag, True) for ways in WEAK.values() for way in ways for flag in way.flags}


def has(version: str, use: Use) -> bool:
    return use.member in API[version].get(use.owner, [])


@pytest.mark.parametrize("version", list(API))
def test_what_is_used_without_asking_exists(version: str) -> None:
    unasked = [use for use in all_uses() if not use.asked_first and use[:2] not in GUARDED_ELSEWHERE]
    assert len(unasked) > 40
    absent = sorted(
        f"{use.owner}.{use.member}" for use in unasked if not use.member.startswith("__") and not has(version, use)
    )
    assert absent == []


def test_what_is_asked_for_exists_somewhere() -> None:
    asked = [use for use in all_uses() if use.asked_first or use[:2] in GUARDED_ELSEWHERE]
    nowhere = [use for use in asked if use.member != "__init__" and not any(has(version, use) for version in API)]
    assert nowhere == []


@pytest.mark.parametrize("version", list(API))
@pytest.mark.parametrize("pair", ONE_OR_THE_OTHER, ids=lambda pair: pair[0][1])
def test_what_replaces_something_is_there_where_that_is_not(
    version: str, pair: tuple[tuple[str, str], tuple[str, str]]
) -> None:
    assert any(has(version, Use(*use, False)) for use in pair)
    assert set(pair) <= {use[:2] for use in all_uses()}


def test_each_allowance_is_still_needed() -> None:
    used = {use[:2] for use in all_uses() if not use.asked_first}
    assert set(GUARDED_ELSEWHERE) <= used


def test_the_reader_of_sources_sees_a_use_and_a_probe() -> None:
    tree = ast.parse(
        "def f(trt, config):\n"
        "    trt.Builder(1).create_network(2)\n"
        "    config.set_flag(trt.BuilderFlag.FP16)\n"
        "    if hasattr(config, 'max_workspace_size'):\n"
        "        config.max_workspace_size = 1\n"
    )
    assert uses_in(tree) == {
        Use("top", "Builder", False),
        Use("top", "BuilderFlag", False),
        Use("BuilderFlag", "FP16", False),
        Use("IBuilderConfig", "set_flag", False),
        Use("IBuilderConfig", "max_workspace_size", True),
    }


def test_the_table_tells_versions_apart() -> None:
    """Facts from NVIDIA's documents, against a table that says yes to everything."""
    assert "STRONGLY_TYPED" not in API["8.6.1"]["NetworkDefinitionCreationFlag"]
    assert "EXPLICIT_BATCH" not in API["11.4.0"]["NetworkDefinitionCreationFlag"]
    assert "FP16" not in API["11.4.0"]["BuilderFlag"]
    assert "builder_optimization_level" not in API["8.5.2"]["IBuilderConfig"]
    assert "node_name" not in API["8.6.1"]["ParserError"]
