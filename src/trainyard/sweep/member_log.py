"""Log files of jobs that share a process: each job gets the same records as in a single run."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from trainyard.config.hydra_versions import configure_log


class MemberHandler(logging.Handler):
    """Appends a record to a file of each member; a record with an attribute `member` only to that member's.

    Files are opened for each record: hundreds of members would exceed the open files that a process may have.

    Args:
        files: the file of each member, by its `work_dir`.
        key: the key of the file in the config of a job.
        otherwise: the file of a job whose config names none.
    """

    def __init__(self, files: Mapping[Path, Path], key: str = "", otherwise: str = "") -> None:
        super().__init__()
        self.files = dict(files)
        self.key = key
        self.otherwise = otherwise

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
    """Configure the logging of these jobs like Hydra would configure that of the first.

    Each job has its own copy of a file that their logging writes to; other handlers get records of no single job.

    Args:
        configs: the jobs' configs, with their `hydra` node.
        work_dirs: the directories of the members.
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
            files = [_file(config, key, handler.baseFilename) for config in configs]
            own = MemberHandler(dict(zip(work_dirs, files, strict=True)), key, handler.baseFilename)
            own.setFormatter(handler.formatter)
            own.setLevel(handler.level)
            own.filters = handler.filters
            logger.addHandler(own)


def join(config: DictConfig, work_dir: Path) -> None:
    """Add a job with its own copy of each file."""
    for handler in _handlers():
        handler.files[work_dir] = _file(config, handler.key, handler.otherwise)


def leave(work_dir: Path) -> None:
    """Stop writing to the files of a job."""
    for handler in _handlers():
        handler.files.pop(work_dir, None)


def _file(config: DictConfig, key: str, otherwise: str) -> Path:
    return Path(OmegaConf.select(config.hydra.job_logging, key) or otherwise).absolute()


def _handlers() -> Iterator[MemberHandler]:
    for logger in _loggers():
        yield from (handler for handler in logger.handlers if isinstance(handler, MemberHandler))


def _loggers() -> Iterator[logging.Logger]:
    yield logging.root
    for logger in list(logging.root.manager.loggerDict.values()):
        if isinstance(logger, logging.Logger):
            yield logger


def _belongs_to_all(record: logging.LogRecord) -> bool:
    return not hasattr(record, "member")
