"""What every executor relies on: which specifications are refused and why, and that they survive bundle.json."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any, get_args

import pytest
from pydantic import ValidationError

from adedge.errors import UsageError
from adedge.specs import (
    PRECISIONS,
    TARGETS,
    Dssim,
    EngineKey,
    Gaussian,
    InputSpec,
    Opening,
    Precision,
    ReadyMap,
    Record,
    ScoreSpec,
    Target,
    Tiling,
    Uniform,
    parse_precisions,
)


def spec(**changes: Any) -> InputSpec:
    return InputSpec(**{"height": 64, "width": 48, "channels": 3, "color": "rgb", **changes})


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: spec(channels=1), r"1 channel\(s\) do not fit color 'rgb'"),
        (lambda: spec(color="gray"), r"3 channel\(s\) do not fit color 'gray'"),
        (lambda: spec(mean=(0.5,)), r"mean has 1 values for 3 channel\(s\)"),
        (lambda: spec(std=(1.0, 1.0)), r"std has 2 values for 3 channel\(s\)"),
        (lambda: spec(std=(0.2, 0.0, 0.2)), "std must be positive"),
        (lambda: spec(std=(0.2, -1.0, 0.2)), "std must be positive"),
        (lambda: spec(mean=(0.5, math.nan, 0.5)), "finite number"),
        (lambda: spec(scale=0), "greater than 0"),
        (lambda: spec(scale=math.inf), "finite number"),
        (lambda: spec(height=7), "greater than or equal to 8"),
        (lambda: spec(height=70_000), "less than or equal to 65536"),
        (lambda: spec(height=60_000, width=60_000), "60000 x 60000 pixels is too large: choose a smaller size"),
        (lambda: Gaussian(sigma=1e300), "less than or equal to 16384"),
        (lambda: Uniform(size=10**12), "less than or equal to 65536"),
        (lambda: Opening(size=1025), "less than or equal to 1023"),
        (lambda: Dssim(window=10**12 + 1), "less than or equal to 65536"),
        (lambda: ScoreSpec(comparison=ReadyMap(), margin=10**12), "less than or equal to 65536"),
        (lambda: spec(channels=4), "1 or 3"),
        (lambda: spec(color="bgra"), "'rgb', 'bgr' or 'gray'"),
        (lambda: spec(resize="tile"), "a tiling requires resize 'tile', and resize 'tile' requires a tiling"),
        (
            lambda: spec(tiling=Tiling(tile=64, stride=32)),
            "a tiling requires resize 'tile', and resize 'tile' requires a tiling",
        ),
        (
            lambda: spec(resize="tile", tiling=Tiling(tile=64, stride=32)),
            "tile 64 must equal height 64 and width 48",
        ),
        (lambda: spec(crop=3), "Extra inputs are not permitted"),
        (lambda: Tiling(tile=32, stride=33), "stride 33 exceeds tile 32: pixels between tiles would be skipped"),
        (lambda: Tiling(tile=4, stride=4), "greater than or equal to 8"),
        (lambda: Tiling(tile=32, stride=0), "greater than or equal to 1"),
        (lambda: Dssim(window=8), "the DSSIM window must be odd, not 8"),
        (lambda: Dssim(window=1), "greater than or equal to 3"),
        (lambda: Dssim(data_range=0), "greater than 0"),
        (lambda: Uniform(size=1), "greater than or equal to 2"),
        (lambda: Gaussian(sigma=0), "greater than 0"),
        (lambda: Gaussian(sigma=math.inf), "finite number"),
        (lambda: Opening(size=2), "greater than or equal to 3"),
        (lambda: ScoreSpec(comparison=ReadyMap(), margin=-1), "greater than or equal to 0"),
        (lambda: ScoreSpec(comparison=ReadyMap(), reduce="sum"), "'max', 'mean' or 'output'"),  # type: ignore[arg-type]
        (lambda: ScoreSpec(comparison=ReadyMap(), reduce="output", margin=1), "requires a ready map and no margin"),
        (lambda: ScoreSpec(comparison=Dssim(), reduce="output"), "requires a ready map and no margin"),
        (lambda: ScoreSpec(comparison={"kind": "l2"}), "'dssim', 'map'"),  # type: ignore[arg-type]
        (lambda: ScoreSpec(comparison=ReadyMap(), filters=({"kind": "median", "size": 3},)), "'uniform', 'gaussian'"),  # type: ignore[arg-type]
    ],
)
def test_what_contradicts_itself_is_refused(make: Callable[[], Record], sentence: str) -> None:
    with pytest.raises(ValidationError, match=sentence):
        make()


def test_the_smallest_that_is_allowed() -> None:
    assert spec(height=8, width=8, channels=1, color="gray", mean=(0.0,), std=(1e-9,)).shape == (1, 8, 8)
    assert spec(height=32, width=32, resize="tile", tiling=Tiling(tile=32, stride=32)).shape == (3, 32, 32)
    assert spec().shape == (3, 64, 48)


def test_a_specification_does_not_change() -> None:
    made = spec()
    with pytest.raises(ValidationError, match="frozen"):
        made.height = 8  # type: ignore[misc]
    assert hash(made) == hash(spec())


def test_specifications_survive_json() -> None:
    """Each comparison and filter comes back as what it was, by its kind."""
    filters = (Uniform(size=32), Gaussian(sigma=0.1), Opening())
    for score in (
        ScoreSpec(comparison=Dssim(window=11), filters=filters, reduce="mean", margin=5),
        ScoreSpec(comparison=ReadyMap(), reduce="output"),
    ):
        assert ScoreSpec.model_validate(json.loads(score.model_dump_json())) == score
    whole = spec(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), scale=1 / 255)
    assert InputSpec.model_validate_json(whole.model_dump_json()) == whole


def test_an_engine_is_named_by_target_and_precision() -> None:
    key = EngineKey("tensorrt-rtx", "int8")
    assert str(key) == f"{key}" == "tensorrt-rtx/int8"
    assert (key.target, key.precision) == ("tensorrt-rtx", "int8") == key
    keys = [str(EngineKey(target, precision)) for target in TARGETS for precision in PRECISIONS]
    assert len(set(keys)) == len(TARGETS) * len(PRECISIONS)


def test_the_lists_are_those_that_the_types_allow() -> None:
    assert get_args(Precision) == PRECISIONS
    assert get_args(Target) == TARGETS


def test_precisions_are_parsed_in_the_order_given() -> None:
    assert parse_precisions("fp32") == ("fp32",)
    assert parse_precisions(" INT8 , fp16") == ("int8", "fp16")


@pytest.mark.parametrize("text", ["", "fp32,", "fp8", "fp32 int8"])
def test_an_unknown_precision_lists_the_known_ones(text: str) -> None:
    with pytest.raises(UsageError, match="unknown precision '.*': choose from fp32, fp16, int8"):
        parse_precisions(text)
