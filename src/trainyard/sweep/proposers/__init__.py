"""Proposers: they decide which jobs a sweep runs next."""

from trainyard.sweep.proposers.base import NewJob, Promote, Proposal, Proposer, Prune
from trainyard.sweep.proposers.grid import GridProposer

__all__ = ["GridProposer", "NewJob", "Promote", "Proposal", "Proposer", "Prune"]
