"""The optimization step captured into a CUDA graph."""
