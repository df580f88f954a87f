"""The operations in Triton, for NVIDIA GPUs."""
