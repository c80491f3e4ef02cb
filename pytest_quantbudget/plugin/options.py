"""The command line and the ini file: their options declared, and read. Declaring them imports nothing else of ours."""

from __future__ import annotations

import math
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pytest_quantbudget.core.engines import Permissions
    from pytest_quantbudget.core.request import Trust
    from pytest_quantbudget.report.merged import Merged

MEASURING = ("--quant-cache", "--quant-no-cache", "--quant-refresh", "--quant-timeout", "--quant-noise")


@dataclass(frozen=True)
class Options:
    """What the command line and the ini file say about a run with budgets.

    `cache` is a local directory for checkpoints, and `store` where results are kept, a directory or URL; None for
    nowhere. `roots` are folders that budgets may refer to; `deadline` is when measuring has to end, on the monotonic
    clock; `stored` are reports that are judged in place of measuring; `repeat_runs` is how many more times each
    baseline is measured; `update` names the limits that are written into the budgets at the end (see
    `budget.update.MODES`); `history` is where runs are kept, a directory or URL; `load_format` replaces that of the
    budgets; `permissions` say what they may start and reach. A run `for_github` says there what became of it, where it
    is one of GitHub Actions.
    """

    cache: Path | None
    store: str | None
    refresh: bool
    require_gpu: bool
    fail_on_skip: bool
    strict: bool
    trust: Trust
    roots: tuple[Path, ...]
    deadline: float
    stored: Merged | None
    repeat_runs: int
    update: str
    update_rate: float
    load_format: str | None
    report: Path | None
    html: Path | None
    history: str | None
    summary: Path | None
    for_github: bool
    permissions: Permissions


def pytest_addoption(parser: pytest.Parser) -> None:
    """The command line and ini keys."""
    group = parser.getgroup("quantbudget", "quantization budgets")
    group.addoption(
        "--quant-budget",
        action="append",
        default=[],
        metavar="PATH",
        help="Test the limits of this budget: a YAML file, a directory or a glob. May be repeated. "
        "Without other arguments only the budgets run.",
    )
    group.addoption("--quant-report", metavar="FILE", help="Write every figure and verdict to FILE as JSON.")
    group.addoption(
        "--quant-html",
        metavar="FILE",
        help="Write verdicts, charts and answers to FILE as one HTML page that needs nothing else.",
    )
    group.addoption(
        "--quant-history",
        metavar="PLACE",
        help="Add the run's figures and verdicts to the history in PLACE, a directory or any URL that fsspec knows, "
        "and judge `max_change` by the runs before it.",
    )
    group.addoption(
        "--quant-summary",
        metavar="FILE",
        help="Write the verdicts to FILE as Markdown for a pull request. On GitHub Actions they stand in the step's "
        "summary and beside the budget's lines without this.",
    )
    group.addoption(
        "--no-quant-summary",
        action="store_true",
        dest="quant_no_summary",
        help="On GitHub Actions, write nothing into the step's summary and beside the budget's lines.",
    )
    group.addoption(
        "--quant-require-gpu",
        action="store_true",
        help="Fail, instead of skip, what this machine has no GPU or no package for.",
    )
    group.addoption(
        "--quant-fail-on-skip",
        action="store_true",
        help="Fail, instead of skip, every selected limit that cannot be judged, for whatever reason.",
    )
    group.addoption(
        "--quant-strict",
        action="store_true",
        help="A drop limit whose test errs too often with its questions is an error, instead of a warning.",
    )
    group.addoption(
        "--quant-cache",
        metavar="DIR",
        help="Where results are kept, so that nothing is measured twice: a directory (default: "
        "~/.cache/pytest-quantbudget), which also keeps checkpoints that were quantized here, or any URL that fsspec "
        "knows, for results that several machines share.",
    )
    group.addoption("--quant-no-cache", action="store_true", help="Measure everything, and keep nothing.")
    group.addoption("--quant-refresh", action="store_true", help="Measure everything again, and keep that.")
    group.addoption(
        "--quant-timeout",
        metavar="TIME",
        help='Time for all measurements of the run, such as "2 h"; what is not measured by then fails.',
    )
    group.addoption(
        "--quant-from",
        action="append",
        metavar="REPORT",
        help="Judge the measurements in REPORT, which --quant-report wrote: nothing is loaded, and no GPU is needed. "
        "May be repeated, and name a directory or a glob: reports of several machines or methods as one run.",
    )
    group.addoption(
        "--quant-noise",
        metavar="K",
        help="Measure each budget's baseline K more times, to show how much repeat runs differ, and which limits ask "
        "for less than that.",
    )
    group.addoption(
        "--quant-update",
        nargs="?",
        const="auto",
        metavar="WHICH",
        help="Write what was measured, with a margin for noise, into the budgets: `auto` (default) for the limits that "
        "read so, `--quant-update=tighten` also where that is tighter than the number there, `--quant-update=all` "
        "for every limit.",
    )
    group.addoption(
        "--quant-update-rate",
        metavar="SHARE",
        help="How often a limit that --quant-update writes may fail with nothing changed (default: 0.01).",
    )
    group.addoption(
        "--quant-load-format",
        choices=["auto", "dummy"],
        help="dummy: build the models from config.json alone, with random weights, to test memory, load and speed; "
        "auto: load their weights. Holds instead of the budgets' `load_format`.",
    )
    group.addoption(
        "--quant-trust-remote-code",
        action="store_true",
        help="Run code that comes with a model (trust_remote_code of transformers).",
    )
    group.addoption(
        "--quant-allow-pickle",
        action="store_true",
        help="Load weights that are pickles, which can run code, where a model has no safetensors.",
    )
    group.addoption(
        "--quant-allow-commands",
        action="store_true",
        help="Start the servers whose `command` a budget names.",
    )
    group.addoption(
        "--quant-allow-host",
        action="append",
        default=[],
        metavar="HOST",
        help="Measure a server on another machine, whose `url` a budget names. May be repeated.",
    )
    group.addoption(
        "--quant-estimate",
        action="store_true",
        help="Print the memory that each method is going to take, and which GPUs have it; nothing is loaded or tested.",
    )
    parser.addini(
        "quant_allow_paths",
        "Directories outside the repository that budgets may name.",
        type="paths",
        default=[],
    )
    parser.addini(
        "quant_interpreters",
        "Lines `NAME = PATH`: Python interpreters that a budget's `python` may name, by name or path. One whose name "
        "is an engine's measures all methods of that engine.",
        type="linelist",
        default=[],
    )
    parser.addini("quant_allow_commands", "As --quant-allow-commands.", type="bool", default=False)
    parser.addini("quant_fail_on_skip", "As --quant-fail-on-skip.", type="bool", default=False)
    parser.addini("quant_history", "As --quant-history; a directory is relative to the ini file.", default="")
    parser.addini("quant_budget", "Budgets that a plain `pytest` runs too.", type="paths", default=[])


