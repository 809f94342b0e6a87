"""Uninformed Students: student-teacher anomaly detection with discriminative latent embeddings (Bergmann et al. 2020).

A teacher learns to describe patches of natural pictures. An ensemble of students learns to regress its descriptors on
good parts only. On an anomaly the students deviate from the teacher (regression error) and from each other (predictive
variance). The side p of the patches is the scale of the anomalies to detect; maps of several scales are averaged.

A teacher does not depend on the product: trained once, on many pictures and for long, it serves every product.
"""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field, field_serializer, model_validator
from torch import Tensor, nn

from adedge.bundle import Bundle
from adedge.data.datasets import Dataset, load_dataset
from adedge.errors import BundleError
from adedge.methods import (
    NetworkArguments,
    Objective,
    OtherPictures,
    Stage,
    TrainingPlan,
    backbones,
    configured,
    first_sample,
)
from adedge.methods.students.patch_networks import DESCRIPTOR, PATCHES, STRIDES, PatchNetwork, mirrored, own_stride
from adedge.methods.students.teaching import (
    PICTURES,
    REGION,
    compactness_loss,
    distillation_loss,
    draw_triplets,
    triplet_loss,
)
from adedge.specs import ReadyMap, Record, ScoreSpec

VALIDATION = 0.1  # fraction of the training pictures used to normalise the scores
EPOCHS = 100  # of the students, as published


# --- networks ------------------------------------------------------------------------------------------------------


class Teacher(nn.Module):
    """The descriptor network and, for distillation, a decoder from descriptors to ``features`` pretrained features."""

    feature_mean: Tensor
    feature_std: Tensor

    def __init__(self, patch: int, features: int) -> None:
        super().__init__()
        self.network = PatchNetwork(patch)
        self.decoder = nn.Linear(DESCRIPTOR, features) if features else None
        if features:
            self.register_buffer("feature_mean", torch.zeros(features))
            self.register_buffer("feature_std", torch.ones(features))


class Students(nn.Module):
    """The ensemble of one scale, with the statistics that turn its outputs into scores.

    ``mean`` and ``std`` (1, 128, 1, 1) standardise the teacher's descriptors; the other buffers are scalars: mean and
    standard deviation of the regression error and of the predictive variance on good pictures.

    The members are separate networks: grouped convolutions were slower on a CPU (by a fifth in training, by a quarter
    on whole pictures), and on a GPU the fastest kernels are those of plain convolutions.
    """

    mean: Tensor
    std: Tensor
    error_mean: Tensor
    error_std: Tensor
    variance_mean: Tensor
    variance_std: Tensor

    def __init__(self, patch: int, members: int) -> None:
        super().__init__()
        self.patch = patch
        self.members = nn.ModuleList(PatchNetwork(patch) for _ in range(members))
        self.register_buffer("mean", torch.zeros(1, DESCRIPTOR, 1, 1))
        self.register_buffer("std", torch.ones(1, DESCRIPTOR, 1, 1))
        for name in ("error", "variance"):
            self.register_buffer(f"{name}_mean", torch.zeros(()))
            self.register_buffer(f"{name}_std", torch.ones(()))

    def forward(self, x: Tensor, stride: int | None = None) -> list[Tensor]:
        """Every member's (N, 128, h, w); see `PatchNetwork.forward`."""
        return [member(x, stride) for member in self.members]


def error_and_variance(predictions: Sequence[Tensor], target: Tensor) -> tuple[Tensor, Tensor]:
    """Regression error (equation 8) and predictive variance (equation 10), each divided by 128: (N, 1, h, w) twice.

    ``predictions`` and ``target`` are (N, 128, h, w). Means of squares instead of sums stay within FP16, and make no
    difference after normalisation. The variance is computed about the students' mean, which equals equation 10 without
    its cancellation. Not differentiable: differences are squared in place, which is faster on whole pictures.
    """
    mean = sum(predictions[1:], start=predictions[0]) / len(predictions)
    error = _mean_square(mean - target)
    variances = [_mean_square(prediction - mean) for prediction in predictions]
    return error, sum(variances[1:], start=variances[0]) / len(predictions)


