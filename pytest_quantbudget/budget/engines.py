"""Reads what runs a method: its kind, its engine with options, its interpreter, and its server."""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pytest_quantbudget.budget import keys
from pytest_quantbudget.core.engines import LLAMA_CPP, OPENAI, TRANSFORMERS, Permissions, Server
from pytest_quantbudget.core.files import Roots, path_from
from pytest_quantbudget.core.problems import Marked, Problems, nearest
from pytest_quantbudget.models import engines, methods
from pytest_quantbudget.models.engines import EngineSpec

NAME = re.compile(keys.METHOD_NAME)
OPTION = re.compile(r"[a-z][a-z0-9_]*")


class Runs:
    """Reads what runs the methods of a budget, as far as `roots` and `permissions` go.

    Mistakes are added to `problems`.
    """

    def __init__(self, roots: Roots, problems: Problems, permissions: Permissions) -> None:
        self.roots, self.problems, self.permissions = roots, problems, permissions

    def read(self, name: str, node: Marked, values: dict[str, Any]) -> dict[str, Any] | None:
        """Those fields of a method's subject that say what it is and what runs it; None where that is not known."""
        if not NAME.fullmatch(name):
            self.problems.add(node, f"a method's name has letters, digits and -_.+ (at most 60), not {name!r}")
            return None
        for key, others in (("kind", methods.others()), ("engine", engines.others())):
            given = node.entries.get(key)
            if given is not None and (why := others.why_not(str(given.plain))):
                self.problems.add(given, f"{key} {given.plain}{why}")
        named: str | None = values["engine"]
        engine = engines.spec(named) if named else None
        kind = self._kind(name, node, values["kind"], engine)
        if kind is None:
            return None
        spec = methods.spec(kind)
        engine = engine or engines.spec(spec.engines[0])
        if not engine.takes(spec):
            why = f"{engine.name} does not run {kind}, which is for {' and '.join(spec.engines)}; it runs"
            self.problems.add(node, f"{why} {', '.join(methods.run_by(engine.like or engine.name))}")
            return None
        return {
            "kind": kind,
            "engine": engine.name,
            "engine_options": self._options(engine, values["engine_options"]),
            "python": self._interpreter(engine, node.entries.get("python")),
            "server": self._server(name, engine, node, values["server"]),
        }

    def _kind(self, name: str, node: Marked, given: str | None, engine: EngineSpec | None) -> str | None:
        """What a method is: what it says, what it is named as, or what follows from its engine or checkpoint."""
        if given is not None and name in methods.names() and given != name:
            why = f"{name} is the name of a kind, and this is {given}: name the method otherwise"
            self.problems.add(node.entries["kind"], why)
            return None
        if given is not None or name in methods.names():
            return given or name
        ready = node.entries.get("checkpoint")
        if ready is not None:
            runs = LLAMA_CPP if is_file(LLAMA_CPP, ready.value) else TRANSFORMERS
            return (engine or engines.spec(runs)).ready
        if engine is not None and engine.default:
            return engine.default
        near = nearest(name, methods.names()) + methods.others().why_not(name)
        why = f"there is no method {name!r}{near} (a name of your own needs a `kind` or a `checkpoint`)"
        self.problems.add(node, why)
        return None

    def _options(self, engine: EngineSpec, node: Marked | None) -> dict[str, Any]:
        """The options of an engine, those alone that are given."""
        if node is None:
            return {}
        if engine.options is not None:
            values = keys.read_fields(node, engine.options, f"engine_options of {engine.name}", self.problems)
            return {key: value for key, value in values.items() if key in node.entries}
        if not isinstance(node.value, dict):
            self.problems.add(node, f"engine_options takes {engine.name}'s own options by name, not {node.plain!r}")
            return {}
        for key, entry in node.entries.items():
            if not OPTION.fullmatch(key):
                self.problems.add(entry, f"engine_options: {key!r} is no option's name, such as max_model_len")
            elif (why := engine.refusal(key, entry.plain)) is not None:
                self.problems.add(entry, f"engine_options: {why}")
            elif entry.plain is None:
                self.problems.add(entry, f"engine_options: {key} has no value; leave it out for the engine's default")
            elif (why := self._unreachable(entry)) is not None:
                self.problems.add(entry, f"engine_options: {key}: {why}")
        folder = node.file.resolve().parent
        return {key: _absolute(entry.plain, folder) for key, entry in node.entries.items()}

    def _unreachable(self, entry: Marked) -> str | None:
        """Why an option's value may not be used, where it names what lies outside, or hides what it names."""
        folder = entry.file.resolve().parent
        for text in _texts(entry.plain):
            if text.lstrip().startswith(("{", "[")):
                return "what it holds is JSON in a text; give it as YAML"
            # An adapter may be written as NAME=PATH.
            for name in (text, text.partition("=")[2]):
                if "/" in name or name == "..":
                    found = self.roots.refuse(folder, name)
                    stray = self.roots.stray(path_from(folder, name)) if found is None else None
                    if stray is not None:
                        found = f"{self.roots.refuse(stray.parent, stray.name)} (it lies in {name!r})"
                    if found is not None:
                        return found
        return None

    def _interpreter(self, engine: EngineSpec, node: Marked | None) -> str | None:
        """The interpreter of a method's measuring process; None for this one."""
        allowed = self.permissions.interpreters
        if node is None:
            return str(allowed[engine.name]) if engine.name in allowed else None
        name = node.value
        if not isinstance(name, str) or not name.strip():
            return None
        if name in allowed:
            return str(allowed[name])
        # Not resolved: an environment's interpreter is a link, and what it leads to has other packages.
        path = os.path.normpath(path_from(node.file.resolve().parent, name))
        for known in allowed.values():
            if os.path.normpath(known) == path:
                # That one: where `..` follows a link, the same words may mean another file.
                return str(known)
        if not self.permissions.everything:
            allow = f"; the ini line `quant_interpreters = NAME = {path}` allows it"
            why = nearest(name, list(allowed)) if allowed and "/" not in name else allow
            self.problems.add(node, f"python: {name!r} is not among the ini file's `quant_interpreters`{why}")
        return path

    def _server(self, name: str, engine: EngineSpec, node: Marked, given: Marked | None) -> Server | None:
        """The server of a method whose engine needs one."""
        if engine.name != OPENAI:
            if given is not None:
                self.problems.add(given, f"server is for the engine {OPENAI}; {name} runs with {engine.name}")
            return None
        if given is None:
            self.problems.add(node, f"{name} needs a `server` with a `url`, or a `command` that starts one")
            return None
        values = keys.read_fields(given, keys.SERVER, "server", self.problems)
        if not isinstance(given.value, dict):
            return None
        if values["url"] is None and values["command"] is None:
            self.problems.add(given, "server needs the `url` of one that runs, or a `command` that starts one")
            return None
        if values["url"] is not None and values["command"] is not None:
            self.problems.add(
                given, "server has a `url` and a `command`: give that of one that runs, or what starts it"
            )
            return None
        if values["url"] is not None:
            self._check_url(given.entries["url"], values["url"])
        elif not (self.permissions.commands or self.permissions.everything):
            allow = "--quant-allow-commands, or `quant_allow_commands = true` in the ini file, allows it"
            self.problems.add(given.entries["command"], f"command: a budget starts no program by itself; {allow}")
        if values["command"] and values["port"] is None and not any("{port}" in word for word in values["command"]):
            why = "needs `{port}` where the server is told its port, or `port` with the one that it takes by itself"
            self.problems.add(given.entries["command"], f"command: {why}")
        return Server(
            values["url"].rstrip("/") if values["url"] else None,
            values["command"] or (),
            str(given.file.resolve().parent),
            values["model"],
            values["api_key_env"],
            values["start_timeout"],
            values["port"],
        )

    def _check_url(self, node: Marked, url: str) -> None:
        try:
            parts = urlsplit(url)
            host, _ = parts.hostname or "", parts.port
        except ValueError as error:
            self.problems.add(node, f"url: {error}")
            return
        if parts.scheme not in ("http", "https") or not host:
            self.problems.add(node, f"url: {url!r} is not one such as http://127.0.0.1:8000/v1")
        elif parts.username or parts.password or parts.query or parts.fragment:
            key = "a key belongs in an environment variable, which `api_key_env` names"
            more = "what stands behind the path is not used; leave it out"
            self.problems.add(node, f"url: {key if parts.username or parts.password else more}")
        elif not _is_loopback(host) and host not in self.permissions.hosts and not self.permissions.everything:
            self.problems.add(node, f"url: {host} is another machine; --quant-allow-host {host} allows it")


