"""The faults that are tried, each as attempts: what was done, and why it was not survived, if so.

A fault is survived where the run, resumed, ends bit for bit as one that nobody disturbed; or went on as if nothing had
been. A run that ends by itself does so within a minute, with a message that names what is wrong and what to do.
"""

from __future__ import annotations

import errno
import os
import random
import re
import shutil
import signal
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.faults_runs import BOUND, STEPS, End, Started, differences, document, methods, run
from flowhooks.errors import CheckpointError
from flowhooks.manifest import verify
from flowhooks.train.checkpoint import Checkpoints

_REMEDY = re.compile(
    r"to resume: flowhooks|--resume latest|another `output_dir`|point `cache_dir`|free some space|leave it out"
)
#: What a program says that did not expect its fault.
_UNTOLD = re.compile(r"Traceback|unexpected \w+Error|DEBUG")
KILLS, CHAIN = 25, 5


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One fault that was tried.

    Args:
        what: what was done.
        outcome: how the run took it: ``resumed``, ``ended and resumed``, ``went on``.
        problem: why it was not survived; empty where it was.
        seconds: how long the run with the fault took to end; None where it is killed from outside.
    """

    what: str
    outcome: str
    problem: str = ""
    seconds: float | None = None


class Bench:
    """Tries faults in a folder in which the toys lie.

    Args:
        folder: see :func:`benchmarks.faults_runs.prepare`.
        quick: a few of each.
        kills: of each method.
    """

    def __init__(self, folder: Path, *, quick: bool, kills: int = KILLS):
        self.folder, self.quick, self.kills = folder, quick, kills
        self.draw = random.Random(0)

    def whole(self, name: str, steps: int = STEPS, processes: int = 1) -> tuple[Path, float]:
        """Return the folder of a run that nobody disturbs, and the seconds it took."""
        place = self.folder / "whole" / (name if (steps, processes) == (STEPS, 1) else f"{name}-{steps}-{processes}")
        kept = place / "seconds"
        if not kept.is_file():
            shutil.rmtree(place, ignore_errors=True)
            ends = Started(place, self.run(name, max_train_steps=steps), processes=processes).wait(600)
            if any(end.code for end in ends):
                raise RuntimeError(f"{name} does not even run undisturbed:\n{ends[0].told[-3000:]}")
            kept.write_text(str(ends[0].seconds))
        return place, float(kept.read_text())

    def run(self, name: str, **training: object) -> dict[str, object]:
        if name == "flow_opd":
            for teacher in ("adjoint_matching", "flow_grpo"):
                self.whole(teacher)
        return document(name, self.folder, **training)

    def place(self) -> Path:
        """Return an empty folder for the next attempt."""
        place = self.folder / "attempt"
        shutil.rmtree(place, ignore_errors=True)
        return place

    def kills_of(self, name: str) -> Iterator[Attempt]:
        """Kill a method's run at random moments, resume it, kill it again: some kills a run."""
        whole, seconds = self.whole(name)
        given = self.run(name)
        done = 0
        while done < self.kills:
            place, moments = self.place(), []
            for _ in range(min(CHAIN, self.kills - done)):
                moment = self.draw.uniform(0.1, 1.0) * seconds
                started = Started(place, given, resume=bool(moments))
                started.processes[0].join(moment)
                if not started.send(signal.SIGKILL):
                    break
                started.wait()
                moments.append(f"{moment:.2f} s")
            if not moments:
                continue
            done += len(moments)
            end = run(place, given, resume=True, limit=600)
            problem = _unequal(end, whole, place)
            for moment in moments:
                yield Attempt(what=f"{name} killed after {moment}", outcome="resumed", problem=problem)

    def full_disk(self) -> Iterator[Attempt]:
        """Refuse every write from the n-th on, for every n."""
        steps = 2
        whole, _ = self.whole("sft", steps)
        given = {**self.run("sft", max_train_steps=steps)}
        tally = self.folder / "tally"
        place = self.place()
        run(place, {**given, "cache_dir": str(place / "cache")}, fault={"kind": "full_disk", "tally": str(tally)})
        writes = int(tally.read_text())
        numbers = list(range(1, writes + 1, writes // 3 if self.quick else 1))
        # So that a part of them is a sample of all.
        self.draw.shuffle(numbers)
        for number in numbers:
            place = self.place()
            given["cache_dir"] = str(place / "cache")
            end = run(place, given, fault={"kind": "full_disk", "full_from": number})
            words = (os.strerror(errno.ENOSPC), str(place))
            yield self._after(end, whole, place, given, f"write {number} of {writes}", words, steps=steps)

    def cut_checkpoints(self) -> Iterator[Attempt]:
        """Cut every file of a checkpoint at every thousandth byte: the one before it is taken, and the file named."""
        place = self.place()
        # Small files: all bytes of a checkpoint are compared, of the older one too.
        given = {**self.run("sft", max_train_steps=2), "adapter": {"type": "lora", "rank": 1, "alpha": 1}}
        end = run(place, given, limit=600)
        assert end.code == 0, end.told
        newest, before = (place / "out" / f"checkpoint-{step}" for step in (2, 1))
        for file in sorted(newest.iterdir()):
            data = file.read_bytes()
            for size in range(0, len(data), 100_000 if self.quick else 1000):
                began = time.monotonic()
                file.write_bytes(data[:size])
                problem = _found_out(newest, before, file)
                seconds = time.monotonic() - began
                yield Attempt(
                    what=f"{file.name} cut at byte {size}", outcome="skipped", problem=problem, seconds=seconds
                )
            file.write_bytes(data)

    def resumed_before(self) -> Iterator[Attempt]:
        """Cut one file of the newest checkpoint, and resume."""
        whole, _ = self.whole("sft")
        names = sorted(file.name for file in (whole / "out" / f"checkpoint-{STEPS}").iterdir())
        for name in names[:1] if self.quick else names:
            place = self.place()
            shutil.copytree(whole / "out", place / "out")
            file = place / "out" / f"checkpoint-{STEPS}" / name
            os.truncate(file, file.stat().st_size // 2)
            end = run(place, self.run("sft"), resume=True)
            problem = _unequal(end, whole, place) or ("" if "skipped a damaged" in end.told else "no warning")
            yield Attempt(what=f"{name} cut in half", outcome="resumed", problem=problem, seconds=end.seconds)

    def flipped_cache(self) -> Iterator[Attempt]:
        """Flip a bit of a file of the cache, and train."""
        whole, _ = self.whole("sft")
        for _ in range(1 if self.quick else 20):
            place = self.place()
            shutil.copytree(self.folder / "cache", place / "cache")
            file = self.draw.choice(sorted((place / "cache").rglob("*.safetensors")))
            data = bytearray(file.read_bytes())
            at = self.draw.randrange(len(data))
            data[at] ^= 1 << self.draw.randrange(8)
            file.write_bytes(data)
            end = run(place, {**self.run("sft"), "cache_dir": str(place / "cache")})
            what = f"bit of byte {at} of {file.relative_to(place)}"
            yield Attempt(what=what, outcome="went on", problem=_unequal(end, whole, place), seconds=end.seconds)

    def clock(self) -> Iterator[Attempt]:
        """Set the clock back, or ahead, in the middle of a run or before it."""
        jumps = {"a day back": -86_400.0, "a year back": -31_536_000.0, "a day ahead": 86_400.0}
        tried = [(name, jump, after) for name, jump in jumps.items() for after in (0, 30)]
        yield from self._gone_on(
            (f"{name}, after {after} readings", {"kind": "clock", "jump": jump, "after": after})
            for name, jump, after in tried[: 1 if self.quick else None]
        )

    def tracker(self) -> Iterator[Attempt]:
        """Let a tracker fail where it starts, logs, or is closed."""
        names = ("log", "log_images", "finish", "store_init_configuration", "start")
        for name in names[: 1 if self.quick else None]:
            whole, _ = self.whole("sft")
            place = self.place()
            given = {**self.run("sft"), "logging": {"trackers": ["tensorboard"]}}
            end = run(place, given, fault={"kind": "tracker", "method": name})
            yield self._after(end, whole, place, {**given, "logging": {"trackers": []}}, f"`{name}` raises", ("track",))

    def worker(self) -> Iterator[Attempt]:
        """Kill or stop the process that reads batches."""
        steps = 12
        whole, _ = self.whole("sft", steps)
        for name, line in [("SIGKILL", 1), ("SIGSTOP", 1), ("SIGKILL", 3), ("SIGSTOP", 3)][: 1 if self.quick else None]:
            place = self.place()
            # torch looks every five seconds whether a worker is there.
            given = self.run("sft", max_train_steps=steps, dataloader_num_workers=1, watchdog_seconds=10)
            end = run(place, given, fault={"kind": "worker", "name": name, "line": line})
            what = f"{name} to a worker after line {line}"
            yield self._after(end, whole, place, given, what, ("--resume latest",), steps=steps)

    def hang(self) -> Iterator[Attempt]:
        """Let one call never return."""
        calls = [("backward", 3), ("write", 4), ("read", 3), ("backward", 1), ("write", 1), ("read", 1)]
        for where, call in calls[: 1 if self.quick else None]:
            whole, _ = self.whole("sft")
            place, given = self.place(), self.run("sft", watchdog_seconds=5)
            end = run(place, given, fault={"kind": "hang", "where": where, "call": call})
            words = ("nothing got done for 5 s", "the run hangs at ")
            yield self._after(end, whole, place, given, f"{where} {call} hangs", words)

    def rank_killed(self) -> Iterator[Attempt]:
        """Kill one of two processes at a random moment."""
        yield from self._ranks(signal.SIGKILL, 5)

    def rank_stopped(self) -> Iterator[Attempt]:
        """Stop one of two processes at a random moment."""
        yield from self._ranks(signal.SIGSTOP, 3)

    def _ranks(self, number: signal.Signals, times: int) -> Iterator[Attempt]:
        whole, seconds = self.whole("sft", processes=2)
        for rank in (0, 1):
            for _ in range(1 if self.quick and rank else 0 if self.quick else times):
                place, moment = self.place(), self.draw.uniform(0.2, 0.9) * seconds
                given = self.run("sft", watchdog_seconds=5)
                started = Started(place, given, processes=2)
                started.processes[rank].join(moment)
                if not started.send(number, rank):
                    continue
                struck = time.monotonic() - started.began
                ends = started.wait(struck + BOUND)
                other = ends[1 - rank]
                again = Started(place, given, processes=2, resume=True).wait(600)
                problem = _unequal(again[0], whole, place, processes=2)
                if other.code is None:
                    problem = f"the other process hangs: {other.told[-500:]}"
                elif other.code and (_UNTOLD.search(other.told) or not _REMEDY.search(other.told)):
                    problem = f"not told: {other.told[-500:]}"
                # It had done all that needs the other one.
                outcome = "went on" if other.code == 0 else "ended and resumed"
                what = f"{number.name} to rank {rank} after {moment:.2f} s"
                took = max(end.seconds for end in ends) - struck
                yield Attempt(what=what, outcome=outcome, problem=problem, seconds=took)

    def _gone_on(self, faults: Iterator[tuple[str, dict[str, object]]]) -> Iterator[Attempt]:
        whole, _ = self.whole("sft")
        for what, fault in faults:
            place = self.place()
            end = run(place, self.run("sft"), fault=fault)
            yield Attempt(what=what, outcome="went on", problem=_unequal(end, whole, place), seconds=end.seconds)

    def _after(
        self,
        end: End,
        whole: Path,
        place: Path,
        given: dict[str, object],
        what: str,
        words: tuple[str, ...],
        steps: int = STEPS,
    ) -> Attempt:
        """Judge a run that may go on or end, and resume one that ended."""
        if end.code == 0:
            return Attempt(
                what=what, outcome="went on", problem=_unequal(end, whole, place, steps), seconds=end.seconds
            )
        problem = ""
        if end.code is None:
            problem = f"it hangs: {end.told[-500:]}"
        elif _UNTOLD.search(end.told) or not _REMEDY.search(end.told):
            problem = f"not told: {end.told[-500:]}"
        elif missing := [word for word in words if word not in end.told]:
            problem = f"no word of {missing}: {end.told[-500:]}"
        shown = run(place, given, resume=True, limit=600)
        problem = problem or _unequal(shown, whole, place, steps)
        return Attempt(what=what, outcome="ended and resumed", problem=problem, seconds=end.seconds)


def _unequal(end: End, whole: Path, place: Path, steps: int = STEPS, processes: int = 1) -> str:
    if end.code != 0:
        return f"it ended with {end.code}: {end.told[-500:]}"
    differ = differences(whole, place, steps, processes)
    return f"other results: {', '.join(differ)}" if differ else ""


def _found_out(newest: Path, before: Path, file: Path) -> str:
    """Return what is wrong with how a damaged checkpoint is taken."""
    try:
        verify(newest)
        return "it was taken for whole"
    except CheckpointError as error:
        if file.name not in str(error):
            return f"the file is not named: {error}"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = Checkpoints(newest.parent).find("latest")
    return "" if found == before else f"{found} was taken"


#: Name -> what the fault is, and what tries it.
FAULTS: dict[str, tuple[str, Callable[[Bench], Iterator[Attempt]]]] = {
    **{
        f"kill {name}": (f"`{name}` killed at a random moment", lambda bench, name=name: bench.kills_of(name))
        for name in methods()
    },
    "rank killed": ("one of two processes killed at a random moment", Bench.rank_killed),
    "rank stopped": ("one of two processes stopped at a random moment (SIGSTOP)", Bench.rank_stopped),
    "hang": ("a backward pass, a read or a write that never returns", Bench.hang),
    "worker": ("a process that reads batches killed or stopped", Bench.worker),
    "full disk": ("the disk full from the n-th write on, for every n", Bench.full_disk),
    "cut checkpoint": ("a file of the newest checkpoint cut at every 1,000th byte", Bench.cut_checkpoints),
    "resume before": ("a resumed run whose newest checkpoint has a file cut in half", Bench.resumed_before),
    "flipped cache": ("a bit of the cache flipped", Bench.flipped_cache),
    "clock": ("the clock set back or ahead", Bench.clock),
    "tracker": ("a tracker that raises", Bench.tracker),
}
#: Those of a quick run.
QUICK = ("kill sft", "rank stopped", "hang", "full disk", "cut checkpoint", "flipped cache", "clock", "tracker")
