"""Sweeps on nodes that share no disk: code and calls go to the nodes, files go to and fro through a storage."""
