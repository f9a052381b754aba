"""The log files of jobs that share a process: each gets what it would have got alone."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from trainyard.config.hydra_versions import configure_log


class MemberHandler(logging.Handler):
    """Appends a record to a file of each member; one with an attribute `member` to that member's only.

    Files are opened for each record: hundreds of members would keep more of them open than a process may.

    Args:
        files: the file of each member, by its `work_dir`.
    """

    def __init__(self, files: Mapping[Path, Path]) -> None:
        super().__init__()
        self.files = dict(files)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record) + "\n"
            for file in self._of(record):
                with file.open("a", encoding="utf-8") as stream:
                    stream.write(line)
        except Exception:
            self.handleError(record)

    def _of(self, record: logging.LogRecord) -> list[Path]:
        work_dir = getattr(getattr(record, "member", None), "work_dir", None)
        if work_dir is None:
            return list(self.files.values())
        file = self.files.get(Path(work_dir).absolute())
        return [] if file is None else [file]


def configure(configs: Sequence[DictConfig], work_dirs: Sequence[Path]) -> None:
    """Set up the logging of these jobs as Hydra would set up that of the first.

    A file that their logging writes to is one of each job's own; other handlers get what belongs to no job of its own.

    Args:
        configs: the jobs', with their `hydra` node.
        work_dirs: where the members train.
    """
    settings = configs[0].hydra.job_logging
    configure_log(settings, configs[0].hydra.verbose)
    for logger in _loggers():
        for handler in list(logger.handlers):
            if not isinstance(handler, logging.FileHandler):
                handler.addFilter(_belongs_to_all)
                continue
            logger.removeHandler(handler)
            handler.close()
            key = f"handlers.{handler.name}.filename"
            names = [OmegaConf.select(config.hydra.job_logging, key) for config in configs]
            files = [Path(name or handler.baseFilename).absolute() for name in names]
            own = MemberHandler(dict(zip(work_dirs, files, strict=True)))
            own.setFormatter(handler.formatter)
            own.setLevel(handler.level)
            own.filters = handler.filters
            logger.addHandler(own)


def _loggers() -> Iterator[logging.Logger]:
    yield logging.root
    for logger in list(logging.root.manager.loggerDict.values()):
        if isinstance(logger, logging.Logger):
            yield logger


def _belongs_to_all(record: logging.LogRecord) -> bool:
    return not hasattr(record, "member")
