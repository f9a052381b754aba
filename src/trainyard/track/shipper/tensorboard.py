"""Event file of TensorBoard, written from a run's journal."""

from __future__ import annotations

import os
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from trainyard.track import journal
from trainyard.track.run_info import RunInfo
from trainyard.track.shipped import checksum_before
from trainyard.track.shipper.copies import Position

FOLDER = "tensorboard"


def copy(work_dir: Path, info: RunInfo, position: Position) -> Position:
    """Append the metrics of the journal after `position` to the event file, with their own steps and times.

    The file is truncated to `position.size`; the rest comes from a process that was killed before it recorded its
    position.

    Returns:
        The position of the end of the journal.
    """
    folder, path = work_dir / FOLDER, work_dir / journal.FILE
    folder.mkdir(exist_ok=True)
    file = folder / f"events.out.tfevents.{info.start_time:.0f}.{info.id}"
    offset = position.offset
    with os.fdopen(os.open(file, os.O_RDWR | os.O_CREAT, 0o666), "r+b") as events:
        if events.seek(0, os.SEEK_END) < position.size:  # another file than the one that was written
            offset, position = 0, Position()
        events.truncate(position.size)
        events.seek(position.size)
        writer = RecordWriter(events)
        if not position.size:
            writer.write(Event(wall_time=info.start_time, file_version="brain.Event:2").SerializeToString())
        for record, end in journal.read(path, offset):
            if record["kind"] == "metrics":
                values = [Summary.Value(tag=name, simple_value=value) for name, value in record["values"].items()]
                event = Event(wall_time=record["time"], step=record["step"], summary=Summary(value=values))
                writer.write(event.SerializeToString())
            offset = end
        events.flush()
        size = events.tell()
    return Position(offset, checksum_before(path, offset), size)
