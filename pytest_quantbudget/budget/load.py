"""Reads the `load` of a budget file and of its methods: which requests are sent to a server."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from pytest_quantbudget.budget import keys
from pytest_quantbudget.core.engines import Permissions
from pytest_quantbudget.core.load import CONCURRENCY, RATE, Load
from pytest_quantbudget.core.problems import Marked, Problems
from pytest_quantbudget.tasks import texts
from pytest_quantbudget.tasks.harness_file import FindFile

# Two ways to send requests: a method that names one leaves the file's other one.
WAYS = (CONCURRENCY, RATE)


class LoadReader:
    """Reads the loads of one file; `find` gives the file that a key names, and `permissions` what may run."""

    def __init__(self, file: Marked | None, find: FindFile, problems: Problems, permissions: Permissions) -> None:
        self.find, self.problems, self.permissions = find, problems, permissions
        self.given = self._given(file, "load")
        self.load = self._load(self.given, file) if file is not None else None

    def of(self, node: Marked | None, name: str) -> Load | None:
        """The load of a method: its own keys, and the file's for the rest; None where neither has any."""
        if node is None:
            return self.load
        own = self._given(node, f"{name}'s load")
        others = {key: entry for key, entry in self.given.items() if key not in WAYS or not set(WAYS) & set(own)}
        return self._load({**others, **own}, node)

    def _given(self, node: Marked | None, what: str) -> dict[str, Marked]:
        """The keys that a mapping has, which are checked here."""
        keys.read_fields(node, keys.LOAD, what, self.problems)
        return dict(node.entries) if node is not None else {}

    def _load(self, given: Mapping[str, Marked], node: Marked) -> Load | None:
        """The load of these keys. Mistakes in single values are noted already."""
        values = keys.read_fields(replace(node, value=dict(given)), keys.LOAD, "", Problems())
        if all(given.get(way) for way in WAYS):
            why = "`concurrency` keeps a number of requests open, `rate` sends them at its own pace: give one of them"
            self.problems.add(given[RATE], why)
            return None
        if not any(given.get(way) for way in WAYS):
            values[CONCURRENCY] = (1,)
        most = max(values[CONCURRENCY] or (1,))
        if values["requests"] < most:
            place = given.get("requests") or given[CONCURRENCY]
            why = f"{values['requests']:,} requests never fill a concurrency of {most:,}"
            self.problems.add(place, f"requests: {why}; give at least as many")
        values["timeout_s"] = values.pop("timeout")
        if values["tool"] is not None:
            values["python"] = self._interpreter(given, values["tool"])
        file = self._text(given, node)
        return Load(**{**values, "file": file, "concurrency": values[CONCURRENCY] or (), "rate": values[RATE] or ()})

    def _interpreter(self, given: Mapping[str, Marked], tool: str) -> str | None:
        """The interpreter that runs another program: the one of its name."""
        if "file" in given:
            self.problems.add(given["file"], f"file: {tool} makes its own prompts, of random words")
        found = self.permissions.interpreters.get(tool)
        if found is None and not self.permissions.everything:
            allow = f"the ini line `quant_interpreters = {tool} = PATH` names it"
            self.problems.add(given["tool"], f"tool: {tool} runs in an interpreter of its own; {allow}")
        return str(found) if found is not None else None

    def _text(self, given: Mapping[str, Marked], node: Marked) -> str | None:
        """The file that prompts are cut from, which must hold text."""
        if "file" not in given:
            return None
        path = self.find(replace(node, value=dict(given)), "file")
        if path is not None and path.is_file():
            try:
                if not texts.read_text(path).strip():
                    self.problems.add(given["file"], f"file: {path.name} holds no text")
            except (OSError, ValueError) as error:
                self.problems.add(given["file"], f"file: {error}")
        return str(path)
