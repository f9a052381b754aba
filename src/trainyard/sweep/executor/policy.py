"""Policy for tasks that fail or hang."""

from __future__ import annotations

from dataclasses import dataclass

from trainyard.checks import boolean, integer, number


@dataclass(frozen=True)
class Policy:
    """Policy for tasks that fail or hang.

    Attributes:
        retries: the number of additional attempts for a task that fails or is lost.
        timeout: the maximum number of seconds of an attempt. The task then receives SIGTERM, and SIGKILL after `grace`,
            and is not retried.
        fail_fast: when a task has failed and is not retried, stop the other tasks: SIGTERM, and SIGKILL after `grace`.
        grace: the number of seconds from SIGTERM to SIGKILL.

    Raises:
        ConfigError: a value is out of range.
    """

    retries: int = 0
    timeout: float | None = None
    fail_fast: bool = False
    grace: float = 30.0

    def __post_init__(self) -> None:
        integer("retries", self.retries, at_least=0)
        if self.timeout is not None:
            number("timeout", self.timeout, above=0, unit="seconds", other="null for never")
        boolean("fail_fast", self.fail_fast)
        number("grace", self.grace, at_least=0, unit="seconds")
