"""Checkpoints that methods make of the user's own model, once, and that are stored: GPTQ, AWQ, GGUF, merged weights."""

from __future__ import annotations

import json
import logging
import math
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pytest_quantbudget.core import codec
from pytest_quantbudget.core.files import file_hash
from pytest_quantbudget.core.request import Subject, Trust
from pytest_quantbudget.core.units import ISO
from pytest_quantbudget.models import methods
from pytest_quantbudget.models.calibration import calibration_texts
from pytest_quantbudget.models.hub import content_hash
from pytest_quantbudget.models.methods import Spec


def quantized(subject: Subject, spec: Spec, source: Path, revision: str, cache: Path, trust: Trust) -> Path:
    """The directory of the subject's own quantization, made now unless an earlier run has left it.

    The key holds what the result depends on: weights, method, options, calibration text and library versions, and not
    the options that only say how it runs.
    """
    quantize = spec.quantize
    assert quantize is not None
    assert subject.calibration is not None or not spec.calibrated
    calibration = Path(subject.calibration) if subject.calibration and spec.calibrated else None
    identity = {
        "revision": revision,
        "method": subject.kind,
        "options": {name: value for name, value in subject.options.items() if name not in spec.inference},
        "calibration": file_hash(calibration) if calibration else None,
        "libraries": versions_of(*spec.packages, "transformers", "torch"),
    }

    def make(target: Path) -> None:
        texts = _texts(calibration, subject.options) if calibration else ()
        quantize(source, subject.options, texts, target, trust)

    return kept(cache, subject.kind, identity, make)


def versions_of(*names: str) -> dict[str, str | None]:
    """The versions of libraries that what is made depends on."""
    versions = methods.libraries()
    return {name: versions.get(name) for name in names}


def kept(cache: Path, name: str, identity: Mapping[str, Any], make: Callable[[Path], None]) -> Path:
    """A directory that `make` fills, unless an earlier run has left it; `identity` holds what the result depends on.

    A directory appears under its final name only when it is complete, so a killed run leaves none that is half made;
    one whose files are not what they were is set aside and made again.
    """
    target = cache / "quantized" / f"{name}-{codec.key_of(identity)}"
    target.parent.mkdir(parents=True, exist_ok=True)
    # Other interpreters may lack it, and it is needed here alone.
    from filelock import FileLock

    with FileLock(f"{target}.lock"):
        if target.is_dir() and not _unchanged(target):
            logging.getLogger(__name__).warning("%s has changed since it was written: made again", target)
            shutil.rmtree(f"{target}.damaged", ignore_errors=True)
            target.replace(f"{target}.damaged")
        if not target.is_dir():
            making = target.with_name(f"{target.name}.making")
            shutil.rmtree(making, ignore_errors=True)
            making.mkdir()
            try:
                start, at = time.perf_counter(), time.strftime(ISO, time.gmtime())
                make(making)
                made = {"seconds": time.perf_counter() - start, "at": at}
                codec.write_json(_record(target), {**identity, "content": content_hash(making), "made": made})
                making.replace(target)
            finally:
                shutil.rmtree(making, ignore_errors=True)
    return target


def making(target: Path) -> tuple[float, str] | None:
    """How long it took to make a kept directory (seconds), and when that was (ISO 8601, UTC).

    None where an earlier release has made it, which did not note that.
    """
    try:
        made = json.loads(_record(target).read_text(encoding="utf-8"))["made"]
        seconds, at = float(made["seconds"]), str(made["at"])
        time.strptime(at, ISO)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return (seconds, at) if 0 < seconds < math.inf else None


def _record(target: Path) -> Path:
    return target.with_name(f"{target.name}.json")


def _unchanged(target: Path) -> bool:
    try:
        record = json.loads(_record(target).read_text(encoding="utf-8"))
        return bool(record["content"] == content_hash(target))
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _texts(calibration: Path, options: Mapping[str, Any]) -> Sequence[str]:
    return calibration_texts(calibration, options["texts"], options["seed"])
