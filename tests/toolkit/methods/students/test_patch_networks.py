"""Networks that describe patches: sizes, and dense descriptors against those of single patches."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from adedge.methods.students.patch_networks import LAYERS, PATCHES, PatchNetwork, mirrored, own_stride, receptive_field

torch.set_num_threads(1)


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape)).float()


@pytest.mark.parametrize(("patch", "parameters"), [(17, 2_995_712), (33, 1_615_232), (65, 2_319_744)])
def test_a_patch_gives_one_descriptor_of_128_values(patch: int, parameters: int) -> None:
    """Parameters counted by hand from the layers: weights kernel^2 x in x out, and a bias for each filter."""
    network = PatchNetwork(patch)
    assert network(numbers(2, 3, patch, patch)).shape == (2, 128, 1, 1)
    biases = sum(layer[0] for layer in LAYERS[patch] if layer)
    assert sum(p.numel() for p in network.parameters()) == parameters + biases


@pytest.mark.parametrize("patch", PATCHES)
def test_receptive_field_is_what_gradients_reach(patch: int) -> None:
    x = numbers(1, 3, patch, patch).requires_grad_()
    PatchNetwork(patch)(x).sum().backward()
    assert x.grad is not None
    reached = np.flatnonzero(x.grad.abs().sum((0, 1, 3)).numpy())
    assert reached.min() == 0
    # Which pixel of a pooling window is the largest is chance: all but the last few rows are certainly reached.
    assert receptive_field(patch) - own_stride(patch) <= reached.max() < receptive_field(patch) <= patch


@pytest.mark.parametrize("stride", [1, 2, 4, 8])
@pytest.mark.parametrize("patch", PATCHES)
def test_dense_descriptors_are_those_of_the_patches(patch: int, stride: int) -> None:
    """At random pixels, the border among them: cut from the mirrored picture (NumPy's reflect), one patch at a time."""
    torch.manual_seed(patch)
    network = PatchNetwork(patch).eval()
    x = numbers(2, 3, 48, 40, seed=stride)
    padded = np.pad(x.numpy(), ((0, 0), (0, 0), (patch // 2,) * 2, (patch // 2,) * 2), mode="reflect")
    with torch.no_grad():
        dense = network(mirrored(x, patch, stride), stride)
        assert dense.shape == (2, 128, 48 // stride, 40 // stride)
        corners = [(0, 0), (48 // stride - 1, 40 // stride - 1)]
        drawn = np.random.default_rng(0).integers(0, [48 // stride, 40 // stride], (3, 2)).tolist()
        for i, j in corners + drawn:
            row, column = i * stride + stride // 2, j * stride + stride // 2
            single = network(torch.from_numpy(padded[:, :, row : row + patch, column : column + patch]))
            torch.testing.assert_close(dense[:, :, i, j], single[:, :, 0, 0], rtol=1e-4, atol=1e-4)


def test_a_coarse_output_is_the_dense_one_s_subset() -> None:
    network = PatchNetwork(33).eval()
    x = numbers(1, 3, 32, 32)
    with torch.no_grad():
        dense, coarse = network(mirrored(x, 33, 1), 1), network(mirrored(x, 33, 4), 4)
    torch.testing.assert_close(coarse, dense[:, :, 2::4, 2::4], rtol=1e-4, atol=1e-4)
