"""Jobs of a sweep in the lanes of a stack: jobs that join become members; members that leave are tested and
reported."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from omegaconf import DictConfig

from trainyard.config.current_job import current_job
from trainyard.config.resolving import resolve
from trainyard.errors import TrainyardError
from trainyard.fused.feed import LaneJob, Span
from trainyard.fused.results import MemberResult, result_of
from trainyard.run import record
from trainyard.run.rungs import checkpoint_hook
from trainyard.run.train import Record, conclude
from trainyard.track.sweep_position import SweepPosition

if TYPE_CHECKING:
    from trainyard.fused.member import StackMember
    from trainyard.fused.runner import FusedRunner


Place = tuple[int, int, int, int]


class JobSource(Protocol):
    """Source of the jobs of a stack in a sweep. Jobs are numbered in the order in which they come."""

    @property
    def closed(self) -> bool:
        """Whether no more jobs will come."""

    def take(
        self, count: int, *, wait: bool, interrupted: Callable[[], bool]
    ) -> Iterable[tuple[int, DictConfig, SweepPosition]]:
        """Return the next jobs: the number of each, its config with its `hydra` node, and its position in the sweep.

        A config is valid until the next one is requested.

        Args:
            count: the maximum number of jobs.
            wait: wait for a job, unless none will come.
            interrupted: whether to stop waiting.
        """

    def placed(self, places: Sequence[Place], width: int) -> None:
        """Record in which lanes jobs train from here on. The method returns after the lanes are recorded.

        Args:
            places: the number of each job, its lane, its epoch and its iteration.
            width: the lanes of the stack.
        """

    def left(self, number: int, result: MemberResult) -> None:
        """Report how a job has ended, or that it pauses. Can be called by any thread."""

    def refused(self, number: int, reason: str) -> None:
        """Report that a job cannot train in this stack."""

    def asked(self) -> Sequence[tuple[int, bool]]:
        """Return the numbers of jobs that must leave, each once, and whether each pauses. It is called often."""

    def unfed(self) -> None:
        """Report that, contrary to the plan, no jobs join or leave this stack."""


class JobLanes:
    """Feed of a stack whose jobs come from a sweep.

    Args:
        source: the source of the jobs.
        facts: properties of the machine and the code, for the records of the jobs.
        metrics: the metrics that the sweep requests; empty for the objective.

    Attributes:
        stack: the Runner that receives the jobs.
    """

    def __init__(self, source: JobSource, facts: Mapping[str, str], metrics: Sequence[str] = ()) -> None:
        self._source = source
        self._facts = facts
        self._metrics = metrics
        self.stack: FusedRunner | None = None
        self._record: Record | None = None
        self._values: dict[int, Mapping[str, Any]] = {}

    def begin(self, own: Record) -> None:
        """Initialize the records of all members."""
        self._record = own

    @property
    def closed(self) -> bool:
        return self._source.closed

    def take(self, count: int, *, wait: bool) -> Sequence[LaneJob]:
        runner = self._stack
        jobs = []
        for number, config, position in self._source.take(count, wait=wait, interrupted=lambda: runner.interrupted):
            with current_job(config):
                values = resolve(config)
                info = record.describe(values, self._facts, position)
            self._values[number] = values
            jobs.append(LaneJob(values, info, position, number))
        return jobs

    def cutting(self) -> None:
        """Save all members, because they get other rows, in which the bits can differ: a run that continues after a
        kill must not repeat epochs in other rows."""
        if (hook := checkpoint_hook(self._stack)) is not None:
            hook.save_now(self._stack)

    def placed(self, spans: Sequence[Span]) -> None:
        if spans:
            places = [(span.member.number, span.lane, span.epoch, span.iter) for span in spans]
            self._source.placed(places, spans[0].width)
        assert self._record is not None
        for span in spans:
            if (values := self._values.pop(span.member.number, None)) is not None:
                record.write_files(self._stack, [values], [span.member], self._record.example)

    def asked(self) -> Sequence[tuple[int, bool]]:
        return self._source.asked()

    def left(self, members: Sequence[StackMember]) -> None:
        runner = self._stack
        runner.scalars.flush()
        hook = checkpoint_hook(runner)
        gone = [member for member in members if member.paused]
        ended = [member for member in members if not member.paused]
        if ended and self._conclude(ended):
            gone += ended
        reports = []
        for member in gone:
            if member.dismissed:  # as the single run would have been interrupted
                member.paused = False
            member.close(*(("KILLED", "interrupted") if member.dismissed else ("FINISHED",)))
            member.journal.close()
            result = result_of(member, self._metrics, interrupted=member.dismissed)
            reports.append(partial(self._source.left, member.number, result))
        if hook is not None:
            hook.then(*reports)
        else:
            for report in reports:
                report()
        kept = {id(member) for member in gone}
        runner.all_members = [member for member in runner.all_members if id(member) not in kept]

    def refused(self, job: LaneJob, error: TrainyardError) -> None:
        assert job.number is not None
        self._source.refused(job.number, str(error).strip().partition("\n")[0])

    @property
    def _stack(self) -> FusedRunner:
        assert self.stack is not None
        return self.stack

    def _conclude(self, members: Sequence[StackMember]) -> bool:
        """Test members, and conclude their runs; return whether this was not interrupted."""
        runner = self._stack
        hook = checkpoint_hook(runner)
        if hook is not None:
            hook.wait()
        fit = [member for member in members if not member.failed]
        assert self._record is not None
        if fit:
            with runner.apart(fit):
                conclude(runner, fit, self._record)
        return not runner.interrupted
