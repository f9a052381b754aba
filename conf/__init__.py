"""Makes the wheel's ``trainyard/conf`` a package, which Hydra's ``pkg://trainyard.conf`` needs."""
