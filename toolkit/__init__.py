"""adedge: visual anomaly detectors from photographs of good parts to an engine on a Jetson, proven equal on the way.

Importing this package loads nothing heavy; each room imports what it needs where it needs it.
"""

if __name__ != "adedge":
    raise ImportError("import this package as 'adedge' (pip install -e .), not by its folder name")

__version__ = "0.1.0"
