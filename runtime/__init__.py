"""What runs on the device: engines, preprocessing, scoring, sources, sinks and the pipeline. Never imports torch."""

if __name__ != "adedge.runtime":
    raise ImportError("import this package as 'adedge.runtime' (pip install -e .), not by its folder name")

import logging

# What the rooms log (TensorRT's messages, the kernel cache's warnings) is for who asks for it, not for stderr.
logging.getLogger("adedge").addHandler(logging.NullHandler())
