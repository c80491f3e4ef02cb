"""Reads and writes files safely: only allowed paths, only regular files, no endless input, no half-written output."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import os
import stat
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

_PACKAGE = Path(__file__).resolve().parents[1]
BUILTIN_DIR = _PACKAGE / "builtin"
# A wheel carries them in the package (see pyproject.toml); in a checkout they lie beside it.
SHIPPED_BUDGETS = (_PACKAGE if (_PACKAGE / "budgets").is_dir() else _PACKAGE.parent) / "budgets"
HALF = ".half"  # how the names of files end that are still being written
LONGEST = 5000  # characters of a name; no system has longer paths, and looking each of its folders up takes long


class TooLarge(ValueError):
    """A file is longer than what is read of its kind; `size` in bytes."""

    def __init__(self, size: int) -> None:
        super().__init__(f"{size:,} bytes long")
        self.size = size


def opened(path: Path) -> BinaryIO:
    """A regular file, opened for reading. Raises OSError, also for a directory, a pipe or a device."""
    _check_regular(path, os.stat(path))  # noqa: PTH116  # opening some devices does something already
    # Should a pipe have come in between, opening it must not wait for a writer.
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        _check_regular(path, os.fstat(handle))
        return os.fdopen(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def _check_regular(path: Path, status: os.stat_result) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "not a regular file", str(path))


def read(path: Path, limit: int) -> bytes:
    """All of a regular file.

    Raises OSError where it cannot be read, TooLarge where it holds more than `limit` bytes.
    """
    with opened(path) as file:
        size = os.fstat(file.fileno()).st_size
        data = b"" if size > limit else file.read(limit + 1)
    if max(size, len(data)) > limit:
        raise TooLarge(max(size, len(data)))
    return data


class Roots:
    """The folders that a budget may reach into, besides the package's own data; everything where `folders` is None.

    What a path leads to is looked up when it is checked. Whoever can change the folders between check and use can
    change the files in them as well, so that race gives nothing that was not to be had before.
    """

    def __init__(self, folders: Sequence[Path] | None) -> None:
        self.folders = None if folders is None else tuple(map(_real, (*folders, BUILTIN_DIR, SHIPPED_BUDGETS)))

    def with_folder(self, folder: Path) -> Roots:
        """These folders and one more."""
        return self if self.folders is None else Roots((*self.folders, folder))

    def hold(self, path: Path) -> bool:
        """Whether a path leads to something inside, links followed."""
        return self.folders is None or _within(_real(path), self.folders)

    def refuse(self, folder: Path, name: str) -> str | None:
        """Why `name`, seen from `folder`, must not be followed; None where it may.

        The words depend on the name alone, so that they tell nothing about what lies outside.
        """
        if self.folders is None:
            return None
        try:
            path = _real(folder) / Path(name[:LONGEST]).expanduser()
        except RuntimeError:  # the home of an unknown user
            path = Path(os.sep, name)
        if self.hold(path):
            return None
        named = Path(os.path.abspath(path))  # noqa: PTH100  # resolve() would show where links outside lead
        if _within(named, self.folders):
            return f"{name!r} leads outside the repository; the ini line `quant_allow_paths = DIR` allows a directory"
        return f"{name!r} lies outside the repository; the ini line `quant_allow_paths = {named}` allows it"

    def stray(self, folder: Path) -> Path | None:
        """A link in a directory, or in one directly in it, that leads outside; None where there is none."""
        level = [folder] if self.folders is not None else []
        for _ in range(2):
            entries = [entry for parent in level for entry in _entries(parent)]
            for entry in entries:
                if entry.is_symlink() and not self.hold(entry):
                    return entry
            level = [entry for entry in entries if entry.is_dir()]
        return None


EVERYWHERE = Roots(None)


def _entries(folder: Path) -> Sequence[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return ()


def _real(path: Path) -> Path:
    try:
        return path.resolve()
    except (OSError, RuntimeError, ValueError):  # links in a circle, a null byte
        return Path(os.path.abspath(path))  # noqa: PTH100


def _within(path: Path, folders: Sequence[Path]) -> bool:
    return any(path.is_relative_to(folder) for folder in folders)


@contextlib.contextmanager
def replacing(path: Path, mode: int | None = None) -> Iterator[Path]:
    """A temporary file beside `path` that takes its place at the end: a reader sees the old file or the new one whole.

    The file gets the rights of any new one, or those of `mode`. Where the block raises, `path` stays as it is. The
    temporary file is locked meanwhile, so that one that a killed process has left is known by its free lock.
    """
    temporary, handle = _locked_temporary(path)
    try:
        yield temporary
        temporary.chmod(0o666 & ~_umask() if mode is None else mode)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    finally:
        os.close(handle)


def _locked_temporary(path: Path) -> tuple[Path, int]:
    while True:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:80]}.", suffix=HALF)
        # Whoever removes abandoned files may have been quicker than the lock.
        if _lock(handle) is not False and Path(name).exists():
            return Path(name), handle
        os.close(handle)


def _lock(handle: int) -> bool | None:
    """Whether nobody else holds an open file's lock, which is taken and ends with the process; None without locks."""
    try:
        import fcntl
    except ImportError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return None
    return True