def _absolute(value: Any, folder: Path) -> Any:
    """An option's value, in which paths that begin with `./` or `../` are those beside the budget."""
    if isinstance(value, dict):
        return {key: _absolute(each, folder) for key, each in value.items()}
    if isinstance(value, list):
        return [_absolute(each, folder) for each in value]
    return str(path_from(folder, value)) if isinstance(value, str) and value.startswith(("./", "../")) else value


def _texts(value: Any) -> Iterator[str]:
    """The texts in an option's value."""
    if isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _texts(each)
    elif isinstance(value, str):
        yield value


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def needs_checkpoint(engine: EngineSpec, kind: methods.Spec, names: Sequence[str]) -> str | None:
    """Why a method must name a checkpoint, and does not; None where it need not."""
    if "checkpoint" in names or engine.name == OPENAI:
        return None
    if kind.checkpoint_format is not None and not kind.bits:
        return f"the kind {kind.name} is whatever its `checkpoint` says, and there is none"
    if kind.checkpoint_format is not None and not engine.quantizes:
        return f"{engine.name} does not quantize: {kind.name} needs a `checkpoint`"
    return None


def is_file(engine: str, value: object) -> bool:
    """Whether a checkpoint is one file."""
    return engine == LLAMA_CPP and Path(str(value)).suffix == ".gguf"
