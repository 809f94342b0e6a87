"""Inspection on an NVIDIA GPU: driver, kernel cache, launches, CUDA graphs and the inspector built from them."""
