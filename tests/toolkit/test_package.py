"""The package as users get it: light to import, and complete. What rooms may import: tests/ci/test_structure.py."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest
from structure import ROOMS

ROOT = Path(__file__).resolve().parents[2]
HEAVY = {"torch", "torchvision", "onnx", "onnxruntime", "tensorrt", "tensorrt_rtx", "pycuda", "matplotlib", "skimage"}
FILES = sorted(path for room in ROOMS.values() for path in (ROOT / room).rglob("*.py"))


def loaded_by(statement: str) -> set[str]:
    """Top-level modules loaded by a statement in a fresh interpreter."""
    code = f"import sys, json; {statement}; print(json.dumps(sorted({{m.split('.')[0] for m in sys.modules}})))"
    result = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return set(json.loads(result.stdout.splitlines()[-1]))


def imports_of(path: Path, *, everywhere: bool) -> set[str]:
    """Full names that a file imports: at its top level, or everywhere in it."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = ast.walk(tree) if everywhere else iter(tree.body)
    names: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def test_importing_adedge_loads_nothing_heavy() -> None:
    assert loaded_by("import adedge") & (HEAVY | {"typer", "numpy", "cv2", "pydantic"}) == set()


def test_command_line_loads_nothing_heavy() -> None:
    commands = "; ".join(
        f"import adedge.cli.{p.stem}" for p in sorted((ROOT / "toolkit/cli").glob("*.py")) if p.stem[0] != "_"
    )
    assert loaded_by(commands) & HEAVY == set()


def test_runtime_loads_no_training_framework() -> None:
    modules = [f"adedge.runtime.{p.stem}" for p in sorted((ROOT / "runtime").glob("*.py")) if p.stem != "__init__"]
    assert modules
    statement = "; ".join(f"import {module}" for module in modules)
    assert loaded_by(statement) & (HEAVY - {"onnxruntime"}) == set()


def test_bundles_are_opened_without_a_training_framework() -> None:
    statement = "import adedge.bundle, adedge.signing, adedge.scoring, adedge.metrics, adedge.data.datasets"
    assert loaded_by(statement) & HEAVY == set()


def test_the_package_of_methods_itself_loads_no_torch() -> None:
    assert loaded_by("import adedge.methods, adedge.methods.protocol, adedge.methods.registry") & HEAVY == set()


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_nothing_is_ever_unpickled(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert not imports_of(path, everywhere=True) & {"pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
    assert "allow_pickle=True" not in text
    assert "weights_only=False" not in text


def test_every_folder_with_modules_or_kernels_is_in_the_wheel() -> None:
    if sys.version_info < (3, 11):
        pytest.skip("tomllib came with Python 3.11")
    import tomllib

    declared = set(
        tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["packages"]
    )
    found = set()
    for name, room in ROOMS.items():
        for file in (*(ROOT / room).rglob("__init__.py"), *(ROOT / room).rglob("*.cu")):
            inner = file.parent.relative_to(ROOT / room).parts
            found.add(".".join((name, *inner)))
    assert declared == found


@pytest.mark.parametrize("room", [*ROOMS.values()])
def test_a_room_imported_by_its_folder_name_is_refused(room: str) -> None:
    result = subprocess.run([sys.executable, "-c", f"import {room}"], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode != 0
    assert "import this package as 'adedge" in result.stderr
