"""Train the run file named on the command line; started by `accelerate launch` in the tests."""

from __future__ import annotations

import sys

import torch

from flowhooks.config import load_run
from flowhooks.train import train

if __name__ == "__main__":
    torch.set_num_threads(1)
    result = train(load_run(sys.argv[1], allow_imports=True), progress=False)
    print(f"step {result.step}")
