"""Order of an epoch on the device, with which captured steps gather their batches."""

from __future__ import annotations

from torch import Tensor

from trainyard.data.resident_epoch import LazyBatch, ResidentEpoch
from trainyard.step.cuda_graph.take_rows import RowTable, take_rows


class GraphOrder:
    """Table of the rows of each batch of an epoch, and a counter that every captured step advances.

    A step transfers and copies nothing: the graph reads the rows of the batch at the counter and advances the counter.
    The table is written once per epoch. The counter is written if the next batch does not follow the last one that a
    graph has gathered: at the start of an epoch, after a resume, and after steps without a graph.

    Args:
        epoch: one of the epochs that will be gathered, which differ only in order.
    """

    def __init__(self, epoch: ResidentEpoch) -> None:
        self._table = RowTable.of(epoch.empty_table())
        self._epoch: ResidentEpoch | None = None
        """The current content of the table."""
        self._at: int | None = None
        """Value of the counter; None if unknown."""

    def warm_up(self, batch: LazyBatch) -> None:
        """Gather a batch outside a graph, so that a kernel is compiled before a capture."""
        self.refresh(batch)
        self.gather(batch)
        self._table.counter.fill_(batch.number)
        self._at = batch.number

    def gather(self, batch: LazyBatch) -> tuple[Tensor, ...]:
        """Gather the batch at the counter, one of the signature of `batch`, and advance it: the work of a graph."""
        epoch = batch.epoch
        return epoch.from_rows(take_rows(epoch.tensors, self._table, epoch.num_rows(batch.number)))

    def refresh(self, batch: LazyBatch) -> None:
        """Make sure that the next replay gathers `batch`; `stepped` is called after it."""
        at, self._at = self._at, None  # until the step is through
        if batch.epoch is not self._epoch:
            batch.epoch.fill(self._table.rows)
            self._epoch = batch.epoch
        if at != batch.number:
            self._table.counter.fill_(batch.number)  # the number is an argument of the kernel: nothing waits

    def stepped(self, batch: LazyBatch) -> None:
        """Count the replay that has gathered `batch`."""
        self._at = batch.number + 1
