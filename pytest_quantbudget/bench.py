"""Measuring each subject once, in a process of its own that starts from an importing fork server."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Mapping
from dataclasses import replace
from multiprocessing.context import ForkServerContext, SpawnContext
from multiprocessing.process import BaseProcess
from pathlib import Path

from filelock import FileLock

from pytest_quantbudget import child, methods, records
from pytest_quantbudget.measurement import LOAD, QUANTIZE, Failure, Measurement, Request, Subject

LOG_LINES = 15
Context = ForkServerContext | SpawnContext
Files = tuple[Path, Path, Path]  # record, phase, log


class Bench:
    """Measures subjects and keeps the results of one run in `folder`, which all its processes share.

    `device` names the device that this process measures on, and `environ` selects it for the measuring process.
    """

    def __init__(self, folder: Path, cache: Path, device: str, environ: Mapping[str, str]) -> None:
        self.folder = folder
        self.cache = cache
        self.device = device
        self.environ = environ
        self.known: dict[str, Measurement] = {}

    def measure(self, request: Request) -> Measurement:
        """The measurement of a request's subject: from this process, from another of the run, or made now.

        Never raises for what happens while measuring; that is in the record's `failures`.
        """
        key = request.subject.key
        if key not in self.known:
            with FileLock(self.folder / f"{key}.lock"):
                path = self.folder / f"{key}.json"
                if not path.exists():
                    # Two timings on one device would disturb each other.
                    with self.device_lock():
                        records.write_json(path, self._made(request))
                self.known[key] = read(path)
        return self.known[key]

    def device_lock(self) -> FileLock:
        """Held while something runs on the device that others must not disturb."""
        return FileLock(self.folder / f"device-{self.device}.lock", is_singleton=True)

    def quantized(self, subject: Subject) -> Measurement:
        """The record of the subject's own quantization, made unless it is kept already; `quantized` is its place."""
        return self._child(Request(subject, (), (), ()), "quantize")

    def _made(self, request: Request) -> Measurement:
        spec = methods.spec(request.subject.method)
        missing = spec.missing()
        if missing is not None:
            return Measurement(request.subject, failures=(Failure(LOAD, "skip", missing),))
        if spec.quantize is None or request.subject.checkpoint is not None:
            return self._child(request, "measure")
        made = self.quantized(request.subject)
        if made.quantized is None:
            return made
        measured = self._child(replace(request, quantized=made.quantized), "measure")
        return replace(measured, quantized=made.quantized, quantize_s=made.quantize_s)

    def _child(self, request: Request, what: str) -> Measurement:
        """Run one measuring process to its end; what it left on disk counts, however it ended."""
        contexts = _contexts()
        while True:
            context = contexts.pop(0)
            try:
                code, files = self._run(context, request, what, last=not contexts)
            except (OSError, EOFError) as error:  # no socket (a long TMPDIR, say), or the server died while importing
                if not contexts:
                    failure = Failure(LOAD, "error", f"no measuring process can be started: {error}")
                    return Measurement(request.subject, failures=(failure,))
                continue
            if code != child.FORK_SPOILED or not contexts:
                return self._read(request, what, code, files)

    def _run(self, context: Context, request: Request, what: str, *, last: bool) -> tuple[int | None, Files]:
        """Start a process and wait for its end; gives its exit code and the files that it left."""
        stem = self.folder / f"{request.subject.key}.{what}"
        result, phase, log = (stem.with_suffix(f".{what}.{end}") for end in ("result", "phase", "log"))
        names = (str(result), str(phase), str(log))
        process = context.Process(
            target=child.main,
            args=(records.to_builtins(request), names, str(self.cache), self.environ, last),
            name=f"quantbudget-{request.subject.method}",
        )
        process.start()
        try:
            process.join()
        finally:
            end(process)
        return process.exitcode, (result, phase, log)

    def _read(self, request: Request, what: str, code: int | None, files: Files) -> Measurement:
        """What the process left, and how it died if it did."""
        result, phase, log = files
        measured = read(result) if result.exists() else Measurement(request.subject)
        if code == 0:
            return measured
        at = phase.read_text(encoding="utf-8") if phase.exists() else (QUANTIZE if what == "quantize" else LOAD)
        message = f"the measuring process {_death(code)} during phase {at!r}"
        return replace(measured, failures=(*measured.failures, Failure(at, "error", message, _tail(log))))


def read(path: Path) -> Measurement:
    """A record that was written by `records.write_json`."""
    import json

    return records.from_builtins(Measurement, json.loads(path.read_text(encoding="utf-8")))


def _contexts() -> list[Context]:
    """Ways to start a process, best first: a fork server that has imported torch and transformers, else afresh."""
    fresh: Context = multiprocessing.get_context("spawn")
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return [fresh]
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(["pytest_quantbudget.preload"])
    return [server, fresh]


def end(process: BaseProcess, grace: float = 3.0) -> None:
    """End a process that may still run: asked first, killed after `grace` seconds."""
    if not process.is_alive():
        return
    process.terminate()
    process.join(grace)
    if process.is_alive():
        process.kill()
        process.join()


def _death(code: int | None) -> str:
    if code is None or code >= 0:
        return f"ended with exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    hint = " (the system's out-of-memory killer?)" if name == "SIGKILL" else ""
    return f"was killed by {name}{hint}"


def _tail(log: Path) -> str:
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 8192))
            lines = file.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return ""
    return "\n".join(line.rsplit("\r", 1)[-1][:300] for line in lines[-LOG_LINES:])
