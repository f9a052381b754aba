"""Epoch of batches of resident rows, each of which is gathered only when it is accessed."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import Any, Protocol, SupportsIndex, runtime_checkable

from torch import Tensor


@runtime_checkable
class ServesLazily(Protocol):
    """Protocol of a loader whose batches can be gathered by a captured step."""

    def lazy_batches(self, epoch: int = 0, start: int = 0) -> Iterator[Any]:
        """Yield the batches of `batches`, as `LazyBatch`es if they are rows of tensors on the device."""


class ResidentEpoch:
    """The batches of an epoch, as rows of tensors.

    Args:
        order: the order of the epoch on the device, int64 `[rows]`; for K members `[K, rows]`.
        batch_size: samples of a full batch, of each member.
        num_samples: samples of the epoch, of each member: the first ones of the order.
        tensors: `[N, ...]` each, on the device.
        from_rows: creates a batch from rows of the tensors, `[n, ...]` each, member by member. It computes each row
            independently, on the device.

    Attributes:
        source: equal for epochs whose rows are in the same memory.
    """

    def __init__(
        self,
        order: Tensor,
        batch_size: int,
        num_samples: int,
        tensors: tuple[Tensor, ...],
        from_rows: Callable[[tuple[Tensor, ...]], tuple[Tensor, ...]],
    ) -> None:
        self.tensors = tensors
        self.from_rows = from_rows
        self.source: Hashable = (batch_size, num_samples, *(tensor.data_ptr() for tensor in tensors))
        self._order = order[..., :num_samples]
        self._size = batch_size
        self._samples = num_samples
        self._members = order[..., 0].numel()

    def batches(self, start: int = 0) -> Iterator[LazyBatch]:
        """Yield the batches from number `start` on."""
        for number in range(start, -(-self._samples // self._size)):
            yield LazyBatch.of(self, number)

    def samples(self, number: int) -> int:
        """Return the number of samples of a batch, of each member."""
        return min(self._size, self._samples - number * self._size)

    def num_rows(self, number: int) -> int:
        """Return the number of rows of a batch, summed over all members."""
        return self._members * self.samples(number)

    def rows(self, number: int) -> Tensor:
        """Return the rows of a batch, int64 `[num_rows]`."""
        first = number * self._size
        return self._order[..., first : first + self._size].reshape(-1)

    def gather(self, number: int) -> tuple[Tensor, ...]:
        """Return a batch."""
        rows = self.rows(number)
        return self.from_rows(tuple(tensor.index_select(0, rows) for tensor in self.tensors))

    def empty_table(self) -> Tensor:
        """Return a table for `fill`."""
        return self._order.new_zeros(-(-self._samples // self._size), self._members * self._size)

    def fill(self, table: Tensor) -> None:
        """Write the rows of all batches: the rows of batch i are the first `num_rows(i)` numbers of `table[i]`."""
        full = self._samples // self._size
        whole = self._order[..., : full * self._size]
        whole = whole.view(*whole.shape[:-1], full, self._size).movedim(-2, 0)
        table[:full].view(whole.shape).copy_(whole)
        if full < len(table):
            table[full, : self.num_rows(full)] = self.rows(full)


class LazyBatch(tuple[Tensor, ...]):
    """Batch of an epoch that is gathered when it is first accessed.

    It is a tuple for all Python code; code that reads the memory of a tuple instead of calling `__iter__` or
    `__getitem__` finds no entries. `LazyBatch(parts)` is a plain tuple, so that code can create a batch of the same
    type from other parts.

    Attributes:
        epoch: the epoch to which the batch belongs.
        number: its number in the epoch.
    """

    epoch: ResidentEpoch
    number: int
    _gathered: tuple[Tensor, ...] | None

    def __new__(cls, parts: Iterable[Any] = ()) -> Any:
        return tuple(parts)

    @classmethod
    def of(cls, epoch: ResidentEpoch, number: int) -> LazyBatch:
        """Return batch `number` of an epoch."""
        self: LazyBatch = tuple.__new__(cls)
        self.epoch, self.number, self._gathered = epoch, number, None
        return self

    @property
    def is_gathered(self) -> bool:
        """Whether the batch was accessed and may have been changed."""
        return self._gathered is not None

    @property
    def samples(self) -> int:
        """Number of samples, of each member."""
        return self.epoch.samples(self.number)

    @property
    def signature(self) -> Hashable:
        """Equal for batches that the same graph can gather."""
        return LazyBatch, self.epoch.source, self.epoch.num_rows(self.number)

    def gathered(self) -> tuple[Tensor, ...]:
        """Return the batch as a plain tuple, the same each time."""
        if self._gathered is None:
            self._gathered = self.epoch.gather(self.number)
        return self._gathered

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.gathered())

    def __len__(self) -> int:
        return len(self.gathered())

    def __getitem__(self, index: SupportsIndex | slice) -> Any:
        return self.gathered()[index]

    def __contains__(self, value: object) -> bool:
        return value in self.gathered()

    def __add__(self, other: Any) -> Any:
        return self.gathered() + other

    def __radd__(self, other: Any) -> Any:
        return other + self.gathered()

    def __eq__(self, other: object) -> bool:
        return self is other or self.gathered() == other

    def __hash__(self) -> int:
        return hash(self.gathered())

    def __repr__(self) -> str:
        return repr(self.gathered())

    def __reduce__(self) -> Any:
        return tuple, (self.gathered(),)
