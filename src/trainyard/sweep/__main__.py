"""`python -m trainyard.sweep`: steers a running sweep, and attaches to detached ones."""

from __future__ import annotations

import sys

if __name__ == "__main__":
    if sys.argv[1:2] and sys.argv[1] in ("attach", "cancel"):
        from trainyard.sweep.detached import main
    else:
        from trainyard.sweep.steering_cli import main

    sys.exit(main())
