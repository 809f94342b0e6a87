"""EfficientNet-Lite0: TensorFlow's padding, the shapes of its levels, and photographs that it recognises."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import skimage.data
import torch
import torch.nn.functional as F

from adedge.methods import backbones
from adedge.methods.efficientnet_lite import EfficientNetLite0, EfficientNetLite0Classifier, SameConv2d


@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [(8, 12), (14, 14)])
def test_padding_is_tensorflows(kernel: int, stride: int, size: tuple[int, int]) -> None:
    """TensorFlow documents SAME: ceil(n / stride) outputs, and an odd padding has one more at the end."""
    torch.manual_seed(0)
    layer = SameConv2d(3, 4, kernel, stride)
    x = torch.rand(2, 3, *size)
    pads: list[int] = []
    for length in reversed(size):
        outputs = -(-length // stride)
        total = max((outputs - 1) * stride + kernel - length, 0)
        pads += [total // 2, total - total // 2]
    expected = F.conv2d(F.pad(x, pads), layer.weight, stride=stride)
    torch.testing.assert_close(layer(x), expected)
    assert expected.shape[2:] == (-(-size[0] // stride), -(-size[1] // stride))


def test_levels_have_their_strides_and_channels() -> None:
    network = EfficientNetLite0().eval()
    with torch.inference_mode():
        features = network(torch.rand(2, 3, 64, 96))
    assert [tuple(one.shape) for one in features] == [(2, 24, 16, 24), (2, 40, 8, 12), (2, 112, 4, 6), (2, 192, 2, 3)]
    assert network.channels == (24, 40, 112, 192)


def test_chosen_levels_are_those_of_the_whole_network() -> None:
    whole = EfficientNetLite0().eval()
    part = EfficientNetLite0((8, 16)).eval()
    part.load_state_dict({name: whole.state_dict()[name] for name in part.state_dict()})
    x = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        for found, expected in zip(part(x), whole(x)[1:3], strict=True):
            torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(("name", "imagenet_class"), [("coffee", 967), ("chelsea", 285)], ids=["espresso", "cat"])
def test_photographs_are_recognised(name: str, imagenet_class: int) -> None:
    """The published weights, in this architecture, with this normalisation: nothing else gives the right class."""
    network = EfficientNetLite0Classifier().eval()
    backbones.fill(network, "efficientnet-lite0", backbones.PACKAGE)
    image = getattr(skimage.data, name)()
    side = min(image.shape[:2])
    top, left = (image.shape[0] - side) // 2, (image.shape[1] - side) // 2
    image = cv2.resize(image[top : top + side, left : left + side], (224, 224), interpolation=cv2.INTER_AREA)
    spec = backbones.input_spec(224, backbone="efficientnet-lite0")
    x = (image * spec.scale - np.array(spec.mean)) / np.array(spec.std)
    with torch.inference_mode():
        scores = network.logits(torch.tensor(x, dtype=torch.float32).permute(2, 0, 1)[None])
    assert int(scores.argmax()) == imagenet_class
