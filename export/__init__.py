"""PyTorch to ONNX, FP16 and INT8 graphs, engine builders, and the self-test of each engine."""

if __name__ != "adedge.export":
    raise ImportError("import this package as 'adedge.export' (pip install -e .), not by its folder name")
