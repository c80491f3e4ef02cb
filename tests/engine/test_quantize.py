"""Checkpoints that are made once: how long that took is noted, and told of a kept one."""

import json
import time
from pathlib import Path

import pytest

pytest.importorskip("filelock")

from pytest_quantbudget.engine import quantize


def make(target: Path) -> None:
    time.sleep(0.02)
    (target / "model.safetensors").write_bytes(b"weights")


def test_a_kept_directory_tells_how_long_it_took_to_make_it(tmp_path: Path) -> None:
    target = quantize.kept(tmp_path, "gptq-int4", {"revision": "a"}, make)
    made = quantize.making(target)
    assert made is not None
    assert 0.02 <= made[0] < 60
    assert made[1].endswith("Z")

    def never(target: Path) -> None:
        raise AssertionError("it is there")

    assert quantize.kept(tmp_path, "gptq-int4", {"revision": "a"}, never) == target
    assert quantize.making(target) == made


@pytest.mark.parametrize(
    "made",
    [
        None,
        {},
        {"seconds": 0, "at": "2026-01-01T00:00:00Z"},
        {"seconds": "x", "at": "2026-01-01T00:00:00Z"},
        {"seconds": 5, "at": "<b>"},
        [5],
        {"seconds": float("inf"), "at": "2026-01-01T00:00:00Z"},
    ],
)
def test_what_an_earlier_release_or_somebody_else_wrote_is_no_time(tmp_path: Path, made: object) -> None:
    target = quantize.kept(tmp_path, "gptq-int4", {"revision": "a"}, make)
    record = target.with_name(f"{target.name}.json")
    held = json.loads(record.read_text())
    record.write_text(json.dumps({**held, "made": made}))
    assert quantize.making(target) is None
    assert quantize.kept(tmp_path, "gptq-int4", {"revision": "a"}, make) == target
    record.unlink()
    assert quantize.making(target) is None
