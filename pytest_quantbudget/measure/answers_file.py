"""The file beside a report that holds every question's answer, a line of JSON each."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from pytest_quantbudget.core import files
from pytest_quantbudget.core.answers import Answer
from pytest_quantbudget.core.measurement import Measurement
from pytest_quantbudget.core.request import Subject


def beside(report: Path) -> Path:
    """Where the answers are written whose report goes to a path: `report.answers.jsonl` beside `report.json`."""
    return report.with_name(f"{report.stem if report.suffix == '.json' else report.name}.answers.jsonl")


def write(path: Path, measurements: Iterable[tuple[str, Measurement]]) -> bool:
    """Write all answers in order; whether there are any. Without any, an earlier run's file is removed.

    Each measurement comes with the kind of machine that it is from, which is empty where there is one kind. Raises
    OSError.
    """
    lines: list[str] = []
    for machine, measured in measurements:
        for task in measured.tasks:
            strict, reused = task.task.extract == "strict", bool(task.origin and task.origin.reused)
            for answer in task.answers:
                of = measured.subject, task.task.name, answer
                lines.append(line(*of, strict=strict, reused=reused, machine=machine))
    if lines:
        files.write(path, "".join(f"{text}\n" for text in lines).encode())
    else:
        path.unlink(missing_ok=True)
    return bool(lines)


def line(subject: Subject, task: str, answer: Answer, *, strict: bool, reused: bool = False, machine: str = "") -> str:
    """One answer as one line. It is printable ASCII, whatever the model wrote."""
    record = {
        "model": subject.model,
        "method": subject.method,
        "subject": subject.key,
        "task": task,
        "question": answer.question,
        "prompt": answer.prompt,
        "text": answer.text,
        "strict": answer.strict,
        "flexible": answer.flexible,
        "correct": answer.strict_correct if strict else answer.flexible_correct,
        "strict_correct": answer.strict_correct,
        "flexible_correct": answer.flexible_correct,
        "cut_off": answer.cut_off,
        "tokens": answer.tokens,
        "seconds": answer.seconds,
        "cluster": answer.cluster,
        "reused": reused,
        **({"machine": machine} if machine else {}),
    }
    return json.dumps(record, allow_nan=False).replace("\x7f", "\\u007f")  # the one control character JSON lets through
