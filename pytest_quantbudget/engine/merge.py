"""A model with a LoRA adapter merged into its weights, made once, and kept: everything else is then made of that."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from pytest_quantbudget.core.request import Subject, Trust
from pytest_quantbudget.engine import quantize
from pytest_quantbudget.engine.hf import adapter
from pytest_quantbudget.models import hub, lora
from pytest_quantbudget.models.methods import from_source

KIND = "merged"


def merged(subject: Subject, source: Path, revision: str, cache: Path, trust: Trust) -> tuple[Path, str]:
    """The directory of a subject's model with its adapter merged into it, and a name for what that holds.

    `source` is the model's own directory, of unquantized weights. They are merged, and written, in the type that they
    have. Raises ValueError where the adapter must not be loaded, or is one of another model.
    """
    found = lora.find(subject, trust)
    assert found is not None
    identity = {
        "revision": revision,
        "adapter": found.revision,
        "libraries": quantize.versions_of("peft", "transformers", "torch"),
    }

    def make(target: Path) -> None:
        model: Any = from_source(source, "cpu", trust, dtype="auto")
        adapter.merged_into(model, found).save_pretrained(target)
        for pattern in hub.patterns(trust, weights=False):
            for path in source.glob(pattern):
                if path.is_file() and not (target / path.name).exists() and not path.name.endswith(".index.json"):
                    shutil.copy(path, target)

    return quantize.kept(cache, KIND, identity, make), f"{revision}+{found.revision}"
