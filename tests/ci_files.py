"""The shell in the files of docs/ci, run here as their schedulers would run it: one process a job, the jobs at once."""

import json
import os
import re
import shlex
import shutil
import stat
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

CI = Path(__file__).parent.parent / "docs" / "ci"
# Of the job's environment nothing may reach what is measured there but this.
KEPT = ("HOME", "LANG", "PYTHONPATH", "TMPDIR", "HF_HUB_OFFLINE", "OMP_NUM_THREADS", "OMP_WAIT_POLICY")
EXPRESSION = re.compile(r"\$\{\{ *(.*?) *\}\}")

# Stand-ins for the programs that a scheduler has where jobs are started: they note what they were called with.
NOTED = """#!/usr/bin/env bash
printf '%q ' "${0##*/}" "$@" >> calls.txt
echo >> calls.txt
"""
SBATCH = NOTED + 'echo "$(wc -l < calls.txt);cluster"\n'
KUBECTL = NOTED + 'case "$*" in *jsonpath*) echo "Complete=True " ;; esac\n'


@dataclass
class Job:
    """One job that was run: its exit code, and what it printed."""

    code: int
    printed: str


@dataclass
class Place:
    """A checkout in which jobs run; `environ` is what the user of the files has set."""

    folder: Path
    environ: Mapping[str, str] = field(default_factory=dict)

    def environment(self, more: Mapping[str, str]) -> dict[str, str]:
        """What a job finds in its environment: `pytest` and `python` are those of this run."""
        kept = {name: os.environ[name] for name in KEPT if name in os.environ}
        path = os.pathsep.join([str(self.folder / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]])
        return {**kept, "PATH": path, "XDG_CACHE_HOME": str(self.folder / "home"), **self.environ, **more}

    def start(
        self, script: str, more: Mapping[str, str], shell: Sequence[str] = ("bash", "-ec")
    ) -> subprocess.Popen[str]:
        """Start a job's script, as most runners do: the first command that fails ends it."""
        return subprocess.Popen(
            [*shell, script],
            cwd=self.folder,
            env=self.environment(more),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, script: str, more: Mapping[str, str], shell: Sequence[str] = ("bash", "-ec")) -> Job:
        """Run a job's script."""
        return ended([self.start(script, more, shell)])[0]

    def stand_in(self, name: str, text: str) -> None:
        """Put a program in front of those of the machine."""
        path = self.folder / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        path.chmod(path.stat().st_mode | stat.S_IXUSR)

    def calls(self) -> list[list[str]]:
        """What the stand-ins were called with."""
        return [shlex.split(line) for line in (self.folder / "calls.txt").read_text().splitlines()]


def ended(jobs: Sequence[subprocess.Popen[str]]) -> list[Job]:
    """Wait for jobs that run side by side."""
    told = [job.communicate(timeout=300)[0] for job in jobs]
    return [Job(job.returncode, text) for job, text in zip(jobs, told, strict=True)]


def read(name: str) -> Any:
    """A file of docs/ci that has one YAML document."""
    return yaml.safe_load((CI / name).read_text())


def without_install(commands: Sequence[str]) -> list[str]:
    """The commands of a job but for those that install: what they would install is what runs here."""
    return [command for command in commands if not command.startswith("pip install")]


class GitHub:
    """The jobs of a workflow: `run` steps with their environment, artifacts as folders, and outputs."""

    def __init__(self, name: str, place: Place) -> None:
        self.workflow, self.place = read(name), place
        self.artifacts = place.folder / "artifacts"

    def matrix(self, job: str, needs: Mapping[str, str]) -> list[str]:
        """The values of the job's one matrix variable."""
        (value,) = self.workflow["jobs"][job]["strategy"]["matrix"].values()
        return list(json.loads(self._filled(value, needs)) if isinstance(value, str) else value)

    def script(self, job: str, known: Mapping[str, str]) -> tuple[str, dict[str, str]]:
        """The job's commands, one after the other, and the variables of their steps."""
        steps = [step for step in self.workflow["jobs"][job]["steps"] if "run" in step]
        commands = without_install([step["run"] for step in steps])
        environ = {name: value for step in steps for name, value in step.get("env", {}).items()}
        environ = {**self.workflow["env"], **environ}
        return "\n".join(commands), {name: self._filled(value, known) for name, value in environ.items()}

    def uploaded(self, job: str, known: Mapping[str, str]) -> None:
        """What the job's `upload-artifact` steps do."""
        for step in self.workflow["jobs"][job]["steps"]:
            if step.get("uses", "").startswith("actions/upload-artifact"):
                target = self.artifacts / self._filled(step["with"]["name"], known)
                for source in step["with"]["path"].split():
                    found = self.place.folder / source
                    assert found.exists(), f"{source} is not there"
                    shutil.copytree(found, target) if found.is_dir() else target.mkdir(exist_ok=True)
                    if found.is_file():
                        shutil.copy(found, target)

    def downloaded(self, job: str) -> None:
        """What the job's `download-artifact` step does: a folder for each artifact."""
        (step,) = [s for s in self.workflow["jobs"][job]["steps"] if s.get("uses", "").startswith("actions/download")]
        for artifact in self.artifacts.glob(step["with"]["pattern"]):
            shutil.copytree(artifact, self.place.folder / step["with"]["path"] / artifact.name)

    def _filled(self, text: str, known: Mapping[str, str]) -> str:
        """Expressions by what is known: the first name of `a || b` that is, else the literal."""

        def value(found: re.Match[str]) -> str:
            inner = re.sub(r"^fromJSON\((.*)\)$", r"\1", found[1])
            for part in inner.split(" || "):
                if part in known or part.startswith("'"):
                    return known.get(part, part.strip("'"))
            raise KeyError(inner)

        return EXPRESSION.sub(value, text)
