"""Folders that hold no results: one in which a run's processes share measurements, and one of device locks.

What killed runs have left, there and half made in the cache, is removed by the next run.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from multiprocessing import util
from pathlib import Path

from filelock import FileLock, Timeout

from pytest_quantbudget.core import files

PREFIX = "quantbudget-"
LOCK = "run.lock"
SOCKETS = "sockets-"
OLD_S = 60.0


class RunFolder:
    """A new folder for one run, with a lock that says that the run is alive; those of dead runs are removed."""

    def __init__(self) -> None:
        sweep()
        self.path = Path(tempfile.mkdtemp(prefix=PREFIX))
        unnamed = self.path / f"{LOCK}.new"
        self._alive = FileLock(unnamed)
        self._alive.acquire()
        # Held before it has its name, so that whoever finds a lock of that name free has found a dead run.
        unnamed.rename(self.path / LOCK)

    def remove(self) -> None:
        """The run is over: so are the tests that a plugin has forked, each with a fork server of its own."""
        for note in self.path.glob(f"{SOCKETS}*"):
            if not _is_running(int(note.name.removeprefix(SOCKETS))):
                _remove_sockets(note, self.path.parent)
        self._alive.release()
        shutil.rmtree(self.path, ignore_errors=True)


def sweep() -> None:
    """Remove the folders of killed runs of this user: no process holds their lock."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*/"):
        try:
            stat = folder.lstat()
            if stat.st_uid != os.getuid() or folder.is_symlink():
                continue
            if not (folder / LOCK).exists() and time.time() - stat.st_mtime < OLD_S:
                # So new that its run may be about to take its lock.
                continue
            with FileLock(folder / LOCK, timeout=0):
                for note in folder.glob(f"{SOCKETS}*"):
                    _remove_sockets(note, folder.parent)
                shutil.rmtree(folder, ignore_errors=True)
        except (OSError, ValueError, Timeout):
            continue


def note_sockets(folder: Path) -> None:
    """Note in a run's folder where this process has the sockets of its fork server, which a kill leaves behind."""
    with contextlib.suppress(OSError):
        (folder / f"{SOCKETS}{os.getpid()}").write_text(util.get_temp_dir(), encoding="utf-8")


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _remove_sockets(note: Path, temporary: Path) -> None:
    sockets = Path(note.read_text(encoding="utf-8"))
    if sockets.parent == temporary and sockets.name.startswith("pymp-"):
        shutil.rmtree(sockets, ignore_errors=True)


@contextlib.contextmanager
def temporary_files(folder: Path) -> Iterator[str | None]:
    """A folder in a run's `folder` for the temporary files of one process, removed when that has ended.

    gptqmodel, for one, keeps a whole model in its temporary files, and a measuring process ends without the clearing up
    that Python does at exit. None where there is no room for it.
    """
    try:
        made = tempfile.mkdtemp(prefix="t", dir=folder)
    except OSError:
        yield None
        return
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


def sweep_cache(cache: Path) -> None:
    """Remove what killed runs have left in a cache: checkpoints half made, and files half written."""
    sweep_half_made(cache)
    for path in cache.rglob(f".*{files.HALF}"):
        files.remove_abandoned(path)


def sweep_half_made(cache: Path) -> None:
    """Remove the checkpoints in a cache that nobody is making any more."""
    for making in (cache / "quantized").glob("*.making"):
        with contextlib.suppress(OSError, Timeout), FileLock(making.with_suffix(".lock"), timeout=0):
            shutil.rmtree(making, ignore_errors=True)


def device_locks(otherwise: Path) -> Path:
    """Where all runs of this user lock their devices, whatever cache they use."""
    cache = files.default_cache()
    return cache / "locks" if cache is not None and unwritable(cache / "locks") is None else otherwise


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
