"""Inside the measuring process: load one subject, run what the request needs, write the record after every phase.

A phase that fails costs its own figures. What is on disk when the process dies is kept.
"""

from __future__ import annotations

import gc
import logging
import os
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import replace
from multiprocessing import parent_process
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from pytest_quantbudget import hardware, loading, methods, records, sources
from pytest_quantbudget.measurement import (
    LOAD,
    QUANTIZE,
    REPLY,
    WORKLOAD,
    Failure,
    Measurement,
    Request,
    Task,
    Workload,
)

REPLY_TOKENS = 48
FORK_SPOILED = 78


def main(
    data: Mapping[str, Any], files: tuple[str, str, str], cache: str, environ: Mapping[str, str], last: bool
) -> None:
    """Entry point of the process: `data` is a Request as builtins; `files` take the record, the phase and the log.

    Ends with the code FORK_SPOILED, unless this is the `last` way to start a process, where a GPU is there and this
    fork cannot use it.
    """
    result, phase, log = map(Path, files)
    _settle(log, environ)
    if not last and _spoiled():
        os._exit(FORK_SPOILED)
    run = _Run(records.from_builtins(Request, dict(data)), result, phase)
    request = run.request
    spec = methods.spec(request.subject.method)
    if spec.quantize is not None and request.subject.checkpoint is None and request.quantized is None:
        run.phase(QUANTIZE, lambda: run.quantize(Path(cache)), fatal=True)
    else:
        run.measure()
    # Libraries leave threads and pools behind that can hang at exit; all that matters is on disk.
    os._exit(0)


def _settle(log: Path, environ: Mapping[str, str]) -> None:
    """Send all output, native code's too, into the log, and end this process when the parent is gone."""
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    os.environ.update(environ)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as in the fork server; see preload.py
    parent = parent_process()
    if parent is not None:
        threading.Thread(target=_outlive_nobody, args=(parent.sentinel,), daemon=True).start()
    logging.captureWarnings(True)


def _outlive_nobody(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)


def _spoiled() -> bool:
    """Whether something touched CUDA before the fork: NVML then counts GPUs that CUDA refuses to open."""
    try:
        import torch

        if torch.cuda.device_count():
            torch.cuda.init()
    except ImportError:
        return False
    except (RuntimeError, AssertionError):
        traceback.print_exc()
        return True
    return False


class _Run:
    """One subject's measurement, phase by phase."""

    def __init__(self, request: Request, result: Path, phase: Path) -> None:
        self.request = request
        self.result = result
        self.at = phase
        self.record = Measurement(request.subject, libraries=hardware.libraries())
        self.model: Any = None
        self.tokenizer: Any = None

    def measure(self) -> None:
        if not self.phase(LOAD, self.load, fatal=True):
            return
        for workload in self.request.workloads:
            self.phase(WORKLOAD, lambda w=workload: self.speed(w))  # type: ignore[misc]
        self.phase(REPLY, self.reply)
        for task in self.request.tasks:
            self.phase(task.phase, lambda t=task: self.ask(t))  # type: ignore[misc]

    def phase(self, name: str, action: Callable[[], None], *, fatal: bool = False) -> bool:
        """Run a phase; a failure is noted and its memory freed. Whatever happens, the record is written."""
        self.at.write_text(name, encoding="utf-8")
        failure: Failure | None = None
        try:
            action()
        except Exception as error:  # noqa: BLE001  # whatever a library raises is this phase's result
            traceback.print_exc()
            failure = Failure(name, _kind(error), _words(error), traceback.format_exc(limit=-4)[-2000:], fatal)
        if failure is not None:
            self.record = replace(self.record, failures=(*self.record.failures, failure))
            _free()
        records.write_json(self.result, self.record)
        return failure is None

    def quantize(self, cache: Path) -> None:
        start = time.perf_counter()
        subject = self.request.subject
        spec = methods.spec(subject.method)
        loading.settle(spec)
        source, revision = sources.fetch(subject.model, subject.revision)
        loading.check_format(spec, source, ready=False)
        os.chdir(self.at.parent)  # gptqmodel leaves its logs where it stands
        target = sources.quantized(subject, spec, source, revision, cache)
        self.record = replace(self.record, quantize_s=time.perf_counter() - start, quantized=str(target))

    def load(self) -> None:
        loaded = loading.load(self.request.subject, self.request.quantized)
        self.model, self.tokenizer = loaded.model, loaded.tokenizer
        self.record = replace(
            self.record,
            revision=loaded.revision,
            device=loaded.device,
            load_time_s=loaded.seconds,
            weights=loaded.weights,
            layers=loaded.layers,
        )

    def speed(self, workload: Workload) -> None:
        from pytest_quantbudget.metrics import speed

        self.record = replace(self.record, speeds=(*self.record.speeds, speed.measure(self.model, workload)))

    def reply(self) -> None:
        from pytest_quantbudget.tasks import ask

        replies = {}
        for prompt in self.request.prompts:
            ((text, _, _),) = ask.generate(self.model, self.tokenizer, [prompt], REPLY_TOKENS, "workload.prompt")
            replies[prompt] = text
        self.record = replace(self.record, replies=replies)

    def ask(self, task: Task) -> None:
        from pytest_quantbudget.tasks import ask

        result = ask.run(self.model, self.tokenizer, task)
        self.record = replace(self.record, tasks=(*self.record.tasks, result))


def _kind(error: Exception) -> str:
    if isinstance(error, loading.Lacking):
        return "no-gpu"
    return "skip" if isinstance(error, ModuleNotFoundError) else "error"


def _words(error: Exception) -> str:
    import torch

    line = (str(error).strip().splitlines() or ["(no message)"])[0][:500]
    if isinstance(error, loading.Lacking):
        return line
    if isinstance(error, ModuleNotFoundError):
        return f"{line}: {methods.pip_command(error.name or '')}"
    kind = "out of memory" if isinstance(error, torch.OutOfMemoryError | MemoryError) else type(error).__name__
    return f"{kind}: {line}"


def _free() -> None:
    import torch

    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
