"""Uninformed Students: scores and losses against formulas, options, and a whole training."""

from __future__ import annotations

import hashlib
import io
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from skimage import data
from torch import nn

from adedge.bundle import Bundle
from adedge.calibration.onnx_model import parse
from adedge.data.datasets import Dataset, Sample, load_dataset
from adedge.errors import BundleError, UsageError
from adedge.export.build import build_engine
from adedge.export.calibrate import calibrate
from adedge.export.graphs import export_graphs
from adedge.methods import backbones, load_detector, predict
from adedge.methods.students.method import (
    BUDGETS,
    Scale,
    Students,
    Teacher,
    UninformedStudents,
    error_and_variance,
    teachers_from_file,
)
from adedge.methods.students.patch_networks import mirrored
from adedge.methods.students.teaching import (
    REGION,
    compactness_loss,
    draw_triplets,
)
from adedge.methods.training import train
from adedge.specs import PRECISIONS, EngineKey

torch.set_num_threads(1)

Floats = NDArray[np.float64]


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape)).float()


# --- scores --------------------------------------------------------------------------------------------------------


def test_error_and_variance_are_equations_8_and_10() -> None:
    students, target = [numbers(2, 128, 3, 4, seed=seed) for seed in range(3)], numbers(2, 128, 3, 4, seed=9)
    mu = np.stack([y.double().numpy() for y in students])
    mean = mu.mean(axis=0)
    e = ((mean - target.double().numpy()) ** 2).sum(axis=1)
    v = (mu**2).sum(axis=2).mean(axis=0) - (mean**2).sum(axis=1)
    error, variance = error_and_variance(students, target)
    np.testing.assert_allclose(error.numpy()[:, 0] * 128, e, rtol=1e-5)
    np.testing.assert_allclose(variance.numpy()[:, 0] * 128, v, rtol=1e-5)


def small(patches: tuple[int, ...] = (33,), members: int = 2, stride: int = 4) -> nn.ModuleDict:
    arguments = {"patches": ",".join(map(str, patches)), "members": members, "features": 0, "output_stride": stride}
    networks = UninformedStudents.networks("", arguments)
    for index, (name, buffer) in enumerate(networks.named_buffers()):
        if "students" in name:
            buffer.add_(0.1 * index)
    return networks


def test_the_map_is_equations_11_and_12_at_every_pixel() -> None:
    """Written out for two scales and one student alone."""
    networks, x = small((17, 33), members=2, stride=1), numbers(1, 3, 24, 32)
    expected = np.zeros((24, 32))
    with torch.no_grad():
        (fused,) = UninformedStudents.deploy(networks).eval()(x)
        for patch in (17, 33):
            teacher, students = networks[f"teacher_{patch}"], networks[f"students_{patch}"]
            assert isinstance(teacher, Teacher)
            assert isinstance(students, Students)
            padded = mirrored(x, patch, 1)
            target = ((teacher.network(padded, 1) - students.mean) / students.std).double().numpy()
            mu = np.stack([member(padded, 1).double().numpy() for member in students.members])
            # Both over 128, as their statistics are.
            e = ((mu.mean(axis=0) - target) ** 2).sum(axis=1) / 128
            v = ((mu**2).sum(axis=2).mean(axis=0) - (mu.mean(axis=0) ** 2).sum(axis=1)) / 128
            expected += ((e - students.error_mean.item()) / students.error_std.item())[0] / 2
            expected += ((v - students.variance_mean.item()) / students.variance_std.item())[0] / 2
    assert fused.shape == (1, 1, 24, 32)
    np.testing.assert_allclose(fused[0, 0].numpy(), expected, rtol=1e-3)


def test_a_lone_student_is_judged_by_its_error_alone() -> None:
    networks = small(members=1)
    students = networks["students_33"]
    assert isinstance(students, Students)
    students.variance_std.zero_()
    students.variance_mean.fill_(3.0)
    (fused,) = UninformedStudents.deploy(networks).eval()(numbers(1, 3, 32, 32))
    assert torch.isfinite(fused).all()
    scale = Scale(networks["teacher_33"], students, 4)  # type: ignore[arg-type]
    assert scale.variance_scale == 0


def test_half_precision_holds_large_errors() -> None:
    """Students a hundred standard deviations off: the sum of squares would be 1.28e6, beyond FP16."""
    students, target = [torch.full((1, 128, 1, 1), 100.0).half()] * 2, torch.zeros(1, 128, 1, 1).half()
    error, variance = error_and_variance(students, target)
    assert error.item() == pytest.approx(100**2, rel=5e-3)
    assert variance.item() == 0


