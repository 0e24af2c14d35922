"""Imports the node's file, which belongs to no package, as ComfyUI does it."""

from __future__ import annotations

import importlib.util
import sys
from functools import cache
from pathlib import Path
from typing import Any

NODE = Path(__file__).parents[2] / "integrations" / "comfyui" / "flowhooks_flow_map.py"


@cache
def node() -> Any:
    spec = importlib.util.spec_from_file_location(NODE.stem, NODE)
    assert spec is not None and spec.loader is not None
    module = sys.modules[NODE.stem] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
