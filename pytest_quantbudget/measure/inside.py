"""The first that runs of a measuring process in another interpreter: takes over what `elsewhere` hands to it."""

from __future__ import annotations

import importlib
import json
import os
import typing
from multiprocessing.connection import Connection

from pytest_quantbudget.core import codec
from pytest_quantbudget.measure import parent


def main(module: str, record: str, *ends: str) -> None:
    """Run the function `main` of a module.

    Its first argument is read as JSON from the descriptor `record`. `ends` are the descriptors of messages, of output,
    of the pipe whose other end the parent holds, and of that whose other end shows the parent that this process lives.
    """
    tell, log, watched, alive = map(int, ends)
    # Not for the processes that this one starts.
    for end in (tell, log, watched, alive):
        os.set_inheritable(end, False)
    parent.watch(watched)
    with open(int(record), "rb") as file:  # noqa: PTH123  # a descriptor
        data = json.load(file)
    target = importlib.import_module(module).main
    kind = next(iter(typing.get_type_hints(target).values()))
    target(codec.from_builtins(kind, data), Connection(tell, readable=False), Connection(log, readable=False))
