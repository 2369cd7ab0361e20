"""Every treatment on the embedded task, same base, same budget, several seeds: the comparison in results/arithmetic/.

    python benchmarks/compare.py            run what is missing (resumable: kill it, start it again), then the table
    python benchmarks/compare.py --table    only redraw table and figures from the stored metrics

Each run is `python train.py` in its own process on one thread, as many at a time as there are cores. Runs with the same
seed start from the same evaluation of the base, so only the first of them makes it. Strengths: every method's default
value times 0.2 and times 5 with seed 0; the one of the three that is right most often then gets the other seeds.
What is kept is the base, and of each run config, metrics, evaluation and CPU seconds (small); the other models stay
under runs/compare/ and can go.
"""

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
import train  # noqa: E402
from arithmetic import ensure  # noqa: E402

RUNS, RESULTS = Path("runs/compare"), Path("results/arithmetic")  # below ROOT, where everything is started
KEPT, CURRICULUM = RESULTS / "runs", RESULTS / "curriculum.jsonl"
BASE = RESULTS / "base"  # kept too: another processor would make slightly other weights, and so another comparison
KEEP = ("step", "stage", "lr", "reward", "pass_at_g", "entropy", "entropy_fork", "entropy_other", "groups_all_right",
        "groups_all_wrong", "truncated", "kl_ref", "clip_fraction", "share_low", "share_high", "cov_mean", "grad_norm",
        "seconds", "eval_avg_at_16", "eval_avg_at_16_se", "eval_pass_at_16", "eval_pass_at_16_se")  # fmt: skip

# sent and its ablations take the four stages that are SENT's default; see flags_of
PUBLISHED = ("grpo", "clip_higher", "entropy_bonus", "entropy_advantage", "forking_tokens", "clip_cov", "kl_cov",
             "high_entropy_kl", "sent", "sent_release")  # fmt: skip
ABLATIONS = ("sent-kl", "sent-curriculum", "sent-stages2", "sent-reverse")  # one half of SENT; other orders
REGIMES = ("grpo-updates8", "sent-updates8", "grpo-steps200", "sent-steps200")  # does the ordering change there?
# One main strength per method, over the same small grid of factors around its published value.
STRENGTH = {"clip_higher": ("clip_high", 0.28), "entropy_bonus": ("entropy_coef", 0.001),
            "entropy_advantage": ("alpha", 0.4), "forking_tokens": ("fork_share", 0.2), "clip_cov": ("cov_share", 2e-4),
            "kl_cov": ("kl_old_coef", 1.0), "high_entropy_kl": ("beta_low", 0.02), "sent": ("beta_low", 0.02),
            "sent_release": ("kl_old_coef", 0.1)}  # fmt: skip
FACTORS = (0.2, 5.0)
SPARING = ["--no-figures", "--no-log-kl", "--eval-every", "50"]  # what costs time and changes nothing that is learned
# The last two: glibc keeps what is freed, instead of giving each large tensor's pages back and faulting them in again.
ONE_THREAD = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false",
                           "MALLOC_MMAP_THRESHOLD_": str(2**32), "MALLOC_TRIM_THRESHOLD_": str(2**32)}  # fmt: skip


def flags_of(name: str) -> list[str]:
    """`grpo`, `kl_cov@5` (its strength times 5), `sent-kl`, `sent-curriculum`, ... -> flags of train.py."""
    base, _, factor = name.partition("@")
    ablations = {
        "sent-kl": ["--method", "sent", "--stages", "1"],
        "sent-curriculum": ["--method", "grpo", "--stages", "4"],
        "sent-stages2": ["--method", "sent", "--stages", "2"],
        "sent-reverse": ["--method", "sent", "--stages", "4", "--reverse"],
        "grpo-updates8": ["--method", "grpo", "--minibatches", "8"],
        "sent-updates8": ["--method", "sent", "--minibatches", "8"],
        "grpo-steps200": ["--method", "grpo", "--steps", "200"],
        "sent-steps200": ["--method", "sent", "--steps", "200"],
    }
    if base in ablations:
        return ablations[base]
    flags = ["--method", base]
    if factor:  # a search: avg@16 at the end is all that counts
        flags += ["--eval-every", "0"]
        setting, published = STRENGTH[base]
        value = published * float(factor)
        flags += [f"--{setting.replace('_', '-')}", f"{value:g}"]
        if base == "sent":  # beta_high stays ten times beta_low
            flags += ["--beta-high", f"{10 * value:g}"]
    return flags


def tuned(method: str) -> list[str]:
    """Its other strengths. Five times forking_tokens' share would be all tokens: clip_higher, which is there."""
    return [f"{method}@{f:g}" for f in FACTORS if (method, f) != ("forking_tokens", 5.0)]


