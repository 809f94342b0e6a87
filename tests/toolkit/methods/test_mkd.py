"""MKD: the loss against its formulas, the exported gradient against autograd, and the whole way to an engine."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import onnx
import onnxruntime as ort
import pytest
import skimage.data
import torch
from onnx.reference import ReferenceEvaluator
from torch import nn

from adedge.bundle import Bundle
from adedge.data.datasets import Dataset, Sample
from adedge.errors import DataError, UsageError
from adedge.export.fp16 import rounded_to_fp16
from adedge.export.fp32 import graph_from_module
from adedge.methods import load_detector
from adedge.methods.mkd import BLOCKS, Cloner, Discrepancy, Layer, Mkd, smooth_gradients, unpooled
from adedge.specs import Gaussian, InputSpec, Opening, ReadyMap, ScoreSpec, Tiling

SHAPES = ((128, 4, 6), (256, 2, 3), (512, 2, 2), (512, 1, 1))


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> None:
    torch.set_num_threads(1)


def outputs(count: int, scale: float = 1.0, seed: int = 0) -> list[torch.Tensor]:
    """What poolings after ReLU give: half of it is 0."""
    rng = np.random.default_rng(seed)
    return [torch.from_numpy(scale * np.maximum(rng.normal(size=(count, *shape)), 0)) for shape in SHAPES]


def discrepancy(balance: float = 1.0, units: tuple[float, ...] = (1, 1, 1, 1)) -> Discrepancy:
    made = Discrepancy().double()
    made.balance.fill_(balance)
    made.units.copy_(torch.tensor(units))
    return made


@pytest.fixture(scope="module")
def networks() -> nn.ModuleDict:
    """Untrained but for the statistics of batch normalisation, with units and a balance that are not 1."""
    torch.manual_seed(0)
    networks = Mkd.networks("vgg16", {})
    networks["cloner"].train()
    for batch in photographs(64).split(8):
        networks["cloner"](batch)
    for module in networks["cloner"].modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
    networks["discrepancy"].units.copy_(torch.tensor([0.5, 2, 1, 3]))
    networks["discrepancy"].balance.fill_(0.4)
    return networks.eval().requires_grad_(False)


def photographs(size: int) -> torch.Tensor:
    """16 parts (N, 3, size, size) of three photographs, standardised roughly; the first has flat regions."""
    rng = np.random.default_rng(0)
    images = [skimage.data.brick(), skimage.data.grass(), skimage.data.gravel()]
    parts = []
    for index in range(16):
        image = images[index % 3]
        top, left = rng.integers(0, 512 - size, 2)
        parts.append(np.stack([image[top : top + size, left : left + size]] * 3))
    x = np.stack(parts).astype(np.float32) / 255
    x[:, 1] *= 0.9
    x[0, :, : size // 2] = 0.3
    x[0, :, :, 20:40] = 1.0
    return torch.from_numpy((x - 0.45) / 0.22)


def autograd(networks: nn.ModuleDict, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The map H W sum |dL / dx| and the loss, differentiated by PyTorch."""
    x = x.clone().requires_grad_()
    with torch.no_grad():
        target = networks["source"](x)
    loss = networks["discrepancy"](target, networks["cloner"](x))
    (gradient,) = torch.autograd.grad(loss.sum(), x)
    return gradient.abs().sum(1, keepdim=True) * x.shape[2] * x.shape[3], loss.detach()


# --- the loss --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("units", [(1, 1, 1, 1), (0.2, 7, 1, 30)])
def test_loss_is_its_formulas_whatever_the_units(units: tuple[float, ...]) -> None:
    source, cloner = outputs(3), outputs(3, scale=1.7, seed=1)
    value, direction = np.zeros(3), np.zeros(3)
    for s, c in zip(source, cloner, strict=True):
        a, b = s.numpy().reshape(3, -1), c.numpy().reshape(3, -1)
        value += ((a - b) ** 2).mean(1)
        direction += 1 - (a * b).sum(1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))
    found = discrepancy(units=units).terms(source, cloner)
    np.testing.assert_allclose(found[0], value, rtol=1e-6)
    np.testing.assert_allclose(found[1], direction, rtol=1e-6)
    loss = discrepancy(balance=0.25, units=units)(source, cloner)
    np.testing.assert_allclose(loss, value + 0.25 * direction, rtol=1e-6)


