"""The networks, losses and auxiliary pictures of AE + OE-SDN, against scikit-image, SciPy and closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from scipy import ndimage
from skimage.metrics import structural_similarity
from torch import nn

from adedge.errors import UsageError
from adedge.methods import method_named, register
from adedge.methods.oesdn.auxiliary import TRANSFORMS
from adedge.methods.oesdn.method import Auxiliary, ConvolutionalAutoencoder, DenseAutoencoder, OeSdn, StyleNetwork
from adedge.methods.oesdn.torch_scoring import dssim, dssim_loss

torch.set_num_threads(1)


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def pictures(*shape: int, seed: int = 0) -> torch.Tensor:
    """Smooth pictures with structure: noise, blurred, stretched to [0, 1]."""
    noise = np.random.default_rng(seed).random(shape)
    smooth = ndimage.gaussian_filter(noise, (0, 0, 1, 1))
    return torch.from_numpy((smooth - smooth.min()) / np.ptp(smooth)).float()


@pytest.fixture(scope="module")
def networks() -> nn.ModuleDict:
    torch.manual_seed(3)
    return OeSdn.networks("oe-sdn", {"architecture": "dense", "channels": 1, "size": 16})


# --- networks ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("channels", "expected"), [(1, 214_273), (3, 214_273 + 2 * 2 * 32 * 9 + 2)], ids=["grey", "rgb"]
)
def test_style_network_has_the_published_number_of_parameters(channels: int, expected: int) -> None:
    assert parameters(StyleNetwork(channels)) == expected


@pytest.mark.parametrize(("channels", "size"), [(1, 28), (3, 32)], ids=["mnist", "cifar10"])
def test_dense_autoencoder_is_784_128_64_32_10_and_back(channels: int, size: int) -> None:
    pixels = channels * size * size
    widths = [pixels, 128, 64, 32, 10, 32, 64, 128, pixels]
    network = DenseAutoencoder(channels, size)
    linear = [layer for layer in network.layers if isinstance(layer, nn.Linear)]
    slopes = [layer.negative_slope for layer in network.layers if isinstance(layer, nn.LeakyReLU)]
    assert [layer.in_features for layer in linear] == widths[:-1]
    assert [layer.out_features for layer in linear] == widths[1:]
    assert slopes == [0.005] * 7
    assert isinstance(network.layers[-1], nn.Linear)


def test_convolutional_autoencoder_has_the_paper_s_filters_kernels_and_strides() -> None:
    layers = [layer for layer in ConvolutionalAutoencoder(3).layers if isinstance(layer, nn.Conv2d)]
    assert [layer.out_channels for layer in layers] == [
        *(8, 8, 16, 16, 32, 32, 64, 64),
        128,
        *(64, 64, 32, 32, 16, 16, 8, 8, 3),
    ]
    assert [layer.stride[0] for layer in layers] == [2, 1] * 4 + [1] * 10
    assert [layer.kernel_size[0] for layer in layers] == [3] * 17 + [1]


@pytest.mark.parametrize("network", [ConvolutionalAutoencoder(1), StyleNetwork(1)], ids=["ae", "sdn"])
@pytest.mark.parametrize("shape", [(2, 1, 16, 48), (1, 1, 64, 32)], ids=str)
def test_fully_convolutional_networks_keep_any_multiple_of_16(network: nn.Module, shape: tuple[int, ...]) -> None:
    assert network(torch.rand(shape)).shape == shape


def test_style_network_passes_its_input_on_when_the_last_convolution_is_zero() -> None:
    network = StyleNetwork(3)
    nn.init.zeros_(network.tail[-1].weight)
    nn.init.zeros_(network.tail[-1].bias)
    x = torch.rand(2, 3, 16, 16)
    assert torch.equal(network(x), x)


def test_the_mask_gates_the_trunk() -> None:
    """A gate shut everywhere (bias -> -inf) leaves the head's features as they are."""
    network = StyleNetwork(1)
    x = torch.rand(1, 1, 16, 16)
    nn.init.constant_(network.mask.exit[-1].bias, -1e4)
    features = network.head(x)
    assert torch.allclose(network(x), x + network.tail(features), atol=1e-6)


