"""The long versions of promises that CI tests in short form; results/reliability.md: last outcome.

    python benchmarks/reliability.py kills  [N]    kill -9 at N random moments, resume, compare with the unkilled run
    python benchmarks/reliability.py soak   [N]    N steps of a very small setting: memory, open files, step time
    python benchmarks/reliability.py bombs  [N]    a batch of N hostile answers through the grader
"""

import argparse
import json
import os
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
SMALL = ["--questions-per-step", "8", "--group-size", "4", "--max-new-tokens", "32", "--curriculum-samples", "2",
         "--eval-samples", "16", "--eval-every", "5", "--checkpoint-every", "2", "--no-figures"]  # fmt: skip
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


def start(*flags: object) -> subprocess.Popen:
    """train.py in a process of its own."""
    command = [sys.executable, str(ROOT / "train.py"), *map(str, flags)]
    return subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def metrics_without_time(folder: Path) -> list[dict]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if "second" not in k} for row in rows]


def kills(n: int, scratch: Path) -> str:
    """Kill one run n times and compare its end with that of a run left alone."""
    flags = [*SMALL, "--steps", 150, "--seed", 1]
    assert start(*flags, "--out", scratch / "whole").wait() == 0
    out, moments, killed = scratch / "killed", random.Random(0), 0
    while True:
        resuming = (out / "config.json").exists()
        if not resuming:
            shutil.rmtree(out, ignore_errors=True)
        process = start("--resume", out) if resuming else start(*flags, "--out", out)
        try:
            # start-up takes some five seconds: in it, or soon after, so that the run does not end before the n-th kill
            process.wait(moments.uniform(2, 10) if killed < n else None)
            break
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            killed += 1
    ours, whole = ((scratch / name / "model/model.safetensors").read_bytes() for name in ("killed", "whole"))
    same = ours == whole and metrics_without_time(out) == metrics_without_time(scratch / "whole")
    return f"killed {killed} times in 150 steps: {'bit for bit the unkilled run' if same else 'DIFFERENT from it'}"


def soak(n: int, scratch: Path) -> str:
    """n small steps; memory and open files read from /proc while it runs."""
    out = scratch / "soak"
    process = start(*SMALL, "--questions-per-step", 2, "--steps", n, "--eval-every", n, "--checkpoint-every", 100,
                    "--method", "grpo", "--out", out)  # fmt: skip
    points = []
    while process.poll() is None:
        time.sleep(1)
        try:
            pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
            files = len(os.listdir(f"/proc/{process.pid}/fd"))
            done = (out / "metrics.jsonl").read_text().count("\n") if (out / "metrics.jsonl").exists() else 0
        except FileNotFoundError:  # it has just ended
            break
        if done > n // 10:
            points.append((done, pages * resource.getpagesize() / 2**20, files))
    steps, memory, files = zip(*points, strict=True)
    slope = statistics.linear_regression(steps, memory).slope * 1000
    seconds = [row["seconds"] for row in map(json.loads, (out / "metrics.jsonl").read_text().splitlines())]
    first, last = (statistics.median(part) for part in (seconds[n // 10 : n // 5], seconds[-n // 10 :]))
    return (f"{n} steps, exit code {process.wait()}: memory {memory[0]:.0f} -> {memory[-1]:.0f} MiB ({slope:+.2f} MiB "
            f"per 1,000 steps), open files {files[0]} -> {files[-1]}, "
            f"median step {first * 1e3:.0f} -> {last * 1e3:.0f} ms")  # fmt: skip


def bombs(n: int, scratch: Path) -> str:
    """n hostile answers, graded in one process."""
    from verify import grade

    kinds = [r"\boxed{9^{9^9}}", r"\boxed{100000!}", "\\boxed{" * 1000, "{" * 10**6, r"\boxed{" + "(" * 5000 + "}",
             r"\boxed{\binom{1000000000}{500000000}}", "9**" * 10**5 + "9", r"\boxed{\frac{" * 500, "1e9999999999",
             r"\boxed{" + "1+" * 10**5 + "1}", r"\boxed{\sum_{k=1}^{1000000000} k}"]  # fmt: skip
    began, worst = time.process_time(), 0.0
    for i in range(n):
        one = time.process_time()
        grade(kinds[i % len(kinds)], "7")
        worst = max(worst, time.process_time() - one)
    return f"{n} bombs: {time.process_time() - began:.1f} s CPU, the worst {worst * 1e3:.0f} ms"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    long = {"kills": (kills, 20), "soak": (soak, 2000), "bombs": (bombs, 1000)}
    parser.add_argument("what", choices=long)
    parser.add_argument("n", type=int, nargs="?")
    options = parser.parse_args()
    check, n = long[options.what]
    with tempfile.TemporaryDirectory() as scratch:
        print(check(options.n or n, Path(scratch)))


if __name__ == "__main__":
    main()
