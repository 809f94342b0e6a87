"""A file is whole or missing, and each refusal of the system is one sentence."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from adedge.errors import OutputError
from adedge.runtime.disk import DiskFull, create_whole, writing


@contextmanager
def small_files() -> Iterator[None]:
    """The kernel writes the first 1000 bytes of a file and refuses the rest; of pytest's own output as well."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.fault("the disk fills up with rejects and maps")
def test_a_file_that_does_not_fit_leaves_nothing(tmp_path: Path) -> None:
    create_whole(tmp_path / "fits", bytes(1000))
    with pytest.raises(OutputError, match="too large"), small_files():
        create_whole(tmp_path / "too-large", bytes(1001))
    assert [path.name for path in tmp_path.iterdir()] == ["fits"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_no_space_is_an_error_of_its_own(number: int) -> None:
    with pytest.raises(DiskFull, match=r"holds a/b\.npy is full"), writing(Path("a/b.npy")):
        raise OSError(number, os.strerror(number))


def test_an_error_without_a_text_is_not_none() -> None:
    with pytest.raises(OutputError) as caught, writing(Path("a.npy")):
        raise OSError
    assert str(caught.value) == "a.npy cannot be written (OSError): choose another path"
    with pytest.raises(OutputError, match=r"\(stream lost\)"), writing(Path("a.npy")):
        raise OSError("stream lost")


def test_a_reader_that_has_left_is_passed_on() -> None:
    with pytest.raises(BrokenPipeError), writing(Path("pipe")):
        raise BrokenPipeError