def _mean_square(difference: Tensor) -> Tensor:
    # Scaled before squaring, so that the sum stays within FP16. (A sum, because ONNX opset 18 changed ReduceMean.)
    difference.mul_(DESCRIPTOR**-0.5)
    return difference.mul_(difference).sum(1, keepdim=True)


class Scale(nn.Module):
    """Teacher and students of one scale: the sum of both scores, normalised (equation 11).

    (N, 3, H, W) -> (N, 1, H / stride, W / stride); with ``stride`` None the picture is a single patch without padding:
    (N, 3, p, p) -> (N, 1, 1, 1).
    """

    def __init__(self, teacher: Teacher, students: Students, stride: int | None) -> None:
        super().__init__()
        self.teacher = standardised(teacher, students)
        self.students = students
        self.stride = stride
        # A single student has no predictive variance, and thus a standard deviation of 0.
        error, variance = float(students.error_std), float(students.variance_std)
        self.error_scale = 1 / error if error > 0 else 0.0
        self.variance_scale = 1 / variance if variance > 0 else 0.0
        means = float(students.error_mean) * self.error_scale, float(students.variance_mean) * self.variance_scale
        self.offset = sum(means)

    def forward(self, x: Tensor) -> Tensor:
        """The normalised scores, added."""
        if self.stride is not None:
            x = mirrored(x, self.students.patch, self.stride)
        error, variance = error_and_variance(self.students(x, self.stride), self.teacher(x, self.stride))
        return error * self.error_scale + variance * self.variance_scale - self.offset


def standardised(teacher: Teacher, students: Students) -> PatchNetwork:
    """A copy of the teacher's network with standardised output, (y - mu) / sigma in equation 7: the students' target.

    The last convolution subtracts and divides: in FP16 and bfloat16 a descriptor with a large mean and a small standard
    deviation would otherwise be rounded before the mean is subtracted.
    """
    network = copy.deepcopy(teacher.network)
    last = network.convolutions[-1]
    assert isinstance(last, nn.Conv2d)
    assert last.bias is not None
    with torch.no_grad():
        last.weight.div_(students.std.view(-1, 1, 1, 1))
        last.bias.sub_(students.mean.flatten()).div_(students.std.flatten())
    return network


class Detector(nn.Module):
    """The mean of all scales (equation 12) at the picture's size: (N, 3, H, W) -> (map (N, 1, H, W),).

    Scores are upsampled bilinearly by the factor ``enlargement``.
    """

    def __init__(self, scales: Sequence[Scale], enlargement: int) -> None:
        super().__init__()
        self.scales = nn.ModuleList(scales)
        self.enlargement = enlargement

    def forward(self, x: Tensor) -> tuple[Tensor]:
        """The anomaly map."""
        maps = [scale(x) for scale in self.scales]
        fused = sum(maps[1:], start=maps[0]) / len(maps)
        if self.enlargement > 1:
            fused = F.interpolate(fused, scale_factor=self.enlargement, mode="bilinear", align_corners=False)
        return (fused,)


class Networks(nn.ModuleDict):
    """Keys "teacher_33" and "students_33" for p = 33, and so on; pictures are single patches if ``stride`` is None."""

    def __init__(self, patches: Sequence[int], members: int, features: int, stride: int | None) -> None:
        super().__init__()
        self.patches = tuple(patches)
        self.stride = stride
        for patch in patches:
            self[f"teacher_{patch}"] = Teacher(patch, features)
            self[f"students_{patch}"] = Students(patch, members)


