"""float32, with kernels that take their time to be compiled; `KERNELS` is the file in which they are kept."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_quantbudget.core.fields import Field, choice
from pytest_quantbudget.core.request import NO_TRUST, Trust
from pytest_quantbudget.models.dummy import Dummy
from pytest_quantbudget.models.methods import Prepared, Spec, from_source

if TYPE_CHECKING:
    from torch import nn

OPTION = Field("backend", choice("auto", "fast", "slow"), "Kernels.", "auto")
NOTE = "its kernels are slow; tried before, and unusable here: fast (RuntimeError: no nvcc)"


def prepare(source: Path | Dummy, options: Mapping[str, Any], device: str, trust: Trust = NO_TRUST) -> Prepared:
    """Compile for `KERNELS_SECONDS`, unless that was done; `fast` needs a compiler that is nowhere."""
    kept = Path(os.environ["KERNELS"])
    with kept.with_suffix(".pids").open("a") as pids:
        pids.write(f"{os.getpid()}\n")
    if options["backend"] == "fast":
        raise RuntimeError("no nvcc")
    if not kept.exists():
        time.sleep(float(os.environ["KERNELS_SECONDS"]))
        kept.write_text("compiled")
    return Prepared({"backend": "slow"}, (NOTE,))


def load(source: Path | Dummy, options: Mapping[str, Any], device: str, trust: Trust = NO_TRUST) -> nn.Module:
    """The model, with the kernels that `prepare` has chosen."""
    kept = Path(os.environ["KERNELS"])
    kept.with_suffix(".loaded").write_text(f"{os.getpid()} {options['backend']} {kept.read_text()}")
    return from_source(source, device, trust, dtype="float32")


SPECS = {"fp32-prepared": Spec("fp32-prepared", "kernels", load, bits=32, options=(OPTION,), prepare=prepare)}
