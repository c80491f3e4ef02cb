"""Fuzz what reads files that others wrote: budgets, reports and entries of the results store.

    pip install -e '.[test,fuzz]'
    python tools/fuzz/fuzz.py all --runs 300000 --corpus DIR
    python tools/fuzz/fuzz.py budget --runs 1000 --corpus DIR --max-len 200000

DIR keeps, for each target, the inputs that reached new code (`corpus`) and those that found something (`findings`).
Exits with 1 where something was found.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import subprocess
import sys
import time
from pathlib import Path
from random import Random
from typing import Any

import fuzz_inputs

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
MAX_LEN = {"budget": 2000, "report": 8000, "entry": 4000}
SEEDS = 200  # generated inputs that a campaign begins with
SLOW_S, TIMEOUT_S, RSS_MB = 3, 10, 2048


@dataclasses.dataclass
class Result:
    """What one campaign came to."""

    target: str
    inputs: int = 0
    seconds: float = 0
    edges: int = 0
    rss_mb: int = 0
    findings: list[str] = dataclasses.field(default_factory=list)

    def __str__(self) -> str:
        """One line, and one more for each finding."""
        rate = self.inputs / self.seconds if self.seconds else 0
        head = f"{self.target}: {self.inputs:,} inputs in {self.seconds:,.0f} s ({rate:,.0f}/s), {self.edges:,} edges"
        return "\n  ".join([f"{head}, {self.rss_mb} MB at most, {len(self.findings)} findings", *self.findings])


def seed_corpus(target: str, folder: Path) -> None:
    """What a campaign begins with: the project's own files, what found something before, and generated inputs."""
    folder.mkdir(parents=True, exist_ok=True)
    own = {"budget": ["budgets/*.yaml", "docs/results/*.yaml"]}.get(target, [])
    for pattern in [*own, f"tests/corpus/{target}/*"]:
        for path in ROOT.glob(pattern):
            if path.stat().st_size <= 100_000:
                (folder / f"seed-{path.name}").write_bytes(path.read_bytes())
    if target == "report":
        for path in ROOT.glob("docs/results/*.json"):
            short = _shortened(json.loads(path.read_bytes()))
            (folder / f"seed-{path.name}").write_bytes(fuzz_inputs.dump(short))
    generate = {"budget": fuzz_inputs.budget_files, "report": fuzz_inputs.report, "entry": fuzz_inputs.entry}[target]
    for seed in range(SEEDS):
        (folder / f"seed-{seed}").write_bytes(generate(Random(seed)))


def _shortened(value: Any) -> Any:
    """The same form with at most two items a list and 40 characters a text, so that mutation hits what matters."""
    if isinstance(value, dict):
        return {key: _shortened(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_shortened(item) for item in value[:2]]
    return value[:40] if isinstance(value, str) else value


def campaign(target: str, runs: int, folder: Path, max_len: int | None, modules: str) -> Result:
    """Fuzz one target until `runs` inputs were tried, over again after each hang or memory kill."""
    corpus, findings = folder / target / "corpus", folder / target / "findings"
    findings.mkdir(parents=True, exist_ok=True)
    seed_corpus(target, corpus)
    log, result = folder / target / "log.txt", Result(target)
    started = time.monotonic()
    while result.inputs < runs:
        command = [
            *(sys.executable, str(HERE / "fuzz_worker.py"), target, str(findings), modules, str(corpus)),
            f"-runs={runs - result.inputs}",
            f"-max_len={max_len or MAX_LEN[target]}",
            f"-timeout={TIMEOUT_S}",
            f"-rss_limit_mb={RSS_MB}",
            f"-report_slow_units={SLOW_S}",
            f"-artifact_prefix={findings}/",
            "-print_final_stats=1",
        ]
        with log.open("wb") as file:
            code = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, check=False).returncode
        text = log.read_text(encoding="utf-8", errors="replace")
        tried = _last(r"stat::number_of_executed_units: (\d+)", text) or _last(r"^#(\d+)", text)
        result.inputs += tried
        result.edges = max(result.edges, _last(r"cov: (\d+)", text))
        result.rss_mb = max(result.rss_mb, _last(r"stat::peak_rss_mb: +(\d+)", text), _last(r"rss: (\d+)Mb", text))
        if code and not tried:
            raise SystemExit(f"{target}: the fuzzer does not start; see {log}")
    result.seconds = time.monotonic() - started
    result.findings = sorted(path.name for path in findings.iterdir() if path.suffix != ".txt")
    return result


def _last(pattern: str, text: str) -> int:
    found = re.findall(pattern, text, re.MULTILINE)
    return int(found[-1]) if found else 0


def main() -> int:
    """Run the campaigns, one after the other, and print what each came to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", choices=[*MAX_LEN, "all"])
    parser.add_argument("--runs", type=int, default=10_000, help="inputs for each target")
    parser.add_argument("--corpus", type=Path, required=True, help="where inputs and findings are kept")
    parser.add_argument("--max-len", type=int, help="bytes of an input, at most")
    parser.add_argument(
        "--yaml", action="store_true", help="let PyYAML's coverage steer the search too, at a third of the speed"
    )
    options = parser.parse_args()
    modules = "pytest_quantbudget,yaml" if options.yaml else "pytest_quantbudget"
    targets = list(MAX_LEN) if options.target == "all" else [options.target]
    found = False
    for target in targets:
        result = campaign(target, options.runs, options.corpus, options.max_len, modules)
        print(result, flush=True)
        found = found or bool(result.findings)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
