"""The commands ``flowhooks export`` and ``flowhooks push``."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path


def export_command(args: Namespace) -> int:
    """``args``: lora (file or folder), format, output (file, folder or None). Returns the exit code; errors are
    `FlowhooksError`."""
    from flowhooks.export.dialects import DIALECTS, export_lora

    source, output = Path(args.lora), None if args.output is None else Path(args.output)
    if args.format in DIALECTS:
        print(f"Wrote {export_lora(source, args.format, output)}")
        return 0
    from flowhooks.export.anyflow import export_anyflow

    print(f"Wrote {export_anyflow(source, output)}")
    return 0


def push_command(args: Namespace) -> int:
    """``args``: run_dir, repo_id, private. Returns the exit code; errors are `FlowhooksError`."""
    from flowhooks.export.hub import push

    print(f"Published {push(Path(args.run_dir), args.repo_id, private=args.private)}")
    return 0
