"""`adedge train oesdn`: a bundle from a folder, one sentence for what is wrong, and Ctrl-C that can be resumed."""

from __future__ import annotations

import inspect
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Literal, get_args, get_origin

import cv2
import numpy as np
import pytest

from adedge.bundle import Bundle
from adedge.cli.train import oesdn, options
from adedge.cli.train.hfr import hfr_options
from adedge.cli.train.mkd import mkd_options
from adedge.cli.train.oesdn import oesdn_options
from adedge.cli.train.students import students_options
from adedge.methods import method_named
from adedge.methods.oesdn.method import BUDGETS, OeSdn

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
FAST = ("--size", 16, "--ae-iterations", 3, "--sdn-iterations", 2, "--batch", 2, "--threads", 1)


def adedge(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "adedge", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, env=ENVIRONMENT)


def write_pictures(folder: Path, count: int, channels: int = 3) -> Path:
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for index in range(count):
        cv2.imwrite(str(folder / f"{index}.png"), rng.integers(0, 256, (24, 30, channels), dtype=np.uint8))
    return folder


def test_folder_to_bundle(tmp_path: Path) -> None:
    result = adedge("train", "oesdn", write_pictures(tmp_path / "good", 10), "-o", tmp_path / "b.adedge", *FAST)
    assert result.returncode == 0, result.stderr
    assert result.stdout == ""
    said = " ".join(result.stderr.split())  # lines are wrapped to the terminal's width
    assert "8 good pictures to train on, 2 held out" in said
    assert "training takes about" in said
    bundle = Bundle.open(tmp_path / "b.adedge")
    assert bundle.verify() == []
    assert bundle.manifest.input.shape == (3, 16, 16)
    assert not list(tmp_path.glob("*.checkpoint"))


def test_grey_pictures_give_a_grey_network_and_options_arrive(tmp_path: Path) -> None:
    data = write_pictures(tmp_path / "good", 5, channels=1)
    options = ("--variant", "sdn", "--fit", "crop", "--auxiliary", "shear", "--seed", 5, "--holdout", 0)
    result = adedge("train", "oesdn", data, "-o", tmp_path / "b", *FAST, *options)
    assert result.returncode == 0, result.stderr
    manifest = Bundle.open(tmp_path / "b").manifest
    recorded = manifest.provenance.options
    assert (manifest.variant, manifest.input.channels, manifest.input.resize) == ("sdn", 1, "tile")
    assert (recorded["auxiliary"], recorded["ae_iterations"], manifest.provenance.seed) == ("shear", 3, 5)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--size", 20), 2, "size 20 is not a multiple of 16"),
        (("--device", "abacus"), 2, "device 'abacus' cannot be used here"),
        (("--size", 64, "--fit", "crop"), 1, "smaller than a tile of 64 × 64: choose a smaller --size"),
    ],
    ids=["size", "device", "crop"],
)
def test_what_cannot_be_is_one_sentence(tmp_path: Path, arguments: tuple, code: int, message: str) -> None:
    data = write_pictures(tmp_path / "good", 3)
    result = adedge("train", "oesdn", data, "-o", tmp_path / "b", *FAST, *arguments)
    assert result.returncode == code
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "b").exists()


def test_unknown_choice_lists_the_known_ones(tmp_path: Path) -> None:
    result = adedge("train", "oesdn", tmp_path, "-o", tmp_path / "b", "--variant", "oesnd")
    assert result.returncode == 2
    assert "'oe-sdn', 'sdn', 'ae'" in " ".join(result.stderr.replace("│", " ").split())


def test_empty_folder_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    result = adedge("train", "oesdn", tmp_path / "empty", "-o", tmp_path / "b")
    assert result.returncode == 1
    assert result.stderr.count("adedge: ") == 1
    assert "Traceback" not in result.stderr


def test_a_folder_that_is_no_bundle_is_never_replaced(tmp_path: Path) -> None:
    data = write_pictures(tmp_path / "good", 3)
    result = adedge("train", "oesdn", data, "-o", data, "--overwrite", *FAST)
    assert result.returncode == 1
    assert "is not a bundle" in result.stderr
    assert len(list(data.iterdir())) == 3


def test_interrupt_keeps_a_checkpoint_and_the_same_command_resumes(tmp_path: Path) -> None:
    data, output = write_pictures(tmp_path / "good", 4), tmp_path / "b"
    options = ("--size", 16, "--ae-iterations", 300, "--sdn-iterations", 1, "--batch", 2, "--threads", 1)
    command = [sys.executable, "-m", "adedge", "train", "oesdn", *map(str, (data, "-o", output, *options))]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("training ae"):
                process.send_signal(signal.SIGINT)
                break
        rest = process.stderr.read()
    assert process.returncode == 130
    assert "the same command resumes" in rest
    assert not output.exists()

    resumed = subprocess.run(command, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)
    assert resumed.returncode == 0
    assert "resuming from" in resumed.stderr
    assert Bundle.open(output).verify() == []


def test_the_command_offers_what_the_method_has() -> None:
    fields = OeSdn.model_fields
    for name, offered in (
        ("variant", oesdn.Variant),
        ("fit", options.Fit),
        ("auxiliary", oesdn.Auxiliary),
    ):
        assert get_args(offered) == get_args(fields[name].annotation)
    assert {budget for budget, _ in BUDGETS} == set(get_args(options.Budget))


@pytest.mark.parametrize(
    ("name", "options_of"),
    [("oesdn", oesdn_options), ("hfr", hfr_options), ("mkd", mkd_options), ("students", students_options)],
)
def test_every_command_gives_its_method_options_that_it_has(name: str, options_of: Callable[..., dict]) -> None:
    kind = method_named(name)
    given = options_of()
    assert given.keys() <= kind.model_fields.keys()
    kind(**{option: value for option, value in given.items() if value is not None})
    choices = 0
    for parameter in inspect.signature(options_of, eval_str=True).parameters.values():
        offered = get_args(parameter.annotation)[0]
        if get_origin(offered) is Literal:
            choices += 1
            assert offered == kind.model_fields[parameter.name].annotation
    assert choices


def test_help_teaches_without_torch() -> None:
    probe = "import sys; sys.argv[1:] = ['train', 'oesdn', '--help']\nfrom adedge.cli import main\n"
    probe += "try: main()\nexcept SystemExit: pass\nassert 'torch' not in sys.modules"
    result = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    for option in ("--budget", "--fit", "--amp", "--restart"):
        assert option in result.stdout
