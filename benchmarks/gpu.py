"""All that a GPU is needed for, in one command and under 9 minutes. Prints the Markdown for results/speed.md.

    python benchmarks/gpu.py                one H200: the Qwen2.5-1.5B config, random weights, 64 questions x 8 answers
    python benchmarks/gpu.py --small        the same parts at toy size, on whatever there is: to see that they run

Every part is a process of its own with a time limit: one that fails puts its error in its row, and the rest goes on.
Those for which no time is left say so. The model is not downloaded: its speed does not depend on its weights, and a
share of the vocabulary ends an answer, so that lengths are ragged (see sampling.py).
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
NOMINAL = 989e12  # FLOP/s of an H100 or H200 in bf16, dense, on paper


class Parts:
    """Runs commands one after the other until the time is over."""

    def __init__(self, minutes: float):
        self.until = time.monotonic() + 60 * minutes

    def run(self, script: str, *arguments: object, seconds: float = 150) -> dict | str:
        """The JSON that it prints last, or one line that says why there is none."""
        seconds = min(seconds, self.until - time.monotonic())
        if seconds < 15:
            return "not measured: no time left"
        command = [sys.executable, str(HERE / script), *map(str, arguments)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=seconds)
        except subprocess.TimeoutExpired:
            return f"not measured: over {seconds:.0f} s"
        if done.returncode == 0:
            return json.loads(done.stdout.splitlines()[-1])
        lines = done.stderr.strip().splitlines() or [f"ended with {done.returncode} and said nothing"]
        said = next((line for line in reversed(lines) if "Error" in line), lines[-1])
        print(f"--- {script} {' '.join(map(str, arguments))}\n{done.stderr[-3000:]}\n---", file=sys.stderr, flush=True)
        return "failed: " + said[:150].replace("|", "/")


def machine(small: bool) -> dict[str, float | str]:
    """What this GPU does at best: copy bandwidth, one large product; in a process that ends before the others start."""
    import torch

    gpu = torch.cuda.is_available()
    device, n = ("cuda", 8192) if gpu and not small else ("cuda" if gpu else "cpu", 512)
    wait = torch.cuda.synchronize if gpu else lambda: None
    a = torch.randn(n, n, device=device, dtype=torch.bfloat16)
    block = torch.empty(16 * n * n, dtype=torch.uint8, device=device)
    seconds = []
    for work in (lambda: a @ a, lambda: block.clone()):
        work(), work()
        wait()
        began = time.perf_counter()
        for _ in range(10):
            work()
        wait()
        seconds.append((time.perf_counter() - began) / 10)
    return {"name": torch.cuda.get_device_name() if gpu else "CPU", "flops": 2 * n**3 / seconds[0],
            "bandwidth": 2 * block.nbytes / seconds[1]}  # fmt: skip


def sampling_rows(parts: Parts, size: list[object]) -> None:
    """One row per sampler."""
    print("\n| sampling | tokens | s | tokens/s | times generate | of the limit | peak GiB |\n" + "|---" * 7 + "|",
          flush=True)  # fmt: skip
    found = {}
    for name in ("ours", "static", "generate", "continuous", "ours, grouped attention"):
        r = found[name] = parts.run("sampling.py", *size, "--json", "--only", name)
        if isinstance(r, str):
            print(f"| {name} | {r} | | | | | |", flush=True)
            continue
        speed, base = r["tokens"] / r["seconds"], found.get("generate")
        against = f"{speed * base['seconds'] / base['tokens']:.1f}" if isinstance(base, dict) else ""
        limit = f"{speed / r['limit']:.0%} | {r['peak']:.1f}" if r["limit"] else " | "
        print(f"| {name} | {r['tokens']} | {r['seconds']:.1f} | {speed:.0f} | {against} | {limit} |", flush=True)
    if isinstance(base := found["generate"], dict):
        ratios = [f"{name} {r['tokens'] / r['seconds'] * base['seconds'] / base['tokens']:.1f}"
                  for name, r in found.items() if isinstance(r, dict)]  # fmt: skip
        print(f"\nTimes `model.generate`: {', '.join(ratios)}.")


def step_rows(parts: Parts, size: list[object], best: dict) -> None:
    """One row per side; ours with what its update makes of the GPU and the gap between sampled and scored."""
    print("\n| a whole step | s | sampling s | the rest s | tokens | peak GiB |\n|---|---|---|---|---|---|", flush=True)
    found = {}
    for name, seconds in (("ours", 200), ("trl", 280)):
        r = found[name] = parts.run("step.py", *size, "--json", "--only", name, seconds=seconds)
        if isinstance(r, str):
            r = "TRL is not installed here" if "No module named 'trl'" in r else r
            print(f"| {name} | {r} | | | | |", flush=True)
            continue
        (s,) = r["results"].values()
        s = s[-1]
        print(f"| {name} | {s['seconds']:.1f} | {s['sampling']:.1f} | {s['seconds'] - s['sampling']:.1f} | "
              f"{s['tokens']} | {r['peak']:.1f} |", flush=True)  # fmt: skip
    if all(isinstance(r, dict) for r in found.values()):
        ours, theirs = (next(iter(r["results"].values()))[-1] for r in found.values())
        print(f"\nA whole step: {theirs['seconds'] / ours['seconds']:.2f} times TRL's speed.")
    if isinstance(found["ours"], dict):
        s = found["ours"]["results"]["ours"][-1]
        rate = s["update_flops"] / s["update"]
        print(f"\nOurs: update {s['update']:.2f} s for {s['update_tokens']} tokens, prompts included: "
              f"{rate / 1e12:.4g} TFLOP/s, {rate / best['flops']:.0%} of one large product here, {rate / NOMINAL:.0%} "
              f"of {NOMINAL / 1e12:.0f} (MFU). Largest gap of sampled and scored log-probs: {s['gap']:.3g} nats.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="toy sizes, also without a GPU")
    parser.add_argument("--minutes", type=float, default=8.7, help="no part goes on longer than this")
    parser.add_argument("--machine", action="store_true", help="only measure the machine and print JSON")
    o = parser.parse_args()
    if o.machine:
        print(json.dumps(machine(o.small)))
        return
    parts = Parts(o.minutes)
    best = parts.run("gpu.py", "--machine", *["--small"] * o.small)
    if isinstance(best, str):
        sys.exit(f"gpu.py: the machine could not be measured: {best}")
    import torch
    import transformers

    if best["name"] == "CPU" and not o.small:
        sys.exit("gpu.py: no GPU here; --small runs the same parts at toy size on a CPU")
    print(f"{best['name']}, {time.strftime('%Y-%m-%d')}, torch {torch.__version__}, transformers "
          f"{transformers.__version__}; copy {best['bandwidth'] / 1e12:.2f} TB/s, one large bf16 product "
          f"{best['flops'] / 1e12:.3g} TFLOP/s.", flush=True)  # fmt: skip
    size = ["--size", "1M", "--questions", 4, "--prompt", 16, "--max-new-tokens", 32] if o.small else \
           ["--size", "1.5B", "--questions", 64, "--prompt", 128, "--max-new-tokens", 1024]  # fmt: skip
    size += ["--group-size", 8]
    sampling_rows(parts, size)
    once = ["--model", "random", "--steps", 1, "--untimed", 0, "--trl-rows", 8]
    step_rows(parts, [*size, *once], best)
    print("\nLog-probs and entropy over the vocabulary (rows: floor, naive, TRL, ours, ours with entropy gradient):\n")
    more = ["--tokens", 256, "--vocabulary", 8192] if o.small else ["--hidden", 1536]
    for name in ("three matrix products", "naive log_softmax", "TRL", "tiles", "tiles, entropy bonus"):
        r = parts.run("logprobs.py", *more, "--variant", name, seconds=60)
        print(f"- {name}: " + (r if isinstance(r, str) else f"{r['seconds']:.3f} s, {r['gib']:.2f} GiB"), flush=True)


if __name__ == "__main__":
    main()
