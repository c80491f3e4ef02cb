"""The root directory of a run, which must not depend on where its cache and its reports lie.

pytest looks for its ini file and root directory before it knows the options of plugins. It takes what follows them for
paths of tests, as soon as something of that name exists: `--quant-cache DIR` in the second run, `--quant-report FILE`
too (https://docs.pytest.org/en/stable/reference/customize.html#initialization-determining-rootdir-and-configfile).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
from _pytest.config.findpaths import determine_setup

from pytest_quantbudget.core.problems import display_path


def settle(config: pytest.Config, arguments: Sequence[str]) -> None:
    """Set the root directory that pytest finds once it takes no option's value for a path of tests.

    Those of `--quant-budget` are such paths. Raises pytest.UsageError where pytest has read another ini file, or none:
    what that says cannot be made good any more.
    """
    known = config.known_args_namespace
    pairs = itertools.pairwise(["", *arguments])
    paths = [value for before, value in pairs if before == "--quant-budget" or value in known.file_or_dir]
    root, inipath, *_ = determine_setup(
        inifile=known.inifilename,
        override_ini=known.override_ini,
        args=paths,
        rootdir_cmd_arg=known.rootdir or None,
        invocation_dir=config.invocation_params.dir,
    )
    if inipath != config.inipath:
        read = display_path(config.inipath) if config.inipath else "none"
        meant = display_path(inipath) if inipath else "none"
        raise pytest.UsageError(
            "pytest took the value of a --quant option for a path of tests, looked for its ini file there and read "
            f"{read}, not {meant}; write the option with `=`, as in --quant-cache=DIR"
        )
    # There is no public way to set it.
    config._rootpath = root
