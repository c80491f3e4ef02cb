"""Every question's answer, a line of JSON each: written as answers come, and whole and in order when the run ends."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pytest_quantbudget.core import codec, files
from pytest_quantbudget.core.answers import Answer
from pytest_quantbudget.core.measurement import Measurement
from pytest_quantbudget.core.request import Subject

Key = tuple[str, str]  # subject and task


def beside(report: Path) -> Path:
    """Where the answers are written whose report goes to a path: `report.answers.jsonl` beside `report.json`."""
    return report.with_name(f"{report.stem if report.suffix == '.json' else report.name}.answers.jsonl")


class AnswersFile:
    """The file while the run goes on; several processes of a run may write to it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.known: set[tuple[str, str, int, str]] = set()
        self.broken = False

    def add(self, subject: Subject, told: Mapping[str, Any]) -> None:
        """Append what a measuring process says about answers.

        A disk that refuses costs the run nothing: nothing more is tried, and whoever writes the file at the end of the
        run says so.
        """
        task = str(told["task"])
        for data in () if self.broken else told["answers"]:
            answer = codec.from_builtins(Answer, data)
            key = (subject.key, task, answer.question, answer.prompt)
            if key in self.known:  # asked again, after memory ran out
                continue
            self.known.add(key)
            try:
                append(self.path, line(subject, task, answer, strict=told["extract"] == "strict"))
            except OSError:
                self.broken = True
                return


def line(subject: Subject, task: str, answer: Answer, *, strict: bool, reused: bool = False) -> str:
    """One answer as one line; what the model said is in it only as printable ASCII."""
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
        "reused": reused,
    }
    return json.dumps(record, allow_nan=False).replace("\x7f", "\\u007f")  # the one control character JSON lets through


def append(path: Path, text: str) -> None:
    """Append a line, whole or not at all: whoever reads or is killed meanwhile finds no half of one. Raises OSError."""
    data = text.encode() + b"\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)  # for the sake of a disk that is full: what it took is taken back
        size = os.fstat(handle).st_size
        if os.write(handle, data) < len(data):
            os.ftruncate(handle, size)
            raise OSError(f"{path} took a part of a line only")
    finally:
        os.close(handle)


def forget(path: Path) -> None:
    """Begin anew: what an earlier run has left goes."""
    with contextlib.suppress(OSError):  # it shows when something is written
        path.unlink(missing_ok=True)


def finish(path: Path, measurements: Iterable[Measurement]) -> bool:
    """Write the file of a run that has ended: all answers in order, those from the cache included.

    Answers to a task that was not finished stay as they came. Whether there is any answer; raises OSError.
    """
    lines: list[str] = []
    done: set[Key] = set()
    for measured in measurements:
        for task in measured.tasks:
            strict, reused = task.task.extract == "strict", bool(task.origin and task.origin.reused)
            done.add((measured.subject.key, task.task.name))
            lines += [line(measured.subject, task.task.name, a, strict=strict, reused=reused) for a in task.answers]
    lines += _others(path, done)
    if lines:
        files.write(path, "".join(f"{each}\n" for each in lines).encode())
    return bool(lines)


def _others(path: Path, done: set[Key]) -> Iterator[str]:
    """The lines of a file that are about another subject or task."""
    try:
        there = path.read_text(encoding="ascii").splitlines()
    except (OSError, ValueError):
        return
    for each in there:
        with contextlib.suppress(ValueError, KeyError, TypeError):
            said = json.loads(each)
            if (said["subject"], said["task"]) not in done:
                yield each
