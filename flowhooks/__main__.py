"""Run ``python -m flowhooks``, also as ``accelerate launch -m flowhooks``."""

from __future__ import annotations

from flowhooks.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
