"""The networks, losses and options of AE + OE-SDN, against the paper and closed forms."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn

from adedge.methods.oesdn.method import ConvolutionalAutoencoder, DenseAutoencoder, OeSdn, StyleNetwork

torch.set_num_threads(1)

Pictures = Callable[..., torch.Tensor]


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


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


@pytest.mark.parametrize(("variant", "weight"), [("oe-sdn", 0.5), ("oe-sdn", 0.25), ("sdn", 0.0)])
def test_style_loss_is_equation_5(networks: nn.ModuleDict, variant: str, weight: float, pictures: Pictures) -> None:
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


def test_style_loss_leaves_the_autoencoder_frozen(networks: nn.ModuleDict, pictures: Pictures) -> None:
    method = OeSdn(architecture="dense", channels=1, size=16, auxiliary="adversarial-noise")
    method.objective(method.plan().stages[1], networks)(pictures(2, 1, 16, 16), np.random.default_rng(0)).backward()
    assert all(p.grad is None for p in networks["ae"].parameters())
    assert all(p.grad is not None for p in networks["sdn"].parameters())


# --- options -------------------------------------------------------------------------------------------------------


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
