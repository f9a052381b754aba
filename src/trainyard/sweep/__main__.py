"""Entry point of `python -m trainyard.sweep`."""

from __future__ import annotations

import sys

from trainyard.sweep.steering_cli import main

if __name__ == "__main__":
    sys.exit(main())
