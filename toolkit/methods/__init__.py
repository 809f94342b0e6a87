"""Detection methods, and the only room with torch: each method is one file or folder and one line of the registry.

protocol.py      what a method is: options that give a plan, networks, losses, and a module to deploy
registry.py      their names, here and in other packages
detectors.py     what a trained one says of frames: the reference that every engine is compared with
training.py      one loop that trains them all
backbones.py     networks trained on ImageNet that some of them begin with
onnx_export.py   the ONNX file of a network

Importing this package loads no torch. docs/methods.md says how to add a method.
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
