"""What decides latents and embeddings, as one hash."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from torch import nn

from flowhooks.probe.contract import PipelineContract


def fingerprint(pipe: Any, contract: PipelineContract, arguments: Mapping[str, Any]) -> str:
    """Hash of classes, configs, and a sample of every weight but the networks'."""
    digest = hashlib.sha256(json.dumps([contract.pipeline, arguments], sort_keys=True, default=str).encode())
    for name, part in sorted(pipe.components.items()):
        if isinstance(part, nn.Module) and name not in contract.networks:
            digest.update(f"{name} {type(part).__name__} {_settings(part)}".encode())
            for key, weight in part.state_dict().items():
                flat = weight.detach().flatten()
                digest.update(f"{key} {weight.dtype} {tuple(weight.shape)}".encode())
                digest.update(flat[:: max(1, len(flat) // 64)].double().cpu().numpy().tobytes())
        elif hasattr(part, "get_vocab"):
            digest.update(json.dumps(part.get_vocab(), sort_keys=True).encode())
    return digest.hexdigest()


def _settings(part: nn.Module) -> str:
    """A component's config without what tells where it was loaded from or by which version."""
    config: Any = part.config
    config = config.to_dict() if hasattr(config, "to_dict") else dict(config)
    kept = {k: v for k, v in config.items() if not k.startswith("_") and k != "transformers_version"}
    return json.dumps(kept, sort_keys=True, default=str)
