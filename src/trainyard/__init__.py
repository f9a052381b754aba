"""Train PyTorch models from Hydra configs, one experiment or ten thousand, tracked in MLflow."""

__version__ = "0.1.0"
