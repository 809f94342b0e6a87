"""One picture and what is known about it."""

from __future__ import annotations

import pytest

from adedge.data.samples import Sample
from adedge.errors import DataError


def test_a_sample_is_a_file_or_an_array() -> None:
    with pytest.raises(DataError, match="either a path or an array"):
        Sample(path=None, label=0, kind="good")
