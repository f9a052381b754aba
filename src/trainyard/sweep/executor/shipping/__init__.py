"""Sweeps on nodes that share no disk: code and calls are sent, and files are copied through a storage."""
