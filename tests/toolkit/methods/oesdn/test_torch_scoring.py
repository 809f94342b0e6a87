"""DSSIM in PyTorch, against scikit-image and finite differences."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity

from adedge.methods.oesdn.torch_scoring import dssim, dssim_loss

torch.set_num_threads(1)

Pictures = Callable[..., torch.Tensor]


@pytest.mark.parametrize("shape", [(1, 1, 28, 28), (2, 3, 19, 40)], ids=str)
def test_dssim_equals_scikit_image_on_valid_windows(shape: tuple[int, ...], pictures: Pictures) -> None:
    a, b = pictures(*shape), pictures(*shape, seed=1)
    ours = dssim(a, b).numpy()
    for index in range(shape[0]):
        _, similarity = structural_similarity(
            a[index].numpy().astype(float),
            b[index].numpy().astype(float),
            win_size=7,
            data_range=1,
            channel_axis=0,
            full=True,
        )
        expected = ((1 - similarity) / 2).mean(axis=0)[3:-3, 3:-3]
        np.testing.assert_allclose(ours[index], expected, atol=2e-5)


def test_dssim_gradient_equals_finite_differences(pictures: Pictures) -> None:
    a, b = pictures(1, 2, 8, 9).double().requires_grad_(), pictures(1, 2, 8, 9, seed=1).double()
    assert torch.autograd.gradcheck(lambda x: dssim_loss(x, b), (a,), eps=1e-6, atol=1e-7)


def test_dssim_is_computed_in_float32_under_autocast(pictures: Pictures) -> None:
    a, b = pictures(1, 1, 16, 16), pictures(1, 1, 16, 16, seed=1)
    with torch.autocast("cpu", torch.bfloat16):
        inside = dssim(a, b)
    assert torch.equal(inside, dssim(a, b))
