"""From an adapter section to an attached adapter."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from flowhooks.adapters.adapter_file import read_adapter
from flowhooks.adapters.base import Adapter
from flowhooks.adapters.load import load_values, starting_config
from flowhooks.adapters.lycoris_adapter import LycorisAdapter, build_network
from flowhooks.adapters.peft_adapter import PeftAdapter, peft_config
from flowhooks.adapters.targets import check_bare, find_targets


def build_adapter(transformer: nn.Module, config: Mapping[str, Any], *, pipeline: Any = None) -> Adapter:
    """Freeze ``transformer`` and put a fresh adapter on it, which changes nothing until it is trained.

    ``config`` is the validated adapter section: type, algo (LyCORIS), rank, alpha, dropout, target_modules, init_from.
    With ``init_from`` the values come from that file or folder, which must fit the section; ranks and strengths
    that differ between layers, and rank-stabilised scaling, are the file's.

    Args:
        pipeline: as `load_adapter` takes it, for ``init_from``.

    Raises:
        AdapterError: no layer matches, the transformer already carries an adapter, or ``init_from`` does not fit.
    """
    check_bare(transformer)
    if config["type"] == "lycoris" and config["algo"] is None:
        config = {**config, "algo": "locon"}
    targets = find_targets(transformer, config["target_modules"])
    start = None if config["init_from"] is None else read_adapter(Path(config["init_from"]), pipeline=pipeline)
    adapter: PeftAdapter | LycorisAdapter
    if config["type"] == "lycoris":
        adapter = LycorisAdapter(transformer, config, build_network(transformer, config, targets), targets)
    else:
        peft = peft_config(config, targets) if start is None else starting_config(start, config, targets)
        adapter = PeftAdapter(transformer, config, peft, targets)
    if start is not None:
        try:
            load_values(adapter, start)
        except BaseException:
            adapter.detach()
            raise
    return adapter