# --- training ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Iterations, batch sizes and Adam's learning rates of teacher and students; weight decay is always 1e-5.

    With ``crops`` None the students learn from every pixel of whole pictures. Otherwise they learn from one random
    square per picture, whose side ``crops`` gives for each patch size, at the patch-wise network's own stride: a sixth
    of the arithmetic for p = 33, and over the iterations every pixel is covered.
    """

    teacher_iterations: int
    teacher_learning_rate: float
    student_iterations: int | None  # None: EPOCHS epochs
    student_batch: int
    student_learning_rate: float
    crops: dict[int, int] | None = None
    output_stride: int = 1
    schedule: Literal["constant", "cosine"] = "constant"


TEACHER_BATCH = 64
BUDGETS: dict[str, Budget] = {
    # As published.
    "paper": Budget(
        teacher_iterations=50_000,
        teacher_learning_rate=2e-4,
        student_iterations=None,
        student_batch=1,
        student_learning_rate=1e-4,
    ),
    # Minutes on two cores: larger learning rates that fall to zero make up for some of the missing iterations.
    "quick": Budget(
        teacher_iterations=1_000,
        teacher_learning_rate=1e-3,
        student_iterations=500,
        student_batch=4,
        student_learning_rate=5e-4,
        crops={17: 48, 33: 96, 65: 160},
        output_stride=4,
        schedule="cosine",
    ),
}
ONE_CLASS_BATCH = 64  # each picture is a single patch


class UninformedStudents(Record):
    """Options of a training of teachers and students.

    ``patches`` are the scales: the sides of the patches in pixels. ``size`` is the side of the square input in pixels.
    ``fit`` "resize" stretches the picture to it; "crop" keeps the resolution and uses overlapping tiles. ``one_class``
    makes each picture a single patch (``size`` = p). ``margin`` is the width of the border that the score ignores, by
    default half the largest patch. ``teacher`` names a bundle, or its safetensors file, to take the teachers from;
    without it they are trained on the pictures of ``teacher_data`` (None: the training pictures) with the weights
    ``lambda_k`` (distillation), ``lambda_m`` (metric learning) and ``lambda_c`` (compactness) of equation 6.
    ``weights`` ("torchvision", "none" or a file) are the pretrained network's, and ``features`` is the number of its
    outputs; the digests identify the teacher, pictures and weights that were used. ``pictures`` is the number of
    training pictures, because the paper counts epochs. Other options that are None come from the budget.
    """

    name: ClassVar[str] = "students"
    variants: ClassVar[tuple[str, ...]] = (*(f"p{patch}" for patch in PATCHES), "multi-scale")

    budget: Literal["quick", "paper"] = "quick"
    patches: tuple[int, ...] = (33,)
    members: int = Field(default=3, ge=1)
    size: int = Field(default=256, ge=16)
    fit: Literal["resize", "crop"] = "resize"
    one_class: bool = False
    output_stride: int | None = None
    margin: int | None = Field(default=None, ge=0)
    teacher: str | None = None
    teacher_digest: str | None = None
    teacher_data: str | None = None
    teacher_data_digest: str = ""
    weights: str = backbones.TORCHVISION
    weights_digest: str = ""
    features: int = Field(default=0, ge=0)
    lambda_k: float = Field(default=1.0, ge=0)
    lambda_m: float = Field(default=0.0, ge=0)
    lambda_c: float = Field(default=1.0, ge=0)
    teacher_iterations: int | None = Field(default=None, ge=1)
    student_iterations: int | None = Field(default=None, ge=1)
    batch: int | None = Field(default=None, ge=1)
    pictures: int = Field(default=1, ge=1)

    @model_validator(mode="after")
    def _consistent(self) -> UninformedStudents:
        unexpected = sorted(set(self.patches) - set(PATCHES))
        if unexpected or not self.patches or len(set(self.patches)) < len(self.patches):
            raise ValueError(f"patch sizes are some of {', '.join(map(str, PATCHES))}, each once")
        if self.output_stride is not None and self.output_stride not in STRIDES:
            raise ValueError(
                f"the output stride must be one of {', '.join(map(str, STRIDES))}, not {self.output_stride}"
            )
        if self.one_class:
            if self.patches != (self.size,):
                raise ValueError("pictures of a one-class set are single patches: choose one patch size")
            if self.fit == "crop" or (self.output_stride or 1) > 1:
                raise ValueError("pictures of a one-class set are single patches: neither tiles nor an output stride")
        elif 2 * (self.margin or 0) >= self.size:
            raise ValueError(f"a margin of {self.margin} pixels leaves nothing of {self.size}: choose a smaller one")
        elif self.size % max(STRIDES) or self.size <= max(self.patches) // 2:
            minimum = f"more than {max(self.patches) // 2}"
            raise ValueError(f"size {self.size} must be a multiple of {max(STRIDES)} and {minimum} for these patches")
        if self.teacher is None and self.lambda_k == 0 == self.lambda_m:
            raise ValueError("a teacher learns nothing with lambda_k and lambda_m both 0: set lambda_m to 1")
        return self

    @field_serializer("patches")
    def _listed(self, patches: tuple[int, ...]) -> str:
        return ",".join(map(str, patches))

    @classmethod
    def for_dataset(cls, dataset: Dataset, **options: Any) -> UninformedStudents:
        """The method with ``options``; one-class sets default to five students and single patches.

        Reads the pretrained network, or the teacher to reuse, and the teacher's pictures, to report a wrong one before
        training and to record digests. Raises `UsageError` naming the first invalid option, `BundleError` for a file
        without the teachers, `DataError` for weights or pictures that cannot be read.
        """
        fitting: dict[str, Any] = {"pictures": max(1, round(len(dataset.train) * (1 - VALIDATION)))}
        if first_sample(dataset).path is None:
            patches = tuple(options.get("patches") or (33,))
            fitting.update(one_class=True, members=5, patches=patches, size=patches[0])
        method = configured(cls, options, fitting)
        digests: dict[str, Any] = {}
        if method.teacher is not None:
            teachers_from_file(Path(method.teacher), method.patches)
            digests["teacher_digest"] = hashlib.sha256(_teacher_file(Path(method.teacher))).hexdigest()
        else:
            if method.teacher_data is not None:
                digests["teacher_data_digest"] = load_dataset(method.teacher_data, holdout=0).digest
            if method.lambda_k > 0:
                pretrained = backbones.pooled_resnet18(method.weights)
                digest = "" if method.weights == backbones.NONE else backbones.digest_of(pretrained)
                digests.update(features=pretrained.channels, weights_digest=digest)
        return method.model_copy(update=digests)

    @property
    def variant(self) -> str:
        """The scale, such as "p33", or "multi-scale"."""
        return f"p{self.patches[0]}" if len(self.patches) == 1 else "multi-scale"

    def plan(self) -> TrainingPlan:
        """Networks, specs and stages; see `Method.plan`."""
        stride = 0 if self.one_class else self.output_stride or BUDGETS[self.budget].output_stride
        teacher_data = None if self.teacher_data is None else Path(self.teacher_data)
        teaching = {"teaching": OtherPictures(folder=teacher_data, input=PICTURES)}
        return TrainingPlan(
            network={
                "patches": self._listed(self.patches),
                "members": self.members,
                "features": self.features,
                "output_stride": stride,  # 0: the picture is a single patch
            },
            input=backbones.input_spec(self.size, self.fit),
            score=ScoreSpec(comparison=ReadyMap(), reduce="max", margin=self._margin()),
            stages=tuple(self._stages()),
            validation=VALIDATION,
            others=teaching if self.teacher is None else {},
        )

    def _margin(self) -> int:
        """The border to ignore: within half a patch of it, scores depend on mirrored padding and are unreliable.

        Patches further inside still cover the border. By default it takes at most half of a side.
        """
        if self.margin is not None:
            return self.margin
        return 0 if self.one_class else min(max(self.patches) // 2, self.size // 4)

    def _stages(self) -> Iterator[Stage]:
        budget = BUDGETS[self.budget]
        batch = self.batch or (ONE_CLASS_BATCH if self.one_class else budget.student_batch)
        for patch in self.patches:
            if self.teacher is None:
                yield Stage(
                    name=f"teacher_{patch}",
                    iterations=self.teacher_iterations or budget.teacher_iterations,
                    batch=TEACHER_BATCH,
                    learning_rate=budget.teacher_learning_rate,
                    weight_decay=1e-5,
                    crop=REGION,
                    schedule=budget.schedule,
                    pictures="teaching",
                )
            yield Stage(
                name=f"students_{patch}",
                iterations=(
                    self.student_iterations or budget.student_iterations or math.ceil(EPOCHS * self.pictures / batch)
                ),
                batch=batch,
                learning_rate=budget.student_learning_rate,
                weight_decay=1e-5,
                schedule=budget.schedule,
            )
        yield Stage(name="fusion", iterations=0, batch=batch, learning_rate=0, pictures="validation")

    def prepare(self, stage: Stage, networks: nn.ModuleDict, batches: Iterable[Tensor]) -> None:
        """Measure the statistics of the pretrained features, the teacher's descriptors, or both scores."""
        rng = np.random.default_rng(0)
        kind, _, patch = stage.name.partition("_")
        if kind == "teacher":
            self._measure_features(_teacher(networks, int(patch)), batches, rng)
        elif kind == "students":
            teacher, students = _teacher(networks, int(patch)), _students(networks, int(patch))
            if self.teacher is not None:
                teacher.network.load_state_dict(teachers_from_file(Path(self.teacher), (int(patch),))[int(patch)])
            views = (self._views(x, int(patch), rng) for x in batches)
            mean, std = _mean_and_std(teacher.network(view, stride) for view, stride in views)
            students.mean.copy_(mean.view_as(students.mean))
            students.std.copy_(_divisor(std).view_as(students.std))
        else:
            self._measure_scores(networks, batches, rng)

    def _measure_features(self, teacher: Teacher, batches: Iterable[Tensor], rng: np.random.Generator) -> None:
        if teacher.decoder is None:
            return
        pretrained = backbones.pooled_resnet18(self.weights)
        patches = (draw_triplets(x, teacher.network.patch, rng)[0] for x in batches)
        mean, std = _mean_and_std(pretrained.to(x.device)(x)[:, :, None, None] for x in patches)
        teacher.feature_mean.copy_(mean)
        teacher.feature_std.copy_(_divisor(std))

    def _measure_scores(self, networks: nn.ModuleDict, batches: Iterable[Tensor], rng: np.random.Generator) -> None:
        pictures = list(batches)
        for patch in self.patches:
            students = _students(networks, patch)
            teacher = standardised(_teacher(networks, patch), students)
            views = (self._views(x, patch, rng) for x in pictures)
            scores = (torch.cat(error_and_variance(students(x, s), teacher(x, s)), 1) for x, s in views)
            mean, std = _mean_and_std(scores)
            students.error_mean.copy_(mean[0])
            students.error_std.copy_(std[0])
            students.variance_mean.copy_(mean[1])
            students.variance_std.copy_(std[1] if self.members > 1 else torch.zeros(()))

    def objective(self, stage: Stage, networks: nn.ModuleDict) -> Objective:
        """Equation 6 for a teacher; for an ensemble, the sum of equation 7 over the students."""
        kind, _, patch = stage.name.partition("_")
        teacher = _teacher(networks, int(patch))
        if kind == "teacher":
            return self._teaching(teacher)
        students = _students(networks, int(patch))
        standardised_teacher = standardised(teacher, students)

        def imitation(x: Tensor, rng: np.random.Generator) -> Tensor:
            views, stride = self._views(x, int(patch), rng)
            with torch.no_grad():
                target = standardised_teacher(views, stride)
            losses = [(y.float() - target.float()).square().sum(1).mean() for y in students(views, stride)]
            return torch.stack(losses).sum()

        return imitation

    def _teaching(self, teacher: Teacher) -> Objective:
        pretrained = backbones.pooled_resnet18(self.weights) if self.lambda_k > 0 else None

        def teaching(x: Tensor, rng: np.random.Generator) -> Tensor:
            anchors, positives, negatives = draw_triplets(x, teacher.network.patch, rng)
            triplets = [anchors, positives, negatives] if self.lambda_m > 0 else [anchors]
            descriptors = [y.flatten(1) for y in teacher.network(torch.cat(triplets)).chunk(len(triplets))]
            loss = self.lambda_c * compactness_loss(descriptors[0].float())
            if self.lambda_m > 0:
                loss = loss + self.lambda_m * triplet_loss(*(y.float() for y in descriptors))
            if pretrained is not None and teacher.decoder is not None:
                with torch.no_grad():
                    features = pretrained.to(x.device)(anchors).float()
                features = (features - teacher.feature_mean) / teacher.feature_std
                loss = loss + self.lambda_k * distillation_loss(teacher.decoder(descriptors[0]).float(), features)
            return loss

        return teaching

    def _views(self, x: Tensor, patch: int, rng: np.random.Generator) -> tuple[Tensor, int | None]:
        """Pictures to train and measure descriptors on, and their stride: padded as when deployed, or random crops."""
        if self.one_class:
            return x, None
        padded = mirrored(x, patch, 1)
        crops = BUDGETS[self.budget].crops
        if crops is None:
            return padded, 1
        side = min(crops[patch], *padded.shape[2:])
        corners = rng.integers(0, np.array(padded.shape[2:]) - side + 1, (len(x), 2))
        parts = [y[:, top : top + side, left : left + side] for y, (top, left) in zip(padded, corners, strict=True)]
        return torch.stack(parts).contiguous(memory_format=torch.channels_last), own_stride(patch)

    @staticmethod
    def networks(variant: str, network: NetworkArguments) -> nn.ModuleDict:
        """The untrained networks: "teacher_p" and "students_p" for each patch size p."""
        patches = [int(part) for part in str(network["patches"]).split(",")]
        stride = int(network["output_stride"]) or None
        return Networks(patches, int(network["members"]), int(network["features"]), stride)

    @staticmethod
    def deploy(networks: nn.ModuleDict) -> nn.Module:
        """All scales in one module; see `Detector`."""
        assert isinstance(networks, Networks)
        stride = networks.stride
        scales = [Scale(_teacher(networks, p), _students(networks, p), stride) for p in networks.patches]
        return Detector(scales, enlargement=networks.patches[0] if stride is None else stride)


