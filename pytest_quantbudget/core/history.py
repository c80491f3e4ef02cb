"""What a history keeps of a run: a line for each method, with all that must be the same for two runs to be compared."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

VERSION = 1
MOST = 2_000  # entries of a mapping; a line that has more is none of ours
LONGEST = 10_000  # characters of a text
MOST_OUTCOMES = 250_000  # hexadecimal digits, each of four questions
OUTCOMES = re.compile("([1-9a-f][0-9a-f]*)?")


@dataclass(frozen=True)
class KeptFigure:
    """A figure of a run, kept under the name of the limit on it; in base units, bounds as a verdict has them.

    `measured` is when (ISO 8601): what a later run reuses is the same observation, and counts once. `parts` name what
    it was measured on, and `relative` says whether it was taken against the baseline. `outcomes` are those of a task's
    questions, see `packed`.
    """

    value: float
    unit: str = ""
    measured: str = ""
    parts: tuple[str, ...] = ()
    relative: bool = False
    low: float | None = None
    high: float | None = None
    n: int | None = None
    of: str = ""
    outcomes: str = ""

    def __post_init__(self) -> None:
        """Refuse, with ValueError, what is no number, and outcomes that `packed` has not made."""
        if not math.isfinite(self.value):
            raise ValueError("a figure must be finite")
        if len(self.outcomes) > MOST_OUTCOMES or not OUTCOMES.fullmatch(self.outcomes):
            raise ValueError("outcomes must be hexadecimal digits")


@dataclass(frozen=True)
class KeptVerdict:
    """What became of a limit in that run; the fields are those of a verdict."""

    outcome: str
    decision: str = ""
    measured: float | None = None
    limit: float | None = None
    limit_text: str = ""
    unit: str = ""


@dataclass(frozen=True)
class MethodRun:
    """What a run has kept of one method: one line of the history.

    `run` names the run, `at` says when it ended, and `budget` is the file's path in its repository. `subject` is what
    was measured and on which machine, as texts by what they are; `parts` are the settings of what was measured on it
    (workload, tasks), and `baseline` is the subject of what `relative` figures were taken against. `libraries` and
    `commit` may change from run to run: they are what a change may come from.
    """

    version: int
    run: str
    at: str
    budget: str
    method: str
    subject: dict[str, str]
    parts: dict[str, dict[str, str]] = field(default_factory=dict)
    baseline: dict[str, str] = field(default_factory=dict)
    figures: dict[str, KeptFigure] = field(default_factory=dict)
    verdicts: dict[str, KeptVerdict] = field(default_factory=dict)
    libraries: dict[str, str] = field(default_factory=dict)
    commit: str = ""

    def __post_init__(self) -> None:
        """Refuse, with ValueError, what is larger than any run."""
        settings = [self.subject, self.baseline, self.libraries, *self.parts.values()]
        if max(len(self.parts), len(self.figures), len(self.verdicts), *map(len, settings)) > MOST:
            raise ValueError(f"more than {MOST:,} entries")
        texts = [self.run, self.at, self.budget, self.method, self.commit, *self.figures, *self.verdicts]
        if max(map(len, [*texts, *(text for one in settings for pair in one.items() for text in pair)])) > LONGEST:
            raise ValueError(f"a text of more than {LONGEST:,} characters")

    def identity(self, name: str) -> dict[str, str]:
        """All that has to be the same in another run for a figure to be compared with its one."""
        figure = self.figures[name]
        found = dict(self.subject)
        if figure.relative:
            found |= {f"baseline: {what}": value for what, value in self.baseline.items()}
        for part in figure.parts:
            found |= {f"{part}: {what}": value for what, value in self.parts.get(part, {}).items()}
        return found


def packed(right: Sequence[bool]) -> str:
    """Right and wrong, question by question, as hexadecimal digits: the bits behind a first 1."""
    return f"{int('1' + ''.join('1' if each else '0' for each in right), 2):x}" if right else ""


def unpacked(outcomes: str) -> list[bool]:
    """The inverse of `packed`."""
    return [bit == "1" for bit in f"{int(outcomes, 16):b}"[1:]] if outcomes else []
