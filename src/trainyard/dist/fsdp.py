"""The former place of `trainyard.distributed.fsdp.FSDP`."""

from trainyard.distributed.fsdp import FSDP

__all__ = ["FSDP"]
