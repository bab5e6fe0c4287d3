"""Fuzz the readers of all formats and the decoding of pictures.

    python tests/fuzz_sources.py [--seconds 600] [--seed N] [--target NAME]... [--out FOLDER]
    python tests/fuzz_sources.py --again TARGET:SEED:NUMBER

The seconds are for all targets together. Case NUMBER of a target is the same file for the same seed (and the same real corpora
beside the project, ``TOKKIT_SHARED``). Cases run in a forked process, so that a crash in a library, a case that takes more than
20 seconds of processor time, and one that takes hundreds of megabytes are findings, too. The files of a finding are kept under
--out. Leaves with 1 where anything was found.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import os
import random
import resource
import select
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import mutations as m
from fuzz_targets import TARGETS, Files, Finding, Target, written

BATCH = 400  # cases in a process
CPU_SECONDS = 20
WALL_SECONDS = 180
MEMORY = 400 << 20
ADDRESSES = 6 << 30
KEPT = 3  # files of findings of one kind


@dataclass
class Report:
    """What a target came to.

    Attributes:
        outcomes: what became of the cases.
        findings: what was found, by its kind: messages with the case's name, the first few in full.
    """

    cases: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    findings: dict[str, list[str]] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)


@cache
def seeds_of(name: str) -> list[Files]:
    """The files that a target begins with."""
    return TARGETS[name].seeds()


def case(target: Target, seed: int, number: int) -> Files:
    """The files of a case; the first ones are the unchanged seeds."""
    seeds = seeds_of(target.name)
    if number < len(seeds):
        return seeds[number]
    rng = random.Random(f"{target.name}:{seed}:{number}")
    files = dict(rng.choice(seeds))
    others = [other[name] for other in seeds for name in target.victims if name in other]
    own = (*target.own, m.splicing(*others))
    victims = [name for name in target.victims if name in files]
    for name in {rng.choice(victims) for _ in range(rng.choice((1, 1, 2)))}:
        files[name] = m.mutated(files[name], rng, own)
    return files


def fuzz(target: Target, seconds: float, seed: int, out: Path | None = None, at_most: int = 1 << 60) -> Report:
    """Run cases until the time is over, in one process after another."""
    report, begin = Report(), time.monotonic()
    seeds_of(target.name)  # made once, before there are processes
    with tempfile.TemporaryDirectory() as folder:
        while report.cases < at_most and (report.cases == 0 or time.monotonic() - begin < seconds):
            stop = min(at_most, report.cases + BATCH)
            _batch(target, seed, range(report.cases, stop), begin + seconds, Path(folder), report, out)
    return report


def _batch(target: Target, seed: int, numbers: range, deadline: float, folder: Path, report: Report, out: Path | None) -> None:
    """Cases in a child of this process; where that dies, the case under way is the finding."""
    reading, writing = os.pipe()
    log = folder / "log"
    child = os.fork()
    if child == 0:
        os.close(reading)
        _child(target, seed, numbers, deadline, folder, writing, log)
    os.close(writing)
    under_way, said, last = None, b"", time.monotonic()
    with os.fdopen(reading, "rb", buffering=0) as pipe:
        while True:
            if not select.select([pipe], [], [], 1.0)[0]:
                if time.monotonic() - last > WALL_SECONDS:
                    os.kill(child, signal.SIGKILL)
                continue
            piece = pipe.read(1 << 16)
            if not piece:
                break
            last = time.monotonic()
            *complete, said = (said + piece).split(b"\n")
            for line in complete:
                entry = json.loads(line)
                if "begins" in entry:
                    under_way = entry["begins"]
                    continue
                under_way, report.cases = None, report.cases + 1
                report.outcomes[entry["outcome"]] += 1
                if "kind" in entry:
                    _found(target, seed, entry["number"], entry["kind"], entry["message"], report, out)
    _, status = os.waitpid(child, 0)
    if os.waitstatus_to_exitcode(status) != 0:
        code = os.waitstatus_to_exitcode(status)
        cause = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        cause = {"SIGPROF": f"more than {CPU_SECONDS} s of processor time", "SIGKILL": "nothing more is heard of it"}.get(
            cause, cause
        )
        number = report.cases if under_way is None else under_way
        report.cases += 1
        report.outcomes["died"] += 1
        _found(target, seed, number, f"died: {cause}", log.read_text(errors="replace")[-6000:], report, out)


def _found(target: Target, seed: int, number: int, kind: str, message: str, report: Report, out: Path | None) -> None:
    report.counts[kind] += 1
    kept = report.findings.setdefault(kind, [])
    if len(kept) >= KEPT:
        return
    name = f"{target.name}:{seed}:{number}"
    if out is not None:
        place = out / name.replace(":", "-")
        for file, data in case(target, seed, number).items():
            (place / file).parent.mkdir(parents=True, exist_ok=True)
            (place / file).write_bytes(data)
        (place / "FINDING").write_text(f"{kind}\n{message}\n", errors="replace")
        name += f" in {place}"
    kept.append(f"{name}\n{message}")


# ---- in the child


def _child(target: Target, seed: int, numbers: range, deadline: float, folder: Path, pipe: int, log: Path) -> None:
    """Never returns."""
    code = 1
    try:
        file = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
        os.dup2(file, 1)
        os.dup2(file, 2)
        faulthandler.enable(file)
        for number in (signal.SIGPROF, signal.SIGALRM):
            signal.signal(number, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_AS, (_status("VmSize") + ADDRESSES, resource.RLIM_INFINITY))
        for number in numbers:
            if number > numbers.start and time.monotonic() > deadline:
                break
            _say(pipe, {"begins": number})
            signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
            faulthandler.dump_traceback_later(CPU_SECONDS - 5, file=file)
            entry = one(target, case(target, seed, number), folder / str(number))
            faulthandler.cancel_dump_traceback_later()
            signal.setitimer(signal.ITIMER_PROF, 0)
            _say(pipe, {"number": number, **entry})
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _say(pipe: int, entry: dict[str, object]) -> None:
    data = (json.dumps(entry) + "\n").encode()
    while data:
        data = data[os.write(pipe, data) :]


def one(target: Target, files: Files, folder: Path) -> dict[str, object]:
    """What became of one case."""
    with written(folder, files):
        before = _fresh_peak()
        try:
            entry: dict[str, object] = {"outcome": target.check(folder)}
        except Exception as error:
            told = "".join(traceback.format_exception(error))[-6000:]
            return {"outcome": "finding", "kind": _kind(error), "message": told}
        taken = _status("VmHWM") - before
        if taken > MEMORY:
            return {"outcome": "finding", "kind": "memory", "message": f"{taken >> 20} MB"}
        return entry


def _kind(error: BaseException) -> str:
    """What findings are told apart by: the exception's type, and where tokkit raised it or what the check says."""
    if isinstance(error, Finding):
        return "".join(c for c in str(error).split(";")[0] if not c.isdigit())[:60]
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "/tokkit/" in frame.filename] or frames
    return f"{type(error).__name__} at {Path(own[-1].filename).name}:{own[-1].lineno}"


