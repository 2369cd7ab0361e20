"""Every treatment on the embedded task, same base, same budget, several seeds: the comparison in results/arithmetic/.

    python benchmarks/compare.py            run what is missing (resumable: kill it, start it again), then the table
    python benchmarks/compare.py --table    only redraw table and figures from the stored metrics

Each run is `python train.py` in its own process on one thread, as many at a time as there are cores. What is kept is
config, metrics and evaluation (small); the models stay under runs/compare/ and can go.
"""

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RUNS, RESULTS = Path("runs/compare"), Path("results/arithmetic")  # below ROOT, where everything is started
KEPT, CURRICULUM = RESULTS / "runs", RESULTS / "curriculum.jsonl"
KEEP = ("step", "stage", "lr", "reward", "pass_at_g", "entropy", "entropy_fork", "entropy_other", "groups_all_right",
        "groups_all_wrong", "truncated", "kl_ref", "clip_fraction", "share_low", "share_high", "cov_mean", "grad_norm",
        "seconds", "eval_avg_at_16", "eval_avg_at_16_se", "eval_pass_at_16", "eval_pass_at_16_se")  # fmt: skip

# sent and its ablations take the four stages that are SENT's default; see flags_of
PUBLISHED = ("grpo", "clip_higher", "entropy_bonus", "entropy_advantage", "forking_tokens", "clip_cov", "kl_cov",
             "high_entropy_kl", "sent", "sent_release")  # fmt: skip
# One main strength per method, over the same small grid of factors around its published value.
STRENGTH = {"clip_higher": ("clip_high", 0.28), "entropy_bonus": ("entropy_coef", 0.001),
            "entropy_advantage": ("alpha", 0.4), "forking_tokens": ("fork_share", 0.2), "clip_cov": ("cov_share", 2e-4),
            "kl_cov": ("kl_old_coef", 1.0), "high_entropy_kl": ("beta_low", 0.02), "sent": ("beta_low", 0.02),
            "sent_release": ("kl_old_coef", 0.1)}  # fmt: skip
FACTORS = (0.2, 5.0)
ONE_THREAD = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


def flags_of(name: str) -> list[str]:
    """`grpo`, `kl_cov@5` (its strength times 5), `sent-kl`, `sent-curriculum`, ... -> flags of train.py."""
    base, _, factor = name.partition("@")
    ablations = {
        "sent-kl": ["--method", "sent", "--stages", "1"],
        "sent-curriculum": ["--method", "grpo", "--stages", "4"],
        "sent-stages2": ["--method", "sent", "--stages", "2"],
        "sent-reverse": ["--method", "sent", "--stages", "4", "--reverse"],
    }
    if base in ablations:
        return ablations[base]
    flags = ["--method", base]
    if factor:
        setting, published = STRENGTH[base]
        value = published * float(factor)
        flags += [f"--{setting.replace('_', '-')}", f"{value:g}"]
        if base == "sent":  # beta_high stays ten times beta_low
            flags += ["--beta-high", f"{10 * value:g}"]
    return flags


def names() -> list[str]:
    """All settings, the most wanted first, so that a sitting cut short leaves the main table."""
    tuned = [f"{m}@{f:g}" for m in PUBLISHED if m in STRENGTH for f in FACTORS]
    first = ["grpo", "sent", "sent-kl", "sent-curriculum"]
    return [*first, *[m for m in PUBLISHED if m not in first], "sent-stages2", "sent-reverse", *tuned]


def keep(run: Path, kept: Path) -> None:
    """Copy what the table and figures need, metrics reduced to KEEP and six digits."""
    kept.mkdir(parents=True, exist_ok=True)
    with (kept / "metrics.jsonl").open("w") as out:
        for line in (run / "metrics.jsonl").read_text().splitlines():
            m = json.loads(line)
            short = {k: float(f"{m[k]:.6g}") if isinstance(m[k], float) else m[k] for k in KEEP if k in m}
            out.write(json.dumps(short) + "\n")
    # answers token by token only once for the two that the pictures show: they are most of a run's bytes
    tokens = ["samples.jsonl"] if kept.name in ("grpo-seed0", "sent-seed0") else []
    for name in ["config.json", "evaluation.json", *tokens]:
        shutil.copyfile(run / name, kept / name)


