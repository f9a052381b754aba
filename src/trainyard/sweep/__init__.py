"""Sweeps: compose all jobs, check, plan, run and rank them."""