def read(config: pytest.Config) -> Options:
    """The options of a run. Raises pytest.UsageError."""
    from pytest_quantbudget.core.safetext import safe

    try:
        return _read(config)
    except (ValueError, RuntimeError) as error:  # RuntimeError: `~` of a user without a home
        raise pytest.UsageError(safe(str(error))) from None


def _read(config: pytest.Config) -> Options:
    from pytest_quantbudget.core.request import Trust
    from pytest_quantbudget.plugin import written

    given = config.option
    if given.quant_no_cache and (given.quant_cache or given.quant_refresh):
        other = "--quant-cache" if given.quant_cache else "--quant-refresh"
        raise ValueError(f"{other} is about what is kept, and --quant-no-cache keeps nothing; use one of them")
    folder, place = _cache(given.quant_cache)
    others = {"--quant-report": [given.quant_report], "--quant-from": given.quant_from or []}
    update, update_rate = _update(given.quant_update, given.quant_update_rate)
    return Options(
        cache=folder,
        store=None if given.quant_no_cache else place,
        refresh=given.quant_refresh,
        require_gpu=given.quant_require_gpu,
        fail_on_skip=given.quant_fail_on_skip or config.getini("quant_fail_on_skip"),
        strict=given.quant_strict,
        trust=Trust(given.quant_trust_remote_code, given.quant_allow_pickle),
        roots=(_repository(config), *config.getini("quant_allow_paths")),
        deadline=time.monotonic() + _timeout(given.quant_timeout),
        stored=_stored(config),
        repeat_runs=_repeat_runs(given.quant_noise),
        update=update,
        update_rate=update_rate,
        load_format=given.quant_load_format,
        report=written.file("--quant-report", given.quant_report),
        html=written.page(given.quant_html, others),
        history=_history(config),
        summary=written.apart("--quant-summary", given.quant_summary, {**others, "--quant-html": [given.quant_html]}),
        for_github=not given.quant_no_summary,
        permissions=_permissions(config),
    )


