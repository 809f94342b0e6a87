"""What runs on the device: engines, preprocessing, scoring, sources, sinks and the pipeline. Never imports torch."""

if __name__ != "adedge.runtime":
    raise ImportError("import this package as 'adedge.runtime' (pip install -e .), not by its folder name")

import logging

# Log messages (TensorRT's, the kernel cache's warnings) reach only applications that configure logging, never stderr.
logging.getLogger("adedge").addHandler(logging.NullHandler())