def names() -> list[str]:
    """All settings, in the order of the table."""
    return [*PUBLISHED, *ABLATIONS, *REGIMES, *(name for method in STRENGTH for name in tuned(method))]


def best(method: str) -> str | None:
    """The setting of this method that is right most often, held-out, seed 0; None before all of them are there."""
    tried = {name: KEPT / f"{name}-seed0" for name in (method, *tuned(method))}
    if not all((kept / "evaluation.json").exists() for kept in tried.values()):
        return None
    return max(tried, key=lambda name: numbers(tried[name])["avg@16"])  # the first 16 of all


def wanted(seeds: list[int]) -> Iterator[tuple[str, int]]:
    """(setting, seed) of all runs, the most wanted first: a sitting cut short leaves a table that can be read."""
    first, *more = seeds
    plain = [*PUBLISHED, *ABLATIONS]
    yield from ((name, seed) for seed in (first, *more[:1]) for name in plain)
    yield from ((name, seed) for seed in more[1:] for name in ("grpo", "sent", *ABLATIONS[:2]))
    yield from ((name, first) for name in names() if "@" in name or name in REGIMES[:2])
    yield from ((name, seed) for seed in more[1:] for name in plain)
    yield from ((name, seed) for seed in more for m in STRENGTH if "@" in (name := best(m) or ""))
    yield from ((name, seed) for seed in seeds for name in REGIMES)


def keep(run: Path, kept: Path) -> None:
    """Copy what the table and figures need, metrics reduced to KEEP and six digits."""
    kept.mkdir(parents=True, exist_ok=True)
    with (kept / "metrics.jsonl").open("w") as out:
        for line in (run / "metrics.jsonl").read_text().splitlines():
            m = json.loads(line)
            short = {k: float(f"{m[k]:.6g}") if isinstance(m[k], float) else m[k] for k in KEEP if k in m}
            out.write(json.dumps(short) + "\n")
    for name in ("config.json", "evaluation.json"):
        shutil.copyfile(run / name, kept / name)
    if kept.name.endswith("-seed0") and "@" not in kept.name:
        # for the pictures of tokens the first batch is enough; the heat map shows two runs from start to end
        whole = kept.name in ("grpo-seed0", "sent-seed0")
        rows = (run / "samples.jsonl").read_text().splitlines(keepends=True)
        (kept / "samples.jsonl").write_text("".join(row for row in rows if whole or json.loads(row)["step"] == 0))


def run_one(name: str, seed: int, more: list[str]) -> str:
    """One training run to its end, going on from its last checkpoint if there is one; returns a line to print."""
    folder, kept = RUNS / f"{name}-seed{seed}", KEPT / f"{name}-seed{seed}"
    if (kept / "evaluation.json").exists():
        return f"{name} seed {seed}: kept already"
    command = [sys.executable, "train.py"]
    interrupted = (folder / "metrics.jsonl").exists()
    if (folder / "config.json").exists():
        command += ["--resume", str(folder)]
    else:
        search = ["--eval-samples", "16"] * ("@" in name and best(name.partition("@")[0]) is None)
        flags = ["--model", str(BASE), *SPARING, *flags_of(name), *search, "--seed", str(seed)]
        flags += ["--out", str(folder), *more]
        if "sent" in name and name != "sent-kl":  # the others have one stage
            flags += ["--curriculum", str(CURRICULUM)]
        done = next(KEPT.glob(f"*-seed{seed}/evaluation.json"), None)
        if done is None:
            command += flags
        else:  # a run that has evaluated the base, and nothing else yet
            config, _ = train.parse(flags)
            folder.mkdir(parents=True)
            start = json.loads(done.read_text())["start"]
            (folder / "evaluation.json").write_text(json.dumps({"start": start}))
            (folder / "config.json").write_text(json.dumps(asdict(config)))
            command += ["--resume", str(folder)]
    with (RUNS / f"{folder.name}.log").open("w") as log:
        process = subprocess.Popen(command, cwd=ROOT, env=ONE_THREAD, stdout=log, stderr=subprocess.STDOUT)
        _, status, used = os.wait4(process.pid, 0)
    if status:
        return f"{name} seed {seed}: stopped with status {status}, see {log.name}"
    keep(folder, kept)
    cpu = used.ru_utime + used.ru_stime  # not the wall: how busy the machine is would be in it
    if not interrupted:
        (kept / "cpu.json").write_text(json.dumps({"seconds": round(cpu)}))
    return f"{name} seed {seed}: done in {cpu:.0f} s CPU"


