"""The engines `auto-gptq` and `autoawq`: what these libraries' own loaders make of a checkpoint.

Both need older releases of transformers than this package can use. So a small server, `server.py`, runs in the method's
interpreter, which needs nothing of this package, and is measured over HTTP.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pytest_quantbudget.core.engines import Server
from pytest_quantbudget.core.layers import Layers, Receipt
from pytest_quantbudget.core.load import Load, LoadResult
from pytest_quantbudget.core.measurement import Speed
from pytest_quantbudget.core.request import NO_TRUST, Subject, Trust, Workload
from pytest_quantbudget.engine.base import Description, Engine, Lacking, NotFinite, Tell
from pytest_quantbudget.engine.machine.gpus import Gpus
from pytest_quantbudget.engine.openai.conversation import ServerFailed
from pytest_quantbudget.engine.openai.own_server import OwnServer
from pytest_quantbudget.engine.openai.source import Source, find
from pytest_quantbudget.models.methods import BALANCED, Prepared

SCRIPT = Path(__file__).with_name("server.py")
REFUSED = "REFUSED "  # what a line of the server's begins with that says why it serves nothing
START_S = 3600.0  # for weights to be read, and packed anew; a method's `timeout` ends it sooner
CPU, FIRST_GPU = "cpu", "cuda:0"


def load(
    subject: Subject,
    gpus: Gpus | None = None,
    quantized: str | None = None,
    trust: Trust = NO_TRUST,
    pins: tuple[str, str | None] | None = None,
    prepared: Prepared | None = None,
) -> Archived:
    """Have the library load the subject's checkpoint, and serve it.

    Raises ValueError, in the library's words, where it refuses the checkpoint or an option; Lacking where it does not
    run on this machine; NotFinite where its logits are no numbers, or all alike; ModuleNotFoundError where a module is
    not there; ServerFailed where it dies otherwise.
    """
    return Archived(subject, find(subject, trust, pins), gpus or Gpus({}), trust)


def linked(folder: Path) -> Path:
    """A directory of links to a checkpoint's files: the libraries write what they pack anew beside the weights."""
    # Removed with the temporary files of the measuring process.
    target = Path(tempfile.mkdtemp(prefix="archived-")) / folder.name
    target.mkdir()
    for file in folder.iterdir():
        (target / file.name).symlink_to(file.resolve())
    return target


class Archived(OwnServer):
    """A checkpoint as an archived library has loaded it. Prompts are token ids of the budget's model's tokenizer."""

    def __init__(self, subject: Subject, source: Source, gpus: Gpus, trust: Trust = NO_TRUST) -> None:
        self.name, self.source, self.folder = subject.engine, source, source.own or source.folder
        self.tokenizer = self.read_tokenizer(trust)
        device = BALANCED if subject.gpus > 1 else FIRST_GPU if gpus.cards else CPU
        words = [
            *(subject.python or sys.executable, str(SCRIPT), subject.engine),
            *("--model", str(linked(source.folder)), "--name", subject.checkpoint or subject.model),
            *("--port", "{port}", "--device", device, "--options", json.dumps(subject.engine_options)),
            *("--ends", ",".join(map(str, self.end_tokens()))),
            *["--trust-remote-code"] * trust.remote_code,
            *["--pickles"] * trust.pickles,
        ]
        server = Server(command=tuple(words), start_timeout_s=START_S)
        super().__init__(subject, server, self.folder, source.revision, gpus, trust)

    def environ(self) -> Mapping[str, str]:
        """This process's, without what would lead to other packages; nothing is looked for on a hub."""
        return {**super().environ(), "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}

    def _prepare(self, revision: str) -> None:
        try:
            super()._prepare(revision)
        except ServerFailed as error:
            running = self.talk.running
            refused = refusal(running.output()) if running is not None and running.ended else None
            if refused is None:
                raise
            raise as_error(self.name, refused) from error

    def described(self, entry: Mapping[str, Any], revision: str, seconds: float | None) -> Description:
        """What the server tells of the model as loaded, and what the checkpoint's files say."""
        found = super().described(entry, revision, seconds)
        assert found.facts is not None
        known = ("weights", "layers", "disk", "vram", "vram_reserved")
        untold = {name: why for name, why in found.untold.items() if name not in known}
        untold["vram_process"] = "NVML is asked for the measuring process, and the model is in another one"
        return replace(
            found,
            receipt=receipt(entry["layers"]),
            notes=(*found.notes, *self.source.notes),
            disk=self.source.disk,
            made_with=self.source.made_with,
            packing=self.source.packing,
            untold=untold,
        )

    def time(self, workload: Workload) -> Speed:
        """As of any server, with all sequences in one batch, and what torch took of the GPUs meanwhile."""
        client = self.talk.client
        self.talk.run(client.json(client.root("memory"), {}))
        self._together(workload.batch_size)
        try:
            speed = super().time(workload)
        finally:
            self._together(1)
        held = self._told("memory")
        allocated, reserved = held.get("allocated"), held.get("reserved")
        return replace(speed, peak_allocated=allocated, peak_reserved=reserved, peaks=(allocated,) if allocated else ())

    def _together(self, size: int) -> None:
        """Have the server decode so many sequences at once; all of a workload have one length."""
        client = self.talk.client
        self.talk.run(client.json(client.root("together"), {"size": size}))
        self.slots = size

    def load(self, load: Load, tell: Tell = lambda done, total: None) -> LoadResult:
        """A library has no queue of requests."""
        return Engine.load(self, load, tell)


def receipt(told: list[dict[str, Any]]) -> Receipt:
    """The layers that the server tells of; a kernel is the module that holds a layer's class."""
    found = [Layers(kernel=each["module"].rpartition(".")[2], **each) for each in told]
    return Receipt(tuple(sorted(found, key=lambda layers: (-layers.parameters, layers.kind, layers.name, layers.bits))))


def refusal(output: str) -> dict[str, str] | None:
    """Why the server serves nothing: its `kind`, `words` and `module`; None where it does not say so."""
    for line in reversed(output.splitlines()):
        if line.startswith(REFUSED):
            try:
                told = json.loads(line.removeprefix(REFUSED))
                return {name: str(told[name]) for name in ("kind", "words", "module")}
            except (ValueError, KeyError, TypeError):
                return None
    return None


def as_error(library: str, refused: Mapping[str, str]) -> Exception:
    """The error that says so."""
    kind, words = refused["kind"], refused["words"]
    if kind == "missing":
        return ModuleNotFoundError(words, name=refused["module"])
    if kind == "lacking":
        return Lacking(words)
    if kind == "logits":
        return NotFinite(f"as {library} loads it, {words}")
    return ValueError(f"{library} refuses it: {words}")
