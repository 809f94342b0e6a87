"""URIs: what is refused, and the synthetic source."""

from __future__ import annotations

import numpy as np
import pytest

from adedge.errors import SourceError, UsageError
from adedge.runtime.sources import open_source


@pytest.mark.parametrize(
    ("uri", "error", "message"),
    [
        ("no/such/file.mp4", SourceError, "does not exist"),
        ("0?size=3", UsageError, "unknown option 'size': it takes width, height, fps"),
        ("0?width=wide", UsageError, "width must be a whole number"),
        ("synthetic:brick?size=4000", UsageError, "size must be 32 to"),
        ("synthetic:concrete", UsageError, "unknown texture 'concrete'"),
        ("csi://front", UsageError, "names no sensor"),
        ("csi://0?format=i420", UsageError, "format must be bgr or nv12, not 'i420'"),
        ("csi://0?format=nv12&width=1281", UsageError, "an even width and height, not 1281 × 720"),
        ("csi://0?depth=8", UsageError, "unknown option 'depth': it takes width, height, fps, format"),
        ("ftp://host/film", UsageError, "unknown kind of source 'ftp://host'"),
    ],
)
def test_wrong_uri(uri: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        open_source(uri)


def test_synthetic_source_is_repeatable() -> None:
    pytest.importorskip("skimage", reason="the photographs come with scikit-image")
    first, again = (open_source("synthetic:gravel?seed=3&frames=7&size=64") for _ in range(2))
    frames = list(first)
    assert [frame.index for frame in frames] == list(range(7))
    assert {frame.image.shape for frame in frames} == {(64, 64)}
    np.testing.assert_array_equal([frame.image for frame in frames], [frame.image for frame in again])
    assert (first.total, first.fps, first.live) == (7, 25.0, False)
