"""CUDA graph capture of the optimization step."""
