"""Connections between the head of a sweep and its agents: over TCP, or as files in the sweep's directory."""

from trainyard.sweep.executor.transport.base import Received, Transport, TransportError

__all__ = ["Received", "Transport", "TransportError"]
