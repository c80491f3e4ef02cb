"""Folders that hold no results: one in which a run's processes share measurements, and one of device locks."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from pathlib import Path

from filelock import FileLock, Timeout

from pytest_quantbudget.core import files

PREFIX = "quantbudget-"
LOCK = "run.lock"
OLD_S = 60.0


class RunFolder:
    """A new folder for one run, with a lock that says that the run is alive; those of dead runs are removed."""

    def __init__(self) -> None:
        sweep()
        self.path = Path(tempfile.mkdtemp(prefix=PREFIX))
        self._alive = FileLock(self.path / LOCK)
        self._alive.acquire()

    def remove(self) -> None:
        """The run is over."""
        self._alive.release()
        shutil.rmtree(self.path, ignore_errors=True)


def sweep() -> None:
    """Remove the folders of killed runs of this user: no process holds their lock."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*/"):
        try:
            stat = folder.lstat()
            if stat.st_uid != os.getuid() or time.time() - stat.st_mtime < OLD_S or folder.is_symlink():
                # Another user's, or so new that its run may not hold the lock yet.
                continue
            with FileLock(folder / LOCK, timeout=0):
                shutil.rmtree(folder, ignore_errors=True)
        except (OSError, Timeout):
            continue


def device_locks(otherwise: Path) -> Path:
    """Where all runs of this user lock their devices, whatever cache they use."""
    try:
        folder = files.default_cache() / "locks"
    except RuntimeError:  # a user without a home
        return otherwise
    return folder if unwritable(folder) is None else otherwise


def unwritable(folder: Path) -> str | None:
    """Why nothing can be written in a folder, which is made where it is not there; None where it can."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"x" * 4096)
            file.flush()
    except OSError as error:
        return error.strerror or str(error)
    return None
