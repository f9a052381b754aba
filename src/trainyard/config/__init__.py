"""Configs: building objects, and the checks before anything starts."""
