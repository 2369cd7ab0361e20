"""The long versions of promises that CI tests in short form; results/reliability.md: last outcome.

    python benchmarks/reliability.py kills    [N]  kill -9 at N random moments, resume, compare with the unkilled run
    python benchmarks/reliability.py soak     [N]  N steps of a very small setting: memory, open files, step time
    python benchmarks/reliability.py bombs    [N]  a batch of N hostile answers through the grader
    python benchmarks/reliability.py nonsense [N]  N hypothesis cases graded alone, in threads, in two processes
"""

import argparse
import json
import multiprocessing
import os
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
SMALL = ["--questions-per-step", "4", "--group-size", "4", "--max-new-tokens", "32", "--curriculum-samples", "2",
         "--eval-samples", "16", "--eval-every", "5", "--checkpoint-every", "2", "--no-figures"]  # fmt: skip
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
PHASES = {"curriculum": "semantic_order", "sampling and scoring": "collect", "updating": "update",
          "writing a checkpoint": "save_checkpoint", "evaluating": "held_out"}  # fmt: skip
BOMBS = [r"\boxed{9^{9^9}}", r"\boxed{100000!}", "\\boxed{" * 1000, "{" * 10**6, r"\boxed{" + "(" * 5000 + "}",
         r"\boxed{\binom{1000000000}{500000000}}", "9**" * 10**5 + "9", r"\boxed{\frac{" * 500, "1e9999999999",
         r"\boxed{" + "1+" * 10**5 + "1}", r"\boxed{\sum_{k=1}^{1000000000} k}"]  # fmt: skip


def small_task(cache: Path) -> list[str]:
    """Flags for the embedded task, built small: right a third of the time after four seconds of training."""
    from arithmetic import Settings, ensure

    settings = Settings(train_questions=16, heldout_questions=6, hidden=32, layers=1, heads=2, steps=300, levels=(1,),
                        warm_levels=(1,), largest_digit=4)  # fmt: skip
    paths = map(str, ensure(cache, settings=settings, quiet=True))
    return [part for pair in zip(("--model", "--questions", "--heldout"), paths, strict=True) for part in pair]


def start(*flags: object, first: str = "") -> subprocess.Popen:
    """train.py in a process of its own; `first`: code that runs before it."""
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{first}\nimport train\n"
               "sys.exit(train.main(sys.argv[1:]))"]  # fmt: skip
    return subprocess.Popen([*command, *map(str, flags)], env=ENVIRONMENT, stdout=subprocess.DEVNULL,
                            stderr=subprocess.DEVNULL)  # fmt: skip


def killed_in(phase: str, call: int, delay: float, note: Path, *flags: object) -> str | None:
    """Start train.py and kill -9 it `delay` seconds into the call-th call of a phase; what it was at, None: it ended.

    The kill comes from a second process, at whatever instruction the first one is.
    """
    spy = f"""
import os, subprocess, train
left = {call}
def watch(name, phase):
    real = getattr(train, name)
    def watched(*args, **kwargs):
        global left
        left -= phase == {phase!r}
        if phase == {phase!r} and left == 0:
            subprocess.Popen(["sh", "-c", f"sleep {delay}; kill -9 {{os.getpid()}}"])
        open({str(note)!r}, "w").write(phase)
        try:
            return real(*args, **kwargs)
        finally:
            open({str(note)!r}, "w").write("between phases")
    setattr(train, name, watched)
for phase, name in {PHASES!r}.items():
    watch(name, phase)
"""
    process = start(*flags, first=spy)
    # empty: it was killed between the emptying of the note and the writing
    return (note.read_text() or "between phases") if process.wait() == -9 else None


def metrics_without_time(folder: Path) -> list[dict]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if "second" not in k} for row in rows]