def test_equal_outputs_lose_nothing() -> None:
    assert discrepancy(balance=3.0)(outputs(2), outputs(2)).tolist() == [0, 0]


def test_direction_keeps_its_digits_in_fp16() -> None:
    """1 - cos of two outputs that are nearly parallel: the subtraction alone would be off by a half of FP16's step."""
    source = outputs(1)
    cloner = [1.01 * s + 0.01 * other for s, other in zip(source, outputs(1, seed=1), strict=True)]
    exact = discrepancy().terms(source, cloner)[1]
    rounded = Discrepancy().half().terms([s.half() for s in source], [c.half() for c in cloner])[1]
    assert exact.item() < 1e-3
    assert rounded.item() == pytest.approx(exact.item(), rel=0.02)


def test_large_outputs_stay_within_fp16() -> None:
    source, cloner = outputs(2, scale=300), outputs(2, scale=200, seed=1)
    exact = discrepancy(units=(300,) * 4).terms(source, cloner)
    scaled = discrepancy(units=(300,) * 4).half()
    gradients = scaled.gradients([s.half() for s in source], [c.half() for c in cloner])
    assert all(torch.isfinite(gradient).all() for gradient in gradients)
    # The sum itself is beyond FP16 here; no mean or square before it is.
    assert scaled.terms([s.half() for s in source], [c.half() for c in cloner])[1].double() == pytest.approx(
        exact[1], rel=0.02
    )


def test_gradients_of_the_loss_are_those_of_autograd() -> None:
    source, cloner = outputs(2), [c.requires_grad_() for c in outputs(2, scale=1.3, seed=1)]
    loss = discrepancy(balance=0.7, units=(0.5, 2, 1, 3))
    wanted = torch.autograd.grad(loss(source, cloner).sum(), cloner)
    found = loss.gradients(source, cloner)
    # Level k is 2 ** k times smaller than the input, k = 2 ... 5.
    for poolings, (g, w) in enumerate(zip(found, wanted, strict=True), start=2):
        pixels = g.shape[2] * g.shape[3] * 4**poolings
        torch.testing.assert_close(g, w * pixels, rtol=1e-9, atol=1e-12)


def test_outputs_of_zeros_have_a_finite_loss_and_gradient() -> None:
    zeros = [torch.zeros(1, *shape, requires_grad=True) for shape in SHAPES]
    loss = Discrepancy()
    gradients = torch.autograd.grad(loss([s.float() for s in outputs(1)], zeros).sum(), zeros)
    assert all(torch.isfinite(gradient).all() for gradient in gradients)


# --- the networks ----------------------------------------------------------------------------------------------------


def test_cloner_is_the_published_one() -> None:
    cloner = Cloner()
    convolutions = [module for module in cloner.modules() if isinstance(module, nn.Conv2d)]
    assert [c.out_channels for c in convolutions] == [16, 16, 16, 128, 16, 16, 256, 16, 16, 512, 16, 16, 512]
    assert all(c.kernel_size == (3, 3) and c.bias is None for c in convolutions)
    assert not any(name.endswith("bias") for name, _ in cloner.named_parameters())
    for block, filters in zip(cloner.blocks, BLOCKS, strict=True):
        normalised = [layer.normalisation is not None for layer in block]  # type: ignore[union-attr]
        assert normalised == [True] * (len(filters) - 1) + [False]
    found = cloner.eval()(torch.rand(2, 3, 64, 96))
    assert [tuple(y.shape[1:]) for y in found] == [(128, 16, 24), (256, 8, 12), (512, 4, 6), (512, 2, 3)]


@pytest.mark.parametrize("normalised", [True, False])
def test_folded_layer_is_the_layer(normalised: bool) -> None:
    torch.manual_seed(0)
    layer = Layer(3, 5, normalised=normalised).double()
    layer.train()(3 + 2 * torch.randn(8, 3, 9, 9, dtype=torch.float64))
    layer.eval()
    x = torch.randn(2, 3, 7, 8, dtype=torch.float64)
    folded = layer.folded()
    assert (folded.bias is not None) == normalised
    torch.testing.assert_close(torch.relu(folded(x)), layer(x))


