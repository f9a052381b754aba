"""One optimization step: forward, backward, clip, optimizer."""
