"""One libFuzzer process: `fuzz.py` starts it, and again after a hang or a process killed for memory.

    python tools/fuzz/fuzz_worker.py TARGET FINDINGS MODULES [libFuzzer's own arguments]

MODULES, parted by commas, are those whose coverage steers the search.

An exception does not end it: the first input of each kind (exception and innermost line of the project) is kept as a
file in FINDINGS, its traceback beside it, and the next input is tried.
"""

from __future__ import annotations

import functools
import hashlib
import sys
import traceback
from pathlib import Path
from random import Random

import atheris

with atheris.instrument_imports(include=sys.argv[3].split(","), enable_loader_override=False):
    import fuzz_inputs
    from fuzz_targets import Target, targets

EDITS = {"budget": fuzz_inputs.edit_budget, "report": fuzz_inputs.edit_report, "entry": fuzz_inputs.edit_entry}


def keep(target: Target, findings: Path, data: bytes) -> None:
    """Try one input; an exception becomes a finding."""
    try:
        target(data)
    except Exception as error:  # noqa: BLE001  # any is a finding
        frames = traceback.extract_tb(error.__traceback__)
        places = [f"{Path(f.filename).name}:{f.lineno}" for f in frames if "pytest_quantbudget" in f.filename]
        kind = f"{type(error).__name__} {places[-1] if places else ''} {str(error)[:40] if not places else ''}"
        name = f"{type(error).__name__}-{hashlib.sha256(kind.encode()).hexdigest()[:8]}"
        if not (findings / name).exists():
            (findings / name).write_bytes(data)
            text = "".join(traceback.format_exception(error, limit=-8))
            (findings / f"{name}.txt").write_text(text, encoding="utf-8", errors="backslashreplace")


def mutate(name: str, data: bytes, max_size: int, seed: int) -> bytes:
    """The mutation of libFuzzer in four of ten cases, else one that knows the format."""
    rng = Random(seed)
    edited = EDITS[name](data, rng) if rng.random() < 0.6 else None
    if edited is None or len(edited) > max_size:
        edited = atheris.Mutate(data, max_size)
    return bytes(edited[:max_size])


def main(arguments: list[str]) -> None:
    """Fuzz until libFuzzer's limits are reached."""
    name, findings, _, *rest = arguments
    with targets() as known:
        test = functools.partial(keep, known[name], Path(findings))
        atheris.Setup([sys.argv[0], *rest], test, custom_mutator=functools.partial(mutate, name))
        atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1:])
