"""The former place of `trainyard.distributed.ddp.DDP`."""

from trainyard.distributed.ddp import DDP

__all__ = ["DDP"]