@pytest.mark.parametrize("variant", ["oe-sdn", "sdn", "ae"])
def test_deployed_outputs_are_what_the_score_compares(variant: str) -> None:
    networks = OeSdn.networks(variant, {"architecture": "dense", "channels": 1, "size": 16})
    x = torch.rand(2, 1, 16, 16)
    first, second = OeSdn.deploy(networks)(x)
    assert torch.equal(second, networks["ae"](x))
    assert torch.equal(first, x if variant == "ae" else networks["sdn"](x))


# --- losses --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 1, 28, 28), (2, 3, 19, 40)], ids=str)
def test_dssim_equals_scikit_image_on_valid_windows(shape: tuple[int, ...]) -> None:
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


def test_dssim_gradient_equals_finite_differences() -> None:
    a, b = pictures(1, 2, 8, 9).double().requires_grad_(), pictures(1, 2, 8, 9, seed=1).double()
    assert torch.autograd.gradcheck(lambda x: dssim_loss(x, b), (a,), eps=1e-6, atol=1e-7)


def test_dssim_is_computed_in_float32_under_autocast() -> None:
    a, b = pictures(1, 1, 16, 16), pictures(1, 1, 16, 16, seed=1)
    with torch.autocast("cpu", torch.bfloat16):
        inside = dssim(a, b)
    assert torch.equal(inside, dssim(a, b))


@pytest.mark.parametrize(("variant", "weight"), [("oe-sdn", 0.5), ("oe-sdn", 0.25), ("sdn", 0.0)])
def test_style_loss_is_equation_5(networks: nn.ModuleDict, variant: str, weight: float) -> None:
    method = OeSdn(
        variant=variant, architecture="dense", channels=1, size=16, auxiliary="vertical-flip", outlier_weight=weight
    )
    x = pictures(3, 1, 16, 16)
    with torch.no_grad():
        loss = method.objective(method.plan().stages[1], networks)(x, np.random.default_rng(0))
        ae, sdn = networks["ae"], networks["sdn"]
        upside_down = torch.from_numpy(x.numpy()[:, :, ::-1].copy())
        expected = (1 - weight) * ((sdn(x) - ae(x)) ** 2).mean() + weight * (
            (sdn(upside_down) - upside_down) ** 2
        ).mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_style_loss_leaves_the_autoencoder_frozen(networks: nn.ModuleDict) -> None:
    method = OeSdn(architecture="dense", channels=1, size=16, auxiliary="adversarial-noise")
    method.objective(method.plan().stages[1], networks)(pictures(2, 1, 16, 16), np.random.default_rng(0)).backward()
    assert all(p.grad is None for p in networks["ae"].parameters())
    assert all(p.grad is not None for p in networks["sdn"].parameters())


# --- auxiliary pictures --------------------------------------------------------------------------------------------


def transformed(name: str, x: torch.Tensor, networks: nn.ModuleDict, seed: int = 5) -> np.ndarray:
    y = TRANSFORMS[name](x, np.random.default_rng(seed), networks)
    assert y.shape == x.shape
    return y.numpy()


@pytest.mark.parametrize("name", TRANSFORMS)
def test_each_transform_is_seeded_and_changes_the_picture(name: str, networks: nn.ModuleDict) -> None:
    x = pictures(4, 1, 16, 16)
    first = transformed(name, x, networks)
    assert np.array_equal(first, transformed(name, x, networks))
    assert np.abs(first - x.numpy()).max() > 0.02


def test_every_transform_can_be_chosen() -> None:
    assert set(Auxiliary.__args__) == set(TRANSFORMS)  # type: ignore[attr-defined]


def test_rotation_turns_by_each_right_angle_and_never_by_none(networks: nn.ModuleDict) -> None:
    x = pictures(40, 2, 16, 16)
    turns = set()
    for before, after in zip(x.numpy(), transformed("rotation", x, networks), strict=True):
        turns |= {k for k in range(4) if np.array_equal(after, np.rot90(before, k, axes=(1, 2)))}
    assert turns == {1, 2, 3}


@pytest.mark.parametrize(("name", "reference"), [("vertical-flip", np.flipud), ("horizontal-flip", np.fliplr)])
def test_flips(name: str, reference, networks: nn.ModuleDict) -> None:
    x = pictures(1, 1, 16, 16)
    assert np.array_equal(transformed(name, x, networks)[0, 0], reference(x[0, 0].numpy()))


