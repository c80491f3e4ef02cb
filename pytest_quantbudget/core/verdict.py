"""What became of a limit."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Update:
    """What --quant-update did to a limit: the old text, and the new one (none where `why` says why not).

    `words` tell the measured value, the margin and the noise that it is for; `rate` is the share of repeat runs that
    may fail.
    """

    old: str
    new: str = ""
    words: str = ""
    rate: float = 0.0
    why: str = ""


WITHIN, OVER, UNDECIDED = "within", "over", "undecided"
SKIPPED, FAILED, NOT_RUN = "skipped", "failed", "not run"


@dataclass(frozen=True)
class Verdict:
    """What became of one limit.

    `for_want_of_gpu` says that a machine with a GPU, or with the packages that are missing here, could judge it.

    `outcome`: `within` and `over` the budget were measured; `skipped` could not be judged on this machine; `failed`
    could not be measured; `not run` was selected and never judged. `measured` and `limit` are in base units (bytes,
    seconds, tokens/s, percent, percentage points, ratio); `limit` is as the user wrote it in `limit_text`.

    `decision` is what the data say of a limit with bounds: `within`, `over`, or `undecided`, where the outcome is what
    the budget's `undecided` makes of it. `low` and `high` bound the measured value, each with `confidence` (None where
    they are infinite, or where there are none); they rest on `n` observations of the kind `of`. `p_over` belongs to a
    drop: how likely at least the measured one would be if the true one were at the limit. `noise` says how much repeat
    runs of the baseline differ in this figure, and `inside_noise` whether that alone may decide. A method that is
    better than the baseline beyond noise is `anomalous`: it is within, and perhaps the two were not asked alike.
    """

    outcome: str
    message: str
    measured: float | None = None
    limit: float | None = None
    limit_text: str = ""
    unit: str = ""
    detail: str = ""
    for_want_of_gpu: bool = False
    decision: str = ""
    low: float | None = None
    high: float | None = None
    confidence: float | None = None
    p_over: float | None = None
    noise: str = ""
    inside_noise: bool = False
    anomalous: bool = False
    n: int | None = None
    of: str = ""


def happened(method: str, limit: str, message: str) -> str:
    """A verdict's message without the names that it begins with: for where these stand already."""
    return message.removeprefix(f"{method}: {limit} ")


@dataclass(frozen=True)
class LimitReport:
    """One selected limit: the id of its test, its line in the file, the verdict, and what --quant-update did to it.

    Where a method was measured on several kinds of machine, each has its own test: the kind stands in brackets at the
    end of the id, `FILE::METHOD::LIMIT[NVIDIA L4]`.
    """

    id: str
    name: str
    line: int
    verdict: Verdict
    updated: Update | None = None

    @property
    def method(self) -> str:
        """The name of the limit's method, from the id."""
        return self._parts[0]

    @property
    def machine(self) -> str:
        """The kind of machine in its id; nothing where there is none."""
        return self._parts[1]

    @property
    def _parts(self) -> tuple[str, str]:
        front, found, machine = self.id.rpartition(f"::{self.name}[")
        if found and machine.endswith("]"):
            return front.rpartition("::")[2], machine.removesuffix("]")
        return self.id.removesuffix(f"::{self.name}").rpartition("::")[2], ""
