"""The values that the four papers report, for comparison with our measurements.

[1] Chung, Park, Keum, Ki, Kang. Unsupervised Anomaly Detection Using Style Distillation. IEEE Access, 2020.
[2] Bergmann, Fauser, Sattlegger, Steger. Uninformed Students: Student-Teacher Anomaly Detection with Discriminative
    Latent Embeddings. CVPR 2020.
[3] Salehi, Sadjadi, Baselizadeh, Rohban, Rabiee. Multiresolution Knowledge Distillation for Anomaly Detection. CVPR
    2021.
[4] Chen, Xiang, Liu, Peng, Zhang, Chang. A Hierarchically Feature Reconstructed Autoencoder for Unsupervised Anomaly
    Detection. 2024.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from adedge.data.datasets import Dataset
from adedge.data.labelled_sets import CLASSES, SETS

MVTEC_AD = "mvtec-ad"

# MVTec AD's classes with their numbers of training and test pictures (Bergmann et al., CVPR 2019, table 1). A folder
# with the same name but other numbers is a different data set, without published values.
MVTEC_AD_PICTURES: Mapping[str, tuple[int, int]] = {
    "carpet": (280, 117),
    "grid": (264, 78),
    "leather": (245, 124),
    "tile": (230, 117),
    "wood": (247, 79),
    "bottle": (209, 83),
    "cable": (224, 150),
    "capsule": (219, 132),
    "hazelnut": (391, 110),
    "metal_nut": (220, 115),
    "pill": (267, 167),
    "screw": (320, 160),
    "toothbrush": (60, 42),
    "transistor": (213, 100),
    "zipper": (240, 151),
}


@dataclass(frozen=True, kw_only=True)
class Published:
    """One row of a paper's table, as fractions of 1.

    ``system`` is "<method>/<variant>"; ``collection`` is "mvtec-ad" or the name of a one-class set. ``mean`` is over
    all classes; ``classes``, in the order of `MVTEC_AD_PICTURES` or of the class numbers, is empty if the paper gives
    only the mean.
    """

    system: str
    collection: str
    metric: str
    mean: float
    source: str
    classes: tuple[float, ...] = ()


def _row(
    system: str, collection: str, metric: str, source: str, text: str, *, mean: float | None = None, divisor: float = 1
) -> Published:
    """A row from a table's numbers as printed; ``mean`` defaults to the mean of the numbers."""
    classes = tuple(float(number) / divisor for number in text.split())
    average = float(np.mean(classes)) if mean is None else mean / divisor
    return Published(
        system=system,
        collection=collection,
        metric=metric,
        mean=round(average, 4),
        source=source,
        classes=tuple(round(value, 4) for value in classes),
    )