def numbers(kept: Path) -> dict[str, float]:
    """What the table says of one run; in a search, which draws 16 answers, avg@64 is avg@16: the same expectation."""
    metrics = [json.loads(line) for line in (kept / "metrics.jsonl").read_text().splitlines()]
    evaluation = json.loads((kept / "evaluation.json").read_text())
    start, end = evaluation["start"], evaluation["end"]
    last = metrics[-10:]
    entropy, right, wrong = (sum(m[key] for m in last) / len(last)
                             for key in ("entropy", "groups_all_right", "groups_all_wrong"))  # fmt: skip
    lost = sum(1 for before, after in zip(start["correct"], end["correct"], strict=True) if before and not after)
    lost = lost if start["samples"] == end["samples"] else math.nan  # with fewer tries more would seem lost
    cpu = kept / "cpu.json"
    return {"final entropy": entropy, "kept": entropy / metrics[0]["entropy"], "all right": right, "all wrong": wrong,
            "avg@16": end["avg_at_16"], "avg@64": end[f"avg_at_{end['samples']}"], "pass@16": end["pass_at_k"]["16"],
            "pass@64": end["pass_at_k"].get("64", math.nan), "lost": lost,
            "CPU s": json.loads(cpu.read_text())["seconds"] if cpu.exists() else math.nan}  # fmt: skip


def mean_and_error(values: list[float], digits: int) -> str:
    """Mean and, of several, its standard error."""
    values = [v for v in values if not math.isnan(v)]
    if not values:
        return ""
    mean = sum(values) / len(values)
    variance = sum((v - mean) ** 2 for v in values) / max(1, len(values) - 1)
    return f"{mean:.{digits}f}" + f" ± {math.sqrt(variance / len(values)):.{digits}f}" * (len(values) > 1)


def table() -> str:
    """Markdown: a row per setting, mean over seeds and standard error of that mean; then the strengths, seed 0."""
    digits = {"final entropy": 3, "kept": 2, "all right": 2, "all wrong": 2, "avg@64": 3, "pass@16": 3, "pass@64": 3,
              "lost": 1, "CPU s": 0}  # fmt: skip
    lines = ["| setting | seeds | " + " | ".join(digits) + " |", "|---|---|" + "---|" * len(digits)]
    runs = {name: [numbers(p) for p in kept(name)] for name in names()}
    for name in names():
        if runs[name] and ("@" not in name or name == best(name.partition("@")[0])):
            cells = [mean_and_error([r[column] for r in runs[name]], d) for column, d in digits.items()]
            lines.append(f"| {name} | {len(runs[name])} | " + " | ".join(cells) + " |")
    lines += ["", "| strength, seed 0: kept, avg@16, pass@16 | × 0.2 | default | × 5 |", "|---|---|---|---|"]
    for method, (setting, published) in STRENGTH.items():
        tried = [[numbers(p) for p in kept(name) if p.name.endswith("-seed0")]
                 for name in (f"{method}@{FACTORS[0]:g}", method, f"{method}@{FACTORS[1]:g}")]  # fmt: skip
        if not tried[0] + tried[2]:
            continue  # not tuned yet
        cells = [" ".join(f"{n[c]:.{d}f}" for n in found for c, d in (("kept", 2), ("avg@16", 3), ("pass@16", 3)))
                 for found in tried]  # fmt: skip
        lines.append(f"| {method}: {setting} {published:g} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def kept(*wanted: str) -> list[Path]:
    """Folders of finished runs of these settings."""
    return [p for name in wanted for p in sorted(KEPT.glob(f"{name}-seed*")) if (p / "evaluation.json").exists()]


def pictures() -> None:
    """GRPO against SENT with and without its curriculum; all methods; halves and orders of SENT; twice the steps."""
    from figures import curves, draw, grid, pass_at_k, tokens

    draw(kept("grpo", "sent-kl", "sent"), RESULTS)
    draw(kept(*PUBLISHED), RESULTS / "methods", curves, grid, tokens)
    draw(kept("grpo", "sent", *ABLATIONS), RESULTS / "ablations", curves, grid)
    draw(kept("grpo-steps200", "sent-steps200"), RESULTS / "steps200", curves, pass_at_k)


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
        if not BASE.exists():
            shutil.copytree(ensure()[0], BASE)
        make = ["curriculum.py", "--model", str(BASE), "--max-new-tokens", "64", "--out", str(CURRICULUM)]
        subprocess.run([sys.executable, *make], env=ONE_THREAD, check=True)
        RUNS.mkdir(parents=True, exist_ok=True)
        todo = wanted(options.seeds)
        if options.only:
            todo = iter([(name, seed) for name in options.only for seed in options.seeds])
        lock = threading.Lock()

        def work() -> None:
            while True:
                with lock:  # one at a time, and late: which strength is best is known only when its runs are done
                    pair = next(todo, None)
                if pair is None:
                    return
                print(run_one(*pair, more), flush=True)

        with ThreadPoolExecutor(options.jobs) as pool:  # threads only wait for processes
            for done in [pool.submit(work) for _ in range(options.jobs)]:
                done.result()
    (RESULTS / "table.md").write_text(table() + "\n")
    pictures()
    print(table())


if __name__ == "__main__":
    main()