# --- training ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 good cuts of a brick wall, and grass for the teacher, from scikit-image."""
    folder = tmp_path_factory.mktemp("photographs")
    for name, picture, count in (("good", data.brick(), 12), ("nature", data.grass(), 6)):
        (folder / name).mkdir()
        for index in range(count):
            top, left = divmod(index * 97, 384)
            cut_out = picture[(top * 53) % 384 :, left:][:128, :128]
            cv2.imwrite(str(folder / name / f"{index}.png"), cut_out)
    return folder


FAST = {"size": 32, "members": 2, "teacher_iterations": 3, "student_iterations": 6, "batch": 2}
TRIPLETS = {"lambda_k": 0.0, "lambda_m": 1.0}


@pytest.fixture(scope="module")
def trained(photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Bundle, Dataset]:
    dataset = load_dataset(str(photographs / "good"), holdout=0.0)
    method = UninformedStudents.for_dataset(dataset, teacher_data=str(photographs / "nature"), **FAST, **TRIPLETS)
    return train(method, dataset, output=tmp_path_factory.mktemp("bundle") / "b"), dataset


def test_students_learn_standardised_descriptors(trained: tuple[Bundle, Dataset]) -> None:
    """Loss falls, the teacher stays as it was taught, and statistics are those of good pictures."""
    bundle, dataset = trained
    history = [r for r in bundle.json("training.json")["history"] if r["stage"] == "students_33"]
    assert history[-1]["loss"] < history[0]["loss"]
    detector = load_detector(bundle)
    frames = np.stack([cv2.resize(sample.read(), (32, 32)) for sample in dataset.train])
    frames = np.repeat(frames.reshape(-1, 32, 32, 1), 3, axis=3)
    maps, scores = predict(detector, bundle.manifest, frames)
    assert maps.shape == (12, 32, 32)
    assert np.abs(maps.mean()) < 3  # both scores were normalised on some of these pictures
    # Of 32 pixels a quarter to each side is left out: half a patch would be half of the picture.
    np.testing.assert_array_equal(scores, maps[:, 8:-8, 8:-8].max(axis=(1, 2)))


