"""How the teacher learns: losses against formulas, triplets against what the paper says of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from skimage import transform

from adedge.methods import backbones
from adedge.methods.students.patch_networks import PATCHES
from adedge.methods.students.teaching import (
    REGION,
    compactness_loss,
    cut,
    distillation_loss,
    draw_triplets,
    triplet_loss,
)

torch.set_num_threads(1)

Floats = NDArray[np.float64]


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape)).float()


def test_distillation_is_the_squared_distance() -> None:
    a, b = numbers(5, 7), numbers(5, 7, seed=1)
    expected = np.mean([np.linalg.norm(p - q) ** 2 for p, q in zip(a.numpy(), b.numpy(), strict=True)])
    assert distillation_loss(a, b).item() == pytest.approx(expected, rel=1e-5)


def test_triplet_loss_swaps_the_anchor_where_the_positive_is_nearer_to_the_negative() -> None:
    anchor, positive = np.array([[0.0, 0.0]]), np.array([[1.0, 0.0]])
    for negative, expected in (
        ([[-2.0, 0.0]], 0.0),  # 1 from p to p+; p- is 4 from p, 9 from p+: max(0, 1 + 1 - 4)
        ([[1.5, 0.0]], 1.75),  # p- is 2.25 from p and only 0.25 from p+: 1 + 1 - 0.25
    ):
        triplet = (torch.tensor(y) for y in (anchor, positive, np.array(negative)))
        assert triplet_loss(*triplet).item() == pytest.approx(expected)


def test_triplet_loss_is_equations_2_to_4() -> None:
    p, near, far = (numbers(6, 4, seed=seed) * scale for seed, scale in enumerate((0.4, 0.4, 1.0)))

    def distance(a: Floats, b: Floats) -> float:
        return float(((a - b) ** 2).sum())

    losses = [
        max(0.0, 0.7 + distance(a, b) - min(distance(a, c), distance(b, c)))
        for a, b, c in zip(p.double().numpy(), near.double().numpy(), far.double().numpy(), strict=True)
    ]
    assert 0 < sum(loss > 0 for loss in losses) < 6
    assert triplet_loss(p, near, far, margin=0.7).item() == pytest.approx(np.mean(losses), rel=1e-5)


def test_compactness_is_that_of_numpy_s_correlation_matrix() -> None:
    y = numbers(40, 6) @ numbers(6, 6, seed=1)
    correlation = np.corrcoef(y.double().numpy(), rowvar=False)
    expected = sum(correlation[i, j] ** 2 for i in range(6) for j in range(6) if i != j) / 6
    assert compactness_loss(y).item() == pytest.approx(expected, rel=1e-4)


def test_compactness_bears_a_descriptor_that_is_constant() -> None:
    y = numbers(8, 3)
    y[:, 1] = 2.0
    assert torch.isfinite(compactness_loss(y))


def test_cut_is_the_square_itself_at_its_own_size() -> None:
    x = numbers(2, 3, 20, 20)
    centre, extent = np.array([[6.5, 9.5], [12.5, 8.5]]), np.array([5.0, 5.0])
    squares = cut(x, centre, extent, 5)
    torch.testing.assert_close(squares[0], x[0, :, 4:9, 7:12], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(squares[1], x[1, :, 10:15, 6:11], rtol=1e-4, atol=1e-4)


def test_cut_resizes_as_scikit_image() -> None:
    x = numbers(1, 1, 16, 16)
    ours = cut(x, np.array([[8.0, 8.0]]), np.array([16.0]), 24)[0, 0]
    theirs = transform.resize(x[0, 0].double().numpy(), (24, 24), order=1, mode="edge", anti_aliasing=False)
    np.testing.assert_allclose(ours.numpy(), theirs, atol=1e-5)


def ramps(count: int) -> torch.Tensor:
    """Regions whose red channel grows with the row by 0.004 and green with the column, blue 0.5 + 0.01 x number."""
    row = np.broadcast_to(np.arange(REGION)[:, None] * 0.004, (REGION, REGION))
    pixels = np.stack([np.stack([row, row.T, np.full_like(row, 0.5 + 0.01 * i)]) for i in range(count)])
    mean, std = (np.array(values).reshape(-1, 1, 1) for values in (backbones.MEAN, backbones.STD))
    return torch.from_numpy((pixels - mean) / std).float()


def pixels(x: torch.Tensor) -> Floats:
    mean, std = (np.array(values).reshape(-1, 1, 1) for values in (backbones.MEAN, backbones.STD))
    values: Floats = x.double().numpy() * std + mean
    return values


@pytest.mark.parametrize("patch", PATCHES)
def test_triplets_are_drawn_as_the_paper_says(patch: int) -> None:
    count = 200
    anchors, positives, negatives = (pixels(y) for y in draw_triplets(ramps(count), patch, np.random.default_rng(0)))
    assert anchors.shape == positives.shape == negatives.shape == (count, 3, patch, patch)
    grey = np.ptp(anchors, axis=1).max(axis=(1, 2)) < 1e-5
    assert 0.04 < grey.mean() < 0.17
    for others in (positives, negatives):
        assert np.array_equal(np.ptp(others, axis=1).max(axis=(1, 2)) < 1e-5, grey)
    a, p, n = anchors[~grey], positives[~grey], negatives[~grey]
    # The ramp's steepness is the zoom: between 256 / (16 p) and 256 / (4 p) pixels of the picture a pixel.
    steps = np.diff(a[:, 0], axis=1).mean(axis=(1, 2)) / 0.004
    assert 16 / patch - 1e-4 <= steps.min() < 18 / patch
    assert 50 / patch < steps.max() <= 64 / patch + 1e-4
    # Blue tells the picture: the anchor's own for none of the negatives, and its luminance changed by at most a fifth.
    assert (np.abs(a[:, 2] - n[:, 2]).max(axis=(1, 2)) > 0.005).all()
    factor = p[:, 2].mean(axis=(1, 2)) / a[:, 2].mean(axis=(1, 2))
    assert 0.75 < factor.min() < 0.9
    assert 1.1 < factor.max() < 1.25
    assert p[:, 2].std(axis=(1, 2)).mean() == pytest.approx(0.1, rel=0.05)
    # How far the positive moved, in pixels of the patch, from the ramps.
    moved = (p[:, 0].mean(axis=(1, 2)) / factor - a[:, 0].mean(axis=(1, 2))) / (steps * 0.004)
    blur = 0.5 / patch / (steps.min() * 0.004)  # what the noise leaves uncertain
    assert np.abs(moved).max() <= (patch - 1) // 4 + blur
    assert np.abs(moved).max() > (patch - 1) // 8