def _permissions(config: pytest.Config) -> Permissions:
    """What budgets may start and reach."""
    from pytest_quantbudget.core.engines import Permissions
    from pytest_quantbudget.core.files import path_from

    interpreters = {}
    for line in config.getini("quant_interpreters"):
        name, found, path = (part.strip() for part in line.partition("="))
        if not found or not name or not path:
            raise ValueError(f"quant_interpreters: {line!r} is not NAME = PATH, such as vllm = .venv-vllm/bin/python")
        interpreters[name] = path_from(_repository(config), path)
    commands = config.option.quant_allow_commands or config.getini("quant_allow_commands")
    return Permissions(interpreters, commands, frozenset(map(str.lower, config.option.quant_allow_host)))


def _repository(config: pytest.Config) -> Path:
    """Where the ini file lies, else where pytest was called; its root directory may be as high as `/`.

    pytest takes every path on the command line, the cache's too, into account for that.
    """
    return config.inipath.parent if config.inipath else config.invocation_params.dir


def _cache(named: str | None) -> tuple[Path | None, str | None]:
    """A local directory, and where results are kept; None for what has no place."""
    from pytest_quantbudget.core import files

    if not named:
        default = files.default_cache()
        return default, str(default / "results") if default is not None else None
    from pytest_quantbudget.core import places

    if not places.is_url(named):
        folder = Path(named).expanduser().absolute()
        return folder, str(folder / "results")
    try:
        places.Remote(named)
    except (ValueError, ImportError, OSError) as error:
        raise ValueError(f"--quant-cache {named}: {error}") from None
    return files.default_cache(), named


def _timeout(text: str | None) -> float:
    from pytest_quantbudget.core.fields import TIME

    if text is None:
        return math.inf
    try:
        return float(TIME.read(text))
    except ValueError as error:
        raise ValueError(f"--quant-timeout: {error}") from None


def _stored(config: pytest.Config) -> Merged | None:
    """The reports that --quant-from names."""
    names: list[str] = config.option.quant_from or []
    if not names:
        return None
    from pytest_quantbudget.core import files
    from pytest_quantbudget.report import merged

    for other in MEASURING:
        if getattr(config.option, other.strip("-").replace("-", "_"), None):
            raise ValueError(f"--quant-from judges a report and measures nothing; {other} is about measuring")
    base = config.invocation_params.dir
    cache = files.default_cache()
    target = files.path_from(base, config.option.quant_report).resolve() if config.option.quant_report else None
    try:
        return merged.read_all(names, base, target, cache / "hashes" if cache is not None else None)
    except (ValueError, OSError, ArithmeticError, RecursionError) as error:
        raise ValueError(f"--quant-from{error}") from None


def _repeat_runs(text: str | None) -> int:
    if text is None:
        return 0
    if not re.fullmatch(r"[1-9][0-9]{0,3}", text):
        raise ValueError(f"--quant-noise must be a whole number of at least 1, such as 3, not {text!r}")
    return int(text)


def _history(config: pytest.Config) -> str | None:
    """Where runs are kept: a directory, or a URL."""
    given, written = config.option.quant_history, config.getini("quant_history")
    named, base = (given, config.invocation_params.dir) if given else (written, _repository(config))
    if not named:
        return None
    from pytest_quantbudget.core import places

    if places.is_url(named):
        try:
            places.at(named)
        except (ValueError, ImportError, OSError) as error:
            raise ValueError(f"--quant-history {named}: {error}") from None
        return str(named)
    folder = (base / Path(named).expanduser()).absolute()
    if folder.is_file():
        raise ValueError(f"--quant-history: {named} is a file; a history is a directory, or a URL")
    return str(folder)


def _update(mode: str | None, rate: str | None) -> tuple[str, float]:
    """Which limits are written, and how often they may fail a repeat run."""
    if mode is None:
        if rate is not None:
            raise ValueError("--quant-update-rate belongs to --quant-update")
        return "", 0.0
    from pytest_quantbudget.budget import update
    from pytest_quantbudget.core.fields import number
    from pytest_quantbudget.judge.margin import RATE

    if mode not in update.MODES:
        # argparse takes the word behind an option for its value: a file's name, too.
        known = ", ".join(f"--quant-update={name}" for name in update.MODES)
        raise ValueError(f"--quant-update {mode}: {mode!r} is not one of {known}; name files before it")
    if rate is None:
        return mode, RATE
    try:
        return mode, float(number(1e-6, 0.5, closed="low").read(float(rate)))
    except ValueError:
        why = f"must be the share of repeat runs that may fail, from 0.000001 to below 0.5, not {rate!r}"
        raise ValueError(f"--quant-update-rate {why}") from None
