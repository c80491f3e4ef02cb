"""The rows: how each fault is made, which tests it hits, and what they say."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pytest_quantbudget.tasks.questions import BUILTIN_DIR

LIMITS = ("max_weights", "min_wordmath")
MODEL_FILES = ("config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")

HEALTHY = """
model: builtin
workload: {prompt_tokens: 16, new_tokens: 8, repeats: 2}
tasks: {wordmath: {file: builtin, questions: 12, max_new_tokens: 96}}
methods: {fp32: {budget: {max_weights: 3 MiB, min_wordmath: 50}}}
"""


@dataclass(frozen=True)
class Row:
    """One fault, in a budget of its own beside a healthy one.

    `words` is a pattern for all of what the tests hit say after `METHOD: LIMIT not measured: `. `change` breaks a copy
    of the built-in model; faults without one are made in the measuring process, by the function of their name.
    """

    name: str
    words: str
    method: str = "nf4"
    hits: tuple[str, ...] = LIMITS
    outcome: str = "failed"
    change: Callable[[Path], None] | None = None
    model: str = ""
    more: str = ""
    starts: int = 1

    @property
    def budget(self) -> str:
        return f"{self.name}.yaml"

    def write(self, room: Path) -> None:
        """The budget and its model."""
        (room / self.budget).write_text(
            f"model: {self.model or './' + self.name}\ncalibration: builtin\n{self.more}\n"
            "tasks: {wordmath: {file: builtin, questions: 4, max_new_tokens: 96}}\n"
            f"methods: {{{self.method}: {{budget: {{max_weights: 64 MiB, min_wordmath: 1}}}}}}\n"
        )
        if self.model:
            return
        folder = room / self.name
        folder.mkdir()
        for name in MODEL_FILES:
            shutil.copy(BUILTIN_DIR / name, folder)
        configure(folder, fault=self.name)  # no two rows share a model, and so what is stored
        if self.change:
            self.change(folder)


def configure(folder: Path, name: str = "config.json", **entries: object) -> None:
    """Set entries of a JSON file."""
    content = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps({**content, **entries}))


def cut(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:500_000])


DIED = r"the measuring process was killed by {} during phase 'load'"
BROKEN = (
    Row("segfault", DIED.format("SIGSEGV")),
    Row("abort", DIED.format("SIGABRT")),
    Row("truncated-weights", "SafetensorError: .*", "fp32", change=cut),
)
