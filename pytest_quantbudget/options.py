"""The command line and the ini file, read into the options of a session."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from pytest_quantbudget import sources, store
from pytest_quantbudget.grammar import TIME
from pytest_quantbudget.request import Trust
from pytest_quantbudget.safetext import safe
from pytest_quantbudget.session import Options


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
        trust=Trust(given.quant_trust_remote_code, given.quant_allow_pickle),
        roots=(_repository(config), *config.getini("quant_allow_paths")),
        timeout_s=_timeout(given.quant_timeout),
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
