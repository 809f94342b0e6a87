"""Latency, accuracy and the report that sets one against the other."""

if __name__ != "adedge.benchmarks":
    raise ImportError("import this package as 'adedge.benchmarks' (pip install -e .), not by its folder name")
