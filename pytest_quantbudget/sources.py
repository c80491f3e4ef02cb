"""Where weights lie: hub ids become local directories, and checkpoints that we quantized are kept and found again."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock

from pytest_quantbudget import hardware, records
from pytest_quantbudget.measurement import Subject
from pytest_quantbudget.methods import Spec
from pytest_quantbudget.tasks import questions

WEIGHTS = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja")


def default_cache() -> Path:
    """`$XDG_CACHE_HOME/pytest-quantbudget`, by default under `~/.cache`."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "pytest-quantbudget"


def fetch(name: str, revision: str | None) -> tuple[Path, str]:
    """The local directory of a model, downloaded from the hub where needed, and its revision.

    The revision is the commit of a hub model, and a hash over the files of a directory.
    """
    folder = Path(name)
    if folder.is_absolute():
        return folder, "sha256:" + content_hash(folder)
    from huggingface_hub import snapshot_download

    found = Path(snapshot_download(name, revision=revision, allow_patterns=list(WEIGHTS)))
    return found, found.name


def content_hash(folder: Path) -> str:
    """SHA-256 over names and contents of the files that make a model."""
    digest = hashlib.sha256()
    files = sorted({path for pattern in WEIGHTS for path in folder.glob(pattern)})
    for path in files:
        digest.update(path.name.encode() + b"\0")
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def parameters(folder: Path) -> int:
    """Number of values in the directory's safetensors files, read from their headers; 0 where there are none."""
    total = 0
    for path in folder.glob("*.safetensors"):
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        for name, entry in header.items():
            if name != "__metadata__":
                size = 1
                for side in entry["shape"]:
                    size *= side
                total += size
    return total


def checkpoint_format(folder: Path) -> str | None:
    """`quant_method` of the directory's `config.json`; None for an unquantized model."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    found = config.get("quantization_config") or {}
    return str(found["quant_method"]) if "quant_method" in found else None


def quantized(subject: Subject, spec: Spec, source: Path, revision: str, cache: Path) -> Path:
    """The directory that holds the subject's own quantization, made now unless an earlier run has left it.

    The key holds what the result depends on: weights, method, options, calibration text and library versions. A
    directory appears under its final name only when it is complete, so a killed run leaves none that is half made.
    """
    assert spec.quantize is not None
    assert subject.calibration is not None
    calibration = Path(subject.calibration)
    versions = hardware.libraries()
    identity = {
        "revision": revision,
        "method": subject.method,
        "options": subject.options,
        "calibration": hashlib.sha256(calibration.read_bytes()).hexdigest(),
        "libraries": {name: versions.get(name) for name in ("gptqmodel", "transformers", "torch")},
    }
    target = cache / "quantized" / f"{subject.method}-{records.key_of(identity)}"
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):
        if not target.is_dir():
            making = target.with_name(f"{target.name}.making")
            shutil.rmtree(making, ignore_errors=True)
            making.mkdir()
            spec.quantize(source, subject.options, _texts(calibration, subject.options), making)
            records.write_json(making / "quantbudget.json", identity)
            making.replace(target)
    return target


def _texts(calibration: Path, options: Mapping[str, Any]) -> Sequence[str]:
    return questions.calibration_texts(calibration, options["texts"], options["seed"])
