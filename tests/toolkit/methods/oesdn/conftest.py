"""What the tests of AE + OE-SDN share: untrained networks and smooth pictures."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import nn

from adedge.methods.oesdn.method import OeSdn


@pytest.fixture
def pictures() -> Callable[..., torch.Tensor]:
    def smooth(*shape: int, seed: int = 0) -> torch.Tensor:
        """Smooth pictures with structure: noise, blurred, stretched to [0, 1]."""
        noise = np.random.default_rng(seed).random(shape)
        smooth = ndimage.gaussian_filter(noise, (0, 0, 1, 1))
        return torch.from_numpy((smooth - smooth.min()) / np.ptp(smooth)).float()

    return smooth


@pytest.fixture(scope="module")
def networks() -> nn.ModuleDict:
    torch.manual_seed(3)
    return OeSdn.networks("oe-sdn", {"architecture": "dense", "channels": 1, "size": 16})
