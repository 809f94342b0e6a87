"""Scripts that each measure one claim of the documentation: `python -m adedge.benchmarks.studies.NAME`."""