def remove_abandoned(path: Path) -> None:
    """Remove a temporary file of `replacing` whose process has been killed."""
    with contextlib.suppress(OSError):
        handle = os.open(path, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0))
        try:
            if _lock(handle):
                path.unlink()
        finally:
            os.close(handle)


def write(path: Path, data: bytes, mode: int | None = None) -> None:
    """Write a file whole (see `replacing`), and durably: its name never outlives a power cut that its bytes did not."""
    with replacing(path, mode) as temporary, temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def write_new(path: Path, data: bytes) -> None:
    """`write` a file that must not be there yet. Raises FileExistsError where it is, also by then."""
    temporary, handle = _locked_temporary(path)
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_umask())
        try:
            # A second name, which takes no other file's place.
            os.link(temporary, path)
        except FileExistsError:
            raise
        except OSError:  # a file system without such names
            with path.open("xb"):
                temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
        os.close(handle)


def _umask() -> int:
    """The process's file mode creation mask."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def default_cache() -> Path | None:
    """`$XDG_CACHE_HOME/pytest-quantbudget`, by default under `~/.cache`; None for a user without a home.

    A relative `$XDG_CACHE_HOME` is ignored, as the XDG Base Directory Specification 0.8 says.
    """
    named = Path(os.environ.get("XDG_CACHE_HOME", ""))
    try:
        base = named if named.is_absolute() else Path.home() / ".cache"
    except RuntimeError:
        return None
    return base.absolute() / "pytest-quantbudget"


def file_hash(path: Path) -> str:
    """SHA-256 of a file. Raises OSError."""
    return f"sha256:{digest(path).hex()}"


def digest(path: Path) -> bytes:
    """SHA-256 of a file, as bytes. Raises OSError."""
    # hashlib.file_digest is newer than the oldest Python that may run a measuring process.
    found = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            found.update(block)
    return found.digest()


def path_from(folder: Path, name: str) -> Path:
    """The path that `name` means in `folder`; one that does not exist where it is not valid (`~nobody`, null byte)."""
    try:
        path = folder / Path(name[:LONGEST]).expanduser()
        path.resolve().exists()
    except (OSError, RuntimeError, ValueError):
        return Path(os.devnull, "nothing")
    return path


def named_folder(base: Path, name: str) -> Path:
    """The folder that naming a budget on the command line opens to it: a directory, or that of a file or a glob.

    Whoever names a link means the file that it leads to. What a directory or glob finds was not named, so a link there
    opens nothing.
    """
    path = path_from(base, name)
    if path.is_file():
        return path.resolve().parent
    plain = itertools.takewhile(lambda part: not set(part) & set("*?["), path.parts)
    return path if path.is_dir() else Path(*plain)
