"""adedge: visual anomaly detectors from photographs to a Jetson engine, proven to give the same verdicts as the model.

`__all__` lists the public interface; anything else may change between versions. Importing this package is cheap: each
name is loaded from its module on first use.

    import adedge

    dataset = adedge.load_dataset("photos/good")
    method = adedge.method_named("hfr").for_dataset(dataset)
    bundle = adedge.train(method, dataset, output="bottle.adedge")
    bundle, _ = adedge.export_graphs(bundle)
    bundle = adedge.calibrate(bundle, dataset).bundle
    bundle = adedge.build_engine(bundle, adedge.EngineKey("onnxruntime", "fp32"))

    with adedge.open_inspector("bottle.adedge") as inspector:
        verdict = inspector.judge(image)  # uint8 (H, W, 3), BGR
"""

if __name__ != "adedge":
    raise ImportError("import this package as 'adedge' (pip install -e .), not by its folder name")

from typing import TYPE_CHECKING as _TYPE_CHECKING

if _TYPE_CHECKING:
    from adedge.benchmarks.measure import BenchmarkOptions as BenchmarkOptions
    from adedge.benchmarks.measure import benchmark as benchmark
    from adedge.bundle import Bundle as Bundle
    from adedge.bundle import open_bundle as open_bundle
    from adedge.data.datasets import load_dataset as load_dataset
    from adedge.errors import AdedgeError as AdedgeError
    from adedge.export.build import build_engine as build_engine
    from adedge.export.calibrate import calibrate as calibrate
    from adedge.export.graphs import export_graphs as export_graphs
    from adedge.export.proof import prove as prove
    from adedge.methods.registry import method_named as method_named
    from adedge.methods.training import TrainingOptions as TrainingOptions
    from adedge.methods.training import train as train
    from adedge.runtime.inspection import open_inspector as open_inspector
    from adedge.runtime.verdict import Verdict as Verdict
    from adedge.specs import EngineKey as EngineKey

__version__ = "0.1.0"

_MODULES = {
    "AdedgeError": "adedge.errors",
    "BenchmarkOptions": "adedge.benchmarks.measure",
    "Bundle": "adedge.bundle",
    "EngineKey": "adedge.specs",
    "TrainingOptions": "adedge.methods.training",
    "Verdict": "adedge.runtime.verdict",
    "benchmark": "adedge.benchmarks.measure",
    "build_engine": "adedge.export.build",
    "calibrate": "adedge.export.calibrate",
    "export_graphs": "adedge.export.graphs",
    "load_dataset": "adedge.data.datasets",
    "method_named": "adedge.methods.registry",
    "open_bundle": "adedge.bundle",
    "open_inspector": "adedge.runtime.inspection",
    "prove": "adedge.export.proof",
    "train": "adedge.methods.training",
}

__all__ = ["__version__", *_MODULES]


def __getattr__(name: str) -> object:
    import importlib

    if name not in _MODULES:
        raise AttributeError(f"module 'adedge' has no attribute '{name}'")
    value: object = getattr(importlib.import_module(_MODULES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
