"""The command line and the ini file, read into the options of a session."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest

from pytest_quantbudget import sources, store, stored, units, update
from pytest_quantbudget.grammar import TIME, number
from pytest_quantbudget.request import Trust
from pytest_quantbudget.safetext import safe
from pytest_quantbudget.session import Options
from pytest_quantbudget.yamlfile import display_path, path_from

MEASURING = ("--quant-cache", "--quant-no-cache", "--quant-refresh", "--quant-timeout", "--quant-noise")


def read(config: pytest.Config) -> Options:
    """What a run may do and where it keeps things. Raises pytest.UsageError."""
    given = config.option
    if given.quant_no_cache and (given.quant_cache or given.quant_refresh):
        other = "--quant-cache" if given.quant_cache else "--quant-refresh"
        raise pytest.UsageError(f"{other} names what is to be kept and --quant-no-cache keeps nothing; choose one")
    folder, place = _cache(given.quant_cache)
    return Options(
        cache=folder,
        store=None if given.quant_no_cache else place,
        refresh=given.quant_refresh,
        require_gpu=given.quant_require_gpu,
        strict=given.quant_strict,
        trust=Trust(given.quant_trust_remote_code, given.quant_allow_pickle),
        roots=(_repository(config), *config.getini("quant_allow_paths")),
        timeout_s=_timeout(given.quant_timeout),
        stored=_stored(config),
        noise=_noise(given.quant_noise),
        **_update(given.quant_update, given.quant_update_rate),
        load_format=given.quant_load_format,
    )


def _repository(config: pytest.Config) -> Path:
    """Where the ini file lies, else where pytest was called; its root directory may be as high as `/`.

    pytest takes every path on the command line, the cache's too, into account for that.
    """
    return config.inipath.parent if config.inipath else config.invocation_params.dir


def _cache(named: str | None) -> tuple[Path, str]:
    """A local directory, and where results are kept."""
    if named is None or not store.is_url(named):
        folder = Path(named).expanduser().absolute() if named else sources.default_cache().absolute()
        return folder, str(folder / "results")
    try:
        store.Remote(named)
    except (ValueError, ImportError, OSError) as error:
        raise pytest.UsageError(safe(f"--quant-cache {named}: {error}")) from None
    return sources.default_cache().absolute(), named


def _timeout(text: str | None) -> float:
    if text is None:
        return math.inf
    try:
        return float(TIME.read(text))
    except ValueError as error:
        raise pytest.UsageError(f"--quant-timeout: {error}") from None


def _stored(config: pytest.Config) -> stored.Stored | None:
    """The report that --quant-from names."""
    named: str | None = config.option.quant_from
    if named is None:
        return None
    for other in MEASURING:
        if getattr(config.option, other.strip("-").replace("-", "_"), None):
            raise pytest.UsageError(f"--quant-from judges a report and measures nothing; {other} is about measuring")
    base = config.invocation_params.dir
    path = path_from(base, named)
    target = config.option.quant_report
    if target is not None and path_from(base, target).resolve() == path.resolve():
        raise pytest.UsageError("--quant-report would overwrite the measurements that --quant-from judges")
    try:
        return stored.read(path, display_path(path), sources.default_cache().absolute() / "hashes")
    except FileNotFoundError:
        near = units.nearest(path.name, [p.name for p in path.parent.glob("*.json")])
        raise pytest.UsageError(f"--quant-from: there is no report {named!r}{near}") from None
    except (ValueError, OSError, ArithmeticError, RecursionError) as error:
        raise pytest.UsageError(safe(f"--quant-from {named}: {error}")) from None


def _noise(text: str | None) -> int:
    if text is None:
        return 0
    if not re.fullmatch(r"[1-9][0-9]{0,3}", text):
        raise pytest.UsageError(f"--quant-noise wants a whole number of at least 1, such as 3, not {safe(text)!r}")
    return int(text)


def _update(mode: str | None, rate: str | None) -> dict[str, Any]:
    """Which limits are written, and how often they may fail an equal run."""
    if mode is None:
        if rate is not None:
            raise pytest.UsageError("--quant-update-rate belongs to --quant-update")
        return {}
    if mode not in update.MODES:
        # argparse takes the word behind an option for its value: a file's name, too.
        known = ", ".join(f"--quant-update={name}" for name in update.MODES)
        raise pytest.UsageError(safe(f"--quant-update {mode}: {mode!r} is none of {known}; name files before it"))
    if rate is None:
        return {"update": mode}
    try:
        return {"update": mode, "update_rate": number(1e-6, 0.5, closed="low").read(float(rate))}
    except ValueError:
        why = f"wants the share of equal runs that may fail, from 0.000001 to below 0.5, not {rate!r}"
        raise pytest.UsageError(safe(f"--quant-update-rate {why}")) from None
