"""The exceptions: the tree that the docstring draws is the tree there is, and each has its exit code."""

from __future__ import annotations

import inspect
import re

import pytest

from adedge import errors
from adedge.errors import AdedgeError, BundleError, MissingDependency, UsageError


def drawn() -> dict[str, int]:
    """The classes that the module's docstring draws, with their exit codes."""
    lines = re.findall(r"^(?:[├└]── )?(\w+)\s+(\d) {3}\w", errors.__doc__ or "", re.M)
    return {name: int(code) for name, code in lines}


def test_the_docstring_draws_the_tree_that_there_is() -> None:
    classes = dict(inspect.getmembers(errors, lambda one: inspect.isclass(one) and issubclass(one, Exception)))
    assert {name: one.exit_code for name, one in classes.items()} == drawn()
    assert len(drawn()) > 5
    for name, one in classes.items():
        assert one.__bases__ == ((Exception,) if name == "AdedgeError" else (AdedgeError,))


def test_only_a_wrong_call_exits_with_2() -> None:
    assert [name for name, code in drawn().items() if code == 2] == ["UsageError"]
    assert UsageError("x").exit_code == 2
    assert BundleError("x").exit_code == 1


def test_a_missing_package_is_named_with_its_extra() -> None:
    error = MissingDependency("onnxruntime", "export", "checking a graph")
    assert (
        str(error)
        == "checking a graph needs the package 'onnxruntime': in adedge's source folder, run pip install -e '.[export]'"
    )
    assert (error.package, error.extra) == ("onnxruntime", "export")
    with pytest.raises(AdedgeError):
        raise error
