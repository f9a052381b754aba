"""Sweeps: compose every point, check, plan, run, rank."""
