"""Outliers made of good pictures, against NumPy and SciPy."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import nn

from adedge.methods.oesdn.auxiliary import TRANSFORMS
from adedge.methods.oesdn.method import Auxiliary

torch.set_num_threads(1)

Pictures = Callable[..., torch.Tensor]


def transformed(name: str, x: torch.Tensor, networks: nn.ModuleDict, seed: int = 5) -> np.ndarray:
    y = TRANSFORMS[name](x, np.random.default_rng(seed), networks)
    assert y.shape == x.shape
    return y.numpy()


@pytest.mark.parametrize("name", TRANSFORMS)
def test_each_transform_is_seeded_and_changes_the_picture(
    name: str, networks: nn.ModuleDict, pictures: Pictures
) -> None:
    x = pictures(4, 1, 16, 16)
    first = transformed(name, x, networks)
    assert np.array_equal(first, transformed(name, x, networks))
    assert np.abs(first - x.numpy()).max() > 0.02


def test_every_transform_can_be_chosen() -> None:
    assert set(Auxiliary.__args__) == set(TRANSFORMS)  # type: ignore[attr-defined]


def test_rotation_turns_by_each_right_angle_and_never_by_none(networks: nn.ModuleDict, pictures: Pictures) -> None:
    x = pictures(40, 2, 16, 16)
    turns = set()
    for before, after in zip(x.numpy(), transformed("rotation", x, networks), strict=True):
        turns |= {k for k in range(4) if np.array_equal(after, np.rot90(before, k, axes=(1, 2)))}
    assert turns == {1, 2, 3}


@pytest.mark.parametrize(("name", "reference"), [("vertical-flip", np.flipud), ("horizontal-flip", np.fliplr)])
def test_flips(name: str, reference, networks: nn.ModuleDict, pictures: Pictures) -> None:
    x = pictures(1, 1, 16, 16)
    assert np.array_equal(transformed(name, x, networks)[0, 0], reference(x[0, 0].numpy()))


@pytest.mark.parametrize("shape", [(3, 1, 24, 24), (3, 1, 20, 31)], ids=str)
def test_shear_equals_scipy(shape: tuple[int, ...], networks: nn.ModuleDict, pictures: Pictures) -> None:
    x = pictures(*shape)
    rng = np.random.default_rng(5)
    slopes = rng.uniform(0.3, 0.6, size=3) * rng.choice([-1.0, 1.0], size=3)
    middle = (shape[2] - 1) / 2
    for before, after, slope in zip(x.numpy(), transformed("shear", x, networks), slopes, strict=True):
        expected = ndimage.affine_transform(
            before[0], [[1, 0], [slope, 1]], (0, -slope * middle), order=1, mode="nearest"
        )
        np.testing.assert_allclose(after[0], expected, atol=1e-4)


def test_gaussian_noise_has_its_standard_deviation(networks: nn.ModuleDict) -> None:
    noisy = transformed("gaussian-noise", torch.full((2, 1, 64, 64), 0.5), networks)
    assert noisy.std() == pytest.approx(0.1, rel=0.05)
    assert abs(noisy.mean() - 0.5) < 0.005


def test_gaussian_blur_equals_scipy(networks: nn.ModuleDict, pictures: Pictures) -> None:
    x = pictures(2, 3, 20, 24)
    sigma = np.random.default_rng(5).uniform(1, 2)
    expected = ndimage.gaussian_filter(x.numpy(), (0, 0, sigma, sigma), mode="nearest", truncate=4)
    np.testing.assert_allclose(transformed("gaussian-blur", x, networks), expected, atol=1e-5)


def test_svd_blur_keeps_the_largest_singular_values(networks: nn.ModuleDict, pictures: Pictures) -> None:
    x = pictures(2, 1, 24, 24)
    before = np.linalg.svd(x.numpy()[0, 0], compute_uv=False)
    after = np.linalg.svd(transformed("svd-blur", x, networks)[0, 0], compute_uv=False)
    np.testing.assert_allclose(after[:3], before[:3], rtol=1e-4)
    np.testing.assert_allclose(after[3:], 0, atol=1e-4)


def test_reconstruction_is_the_autoencoder_s(networks: nn.ModuleDict, pictures: Pictures) -> None:
    x = pictures(2, 1, 16, 16)
    with torch.no_grad():
        assert np.array_equal(transformed("reconstruction", x, networks), networks["ae"](x).numpy())


def test_adversarial_noise_raises_the_distillation_loss(networks: nn.ModuleDict, pictures: Pictures) -> None:
    x = 0.25 + 0.5 * pictures(2, 1, 16, 16)  # away from 0 and 1, where steps would be clipped
    worse = torch.from_numpy(transformed("adversarial-noise", x, networks))
    with torch.no_grad():
        before, after = (nn.functional.mse_loss(networks["sdn"](y), networks["ae"](y)) for y in (x, worse))
    assert after > before
    np.testing.assert_allclose((worse - x).abs().numpy(), 0.05, atol=1e-6)
