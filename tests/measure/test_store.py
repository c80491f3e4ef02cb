"""What is kept is whole, belongs to what asks for it, and is as old as it says; else it is as if it were not there."""

import datetime
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pytest_quantbudget.core import places
from pytest_quantbudget.measure import store
from pytest_quantbudget.measure.store import Damaged, Entry, Key, Store

KEY = Key("nf4-abc", "load", {"revision": "r1", "options": {"double_quant": True, "t": 6.0}, "gpus": []})
OTHER = Key("nf4-abc", "load", {"revision": "r2"})
PAYLOAD = {"weights": 12, "text": "naïve \u2028 \U0001f535", "list": [1.5, None]}


def at(place: Path | str) -> Store:
    """A store without a memory of notes."""
    return Store(str(place))


@pytest.mark.parametrize("remote", [False, True], ids=["directory", "URL"])
def test_what_is_put_is_got_by_every_store_at_the_place(tmp_path: Path, remote: bool) -> None:
    place = f"memory://{tmp_path}" if remote else str(tmp_path / "deep" / "cache")
    before = store.now()
    at(place).put(KEY, PAYLOAD)
    kept = at(place)
    entry = kept.get(KEY)
    assert entry is not None
    assert entry.payload == PAYLOAD
    assert before <= entry.made <= store.now()
    assert kept.get(OTHER) is None
    assert Store(place, refresh=True).get(KEY) is None
    kept.drop([KEY, OTHER])
    assert kept.get(KEY) is None
    assert kept.notes == []


def cut(data: bytes) -> bytes:
    return data[:-20]


def flipped(data: bytes) -> bytes:
    return data.replace(b'"weights": 12', b'"weights": 13')


def empty(data: bytes) -> bytes:
    return b""


def foreign(data: bytes) -> bytes:
    return store.encode(OTHER.content, PAYLOAD, store.now())


def of_another_form(data: bytes) -> bytes:
    return data.replace(b"entry-1", b"entry-2")


DAMAGES = [cut, flipped, empty, foreign, of_another_form]


@pytest.mark.parametrize("remote", [False, True], ids=["directory", "URL"])
@pytest.mark.parametrize("damage", DAMAGES, ids=lambda f: f.__name__)
def test_a_damaged_entry_is_set_aside_with_a_note(
    tmp_path: Path, damage: Callable[[bytes], bytes], remote: bool
) -> None:
    place = f"memory://{tmp_path}" if remote else str(tmp_path)
    kept = at(place)
    kept.put(KEY, PAYLOAD)
    files: places.Place = places.at(place)
    whole = files.read(KEY.name)
    assert whole is not None
    damaged = damage(whole)
    assert damaged != whole
    files.write(KEY.name, damaged)
    assert kept.get(KEY) is None
    (note,) = kept.notes
    assert note.startswith("the stored load in nf4-abc was set aside and measured again: it")
    assert files.read(KEY.name) is None
    assert files.read(f"{KEY.name}.damaged") == damaged, "kept to be looked into"
    kept.put(KEY, PAYLOAD)
    assert kept.get(KEY) is not None


def test_the_reason_of_damage_is_named() -> None:
    with pytest.raises(Damaged, match="checksum"):
        store.decode(b"quantbudget-entry-1 0\n{}", KEY.content)
    with pytest.raises(Damaged, match="another measurement"):
        store.decode(foreign(b""), KEY.content)


def test_a_place_that_cannot_be_used_costs_reuse_and_is_noted_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    kept = at(tmp_path / "file" / "cache")
    for _ in range(3):
        kept.put(KEY, PAYLOAD)
        assert kept.get(KEY) is None
    (note,) = kept.notes
    assert "cannot be written (Not a directory)" in note


def test_a_remote_file_system_that_fails_in_its_own_way_costs_reuse(monkeypatch: pytest.MonkeyPatch) -> None:
    from fsspec.implementations.memory import MemoryFileSystem

    def fail(*args: Any, **more: Any) -> None:
        raise RuntimeError("no credentials")

    monkeypatch.setattr(MemoryFileSystem, "cat_file", fail)
    monkeypatch.setattr(MemoryFileSystem, "pipe_file", fail)
    kept = at("memory://nowhere")
    kept.put(KEY, PAYLOAD)
    assert kept.get(KEY) is None
    assert [note.partition("(")[2].partition(")")[0] for note in kept.notes] == ["RuntimeError: no credentials"] * 2


@pytest.mark.parametrize(
    ("protocol", "requests"),
    [
        ("s3", ["pipe_file"]),
        (("gs", "gcs"), ["pipe_file"]),
        ("sftp", ["makedirs", "pipe_file", "mv"]),
        (("memory",), ["makedirs", "pipe_file", "mv"]),
    ],
)
def test_an_object_store_is_asked_once_an_entry_and_needs_no_right_to_delete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, protocol: str | tuple[str, ...], requests: list[str]
) -> None:
    import fsspec
    from fsspec.implementations.memory import MemoryFileSystem

    asked: list[str] = []

    class Recorded(MemoryFileSystem):  # type: ignore[misc]  # fsspec has no types
        cachable = False

        def makedirs(self, *args: Any, **more: Any) -> None:
            asked.append("makedirs")

        def pipe_file(self, *args: Any, **more: Any) -> None:
            asked.append("pipe_file")
            super().pipe_file(*args, **more)

        def mv(self, *args: Any, **more: Any) -> None:
            asked.append("mv")
            super().mv(*args, **more)

    monkeypatch.setattr(Recorded, "protocol", protocol)
    monkeypatch.setattr(fsspec.core, "url_to_fs", lambda url: (Recorded(), str(tmp_path)))
    kept = at("any://place")
    kept.put(KEY, PAYLOAD)
    assert asked == requests
    entry = kept.get(KEY)
    assert entry is not None
    assert entry.payload == PAYLOAD


def test_a_writer_that_dies_leaves_the_old_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = at(tmp_path)
    kept.put(KEY, PAYLOAD)

    def die(handle: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.fsync", die)
    with pytest.raises(KeyboardInterrupt):
        kept.put(KEY, {"weights": 13})
    entry = kept.get(KEY)
    assert entry is not None
    assert entry.payload == PAYLOAD
    assert [path.suffix for path in (tmp_path / KEY.folder).iterdir()] == [".entry"]


@pytest.mark.parametrize(
    ("age_s", "young"), [(0, True), (59, True), (61, False), (-30, False)], ids=["now", "young", "old", "future"]
)
def test_an_entry_is_young_between_now_and_its_maximum_age(age_s: float, young: bool) -> None:
    entry = Entry(None, store.now() - datetime.timedelta(seconds=age_s))
    assert entry.younger_than(60) is young
