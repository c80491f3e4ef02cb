"""Stands in for auto-gptq and autoawq, which are too old for this environment: a real model behind their interfaces.

`installed` writes the modules `auto_gptq` and `awq`. A checkpoint is a dense model that says it is quantized; it is
loaded dense by `fake_archived_loader`, with one layer in a class that has the entries of packed ones. The variable
`FAULT` names what goes wrong.
"""

import json
import shutil
from pathlib import Path
from typing import Any

from pytest_quantbudget.core.files import BUILTIN_DIR

FAULT = "ARCHIVED_FAULT"
MODULES = {"auto_gptq": "auto-gptq", "awq": "autoawq"}
# Nothing heavy is imported before it is needed: what goes wrong before that goes wrong in no time.
LIBRARY = f"""
import os, sys

class Auto:
    def __init__(self, model):
        self.model = model

    @classmethod
    def from_quantized(
        cls, path, device_map=None, use_triton=False, fuse_layers=True, trust_remote_code=False, use_safetensors=True,
        safetensors=True, **kwargs,
    ):
        fault = os.environ.get({FAULT!r}, "")
        if not (use_safetensors and safetensors):
            raise FileNotFoundError("there is no pickled file")
        if fault == "import":
            raise ImportError("Please install intel_extension_for_pytorch")
        if fault == "refuse":
            raise TypeError("qwen3 isn't supported yet.")
        if fault == "die":
            os._exit(7)
        sys.path.append({str(Path(__file__).parent)!r})
        import fake_archived_loader
        return cls(fake_archived_loader.load(path, fault, kwargs.get("torch_dtype", "float32")))

AutoGPTQForCausalLM = AutoAWQForCausalLM = Auto
"""


def installed(site: Path) -> None:
    """Both libraries, in a folder of modules."""
    for module, name in MODULES.items():
        (site / f"{module}.py").write_text(LIBRARY)
        told = site / f"{module}-9.9.dist-info"
        told.mkdir()
        (told / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 9.9\n")


def checkpoint(folder: Path, method: str = "gptq", **more: Any) -> Path:
    """The built-in model, which says that it is quantized."""
    shutil.copytree(BUILTIN_DIR, folder)
    config = json.loads((folder / "config.json").read_text())
    told = {"quant_method": method, "bits": 4, "group_size": 128, "desc_act": False, "version": "gemm"}
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": told, **more}))
    return folder