def test_statistics_are_those_of_all_descriptors() -> None:
    """Against NumPy, on pictures that are one patch each, so that nothing is drawn at random."""
    method = UninformedStudents(one_class=True, size=33, members=2, **TRIPLETS)
    networks = UninformedStudents.networks("p33", method.plan().network)
    teacher, students = networks["teacher_33"], networks["students_33"]
    assert isinstance(teacher, Teacher)
    assert isinstance(students, Students)
    batches = [numbers(5, 3, 33, 33), numbers(3, 3, 33, 33, seed=1)]
    stages = {stage.name: stage for stage in method.plan().stages}
    with torch.no_grad():
        method.prepare(stages["students_33"], networks, batches)
        y = torch.cat([teacher.network(x) for x in batches]).double().numpy()[:, :, 0, 0]
        np.testing.assert_allclose(students.mean.flatten(), y.mean(axis=0), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(students.std.flatten(), y.std(axis=0), rtol=1e-4)
        method.prepare(stages["fusion"], networks, iter(batches))
        target = (y - y.mean(axis=0)) / y.std(axis=0)
        mu = np.stack([torch.cat([m(x) for x in batches]).double().numpy()[:, :, 0, 0] for m in students.members])
    e = ((mu.mean(axis=0) - target) ** 2).sum(axis=1)
    v = (mu**2).sum(axis=2).mean(axis=0) - (mu.mean(axis=0) ** 2).sum(axis=1)
    for ours, expected in (
        (students.error_mean, e.mean()),
        (students.error_std, e.std()),
        (students.variance_mean, v.mean()),
        (students.variance_std, v.std()),
    ):
        assert ours.item() * 128 == pytest.approx(expected, rel=1e-3)
    # On these pictures both normalised scores have mean 0.
    (maps,) = UninformedStudents.deploy(networks).eval()(torch.cat(batches))
    assert maps.shape == (8, 1, 33, 33)
    assert maps.mean().item() == pytest.approx(0, abs=1e-3)


def test_imitation_is_equation_7_and_leaves_the_teacher_alone() -> None:
    method = UninformedStudents(budget="paper", size=16, patches=(17,), members=2, **TRIPLETS)
    networks = UninformedStudents.networks("p17", method.plan().network)
    teacher, students = networks["teacher_17"], networks["students_17"]
    assert isinstance(teacher, Teacher)
    assert isinstance(students, Students)
    students.mean.fill_(0.3)
    students.std.fill_(2.0)
    x = numbers(1, 3, 16, 16)
    stage = next(stage for stage in method.plan().stages if stage.name == "students_17")
    loss = method.objective(stage, networks)(x, np.random.default_rng(0))
    padded = mirrored(x, 17, 1)
    with torch.no_grad():
        target = (teacher.network(padded, 1).double().numpy() - 0.3) / 2
        outputs = [member(padded, 1).double().numpy() for member in students.members]
    expected = sum(((y - target) ** 2).sum() / (16 * 16) for y in outputs)
    assert loss.item() == pytest.approx(expected, rel=1e-4)
    loss.backward()
    assert all(p.grad is None for p in teacher.parameters())
    assert all(p.grad is not None for p in students.parameters())


def test_one_teacher_serves_another_product(trained: tuple[Bundle, Dataset], tmp_path: Path, photographs: Path) -> None:
    bundle, _ = trained
    dataset = load_dataset(str(photographs / "nature"), holdout=0.0)
    method = UninformedStudents.for_dataset(dataset, teacher=str(bundle.path), **FAST)
    assert [stage.name for stage in method.plan().stages] == ["students_33", "fusion"]
    other = train(method, dataset, output=tmp_path / "other")
    first, second = (teachers_from_file(b.path, (33,))[33] for b in (bundle, other))
    assert all(torch.equal(first[name], second[name]) for name in first)
    file = bundle.path / "weights.safetensors"
    assert teachers_from_file(file, (33,))[33].keys() == first.keys()
    recorded = other.manifest.provenance.options
    assert recorded["teacher_digest"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert "teacher_digest" not in bundle.manifest.provenance.options


def test_a_file_without_the_scale_s_teacher_says_what_it_has(trained: tuple[Bundle, Dataset], tmp_path: Path) -> None:
    bundle, dataset = trained
    with pytest.raises(BundleError, match=r"no teacher for p = 17 \(it has: p = 33\)"):
        UninformedStudents.for_dataset(dataset, teacher=str(bundle.path), patches=(33, 17), **FAST)
    (tmp_path / "t.safetensors").write_bytes(b"nonsense")
    with pytest.raises(BundleError, match="cannot be read as weights of a teacher"):
        UninformedStudents.for_dataset(dataset, teacher=str(tmp_path / "t.safetensors"), **FAST)


def test_one_class_sets_are_single_patches() -> None:
    digits = tuple(Sample(path=None, label=0, kind="good", array=np.full((28, 28, 1), i, np.uint8)) for i in range(4))
    dataset = Dataset(name="digits", train=digits, calibration=(), test=())
    method = UninformedStudents.for_dataset(dataset, **TRIPLETS)
    assert (method.members, method.size, method.one_class) == (5, 33, True)
    plan = method.plan()
    assert plan.network["output_stride"] == 0
    assert plan.input.shape == (3, 33, 33)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patches": (33, 34)}, "patch sizes are some of 17, 33, 65"),
        ({"patches": (33, 33)}, "each once"),
        ({"size": 36}, "multiple of 8"),
        ({"size": 32, "patches": (65,)}, "more than 32"),
        ({"output_stride": 3}, "one of 1, 2, 4, 8"),
        ({"lambda_k": 0.0}, "learns nothing"),
        ({"margin": 128}, "leaves nothing of 256"),
    ],
    ids=["patch", "twice", "size", "small", "stride", "lambdas", "margin"],
)
def test_options_that_cannot_be_are_one_sentence(options: dict, message: str, trained: tuple[Bundle, Dataset]) -> None:
    with pytest.raises(UsageError, match=message):
        UninformedStudents.for_dataset(trained[1], **options)


def test_paper_budget_is_the_paper_s() -> None:
    method = UninformedStudents(budget="paper", pictures=200, features=512)
    teacher, students, fusion = method.plan().stages
    assert (teacher.iterations, teacher.batch, teacher.learning_rate, teacher.weight_decay) == (50_000, 64, 2e-4, 1e-5)
    assert (students.iterations, students.batch, students.learning_rate) == (100 * 200, 1, 1e-4)
    assert students.weight_decay == 1e-5
    assert (fusion.iterations, fusion.pictures) == (0, "validation")
    assert method.plan().network["output_stride"] == 1
    assert method.plan().score.margin == 16
    assert UninformedStudents(patches=(17, 65), margin=3, **TRIPLETS).plan().score.margin == 3
    assert UninformedStudents(patches=(17, 65), **TRIPLETS).plan().score.margin == 32
    assert set(BUDGETS) == {"paper", "quick"}


