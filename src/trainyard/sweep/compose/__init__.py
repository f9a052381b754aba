"""Fast composition of many configs over Hydra's internals."""