def test_unpooled_sends_the_gradient_where_pytorch_does_also_among_equals() -> None:
    rng = np.random.default_rng(0)
    # Few levels: most windows hold their maximum more than once.
    x = torch.from_numpy(rng.integers(0, 3, (2, 3, 12, 10)).astype(np.float64)).requires_grad_()
    gradient = torch.from_numpy(rng.normal(size=(2, 3, 6, 5)))
    (wanted,) = torch.autograd.grad(nn.functional.max_pool2d(x, 2), x, gradient)
    assert torch.equal(unpooled(gradient, x.detach()), wanted)


def map_error(found: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Of each picture: the largest difference of the maps, as a fraction of the largest value wanted."""
    return (found - wanted).abs().amax((1, 2, 3)) / wanted.amax((1, 2, 3))


def test_detector_equals_autograd_through_its_own_way_forwards(networks: nn.ModuleDict) -> None:
    detector = Mkd.deploy(networks).eval()
    x = photographs(64)[:6].requires_grad_()
    y, pooled = x, []
    for block in detector.forwards:  # type: ignore[union-attr]
        for layer in block:
            y = torch.relu(layer(y))
        y = nn.functional.max_pool2d(y, 2)
        pooled.append(y)
    score = networks["discrepancy"](networks["source"](x.detach()), pooled[1:])
    (gradient,) = torch.autograd.grad(score.sum(), x)
    found_map, found_score = detector(x.detach())
    assert found_map.shape == (6, 1, 64, 64)
    assert found_map.dtype == torch.float32
    torch.testing.assert_close(found_score, score.detach(), rtol=1e-6, atol=0)
    assert map_error(found_map, gradient.abs().sum(1, keepdim=True) * 64 * 64).max() < 1e-5


def test_detector_equals_autograd_through_the_trained_network(networks: nn.ModuleDict) -> None:
    """In float64: in float32 a rounding may move a maximum, in autograd itself as well."""
    wide = copy.deepcopy(networks).double()
    x = photographs(64)[:6].double()
    wanted_map, wanted_score = autograd(wide, x)
    found_map, found_score = Mkd.deploy(wide).eval()(x)
    torch.testing.assert_close(found_score, wanted_score)
    assert map_error(found_map, wanted_map).max() < 1e-9


@pytest.fixture(scope="module")
def graph(networks: nn.ModuleDict) -> bytes:
    spec = InputSpec(height=64, width=64, channels=3, color="rgb")
    return graph_from_module(Mkd.deploy(networks), spec, ("map", "score"), opset=17)


def test_graph_in_float64_equals_autograd(networks: nn.ModuleDict, graph: bytes) -> None:
    """The exported nodes, one by one in NumPy: nothing but the folded weights is rounded, and no maximum moves."""
    wide = onnx.load_model_from_string(graph)
    constants = [a.t for node in wide.graph.node for a in node.attribute if a.name == "value"]
    for tensor in (*wide.graph.initializer, *constants):
        if tensor.data_type == onnx.TensorProto.FLOAT:
            values = onnx.numpy_helper.to_array(tensor).astype(np.float64)
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    x = photographs(64)[:2].double()
    wanted_map, wanted_score = autograd(copy.deepcopy(networks).double(), x)
    found_map, found_score = ReferenceEvaluator(wide).run(None, {"frame": x.numpy()})
    assert found_map.dtype == np.float64
    assert map_error(torch.from_numpy(found_map), wanted_map).max() < 1e-6
    np.testing.assert_allclose(found_score, wanted_score, rtol=1e-7)


def test_graph_equals_autograd_and_keeps_to_operators_of_every_engine(networks: nn.ModuleDict, graph: bytes) -> None:
    operators = {node.op_type for node in onnx.load_model_from_string(graph).graph.node}
    assert not operators & {"ConvTranspose", "MaxUnpool", "ReduceMean", "Pow", "Resize"}
    x = photographs(64)
    wanted_map, wanted_score = autograd(networks, x)
    session = ort.InferenceSession(graph, providers=["CPUExecutionProvider"])
    for count in (1, 16):
        found_map, found_score = (torch.from_numpy(y) for y in session.run(None, {"frame": x[:count].numpy()}))
        torch.testing.assert_close(found_score, wanted_score[:count], rtol=1e-5, atol=0)
    errors = map_error(found_map, wanted_map)
    # Where the two largest values under a pooling differ by their rounding alone, the two runtimes may take different
    # ones, and a part of the gradient comes out a pixel away: that happens to single pictures.
    assert (errors < 1e-4).sum() >= 12
    assert errors.max() < 0.2


def test_graph_in_fp16_keeps_the_score_and_the_shape_of_the_map(networks: nn.ModuleDict, graph: bytes) -> None:
    x = photographs(64)[:3]
    wanted_map, wanted_score = autograd(networks, x)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(rounded_to_fp16(graph), options, providers=["CPUExecutionProvider"])
    found_map, found_score = session.run(["map", "score"], {"frame": x.numpy()})
    np.testing.assert_allclose(found_score, wanted_score, rtol=5e-3)
    # Rounding moves some maxima by a pixel: compared as it is shown, smoothed.
    for found, wanted in zip(found_map[:, 0], wanted_map[:, 0].numpy(), strict=True):
        smooth = [cv2.GaussianBlur(m, (0, 0), 4) for m in (found, wanted)]
        assert np.corrcoef(smooth[0].ravel(), smooth[1].ravel())[0, 1] > 0.99


def test_smooth_gradients_without_noise_are_the_gradients(networks: nn.ModuleDict) -> None:
    x = photographs(64)[:2]
    wide = copy.deepcopy(networks).double()
    found = smooth_gradients(Mkd.deploy(wide).eval(), x.double(), samples=2, noise=0.0)
    assert map_error(found, autograd(wide, x.double())[0]).max() < 1e-9


def test_smooth_gradients_average_signed_gradients_of_noisy_copies(networks: nn.ModuleDict) -> None:
    detector, x = Mkd.deploy(networks).eval(), photographs(64)[:1]
    few = [smooth_gradients(detector, x, samples=1, noise=0.2, seed=seed) for seed in (0, 1)]
    assert not torch.equal(*few)
    assert torch.equal(few[0], smooth_gradients(detector, x, samples=1, noise=0.2))
    # Signs cancel in a mean of gradients: it is below the mean of their magnitudes.
    mean = smooth_gradients(detector, x, samples=8, noise=0.2)
    assert mean.mean() < 0.9 * few[0].mean()


# --- training --------------------------------------------------------------------------------------------------------


def test_balance_makes_both_terms_equal_at_the_start_and_units_are_the_sources_sizes() -> None:
    torch.manual_seed(1)
    method = Mkd(weights="none", size=64, batch=4)
    networks = method.networks("vgg16", {}).eval()
    before = {name: value.clone() for name, value in networks["cloner"].state_dict().items()}
    x = photographs(64)[:8]
    stage = method.plan().stages[0]
    with torch.no_grad():
        method.prepare(stage, networks, x.split(4))
        assert all(torch.equal(value, before[name]) for name, value in networks["cloner"].state_dict().items())
        source = networks["source"](x)
        for unit, features in zip(networks["discrepancy"].units, source, strict=True):
            assert unit.item() == pytest.approx(features.square().mean().sqrt().item(), rel=1e-4)
        networks["cloner"].train()
        value, direction = torch.zeros(()), torch.zeros(())
        for batch in x.split(4):
            for s, c in zip(networks["source"](batch), networks["cloner"](batch), strict=True):
                value += nn.functional.mse_loss(c, s)
                direction += (1 - nn.functional.cosine_similarity(c.flatten(1), s.flatten(1))).mean()
        assert networks["discrepancy"].balance.item() == pytest.approx((value / direction).item(), rel=1e-4)


def test_one_picture_is_enough_to_begin_with() -> None:
    method = Mkd(weights="none", size=32)
    networks = method.networks("vgg16", {}).eval()
    with torch.no_grad():
        method.prepare(method.plan().stages[0], networks, [photographs(32)[:1]])
    assert torch.isfinite(networks["discrepancy"].balance)


def test_large_pictures_are_looked_at_in_overlapping_tiles() -> None:
    plan = Mkd(weights="none", size=64, fit="crop").plan()
    assert (plan.input.resize, plan.input.tiling) == ("tile", Tiling(tile=64, stride=32))
    assert plan.score == ScoreSpec(comparison=ReadyMap(), filters=(Gaussian(sigma=4), Opening(size=3)), reduce="output")


def test_training_learns_and_leaves_the_source_alone() -> None:
    torch.manual_seed(2)
    method = Mkd(weights="none", size=32, batch=4)
    networks = method.networks("vgg16", {}).eval()
    networks["cloner"].train()
    source = {name: value.clone() for name, value in networks["source"].state_dict().items()}
    loss_of = method.objective(method.plan().stages[0], networks)
    optimizer = torch.optim.Adam(networks["cloner"].parameters(), lr=1e-3)
    x, rng = photographs(32)[:4], np.random.default_rng(0)
    losses = []
    for _ in range(12):
        loss = loss_of(x, rng)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    assert all(parameter.grad is None for parameter in networks["source"].parameters())
    assert all(torch.equal(value, source[name]) for name, value in networks["source"].state_dict().items())


def one_class(count: int, channels: int) -> Dataset:
    samples = tuple(
        Sample(path=None, label=0, kind="good", array=np.full((28, 28, channels), i, np.uint8)) for i in range(count)
    )
    return Dataset(name="digits", train=samples, calibration=(), test=(), skipped=(), digest="")


@pytest.mark.parametrize(
    ("channels", "iterations"), [(1, 51 * 100 / 64), (3, 201 * 100 / 64)], ids=["MNIST", "CIFAR-10"]
)
def test_paper_budget_counts_published_epochs(channels: int, iterations: float) -> None:
    method = Mkd.for_dataset(one_class(100, channels), budget="paper", weights="none", size=None)
    stage = method.plan().stages[0]
    assert stage.iterations == int(np.ceil(iterations))
    assert (stage.batch, stage.learning_rate, stage.optimizer, stage.schedule) == (64, 1e-3, "adam", "constant")
    assert method.plan().input.shape == (3, 32, 32)


def test_options_that_cannot_be_are_named() -> None:
    with pytest.raises(UsageError, match=r"size: .*multiple of 32"):
        Mkd.for_dataset(one_class(3, 1), size=48, weights="none")
    with pytest.raises(DataError, match=r"nowhere\.pth is not there"):
        Mkd.for_dataset(one_class(3, 1), weights="nowhere.pth")


# --- the whole way ---------------------------------------------------------------------------------------------------


def adedge(*arguments: object) -> str:
    command = [sys.executable, "-m", "adedge", *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_the_whole_way_from_pictures_to_verdicts(tmp_path: Path) -> None:
    pictures, bundle = tmp_path / "good", tmp_path / "b.adedge"
    pictures.mkdir()
    rng = np.random.default_rng(0)
    texture = skimage.data.brick()
    for index in range(24):
        top, left = rng.integers(0, 512 - 96, 2)
        cv2.imwrite(str(pictures / f"{index:02}.png"), texture[top : top + 96, left : left + 96])
    options = ("--size", 64, "--iterations", 60, "--batch", 4, "--threads", 1, "--holdout", 0.4)
    adedge("train", "mkd", pictures, "-o", bundle, "--weights", "none", *options)
    assert Bundle.open(bundle).manifest.provenance.options["weights"] == "none"
    adedge("calibrate", bundle, pictures, "--false-alarm-rate", 0.1)
    manifest = Bundle.open(bundle).manifest
    assert {f"model.{kind}" for kind in ("fp32", "fp16", "int8", "int8-fp16")} == manifest.graphs.keys()
    adedge("build-engine", bundle, "--target", "onnxruntime", "--precision", "int8")

    whole = np.stack([cv2.imread(str(path)) for path in sorted(pictures.iterdir())])
    stained = whole[0].copy()
    stained[30:60, 30:60] = 255 - stained[30:60, 30:60]
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    cv2.imwrite(str(mixed / "0.png"), whole[0])
    cv2.imwrite(str(mixed / "1.png"), stained)
    verdicts = [json.loads(line) for line in adedge("run", bundle, mixed).splitlines()]
    x = (torch.from_numpy(np.stack([cv2.resize(p, (64, 64)) for p in (whole[0], stained)])).float() / 255).flip(3)
    x = ((x - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])).permute(0, 3, 1, 2)
    with torch.inference_mode():
        _, scores = load_detector(Bundle.open(bundle))(x)
    np.testing.assert_allclose([verdict["score"] for verdict in verdicts], scores, rtol=0.02)
