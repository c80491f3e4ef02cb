"""Texts whose perplexity is measured, read from files."""

import hashlib
from pathlib import Path

import pytest

from pytest_quantbudget.tasks.texts import read_text


def test_a_text_is_read_as_it_is_but_for_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(b"\xef\xbb\xbfone\r\ntwo\n")
    assert read_text(path) == "one\r\ntwo\n"
    assert read_text(path, f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}") == "one\r\ntwo\n"
    with pytest.raises(ValueError, match=r"text.txt was changed while the run was going on"):
        read_text(path, "sha256:0")


def test_what_is_no_text_is_named(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(b"one \xff")
    with pytest.raises(ValueError, match=r"text.txt: byte 4 is not UTF-8 text"):
        read_text(path)
    with pytest.raises(OSError, match=r"none.txt: No such file or directory"):
        read_text(tmp_path / "none.txt")