def kills(n: int, scratch: Path) -> str:
    """Kill one run n times, in each phase in turn, and compare its end with that of a run left alone."""
    flags = [*small_task(scratch / "cache"), *SMALL, "--steps", 100, "--seed", 1]
    assert start(*flags, "--out", scratch / "whole").wait() == 0
    out, dice, fell = scratch / "killed", random.Random(0), Counter()
    targets = ["curriculum"] * (n // 5) + [list(PHASES)[1 + i % 4] for i in range(n - n // 5)]
    for phase in targets:
        resuming = (out / "config.json").exists()
        if not resuming:
            shutil.rmtree(out, ignore_errors=True)
        command = ["--resume", out] if resuming else [*flags, "--out", out]
        at = killed_in(phase, 1 if phase == "curriculum" else dice.randint(1, 2), dice.uniform(0, 0.1),
                       scratch / "note", *command)  # fmt: skip
        if at is None:
            break
        fell[at] += 1
    assert start("--resume", out).wait() == 0
    ours, whole = ((scratch / name / "model/model.safetensors").read_bytes() for name in ("killed", "whole"))
    same = ours == whole and metrics_without_time(out) == metrics_without_time(scratch / "whole")
    return (f"killed {fell.total()} times in 100 steps ({', '.join(f'{k} {v}' for k, v in fell.items())}): "
            f"{'bit for bit the unkilled run' if same else 'DIFFERENT from it'}")  # fmt: skip


def soak(n: int, scratch: Path) -> str:
    """n small steps; memory and open files read from /proc while it runs."""
    out = scratch / "soak"
    process = start(*small_task(scratch / "cache"), *SMALL, "--steps", n, "--eval-every", n // 4, "--checkpoint-every",
                    100, "--out", out)  # fmt: skip
    points = []
    while process.poll() is None:
        time.sleep(1)
        try:
            pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
            files = len(os.listdir(f"/proc/{process.pid}/fd"))
            children = len(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split())
            done = (out / "metrics.jsonl").read_text().count("\n") if (out / "metrics.jsonl").exists() else 0
        except (FileNotFoundError, IndexError):  # it has just ended
            break
        if done > n // 10 and pages:  # 0: it is ending, and its memory is gone
            points.append((done, pages * resource.getpagesize() / 2**20, files, children))
    steps, memory, files, children = zip(*points, strict=True)
    slope = statistics.linear_regression(steps, memory).slope * 1000
    seconds = [row["seconds"] for row in map(json.loads, (out / "metrics.jsonl").read_text().splitlines())]
    first, last = (statistics.median(part) for part in (seconds[n // 10 : n // 5], seconds[-n // 10 :]))
    return (f"{n} steps, exit code {process.wait()}: memory {memory[0]:.0f} -> {memory[-1]:.0f} MiB ({slope:+.2f} MiB "
            f"per 1,000 steps), open files {files[0]} -> {files[-1]}, "
            f"child processes {children[0]} -> {children[-1]}, "
            f"median step {first * 1e3:.0f} -> {last * 1e3:.0f} ms")  # fmt: skip


def bombs(n: int, scratch: Path) -> str:
    """n hostile answers, graded in one process."""
    from verify import grade

    began, worst = time.process_time(), 0.0
    for i in range(n):
        one = time.process_time()
        grade(BOMBS[i % len(BOMBS)], "7")
        worst = max(worst, time.process_time() - one)
    return f"{n} bombs: {time.process_time() - began:.1f} s CPU, the worst {worst * 1e3:.0f} ms"


def verdicts(pairs: list[tuple[str, str]]) -> list[str]:
    """What the verifier makes of (answer, gold) pairs, without its cache."""
    import verify

    return [repr((verify._read_text(a), verify.grade(f"{b} \\boxed{{{a}}}", b))) for a, b in pairs]


def nonsense(n: int, scratch: Path) -> str:
    """n pairs that hypothesis makes of pieces of notation, graded alone, in four threads at once, in two processes."""
    from hypothesis import HealthCheck, given, settings
    from test_verify import NONSENSE

    pairs = []
    draw = given(NONSENSE, NONSENSE)(lambda a, b: pairs.append((a, b)))
    settings(max_examples=n, deadline=None, database=None, suppress_health_check=list(HealthCheck))(draw)()
    began = time.perf_counter()
    expected, seen = verdicts(pairs), []
    alone = time.perf_counter() - began
    threads = [threading.Thread(target=lambda: seen.append(verdicts(pairs))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with multiprocessing.get_context("spawn").Pool(2) as ranks:  # another seed of hash() each
        seen += ranks.map(verdicts, [pairs, pairs], chunksize=1)
    assert seen == [expected] * 6, "a verdict depends on the thread or the process that gives it"
    return f"{len(pairs)} cases: {alone:.1f} s alone; the same verdicts in 4 threads and in 2 processes"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    long = {"kills": (kills, 20), "soak": (soak, 2000), "bombs": (bombs, 1000), "nonsense": (nonsense, 20_000)}
    parser.add_argument("what", choices=long)
    parser.add_argument("n", type=int, nargs="?")
    options = parser.parse_args()
    check, n = long[options.what]
    with tempfile.TemporaryDirectory() as scratch:
        print(check(options.n or n, Path(scratch)))


if __name__ == "__main__":
    main()
