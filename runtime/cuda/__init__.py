"""What runs on an NVIDIA GPU: the driver, kernels and their launches, CUDA graphs, and the inspector made of them."""