def _status(name: str) -> int:
    """A figure of /proc/self/status in bytes; 0 where there is none."""
    try:
        found = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name + ":"))
        return int(next(found).split()[1]) << 10
    except (OSError, StopIteration):
        return 0


def _fresh_peak() -> int:
    """The memory in use now, which the peak is counted from."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return 1 << 60  # the peak cannot be set back here, so it says nothing of one case
    return _status("VmRSS")


# ---- as a script


def main() -> int:
    """Fuzz the targets in turn, print a table and what was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--target", action="append", choices=list(TARGETS), default=None)
    parser.add_argument("--out", type=Path, default=Path("fuzz-findings"))
    parser.add_argument("--again", metavar="TARGET:SEED:NUMBER", help="run one case in this process")
    options = parser.parse_args()
    if options.again:
        name, seed, number = options.again.rsplit(":", 2)
        files = case(TARGETS[name], int(seed), int(number))
        with tempfile.TemporaryDirectory() as folder:
            entry = one(TARGETS[name], files, Path(folder) / "case")
        print(entry.get("message", entry["outcome"]))
        return int("kind" in entry)
    names = options.target or list(TARGETS)
    found = 0
    for name in names:
        report = fuzz(TARGETS[name], options.seconds / len(names), options.seed, options.out)
        told = ", ".join(f"{outcome} {count:,}" for outcome, count in report.outcomes.most_common(6))
        print(f"{name:<16}{report.cases:>9,} cases  {told}", flush=True)
        for kind, count in report.counts.most_common():
            found += count
            print(f"  FOUND {count} times: {kind}\n    " + report.findings[kind][0].replace("\n", "\n    "), flush=True)
    print(f"seed {options.seed}: {found} findings")
    return int(found > 0)


if __name__ == "__main__":
    sys.exit(main())
