"""Where files of results lie that several machines may share: a local directory, or any URL that fsspec knows."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from pytest_quantbudget.core import files

MAX_BYTES = 200_000_000
# Where one request puts an object whole or not at all (Amazon S3 User Guide, "Data consistency model"; Cloud Storage,
# "Consistency"), and a rename would be a copy and a removal, which needs the right to delete.
OBJECT_STORES = {"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "oss", "oci", "tos"}


class Place(Protocol):
    """Where entries lie. Every method raises OSError where the place cannot be used."""

    def read(self, name: str) -> bytes | None:
        """The bytes under a name, or None."""

    def read_all(self, names: Sequence[str]) -> Mapping[str, bytes | None]:
        """The bytes under each name; None where there are none, or where they cannot be read."""

    def sizes(self) -> Mapping[str, int]:
        """The names of the files that lie directly here, with their sizes in bytes; none where there is no place."""

    def write(self, name: str, data: bytes) -> None:
        """Put bytes under a name: a reader sees all of them or none."""

    def move(self, name: str, new: str) -> None:
        """Rename."""

    def remove(self, name: str) -> None:
        """Remove what is there."""


class Folder:
    """A local directory."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self, name: str) -> bytes | None:
        """The bytes under a name, or None."""
        try:
            if (self.path / name).stat().st_size > MAX_BYTES:
                return b""  # none of ours, and damaged as such
            return (self.path / name).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None

    def read_all(self, names: Sequence[str]) -> Mapping[str, bytes | None]:
        """The bytes of each file; None for what is no regular file, and for one that cannot be read."""
        return {name: self._whole(name) for name in names}

    def _whole(self, name: str) -> bytes | None:
        try:
            return files.read(self.path / name, MAX_BYTES)
        except (OSError, files.TooLarge):
            return None

    def sizes(self) -> Mapping[str, int]:
        """The names of what lies directly here and is no directory, with sizes in bytes."""
        try:
            with os.scandir(self.path) as entries:
                return {entry.name: _size(entry) for entry in entries if not entry.is_dir()}
        except FileNotFoundError:
            return {}

    def write(self, name: str, data: bytes) -> None:
        """Put bytes under a name: a reader sees all of them or none."""
        target = self.path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        files.write(target, data)

    def move(self, name: str, new: str) -> None:
        """Rename."""
        (self.path / name).replace(self.path / new)

    def remove(self, name: str) -> None:
        """Remove what is there."""
        (self.path / name).unlink(missing_ok=True)


def _size(entry: os.DirEntry[str]) -> int:
    try:
        return entry.stat().st_size
    except OSError:  # a link that leads nowhere
        return 0


class Remote:
    """Any URL that fsspec knows. But on object stores, an entry being written has another name until the end."""

    def __init__(self, url: str) -> None:
        import fsspec

        self.system, self.root = fsspec.core.url_to_fs(url)
        names = self.system.protocol
        self._whole = not OBJECT_STORES.isdisjoint([names] if isinstance(names, str) else names)

    @contextlib.contextmanager
    def _as_os_error(self) -> Iterator[None]:
        try:
            yield
        except OSError:
            raise
        except Exception as error:
            raise OSError(f"{type(error).__name__}: {error}") from error  # each file system raises its own

    def read(self, name: str) -> bytes | None:
        """The bytes under a name, or None."""
        with self._as_os_error():
            try:
                return bytes(self.system.cat_file(f"{self.root}/{name}"))
            except FileNotFoundError:
                return None

    def read_all(self, names: Sequence[str]) -> Mapping[str, bytes | None]:
        """The bytes under each name, many at once where the file system can; None for what cannot be read."""
        if not names:
            return {}
        with self._as_os_error():
            found = self.system.cat([f"{self.root}/{name}" for name in names], on_error="return")
        told = {path.rpartition("/")[2]: data for path, data in found.items()}
        return {name: data if isinstance(data := told.get(name), bytes) else None for name in names}

    def sizes(self) -> Mapping[str, int]:
        """The names of the files directly below the URL, with sizes in bytes."""
        with self._as_os_error():
            try:
                # What another machine has written since is not in a listing that was kept.
                self.system.invalidate_cache()
                entries: list[dict[str, Any]] = self.system.ls(self.root, detail=True)
            except FileNotFoundError:
                return {}
        plain = (entry for entry in entries if entry.get("type") == "file")
        return {str(entry["name"]).rpartition("/")[2]: int(entry.get("size") or 0) for entry in plain}

    def write(self, name: str, data: bytes) -> None:
        """Put bytes under a name: a reader sees all of them or none."""
        target = f"{self.root}/{name}"
        with self._as_os_error():
            if self._whole:
                self.system.pipe_file(target, data)
                return
            half = f"{target}.half-{os.getpid()}"
            self.system.makedirs(target.rpartition("/")[0], exist_ok=True)
            self.system.pipe_file(half, data)
            self.system.mv(half, target)

    def move(self, name: str, new: str) -> None:
        """Rename."""
        with self._as_os_error():
            self.system.mv(f"{self.root}/{name}", f"{self.root}/{new}")

    def remove(self, name: str) -> None:
        """Remove what is there."""
        with self._as_os_error(), contextlib.suppress(FileNotFoundError):
            self.system.rm_file(f"{self.root}/{name}")


def is_url(place: str) -> bool:
    """Whether a place is a URL rather than a directory."""
    return "://" in place


def at(place: str) -> Place:
    """The place of a directory or URL. Raises as fsspec does for a URL that it does not know."""
    return Remote(place) if is_url(place) else Folder(Path(place))
