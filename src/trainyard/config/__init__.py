"""Configs: building objects, and checks before a run starts."""
