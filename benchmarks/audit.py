"""What `flowhooks check` takes for a data set of many small pairs: a whole process, on two cores.

``python -m benchmarks.audit`` writes 100,000 images with captions and as many rejected twins into a temporary folder,
audits them, and prints JSON: seconds, and the largest memory of the process with all its children at one moment. The
files were just written, so they come from the page cache: what is measured is the program, not a disk.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import struct
import subprocess
import sys
import time
import zlib
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.measure import machine

GOAL = {"seconds": 60, "bytes": 2**30}
PARTNER = {"dataset_type": "conditioning", "conditioning_type": "reference_strict"}


def write_pairs(root: Path, records: int, side: int = 16) -> Path:
    """`records` images with captions and rejected twins, a thousand a folder. Returns the run file."""
    held = BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)).save(held, "PNG")
    picture = held.getvalue()
    for start in range(0, records, 1000):
        for name in ("win", "lose"):
            folder = root / name / f"{start // 1000:03}"
            folder.mkdir(parents=True)
            for i in range(start, min(start + 1000, records)):
                (folder / f"{i:06}.png").write_bytes(remarked(picture, f"{name} {i}"))
                if name == "win":
                    (folder / f"{i:06}.txt").write_text(f"image number {i}", encoding="utf-8")
    run = {
        "model": {"pretrained_model_name_or_path": "digits"},
        "adapter": {"type": "lora", "rank": 4, "alpha": 4},
        "data": [
            {"id": "win", "instance_data_dir": "win", "conditioning_data": ["lose"]},
            {"id": "lose", "instance_data_dir": "lose", **PARTNER},
        ],
        "method": {"flow_dpo": {}},
        "output_dir": str(root / "out"),
        "cache_dir": str(root / "cache"),
    }
    file = root / "run.json"
    file.write_text(json.dumps(run), encoding="utf-8")
    return file


def remarked(png: bytes, remark: str) -> bytes:
    """The image with a comment before its end, so that no two have the same content."""
    chunk = b"tEXtComment\0" + remark.encode()
    return png[:-12] + struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) + png[-12:]


def resident(process: int) -> int:
    """Bytes of memory that a process and its descendants hold; what they share counts for each."""
    try:
        pages = int(Path(f"/proc/{process}/statm").read_text(encoding="utf-8").split()[1])
        children = Path(f"/proc/{process}/task/{process}/children").read_text(encoding="utf-8").split()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE") + sum(resident(int(child)) for child in children)


def computed() -> float:
    """Seconds that ended children spent on a core, whatever else the machine did."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def measured(run: Path) -> dict[str, Any]:
    """One `flowhooks check` of `run`."""
    command = [sys.executable, "-m", "flowhooks", "check", str(run)]
    cores = sorted(os.sched_getaffinity(0))[:2]
    start, before = time.perf_counter(), computed()
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, preexec_fn=lambda: os.sched_setaffinity(0, cores)
    )
    held = 0
    while process.poll() is None:
        held = max(held, resident(process.pid))
        time.sleep(0.05)
    seconds = time.perf_counter() - start
    output = process.communicate()[0]
    if process.returncode or not output.endswith("ok\n"):
        raise SystemExit(output)
    return {
        "seconds": round(seconds, 2),
        "computing_seconds": round(computed() - before, 2),
        "bytes": held,
        "cores": len(cores),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    with TemporaryDirectory() as folder:
        run = write_pairs(Path(folder), arguments.records)
        found = [measured(run) for _ in range(arguments.rounds)]
    print(
        json.dumps(
            {
                "what": f"`flowhooks check` of {arguments.records:,} records: image, caption and rejected twin",
                "goal": GOAL,
                "rounds": sorted(found, key=lambda each: each["seconds"]),
                "machine": machine(),
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    main()