def test_distillation_stage_is_equation_1_plus_compactness() -> None:
    """With a random ResNet-18 in the pretrained one's place, its features standardised, written out in NumPy."""
    method = UninformedStudents(size=32, weights="none", features=512, lambda_c=0.5)
    networks = UninformedStudents.networks("p33", method.plan().network)
    teacher = networks["teacher_33"]
    assert isinstance(teacher, Teacher)
    stage = method.plan().stages[0]
    x = numbers(6, 3, REGION, REGION)
    with torch.no_grad():
        method.prepare(stage, networks, [x, numbers(4, 3, REGION, REGION, seed=1)])
        loss = method.objective(stage, networks)(x, np.random.default_rng(5))
        anchors, _, _ = draw_triplets(x, 33, np.random.default_rng(5))
        features = backbones.pooled_resnet18("none")(anchors).double().numpy()
        descriptors = teacher.network(anchors)[:, :, 0, 0]
        assert teacher.decoder is not None
        decoded = teacher.decoder(descriptors).double().numpy()
    assert features.shape == (6, 512)
    assert (teacher.feature_std != 1).any(), "prepare measured the features"
    standardised = (features - teacher.feature_mean.numpy()) / teacher.feature_std.numpy()
    expected = ((decoded - standardised) ** 2).sum(axis=1).mean() + 0.5 * compactness_loss(descriptors).item()
    assert loss.item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("layer4", [True, False], ids=["complete", "up to layer3"])
def test_features_are_as_long_as_the_weights_go_deep(
    layer4: bool, tmp_path: Path, trained: tuple[Bundle, Dataset]
) -> None:
    torch.manual_seed(0)
    source = backbones.PooledResNet18(layer4=layer4).eval()
    torch.save(source.state_dict(), tmp_path / "resnet18.pth")
    method = UninformedStudents.for_dataset(trained[1], weights=str(tmp_path / "resnet18.pth"))
    assert method.features == (512 if layer4 else 256)
    assert method.weights_digest == backbones.digest_of(source)
    found = backbones.pooled_resnet18(method.weights)
    x = numbers(2, 3, 33, 33)
    with torch.no_grad():
        torch.testing.assert_close(found(x), source(x))


def test_random_features_are_the_same_every_time() -> None:
    first, second = (backbones.pooled_resnet18("none") for _ in range(2))
    assert backbones.digest_of(first) == backbones.digest_of(second)


# --- the whole way -------------------------------------------------------------------------------------------------


def adedge(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "adedge", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)


def test_from_pictures_to_engines(photographs: Path, tmp_path: Path) -> None:
    """A score for every pixel: trained by the command line, exported, calibrated, built for two targets, run."""
    bundle = tmp_path / "brick.adedge"
    options = ("--students", 2, "--size", 24, "--output-stride", 1, "--lambda-k", 0, "--lambda-m", 1)
    short = ("--teacher-iterations", 2, "--student-iterations", 3, "--batch", 2, "--threads", 1)
    result = adedge("train", "students", photographs / "good", "-o", bundle, *options, *short, "--holdout", 0.25)
    assert result.returncode == 0, result.stderr
    said = " ".join(result.stderr.split())
    assert "the teacher learns from the training pictures alone" in said
    assert "training takes about" in said
    opened = Bundle.open(bundle)
    assert (opened.manifest.variant, opened.manifest.network["patches"]) == ("p33", "33")
    assert opened.manifest.provenance.options["patches"] == "33"

    dataset = load_dataset(str(photographs / "good"), holdout=0.25)
    opened, _ = export_graphs(opened, ("fp32", "fp16"), with_scoring=True)
    opened = calibrate(opened, dataset, false_alarm_rate=0.25).bundle
    float_nodes = opened.json("ranges.json")["float_nodes"]
    graph = parse(opened.read("model.fp32.onnx")).graph
    assert {node.op_type for node in graph.node} <= {
        *("Gather", "Conv", "LeakyRelu", "Slice", "Max", "Sub", "Mul", "Div", "Add", "ReduceSum"),
    }
    seeing = [node.name for node in graph.node if node.op_type == "Conv" and node.input[0] == graph.node[1].output[0]]
    assert seeing
    assert set(seeing) <= set(float_nodes), "convolutions that see the mirrored picture stay in floating point"
    for target in ("onnxruntime", "tensorrt-rtx"):
        for precision in PRECISIONS:
            opened = build_engine(opened, EngineKey(target, precision))
    difference = opened.json("engines/onnxruntime-fp32/engine.json")["self_test"]
    with np.load(io.BytesIO(opened.read("golden.npz"))) as golden:
        assert difference["score_error"] < 1e-4 * np.abs(golden["scores"]).max()
    verdicts = adedge("run", bundle, photographs / "good", "--target", "onnxruntime", "--precision", "int8")
    assert verdicts.returncode == 0, verdicts.stderr
    assert len(verdicts.stdout.splitlines()) == 12


def test_help_teaches_and_wrong_patches_are_one_sentence(tmp_path: Path) -> None:
    shown = adedge("train", "students", "--help")
    assert shown.returncode == 0
    for option in ("--patch", "--teacher", "--teacher-data", "--weights", "--lambda-k", "--output-stride"):
        assert option in shown.stdout
    result = adedge("train", "students", tmp_path, "-o", tmp_path / "b", "--patch", "33,big")
    assert result.returncode == 2
    assert "--patch 'big': give 17, 33, 65" in result.stderr
