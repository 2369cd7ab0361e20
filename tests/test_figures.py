"""Pictures from run folders made up here: curves as a run has them, a torn file, a model that writes nonsense."""

import json
import math
import random
import subprocess
import sys
from pathlib import Path

import pytest

import figures

ROOT = Path(__file__).parent.parent
NAMES = [picture.__name__ for picture in figures.PICTURES]
KEPT = {"sent": 0.7, "grpo": 0.3}  # share of its entropy that a method ends with


def made_tokens(rng: random.Random, step: int, method: str, heat: float) -> dict:
    """One stored answer: characters, low entropy but at the forks."""
    left, right = rng.randint(2, 60), rng.randint(2, 60)
    response = f"{left}+{right}+4={left + 4}+{right}={left + right + 4} \\boxed{{{left + right + 4}}}"
    chars = [*response, "<eos>"]
    fork = [i > 0 and chars[i - 1] == "=" for i in range(len(chars))]
    entropy = [heat * rng.uniform(0.6, 1.4) if f else heat * 0.1 * rng.random() ** 3 for f in fork]
    reward = float(rng.random() < 0.5)
    covariance = [rng.gauss(0, 0.05) + 2 * (reward - 0.5) * h * rng.random() for h in entropy]
    kl = [0.0] * len(chars)
    if method == "sent":
        kl = [0.0 if h > 0.3 * heat else 0.2 if c > 0.06 else 0.02 for h, c in zip(entropy, covariance, strict=True)]
    pg = [float(method != "forking_tokens" or h > 0.3 * heat) for h in entropy]
    return {"step": step, "id": f"q{step % 2}", "prompt": f"{left}+{right}+4", "response": response, "reward": reward,
            "advantage": 2 * reward - 1, "tokens": chars, "entropy": entropy, "logprob": [-h for h in entropy],
            "covariance": covariance, "kl_weight": kl, "pg_weight": pg, "fork": fork}  # fmt: skip


def make_run(folder: Path, method: str = "sent", seed: int = 0, steps: int = 40, rows: int = 8, **settings) -> Path:
    """A run folder with every file figures.py reads."""
    rng, kept = random.Random(f"{method}{seed}"), KEPT.get(method, 0.5)
    folder.mkdir(parents=True)
    config = {"method": method, "seed": seed, "out": str(folder), "steps": steps, "stages": 4, "lr": 5e-4, **settings}
    metrics, samples, entropy = [], [], 0.63
    for step in range(steps):
        decay = 0.63 * (kept + (1 - kept) * math.exp(-3 * step / steps))
        noise, before = rng.gauss(0, 0.008), entropy
        entropy = decay + noise
        reward = -0.9 * math.exp(entropy) + 2.05 + rng.gauss(0, 0.02)
        line = {"step": step, "stage": step * 4 // steps, "reward": reward, "entropy": entropy, "lr": 5e-4,
                "cov_mean": max(0.0, (before - decay) * 300 + rng.gauss(0, 0.05)), "entropy_fork": None}  # fmt: skip
        if (step + 1) % max(1, steps // 4) == 0:
            done = (step + 1) / steps
            line |= {"eval_avg_at_16": 0.33 + 0.3 * done + rng.gauss(0, 0.01), "eval_avg_at_16_se": 0.015,
                     "eval_pass_at_16": 0.95 - 0.1 * (1 - kept) * done, "eval_pass_at_16_se": 0.01}  # fmt: skip
        metrics.append(line)
        if step == 0 or "eval_avg_at_16" in line:
            samples += [made_tokens(rng, step, method, entropy * 1.6) for _ in range(rows)]
    accuracy = [rng.random() for _ in range(200)]
    order = sorted(({"id": f"q{i}", "index": i, "accuracy": a, "se": round(2 * (1 - a) * rng.random() * 8) / 8,
                     "clusters": list(range(8))} for i, a in enumerate(accuracy)), key=lambda q: q["se"])  # fmt: skip
    ks = [1, 2, 4, 8, 16, 32, 64]
    curve = {name: {str(k): 1 - (1 - first) * k**-power for k in ks}
             for name, first, power in (("start", 0.33, 0.7), ("end", 0.6 + rng.gauss(0, 0.01), 0.2 + 0.4 * kept))}  # fmt: skip
    evaluation = {name: {"avg_at_16": c["1"], "pass_at_16": c["16"], "avg_at_16_se": 0.015, "pass_at_k": c}
                  for name, c in curve.items()}  # fmt: skip
    for name, lines in (("metrics", metrics), ("samples", samples), ("curriculum", [{"settings": {"M": 8}}, *order])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evaluation.json").write_text(json.dumps(evaluation))
    return folder
