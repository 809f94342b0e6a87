"""INT8 ranges, Q/DQ placement, sensitivity, and decision thresholds from good pictures."""

if __name__ != "adedge.calibration":
    raise ImportError("import this package as 'adedge.calibration' (pip install -e .), not by its folder name")
