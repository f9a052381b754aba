"""Why members cannot train as one program."""

from __future__ import annotations

from trainyard.errors import TrainyardError


class Unfusable(TrainyardError):  # noqa: N818 - a finding, not a fault: the members train on their own
    """The members cannot be stacked; the message is the reason, as the plan of a sweep shows it."""