PUBLISHED: tuple[Published, ...] = (
    # [1] table 1: one class against the rest; classes of CIFAR-10 in its own order, airplane to truck.
    _row(
        *("oesdn/ae", "mnist", "image_auroc", "[1] table 1"),
        "0.991 0.998 0.965 0.950 0.923 0.958 0.992 0.946 0.912 0.970",
        mean=0.961,
    ),
    _row(
        *("oesdn/sdn", "mnist", "image_auroc", "[1] table 1"),
        "0.989 0.998 0.952 0.933 0.933 0.953 0.991 0.948 0.920 0.968",
        mean=0.958,
    ),
    _row(
        *("oesdn/oe-sdn", "mnist", "image_auroc", "[1] table 1"),
        "0.984 0.998 0.983 0.974 0.977 0.973 0.995 0.971 0.921 0.972",
        mean=0.975,
    ),
    _row(
        *("oesdn/ae", "cifar10", "image_auroc", "[1] table 1"),
        "0.790 0.661 0.647 0.515 0.587 0.571 0.596 0.630 0.783 0.623",
        mean=0.640,
    ),
    _row(
        *("oesdn/sdn", "cifar10", "image_auroc", "[1] table 1"),
        "0.677 0.671 0.598 0.520 0.582 0.535 0.648 0.611 0.707 0.608",
        mean=0.616,
    ),
    _row(
        *("oesdn/oe-sdn", "cifar10", "image_auroc", "[1] table 1"),
        "0.774 0.821 0.638 0.569 0.594 0.659 0.629 0.755 0.844 0.784",
        mean=0.707,
    ),
    # [1] table 2 averages textures and objects separately, so the mean of all classes is computed here.
    _row(
        *("oesdn/ae", MVTEC_AD, "pixel_auroc", "[1] table 2"),
        "0.95 0.97 0.85 0.81 0.79 0.94 0.84 0.92 0.97 0.89 0.94 0.97 0.98 0.88 0.87",
    ),
    _row(
        *("oesdn/sdn", MVTEC_AD, "pixel_auroc", "[1] table 2"),
        "0.96 0.97 0.83 0.88 0.82 0.96 0.84 0.97 0.98 0.95 0.92 0.98 0.98 0.89 0.89",
    ),
    _row(
        *("oesdn/oe-sdn", MVTEC_AD, "pixel_auroc", "[1] table 2"),
        "0.96 0.97 0.85 0.85 0.82 0.95 0.84 0.97 0.98 0.93 0.93 0.97 0.98 0.89 0.91",
    ),
    # [2] table 2, teacher trained by distillation and compactness; table 3, whose printed mean for p = 33 differs from
    # the mean of its column, 0.905.
    _row("students/p33", "mnist", "image_auroc", "[2] table 2", "", mean=0.9935),
    _row("students/p33", "cifar10", "image_auroc", "[2] table 2", "", mean=0.8196),
    _row(
        *("students/p17", MVTEC_AD, "aupro", "[2] table 3"),
        "0.795 0.920 0.935 0.936 0.943 0.814 0.671 0.935 0.971 0.891 0.931 0.915 0.946 0.540 0.848",
        mean=0.866,
    ),
    _row(
        *("students/p33", MVTEC_AD, "aupro", "[2] table 3"),
        "0.893 0.949 0.956 0.950 0.929 0.890 0.764 0.963 0.965 0.928 0.959 0.937 0.944 0.611 0.942",
        mean=0.900,
    ),
    _row(
        *("students/p65", MVTEC_AD, "aupro", "[2] table 3"),
        "0.695 0.819 0.819 0.912 0.725 0.918 0.865 0.916 0.937 0.895 0.935 0.928 0.863 0.701 0.933",
        mean=0.857,
    ),
    _row(
        *("students/multi-scale", MVTEC_AD, "aupro", "[2] table 3"),
        "0.879 0.952 0.945 0.946 0.911 0.931 0.818 0.968 0.965 0.942 0.961 0.942 0.933 0.666 0.951",
        mean=0.914,
    ),
    # [3] tables 2 to 4, in percent.
    _row("mkd/vgg16", "mnist", "image_auroc", "[3] table 2", "", mean=98.7, divisor=100),
    _row("mkd/vgg16", "fashion-mnist", "image_auroc", "[3] table 2", "", mean=94.5, divisor=100),
    _row("mkd/vgg16", "cifar10", "image_auroc", "[3] table 2", "", mean=87.2, divisor=100),
    _row(
        *("mkd/vgg16", MVTEC_AD, "image_auroc", "[3] table 3"),
        "79.25 78.01 95.05 91.57 94.29 99.39 89.19 80.46 98.37 73.58 82.7 83.31 92.17 85.55 93.24",
        mean=87.74,
        divisor=100,
    ),
    _row(
        *("mkd/vgg16", MVTEC_AD, "pixel_auroc", "[3] table 4"),
        "95.64 91.78 98.05 82.77 84.8 96.32 82.4 95.86 94.62 86.38 89.63 95.96 96.12 76.45 93.9",
        mean=90.71,
        divisor=100,
    ),
    # [4] tables 1 to 4.
    _row("hfr/resnet18", "mnist", "image_auroc", "[4] table 2", "", mean=0.985),
    _row("hfr/resnet18", "fashion-mnist", "image_auroc", "[4] table 2", "", mean=0.939),
    _row("hfr/resnet18", "cifar10", "image_auroc", "[4] table 2", "", mean=0.577),
    _row("hfr/wide-resnet50-2", "mnist", "image_auroc", "[4] table 2", "", mean=0.990),
    _row("hfr/wide-resnet50-2", "fashion-mnist", "image_auroc", "[4] table 2", "", mean=0.948),
    _row("hfr/wide-resnet50-2", "cifar10", "image_auroc", "[4] table 2", "", mean=0.663),
    _row(
        *("hfr/resnet18", MVTEC_AD, "image_auroc", "[4] table 1"),
        "1.000 0.976 1.000 0.979 0.996 1.000 0.988 0.932 1.000 1.000 0.979 0.876 0.997 0.964 0.960",
        mean=0.976,
    ),
    _row(
        *("hfr/wide-resnet50-2", MVTEC_AD, "image_auroc", "[4] table 1"),
        "1.000 0.988 1.000 0.986 0.986 1.000 0.989 0.936 1.000 0.999 0.977 0.960 0.983 0.997 0.986",
        mean=0.986,
    ),
    _row(
        *("hfr/resnet18", MVTEC_AD, "pixel_auroc", "[4] table 3"),
        "0.989 0.980 0.990 0.919 0.953 0.974 0.964 0.981 0.981 0.957 0.961 0.984 0.982 0.901 0.977",
        mean=0.966,
    ),
    _row(
        *("hfr/wide-resnet50-2", MVTEC_AD, "pixel_auroc", "[4] table 3"),
        "0.989 0.983 0.991 0.951 0.962 0.978 0.975 0.982 0.984 0.972 0.974 0.990 0.983 0.957 0.977",
        mean=0.977,
    ),
    _row(
        *("hfr/resnet18", MVTEC_AD, "aupro", "[4] table 4"),
        "0.957 0.933 0.976 0.727 0.910 0.914 0.913 0.891 0.969 0.984 0.931 0.928 0.858 0.773 0.934",
        mean=0.906,
    ),
    _row(
        *("hfr/wide-resnet50-2", MVTEC_AD, "aupro", "[4] table 4"),
        "0.952 0.944 0.976 0.798 0.908 0.921 0.926 0.905 0.976 0.994 0.947 0.950 0.865 0.885 0.931",
        mean=0.925,
    ),
)

