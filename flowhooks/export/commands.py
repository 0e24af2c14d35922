"""The commands ``flowhooks export`` and ``flowhooks push``."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path


def export_command(args: Namespace) -> int:
    """``args``: lora (file or folder), format, output (file, folder or None). Returns the exit code; errors are
    `FlowhooksError`."""
    from flowhooks.export.dialects import export_lora

    output = None if args.output is None else Path(args.output)
    print(f"Wrote {export_lora(Path(args.lora), args.format, output)}")
    return 0


def push_command(args: Namespace) -> int:
    """``args``: run_dir, repo_id, private. Returns the exit code; errors are `FlowhooksError`."""
    from flowhooks.export.hub import push

    print(f"Published {push(Path(args.run_dir), args.repo_id, private=args.private)}")
    return 0
