"""Samples: the pictures of a data set with their labels."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from adedge.data.folders import find_pictures
from adedge.data.pictures import read_contents, read_mask, read_picture
from adedge.errors import DataError

GOOD = "good"


@dataclass(frozen=True, eq=False, kw_only=True)
class Sample:
    """One picture with its label and mask.

    ``label`` is 0 for good, 1 for anomalous, -1 for unknown; ``kind`` is "good" or the name of the defect. Exactly one
    of ``path`` (a picture file) and ``array`` (uint8, (H, W, C), C = 1 grey or 3 BGR) is given. ``mask_path`` is a
    picture that marks the defective pixels, a folder of such pictures with one defect each, or None.
    """

    path: Path | None
    label: int
    kind: str
    mask_path: Path | None = None
    array: NDArray[np.uint8] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if (self.path is None) == (self.array is None):
            raise DataError("a sample has either a path or an array")

    @property
    def name(self) -> str:
        """A short name for messages: the file with its folder, or the digest."""
        return self.digest if self.path is None else "/".join(self.path.parts[-2:])

    def read(self) -> NDArray[np.uint8]:
        """The picture: uint8, (H, W, 3) in BGR order or (H, W, 1). Raises `DataError` if it cannot be read."""
        if self.array is not None:
            return self.array
        assert self.path is not None
        return read_picture(self.path)

    def read_mask(self) -> NDArray[np.bool_] | None:
        """The mask of defective pixels: bool, (H, W); None without a mask, as for every good picture.

        Raises `DataError` if a mask cannot be read, or if the masks of one picture differ in size.
        """
        if self.mask_path is None:
            return None
        paths = find_pictures(self.mask_path).pictures if self.mask_path.is_dir() else (self.mask_path,)
        masks = [read_mask(path) for path in paths]
        for path, mask in zip(paths, masks, strict=True):
            if mask.shape != masks[0].shape:
                raise DataError(f"the masks {paths[0]} and {path} differ in size: masks of one picture must not")
        union: NDArray[np.bool_] = np.any(masks, axis=0)
        return union

    @cached_property
    def digest(self) -> str:
        """The first 16 hex digits of the SHA-256 of the file, or of the array's bytes. Raises `DataError`."""
        if self.array is not None:
            return hashlib.sha256(self.array.tobytes()).hexdigest()[:16]
        assert self.path is not None
        return hashlib.sha256(read_contents(self.path)).hexdigest()[:16]
