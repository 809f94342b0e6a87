"""The rooms keep their rules, the script notices each way to break them, and its drawing is of this code."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from structure import (
    FRONT_DOORS,
    MAY_IMPORT,
    ROOMS,
    arrows,
    circles,
    counts,
    place_of,
    read_modules,
    read_rooms,
    structure,
    violations,
)
from structure_drawing import CORE, DOWN, PLACES, UP, drawing

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / ".ci/import-graph"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Five empty rooms and a command line."""
    for folder in (*ROOMS.values(), "toolkit/cli", "toolkit/methods", "runtime/backends", "benchmarks/studies"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "__init__.py").write_text('"""A room. With a second sentence."""\n')
    return tmp_path


def write(tree: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (tree / name).write_text(text)


def test_the_rooms_keep_their_rules() -> None:
    result = subprocess.run([sys.executable, str(SCRIPT)], capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")
    assert "adedge.runtime.cuda" in result.stdout


def test_the_drawing_is_of_this_code() -> None:
    modules = read_modules(ROOT)
    committed = (ROOT / "docs/images/architecture.svg").read_text(encoding="utf-8")
    assert committed == drawing(read_rooms(ROOT, modules), modules), "the imports changed: make architecture"


def test_the_drawing_has_a_place_for_every_room_and_arrow() -> None:
    assert set(PLACES) == set(ROOMS)
    assert set(DOWN) == {(importer, imported) for importer, allowed in MAY_IMPORT.items() for imported in allowed}
    assert set(UP) == set(ROOMS) - {CORE}


def test_the_table_in_the_documentation_is_the_rule() -> None:
    """docs/architecture.md: folder, import name, what it holds, what it may import."""
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    table = {}
    for row in re.findall(r"^\| `(\w+)/` \| `([\w.]+)` \| [^|]* \| ([^|]*) \|$", text, re.MULTILINE):
        table[row[1]] = (row[0], set(re.findall(r"`([\w.]+)`", row[2])))
    assert table == {name: (folder, MAY_IMPORT[name]) for name, folder in ROOMS.items()}


def test_rooms_without_a_fault_break_no_rule(tree: Path) -> None:
    write(
        tree,
        {
            "toolkit/__init__.py": "if TYPE_CHECKING:\n    from adedge.runtime.engines import Engine\n",
            "toolkit/specs.py": "import numpy\n",
            "runtime/backends/reference.py": "def load():\n    from adedge.methods import hfr\n",
            "toolkit/methods/hfr.py": "import torch\nfrom adedge.specs import Spec\n",
            "runtime/engines.py": "from adedge import specs\n",
            "export/build.py": "from adedge.runtime.engines import Engine\n",
            "toolkit/cli/run.py": "def run():\n    from adedge.runtime.engines import Engine\n",
            "toolkit/cli/types.py": "if TYPE_CHECKING:\n    from adedge.runtime.engines import Engine\n",
            "benchmarks/gpu.py": "def compare():\n    import torch\n",
            "benchmarks/studies/speed.py": "def compare():\n    import torch.nn\n",
        },
    )
    assert violations(read_modules(tree)) == []


@pytest.mark.parametrize(
    ("path", "text", "sentence"),
    [
        ("runtime/engines.py", "from adedge.export import build\n", "adedge.runtime may import adedge"),
        ("runtime/engines.py", "def f():\n    import adedge.export\n", "adedge.runtime may import adedge"),
        ("runtime/engines.py", "if TYPE_CHECKING:\n    import adedge.export\n", "adedge.runtime may import adedge"),
        ("runtime/engines.py", "from ..export import build\n", "adedge.runtime may import adedge"),
        ("calibration/qdq.py", "import adedge.runtime\n", "adedge.calibration may import adedge"),
        ("benchmarks/report.py", "import adedge.export\n", "may import adedge, adedge.runtime"),
        ("toolkit/specs.py", "import adedge.runtime\n", "adedge may import no other room"),
        ("toolkit/specs.py", "from adedge.cli import app\n", "nothing imports the command line"),
        ("runtime/engines.py", "from adedge.cli import app\n", "nothing imports the command line"),
        ("runtime/engines.py", "from adedge import methods\n", "adedge.runtime never imports adedge.methods"),
        ("runtime/engines.py", "def f():\n    import onnx.helper\n", "adedge.runtime never imports onnx"),
        ("runtime/engines.py", "def f():\n    import torch\n", "PyTorch belongs in adedge.methods"),
        ("toolkit/specs.py", "try:\n    import torchvision\nexcept ImportError:\n    pass\n", "PyTorch belongs in"),
        (
            "runtime/backends/reference.py",
            "from adedge import methods\n",
            "adedge.runtime never imports adedge.methods",
        ),
        ("toolkit/__init__.py", "import adedge.runtime\n", "adedge may import no other room"),
        ("toolkit/__init__.py", "def f():\n    import adedge.runtime\n", "adedge may import no other room"),
        ("toolkit/cli/run.py", "import adedge.runtime\n", "a front door imports other rooms inside functions only"),
        ("benchmarks/studies/speed.py", "import torch\n", "PyTorch is imported inside functions only"),
    ],
)
def test_a_forbidden_import_is_one_sentence(tree: Path, path: str, text: str, sentence: str) -> None:
    write(
        tree,
        {
            "toolkit/cli/app.py": "def f():\n    import adedge.specs\n",
            "benchmarks/gpu.py": "def f():\n    import torch\n",
        },
    )
    if path != "benchmarks/studies/speed.py":
        write(tree, {"benchmarks/studies/speed.py": "def f():\n    import torch\n"})
    (tree / path).write_text(text)
    broken = violations(read_modules(tree))
    assert len(broken) == 1
    assert broken[0].startswith(f"{path}:")
    assert sentence in broken[0]


def test_an_exception_that_nobody_needs_is_named(tree: Path) -> None:
    write(tree, {"benchmarks/gpu.py": "import numpy\n", "benchmarks/studies/speed.py": "def f():\n    import torch\n"})
    assert violations(read_modules(tree)) == [
        "adedge.benchmarks.gpu imports torch no more: remove it from TORCH_ELSEWHERE in .ci/structure.py"
    ]


@pytest.mark.parametrize(
    ("files", "circle"),
    [
        pytest.param(
            {"toolkit/a.py": "import adedge.b\n", "toolkit/b.py": "import adedge.a\n"}, True, id="two modules"
        ),
        pytest.param(
            {
                "toolkit/a.py": "import adedge.b\n",
                "toolkit/b.py": "from adedge import c\n",
                "toolkit/c.py": "from . import a\n",
            },
            True,
            id="three modules",
        ),
        pytest.param(
            {"toolkit/methods/hfr.py": "from adedge.a import x\n", "toolkit/a.py": "from adedge.methods.mkd import y\n"}
            | {"toolkit/methods/mkd.py": "", "toolkit/methods/__init__.py": "from adedge.methods import hfr\n"},
            True,
            id="through a package that Python runs first",
        ),
        pytest.param(
            {"toolkit/a.py": "class A:\n    import adedge.b\n", "toolkit/b.py": "import adedge.a\n"},
            True,
            id="in a class",
        ),
        pytest.param(
            {"toolkit/a.py": "import adedge.b\n", "toolkit/b.py": "def f():\n    import adedge.a\n"},
            False,
            id="deferred",
        ),
        pytest.param(
            {"toolkit/a.py": "import adedge.b\n", "toolkit/b.py": "if TYPE_CHECKING:\n    import adedge.a\n"},
            False,
            id="for types",
        ),
        pytest.param(
            {
                "toolkit/methods/__init__.py": "from adedge.methods.hfr import Hfr\n",
                "toolkit/methods/hfr.py": "x = 1\n",
            },
            False,
            id="a package that imports its own part",
        ),
    ],
)
def test_circles(tree: Path, files: dict[str, str], circle: bool) -> None:
    write(tree, files)
    modules = read_modules(tree)
    assert bool(circles(modules)) == circle
    assert any(sentence.startswith("circle: ") for sentence in violations(modules)) == circle


def test_the_command_says_what_is_broken_and_fails(tree: Path) -> None:
    write(
        tree,
        {"toolkit/a.py": "import adedge.b\n", "toolkit/b.py": "import adedge.a\n", "runtime/c.py": "import torch\n"},
    )
    result = subprocess.run([sys.executable, str(SCRIPT), "--root", str(tree)], capture_output=True, text=True)
    assert result.returncode == 1
    lines = [line for line in result.stderr.splitlines() if "TORCH_ELSEWHERE" not in line]
    assert lines == [
        "import-graph: circle: adedge.a -> adedge.b -> adedge.a; import one of them inside the function that needs it",
        "import-graph: runtime/c.py:1 imports torch: PyTorch belongs in adedge.methods",
    ]


def test_arrows_count_pairs_of_modules(tree: Path) -> None:
    write(
        tree,
        {
            "toolkit/specs.py": "",
            "toolkit/bundle.py": "",
            "runtime/a.py": "from adedge.specs import x\ndef f():\n    from adedge import bundle, specs\n",
            "runtime/b.py": "import adedge.specs\nimport adedge.runtime.a\n",
            "toolkit/cli/run.py": "def f():\n    import adedge.runtime.a\n",
        },
    )
    modules = read_modules(tree)
    found = arrows(modules, {name: place_of(name) for name in modules})
    assert found == {("adedge.runtime", "adedge"): 3, (FRONT_DOORS[0], "adedge.runtime"): 1}


def test_structure_and_drawing_show_rooms_inside_rooms(tree: Path) -> None:
    (tree / "runtime/kernels").mkdir()
    (tree / "runtime/kernels/dssim.cu").write_text("// a kernel\n")
    modules = read_modules(tree)
    rooms = read_rooms(tree, modules)
    runtime = next(room for room in rooms if room.name == "adedge.runtime")
    assert [inner.name for inner in runtime.inside] == ["adedge.runtime.backends", "adedge.runtime.kernels"]
    assert [inner.summary for inner in runtime.inside] == ["A room", "CUDA: dssim"]
    assert runtime.summary == "A room"
    assert any("adedge.methods" in line for line in structure(rooms, modules))
    assert "<tspan" in drawing(rooms, modules)


def test_counts(tree: Path) -> None:
    long_function = "def long():\n" + "    x = 1\n" * 50
    write(
        tree,
        {
            "toolkit/long.py": "x = 1\n" * 401,
            "toolkit/functions.py": long_function,
            "runtime/tested.py": "def f(): ...\n",
        },
    )
    (tree / "tests/runtime").mkdir(parents=True)
    (tree / "tests/runtime/test_tested.py").write_text("")
    lines = list(counts(tree, read_modules(tree)))
    assert lines == [
        "modules: 12",
        "files over 400 lines: 1",
        "   401 toolkit/long.py",
        "functions over 50 lines: 1",
        "    51 toolkit/functions.py:1 long",
        "modules without a test file of their name: 1",
        "  toolkit/functions.py",
    ]