def run_one(name: str, seed: int, more: list[str]) -> str:
    """One training run to its end, going on from its last checkpoint if there is one; returns a line to print."""
    folder, kept = RUNS / f"{name}-seed{seed}", KEPT / f"{name}-seed{seed}"
    if (kept / "evaluation.json").exists():
        return f"{name} seed {seed}: kept already"
    command = [sys.executable, "train.py"]
    if (folder / "config.json").exists():
        command += ["--resume", str(folder)]
    else:
        command += [*flags_of(name), "--seed", str(seed), "--out", str(folder), "--no-figures", *more]
        if "sent" in name and name != "sent-kl":  # the others have one stage
            command += ["--curriculum", str(CURRICULUM)]
    began = time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, env=ONE_THREAD, capture_output=True, text=True)
    if done.returncode:
        return f"{name} seed {seed}: exit code {done.returncode}: {done.stderr.strip().splitlines()[-1:]}"
    keep(folder, kept)
    return f"{name} seed {seed}: done in {time.perf_counter() - began:.0f} s"


def numbers(kept: Path) -> dict[str, float]:
    """What the table says of one run."""
    metrics = [json.loads(line) for line in (kept / "metrics.jsonl").read_text().splitlines()]
    evaluation = json.loads((kept / "evaluation.json").read_text())
    start, end = evaluation["start"], evaluation["end"]
    last = metrics[-10:]
    entropy = sum(m["entropy"] for m in last) / len(last)
    lost = sum(1 for before, after in zip(start["correct"], end["correct"], strict=True) if before and not after)
    return {"entropy": entropy, "kept": entropy / metrics[0]["entropy"],
            **{f"{kind}@{k}": end["pass_at_k"][str(k)] if kind == "pass" else end["avg_at_16"]
               for kind, k in (("avg", 16), ("pass", 16), ("pass", 64))},
            "lost": lost, "seconds": sum(m["seconds"] for m in metrics)}  # fmt: skip


def table() -> str:
    """Markdown: one row per setting, mean over seeds and standard error of that mean."""
    rows = {}
    for name in names():
        runs = [numbers(p) for p in sorted(KEPT.glob(f"{name}-seed*")) if (p / "evaluation.json").exists()]
        if runs:
            rows[name] = runs
    lines = ["| setting | seeds | final entropy (nats) | entropy kept | avg@16 | pass@16 | pass@64 | lost | s |",
             "|---|---|---|---|---|---|---|---|---|"]  # fmt: skip
    for name, runs in rows.items():
        cells = []
        for column, digits in (("entropy", 3), ("kept", 2), ("avg@16", 3), ("pass@16", 3), ("pass@64", 3), ("lost", 1),
                               ("seconds", 0)):  # fmt: skip
            values = [r[column] for r in runs]
            mean = sum(values) / len(values)
            variance = sum((v - mean) ** 2 for v in values) / max(1, len(values) - 1)
            error = math.sqrt(variance / len(values))
            cells.append(f"{mean:.{digits}f}" + (f" ± {error:.{digits}f}" if len(values) > 1 else ""))
        lines.append(f"| {name} | {len(runs)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def pictures() -> None:
    """GRPO against SENT into results/arithmetic/, all methods into its methods/, tokens of one run of each."""
    sys.path.insert(0, str(ROOT))
    from figures import draw

    def kept(*wanted: str) -> list[Path]:
        return [p for name in wanted for p in sorted(KEPT.glob(f"{name}-seed*")) if (p / "evaluation.json").exists()]

    draw(kept("grpo", "sent"), RESULTS)
    draw(kept(*PUBLISHED), RESULTS / "methods")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="store_true", help="only redraw table and figures from the stored metrics")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", metavar="NAME", help="settings to run: " + ", ".join(names()))
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="runs at a time [number of cores]")
    options, more = parser.parse_known_args()  # the rest goes to train.py
    os.chdir(ROOT)
    if not options.table:
        # one order of questions for every run that uses one, from the base that all runs start from
        make = [sys.executable, "curriculum.py", "--max-new-tokens", "64", "--out", str(CURRICULUM)]
        subprocess.run(make, env=ONE_THREAD, check=True)
        wanted = [(name, seed) for name in options.only or names() for seed in options.seeds]
        with ThreadPoolExecutor(options.jobs) as pool:  # threads only wait for processes
            for line in pool.map(lambda pair: run_one(*pair, more), wanted):
                print(line, flush=True)
    (RESULTS / "table.md").write_text(table() + "\n")
    pictures()
    print(table())


if __name__ == "__main__":
    main()
