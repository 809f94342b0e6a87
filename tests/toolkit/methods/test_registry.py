"""Names of methods: the package's own, those of installed packages, and what cannot be one."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from adedge.errors import MissingDependency, UsageError
from adedge.methods import method_named, method_names
from adedge.methods.oesdn.method import OeSdn
from adedge.methods.registry import BUILT_IN

Install = Callable[[str, str, str], Path]

DERIVED = """
from typing import ClassVar
from adedge.methods.hfr import Hfr

class Own(Hfr):
    name: ClassVar[str] = '{}'
"""


def test_own_methods_come_first_and_the_known_ones_are_listed() -> None:
    assert method_names()[:5] == ("oesdn", "memory", "hfr", "mkd", "students")
    assert method_named("oesdn") is OeSdn
    for name in BUILT_IN:
        assert method_named(name).name == name
    with pytest.raises(UsageError, match="unknown method 'oesnd': choose from hfr, memory, mkd, oesdn, students"):
        method_named("oesnd")


def test_a_package_brings_a_method(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = install("derived", DERIVED.format("own"), "own = derived:Own")
    monkeypatch.syspath_prepend(folder)
    assert method_names() == ("oesdn", "memory", "hfr", "mkd", "students", "own")
    assert method_named("own").name == "own"


def test_no_package_replaces_an_own_method(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(install("thief", DERIVED.format("hfr"), "hfr = thief:Own\nimported = thief:Own"))
    assert method_names().count("hfr") == 1
    for name in ("hfr", "imported"):
        with pytest.raises(UsageError, match=f"^thief 1.0 has a method '{name}', a name of adedge's own"):
            method_named(name)
    assert method_named("mkd").name == "mkd"


def test_a_name_of_two_packages_is_refused(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    install("one", "", "own = one:Own")
    monkeypatch.syspath_prepend(install("two", "", "own = two:Own"))
    assert method_names().count("own") == 1
    with pytest.raises(UsageError, match=r"(one 1.0 and two|two 1.0 and one) 1.0 both have a method 'own'"):
        method_named("own")


@pytest.mark.parametrize(
    ("module", "sentence"),
    [
        (
            "import nowhere_to_be_found",
            r"cannot be imported \(ModuleNotFoundError: No module named 'nowhere.*reinstall",
        ),
        ("1 / 0", r"cannot be imported \(ZeroDivisionError: division by zero\)"),
        ("", r"cannot be imported \(AttributeError: module 'plug' has no attribute 'Own'\)"),
        ("class Own: name = 'own'", "cannot be used: it is not a pydantic model; see docs/methods.md"),
        (
            "from pydantic import BaseModel\nclass Own(BaseModel):\n    variants: str\n    budget: str\n"
            "    def plan(self): ...\n    def deploy(self): ...",
            "cannot be used: it has no name, for_dataset, variant, prepare, objective, networks; see",
        ),
        (DERIVED.format("other"), "cannot be used: its class calls it 'other'"),
    ],
    ids=["dependency", "crash", "attribute", "class", "members", "name"],
)
def test_what_is_no_method_is_one_sentence(
    install: Install, monkeypatch: pytest.MonkeyPatch, module: str, sentence: str
) -> None:
    monkeypatch.syspath_prepend(install("plug", module, "own = plug:Own"))
    monkeypatch.delitem(sys.modules, "plug", raising=False)
    assert "own" in method_names()
    with pytest.raises(UsageError, match=f"^the method 'own' of plug 1.0 {sentence}"):
        method_named("own")


def test_without_torch_a_method_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingDependency, match=r"needs the package 'torch': .*pip install -e '\.\[train\]'"):
        method_named("hfr")
