"""What is asked for: data sets, methods, seeds and options as they are written on the command line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from adedge import methods
from adedge.benchmarks.evaluation.tasks import (
    Column,
    columns_from,
    parse_numbers,
    parse_options,
    parse_systems,
    tasks_from,
)
from adedge.errors import DataError, UsageError

Maker = Callable[..., Any]  # a fixture of conftest.py that makes what it is called


def test_data_stands_for_one_data_set_or_for_several(tmp_path: Path, write_class: Maker) -> None:
    for name in ("bottle", "cable"):
        write_class(tmp_path / "mvtec" / name)
    classes = [
        Column(collection="mvtec", name=name, data=str(tmp_path / "mvtec" / name)) for name in ("bottle", "cable")
    ]
    assert columns_from([str(tmp_path / "mvtec")]) == tuple(classes)
    assert columns_from([str(tmp_path / "mvtec" / "cable")]) == (classes[1],)
    assert [column.data for column in columns_from(["cifar10:0,8-9", "mnist:1"])] == [
        "cifar10:0",
        "cifar10:8",
        "cifar10:9",
        "mnist:1",
    ]
    assert len(columns_from(["mnist"])) == 10
    with pytest.raises(DataError, match="has no test pictures"):
        columns_from([str(tmp_path / "mvtec" / "cable" / "train" / "good")])
    with pytest.raises(DataError, match="nowhere"):
        columns_from([str(tmp_path / "nowhere")])
    write_class(tmp_path / "other" / "mvtec" / "cable")
    with pytest.raises(UsageError, match="are called the same"):
        columns_from([str(tmp_path / "mvtec"), str(tmp_path / "other" / "mvtec")])


def test_lists_are_read_and_what_is_none_is_named() -> None:
    assert parse_systems("oesdn, oesdn/ae,hfr,oesdn") == ("oesdn/oe-sdn", "oesdn/ae", "hfr/resnet18")
    assert parse_numbers("0,3-5,4", "--seeds") == (0, 3, 4, 5)
    options = parse_options(["hfr.learning-rate=0.1", "hfr.weights=none", "oesdn.fit=crop"], ["hfr/x", "oesdn/ae"])
    assert options == {"hfr": {"learning_rate": 0.1, "weights": "none"}, "oesdn": {"fit": "crop"}}
    for call, sentence in (
        (lambda: parse_systems("pca"), "unknown method 'pca': choose from oesdn/oe-sdn"),
        (lambda: parse_numbers("1-", "--seeds"), "--seeds: give '1-' as numbers"),
        (
            lambda: parse_options(["hfr.size=1", "hfr.colour=1"], ["hfr/x"]),
            "hfr has no option 'colour': choose from enc",
        ),
        (lambda: parse_options(["hfr=1"], ["hfr/x"]), "write METHOD.NAME=VALUE"),
        (lambda: parse_options(["mkd.size=1"], ["hfr/x"]), "mkd is not among the methods, hfr"),
    ):
        with pytest.raises(UsageError, match=sentence):
            call()


def test_a_method_of_another_package_is_a_system_too(monkeypatch: pytest.MonkeyPatch) -> None:
    class Plain(BaseModel):
        size: int = 8

    known = methods.method_named
    monkeypatch.setattr(methods, "method_names", lambda: ("hfr", "plain"))
    monkeypatch.setattr(methods, "method_named", lambda name: Plain if name == "plain" else known(name))
    systems = parse_systems("plain,hfr")
    assert systems == ("plain", "hfr/resnet18")
    options = parse_options(["plain.size=16"], systems)
    column = Column(collection="parts", name="plate", data="parts/plate")
    tasks = tasks_from(systems, [column], [0], budget="quick", options=options)
    assert [task.options for task in tasks] == [{"size": 16}, {"budget": "quick", "encoder": "resnet18"}]
    assert tasks[0].stem == "plain.parts.plate.0"
