"""Detection methods, and the only room with torch: each method is one file or folder and one line of the registry.

protocol.py      the protocol of a method: options that determine a plan, networks, losses and a module to deploy
registry.py      the names of methods, in this package and in others
detectors.py     trained detectors in PyTorch: the reference that every engine is compared with
training.py      the training loop of all methods
backbones.py     pretrained networks that some methods build on
onnx_export.py   the ONNX file of a network

Importing this package does not import torch. docs/methods.md explains how to add a method.
"""

from __future__ import annotations

from adedge.methods.detectors import detector_function, input_from_frames, load_detector, predict, read_weights
from adedge.methods.protocol import (
    Method,
    NetworkArguments,
    Objective,
    OtherPictures,
    Stage,
    TrainingPlan,
    configured,
    first_sample,
)
from adedge.methods.registry import method_named, method_names, require_torch

__all__ = [
    "Method",
    "NetworkArguments",
    "Objective",
    "OtherPictures",
    "Stage",
    "TrainingPlan",
    "configured",
    "detector_function",
    "first_sample",
    "input_from_frames",
    "load_detector",
    "method_named",
    "method_names",
    "predict",
    "read_weights",
    "require_torch",
]
