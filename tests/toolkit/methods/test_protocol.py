"""How a method is made of options: given ones, those that fit the pictures, defaults."""

from __future__ import annotations

import numpy as np
import pytest
from pydantic import Field

from adedge.data.datasets import Dataset, Sample
from adedge.errors import DataError, UsageError
from adedge.methods import configured, first_sample
from adedge.specs import Record


class Options(Record):
    size: int = Field(default=8, ge=4)
    label: str = "part"
    sigma: float | None = None


def test_given_options_come_before_fitting_ones_and_those_before_defaults() -> None:
    fitting = {"size": 16, "label": "small"}
    assert configured(Options, {}) == Options(size=8, label="part")
    assert configured(Options, {"size": None, "label": None}, fitting) == Options(size=16, label="small")
    assert configured(Options, {"size": 32, "sigma": 0.0}, fitting) == Options(size=32, label="small", sigma=0.0)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [({"size": 3}, "^size: .*greater than or equal to 4"), ({"colour": "red"}, "^colour: Extra inputs")],
    ids=["value", "name"],
)
def test_the_first_option_that_cannot_be_is_named(options: dict, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        configured(Options, options)


def test_a_data_set_without_pictures_is_refused() -> None:
    sample = Sample(path=None, label=0, kind="good", array=np.zeros((2, 2, 1), np.uint8))
    assert first_sample(Dataset(name="d", train=(sample,), calibration=(), test=())) is sample
    with pytest.raises(DataError, match="d holds no pictures to train on"):
        first_sample(Dataset(name="d", train=(), calibration=(), test=(sample,)))