_CLASSES: Mapping[str, tuple[str, ...]] = {
    MVTEC_AD: tuple(MVTEC_AD_PICTURES),
    **{name: tuple(str(number) for number in range(CLASSES)) for name in SETS},
}
_BY_KEY = {(one.system, one.collection, one.metric): one for one in PUBLISHED}


def class_of(dataset: Dataset, name: str) -> tuple[str, str] | None:
    """Which published class a data set is, as (collection, class), such as ("mvtec-ad", "bottle"); None if it is none.

    ``name`` is the folder's name; folders are recognised by their name and numbers of pictures.
    """
    collection, _, number = dataset.name.partition(":")
    if collection in SETS and dataset.train[0].path is None:
        return collection, number
    if MVTEC_AD_PICTURES.get(name) == (len(dataset.train) + len(dataset.calibration), len(dataset.test)):
        return MVTEC_AD, name
    return None


def published_value(system: str, metric: str, key: tuple[str, str] | None) -> tuple[float, str] | None:
    """(value, source) of the class ``key``, as `class_of` returns it; None if the paper does not report it."""
    row = None if key is None else _BY_KEY.get((system, key[0], metric))
    if row is None or key is None or not row.classes:
        return None
    return row.classes[_CLASSES[key[0]].index(key[1])], row.source


def published_mean(system: str, metric: str, keys: Sequence[tuple[str, str] | None]) -> tuple[float, str] | None:
    """(mean, source) over exactly the classes ``keys``; None if the paper does not report it."""
    if not keys or None in keys:
        return None
    collections = {key[0] for key in keys if key is not None}
    names = [key[1] for key in keys if key is not None]
    row = _BY_KEY.get((system, next(iter(collections)), metric)) if len(collections) == 1 else None
    if row is None:
        return None
    if set(names) == set(_CLASSES[row.collection]):
        return row.mean, row.source
    values = [published_value(system, metric, key) for key in keys]
    numbers = [value[0] for value in values if value is not None]
    return (float(np.mean(numbers)), row.source) if len(numbers) == len(values) else None
