"""What the files in a run's output folder are called."""

from __future__ import annotations

#: The resolved run.
RUN = "run.json"
#: The model card.
CARD = "README.md"
#: The metrics logged last.
METRICS = "metrics.json"
#: The metrics of a run, a line a logged step.
HISTORY = "metrics.jsonl"
#: Weights that hooks trained beside an adapter.
MODULES = "flowhooks_modules.safetensors"
#: The pipeline of a run that trained the whole network.
PIPELINE = "pipeline"
#: The folder of pictures that are drawn while it trains.
VALIDATION = "validation"
#: What the files of a checkpoint are, and their digests.
MANIFEST = "manifest.json"