@pytest.mark.parametrize("shape", [(3, 1, 24, 24), (3, 1, 20, 31)], ids=str)
def test_shear_equals_scipy(shape: tuple[int, ...], networks: nn.ModuleDict) -> None:
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


def test_gaussian_blur_equals_scipy(networks: nn.ModuleDict) -> None:
    x = pictures(2, 3, 20, 24)
    sigma = np.random.default_rng(5).uniform(1, 2)
    expected = ndimage.gaussian_filter(x.numpy(), (0, 0, sigma, sigma), mode="nearest", truncate=4)
    np.testing.assert_allclose(transformed("gaussian-blur", x, networks), expected, atol=1e-5)


def test_svd_blur_keeps_the_largest_singular_values(networks: nn.ModuleDict) -> None:
    x = pictures(2, 1, 24, 24)
    before = np.linalg.svd(x.numpy()[0, 0], compute_uv=False)
    after = np.linalg.svd(transformed("svd-blur", x, networks)[0, 0], compute_uv=False)
    np.testing.assert_allclose(after[:3], before[:3], rtol=1e-4)
    np.testing.assert_allclose(after[3:], 0, atol=1e-4)


def test_reconstruction_is_the_autoencoder_s(networks: nn.ModuleDict) -> None:
    x = pictures(2, 1, 16, 16)
    with torch.no_grad():
        assert np.array_equal(transformed("reconstruction", x, networks), networks["ae"](x).numpy())


def test_adversarial_noise_raises_the_distillation_loss(networks: nn.ModuleDict) -> None:
    x = 0.25 + 0.5 * pictures(2, 1, 16, 16)  # away from 0 and 1, where steps would be clipped
    worse = torch.from_numpy(transformed("adversarial-noise", x, networks))
    with torch.no_grad():
        before, after = (nn.functional.mse_loss(networks["sdn"](y), networks["ae"](y)) for y in (x, worse))
    assert after > before
    np.testing.assert_allclose((worse - x).abs().numpy(), 0.05, atol=1e-6)


# --- options and registry ------------------------------------------------------------------------------------------


def test_paper_budget_is_the_published_one() -> None:
    for architecture, (ae, sdn, rate) in {
        "dense": (50_000, 10_000, 1e-3),
        "convolutional": (10_000, 1_000, 1e-4),
    }.items():
        stages = OeSdn(budget="paper", architecture=architecture, size=32).plan().stages
        assert [(s.name, s.iterations, s.learning_rate) for s in stages] == [("ae", ae, rate), ("sdn", sdn, 1e-4)]
        assert all((s.batch, s.crop, s.schedule) == (20, None, "constant") for s in stages)


def test_the_quick_autoencoder_starts_on_squared_errors() -> None:
    method = OeSdn(budget="quick", architecture="convolutional", channels=1, size=32, ae_iterations=100)
    start, ae, _ = method.plan().stages
    assert (start.trains, ae.trains) == ("ae", "ae")
    assert (start.iterations, ae.iterations) == (15, 85)
    networks = method.networks("oe-sdn", method.plan().network)
    x = torch.rand(2, 1, 32, 32)
    with torch.no_grad():
        found = method.objective(start, networks)(x, np.random.default_rng(0))
        wanted = nn.functional.mse_loss(networks["ae"](x), x)
    assert found.item() == pytest.approx(wanted.item())


def test_textures_are_tiled_as_published() -> None:
    spec = OeSdn(fit="crop", size=256).plan().input
    assert spec.tiling is not None
    assert (spec.tiling.tile, spec.tiling.stride) == (256, 64)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 100}, "multiple of 16"),
        ({"architecture": "dense", "size": 28, "fit": "crop"}, "whole pictures"),
        ({"outlier_weight": 1.5}, "less than or equal to 1"),
        ({"auxilary": "rotation"}, "Extra inputs"),
    ],
    ids=["size", "crop", "weight", "unknown"],
)
def test_contradictory_options_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        OeSdn(**options)


def test_registry_refuses_a_name_twice_and_lists_the_known_ones() -> None:
    assert method_named("oesdn") is OeSdn
    with pytest.raises(UsageError, match="already registered"):
        register("oesdn", "adedge.methods.oesdn.method:OeSdn")
    with pytest.raises(UsageError, match="choose from .*oesdn"):
        method_named("oesnd")
