"""`adedge train` for methods of other packages: from the example of docs/methods.md to an engine, and broken ones."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from inspect import signature
from pathlib import Path
from typing import Annotated, Any, Literal

import cv2
import numpy as np
import pytest
from pydantic import BaseModel, Field

from adedge.bundle import Bundle
from adedge.cli.train.generic import options_from
from adedge.cli.train.options import training_command
from adedge.errors import UsageError

ROOT = Path(__file__).resolve().parents[4]
Install = Callable[[str, str, str], Path]

# Runs several commands in one process: each import of torch takes seconds.
DRIVER = """
import json, sys
from adedge.cli import main

for arguments in json.load(sys.stdin):
    sys.argv = ["adedge", *arguments]
    try:
        main()
    except SystemExit as stop:
        assert stop.code == 0, (arguments, stop.code)
"""


@pytest.fixture
def example(install: Install) -> Mapping[str, str]:
    """The environment with the package that docs/methods.md shows."""
    (text,) = re.findall(r"```python\n(# toy\.py\n.*?)```", (ROOT / "docs/methods.md").read_text("utf-8"), re.S)
    return environment(install("toy", text, "toy = toy:Toy"))


def environment(folder: Path) -> Mapping[str, str]:
    return {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1", "COLUMNS": "200"}


def adedge(env: Mapping[str, str], *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "adedge", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, env=env)


def write_pictures(folder: Path, count: int, *, spot: bool = False) -> Path:
    """A bright square on dark noise; with a ``spot`` a corner of it is missing."""
    folder.mkdir()
    rng = np.random.default_rng(int(spot))
    for number in range(count):
        picture = rng.integers(0, 40, (48, 48), dtype=np.uint8)
        picture[12:36, 12:36] += 150
        if spot:
            picture[12:20, 12:20] = 20
        cv2.imwrite(str(folder / f"{number:02}.png"), picture)
    return folder


def test_the_documented_example_goes_from_pictures_to_verdicts(example: Mapping[str, str], tmp_path: Path) -> None:
    good, bad = write_pictures(tmp_path / "good", 24), write_pictures(tmp_path / "bad", 3, spot=True)
    path = tmp_path / "b"
    calls = [
        ["train", "toy", good, "-o", path, "--size", "24", "--iterations", "200", "--threads", "1", "--seed", "4"],
        ["export", path],
        ["calibrate", path, good, "--false-alarm-rate", "0.2"],
        ["build-engine", path, "--target", "onnxruntime", "--precision", "fp32"],
        ["run", path, bad, "--target", "onnxruntime", "--precision", "fp32"],
    ]
    result = subprocess.run(
        [sys.executable, "-c", DRIVER],
        input=json.dumps([[str(word) for word in call] for call in calls]),
        capture_output=True,
        text=True,
        env=example,
    )
    assert result.returncode == 0, result.stderr
    verdicts = [json.loads(line) for line in result.stdout.splitlines() if line.startswith("{")]
    assert [verdict["anomalous"] for verdict in verdicts] == [True] * 3
    bundle = Bundle.open(path)
    assert bundle.verify() == []
    assert (bundle.manifest.method, bundle.manifest.variant) == ("toy", "gray")
    source = bundle.manifest.provenance
    assert source.seed == 4
    assert source.options == {"size": 24, "iterations": 200, "sigma": 1.0, "amp": False}
    assert bundle.manifest.input.shape == (1, 24, 24)


def test_help_lists_it_unimported_and_shows_its_fields(example: Mapping[str, str]) -> None:
    probe = "import sys; sys.argv[1:] = ['train', '--help']\nfrom adedge.cli import main\n"
    probe += "try: main()\nexcept SystemExit: pass\nassert not {'torch', 'toy'} & sys.modules.keys()"
    listed = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, env=example)
    assert listed.returncode == 0, listed.stderr
    assert re.search(r"│ toy +A method of toy 1.0\.", listed.stdout)
    own = adedge(example, "train", "toy", "--help")
    assert "The median of good pictures" in own.stdout
    assert re.search(r"--size +<int> +Side of the input in pixels.  \[default: 64\]", own.stdout)
    positions = [own.stdout.index(option) for option in ("--output", "--size", "--sigma", "--seed", "--restart")]
    assert positions == sorted(positions)


def test_its_options_are_checked_by_its_class(example: Mapping[str, str], tmp_path: Path) -> None:
    good = write_pictures(tmp_path / "good", 3)
    for arguments, sentence in (
        (("--size", 4), "size: Input should be greater than or equal to 8"),
        (("--colour", "red"), "No such option"),
    ):
        result = adedge(example, "train", "toy", good, "-o", tmp_path / "b", *arguments)
        assert result.returncode == 2
        assert sentence in result.stderr
        assert "Traceback" not in result.stderr


def test_a_broken_package_is_named_when_it_is_used_and_disturbs_nothing_else(install: Install, tmp_path: Path) -> None:
    install("thief", "", "hfr = thief:Hfr")
    env = environment(install("broken", "import nowhere_to_be_found", "broken = broken:Broken"))
    assert "broken" in adedge(env, "train", "--help").stdout
    used = adedge(env, "train", "broken", tmp_path, "-o", tmp_path / "b")
    assert used.returncode == 2
    assert re.fullmatch(
        r"adedge: the method 'broken' of broken 1.0 cannot be imported \(.*\): reinstall.*\n", used.stderr
    )
    replaced = adedge(env, "train", "hfr", tmp_path, "-o", tmp_path / "b")
    assert replaced.returncode == 2
    assert replaced.stderr.startswith("adedge: thief 1.0 has a method 'hfr', a name of adedge's own")
    assert adedge(env, "train", "mkd", "--help").returncode == 0
    assert adedge(env, "train", "no-such-method").returncode == 2


class Fields(BaseModel):
    """What options can hold, and what they cannot."""

    needed: int = Field(description="Must be given.")
    mode: Literal["fast", "slow"] = "fast"
    limit: float | None = None
    share: Annotated[float, Field(gt=0)] | None = 0.5
    loud: bool = False
    label: str = Field(default="part", description="A text.")
    layers: tuple[int, ...] = (1, 2)
    either: int | str = 1


def parameters(kind: type[BaseModel]) -> dict[str, tuple[Any, str]]:
    """The type and the help of every option."""
    found = signature(options_from(kind)).parameters.values()
    return {one.name: (one.annotation.__args__[0], one.annotation.__metadata__[0].help) for one in found}


def test_scalar_fields_become_options() -> None:
    assert parameters(Fields) == {
        "needed": (int, "Must be given."),
        "mode": (Literal["fast", "slow"] | None, "[default: fast]"),
        "limit": (float | None, ""),
        "share": (float | None, "[default: 0.5]"),
        "loud": (bool | None, "[default: False]"),
        "label": (str | None, "A text.  [default: part]"),
    }
    assert options_from(Fields)(needed=3) == {"needed": 3}


def test_fields_that_cannot_be_options_are_refused() -> None:
    class Tuple(BaseModel):
        layers: tuple[int, ...]

    class Seeded(BaseModel):
        seed: int = 0

    with pytest.raises(UsageError, match="no option can hold Tuple's field 'layers', and it has no default"):
        options_from(Tuple)
    with pytest.raises(
        UsageError, match="the method 'own' has a field 'seed', and every training has an option of that name"
    ):
        training_command("own", options_from(Seeded))