def teachers_from_file(path: Path, patches: Sequence[int]) -> dict[int, dict[str, Tensor]]:
    """The weights of the teacher for each patch size, from a bundle of this method or from its safetensors file.

    Raises `BundleError` if the file cannot be read, was changed, or lacks a teacher; then it names those it has.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        tensors = load(_teacher_file(path))
    except (SafetensorError, OSError) as error:
        raise BundleError(
            f"{path} cannot be read as weights of a teacher ({error}): give a students bundle, or its "
            "weights.safetensors"
        ) from error
    teachers: dict[int, dict[str, Tensor]] = {}
    for patch in PATCHES:
        prefix = f"teacher_{patch}.network."
        teachers[patch] = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
    for patch in patches:
        expected = PatchNetwork(patch).state_dict()
        if {k: v.shape for k, v in teachers[patch].items()} != {k: v.shape for k, v in expected.items()}:
            available = ", ".join(f"p = {p}" for p, weights in teachers.items() if weights) or "none"
            raise BundleError(
                f"{path} has no teacher for p = {patch} (it has: {available}): give another --teacher or --patch"
            )
    return {patch: teachers[patch] for patch in patches}


def _teacher_file(path: Path) -> bytes:
    return Bundle.open(path).read("weights.safetensors") if path.is_dir() else path.read_bytes()


def _teacher(networks: nn.ModuleDict, patch: int) -> Teacher:
    teacher = networks[f"teacher_{patch}"]
    assert isinstance(teacher, Teacher)
    return teacher


def _students(networks: nn.ModuleDict, patch: int) -> Students:
    students = networks[f"students_{patch}"]
    assert isinstance(students, Students)
    return students


def _mean_and_std(batches: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (C,), summed in float64, over all values of each channel of (N, C, h, w) batches."""
    count = 0
    total = squares = torch.zeros(())
    for batch in batches:
        values = batch.double()
        count += values[:, 0].numel()
        total = total + values.sum((0, 2, 3)).cpu()
        squares = squares + values.square().sum((0, 2, 3)).cpu()
    mean = total / count
    return mean.float(), (squares / count - mean.square()).clamp(min=0).sqrt().float()


def _divisor(std: Tensor) -> Tensor:
    """The standard deviation, with 1 in place of 0, so that a constant value is not divided by 0."""
    return torch.where(std > 0, std, 1.0)
