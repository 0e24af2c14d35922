"""How the embedded autoencoder and pipeline are made. A change here names new folders, and makes everybody build anew.

Free of torch: where they lie is asked before anything is imported that could build them.
"""

from __future__ import annotations

from typing import Any

LATENT_CHANNELS = 4
KL_WEIGHT = 1e-4
AUTOENCODER: dict[str, Any] = {
    "version": 1,
    "steps": 600,
    "batch": 32,
    "learning_rate": 8e-3,
    "channels": [16, 32, 32],
    "kl": KL_WEIGHT,
}
PIPELINE: dict[str, Any] = {"version": 1, "layers": 4, "heads": 4, "head_width": 32, "shift": 3.0, "seed": 0}
