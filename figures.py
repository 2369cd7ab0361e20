"""Pictures of one run or of many, drawn from the files in their folders. No model is loaded, nothing is recomputed.

    python figures.py runs/sent                            into runs/sent/figures/
    python figures.py runs/sent runs/grpo --out figures    side by side; folders that differ in the seed only: a band
    python figures.py runs/sent --text                     sparklines and a heat map, for people without a screen

Each function below is one picture: groups of runs in, a matplotlib Figure out (None: its files are missing). Figures
are made without pyplot, whose global state a training process would keep. Entropies are in nats per token.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path

# Colour, line, marker: a method looks the same in every picture, and the last two still tell it apart in greyscale.
STYLE = {
    "sent": ("#0072b2", "-", "o"),
    "grpo": ("#d55e00", "--", "s"),
    "clip_higher": ("#e69f00", "-.", "^"),
    "entropy_bonus": ("#009e73", ":", "D"),
    "entropy_advantage": ("#cc79a7", (0, (6, 1)), "v"),
    "forking_tokens": ("#3aa6dd", "-.", "P"),
    "clip_cov": ("#8c6d31", "--", "X"),
    "kl_cov": ("#7b4fa3", ":", "<"),
    "high_entropy_kl": ("#8f8a00", (0, (4, 1, 1, 1, 1, 1)), ">"),
    "sent_release": ("#4d4d4d", (0, (6, 1)), "p"),
}
OTHER = ("#333333", "-", "o")  # a method this file has not heard of
VARIANTS = (("-", "o"), ("--", "s"), (":", "^"), ("-.", "D"))  # one method with several settings: its colour, paler
# What does not change what is learned (a rule of the house) makes no second curve.
NO_SETTING = {"method", "seed", "out", "device", "figures", "log_every", "log_kl", "checkpoint_every", "eval_every",
              "keep_checkpoints", "gradient_checkpointing", "tokens_per_micro_batch", "attention"}  # fmt: skip
TREATED = {  # what a method does to a token: colour, marker, size
    "not treated": ("#a6a6a6", "o", 14),
    "KL": ("#0072b2", "o", 26),
    "strong KL": ("#d62728", "D", 60),
    "no policy gradient": ("#000000", "x", 30),
}
RC = {"font.size": 14, "axes.titlesize": 15, "legend.fontsize": 13, "axes.spines.top": False, "axes.grid": True,
      "axes.spines.right": False, "grid.alpha": 0.25, "lines.linewidth": 2.2, "svg.hashsalt": "nanosent"}  # fmt: skip
FIT_SHARE = 0.36  # of the run, that R = -a e^H + b is fitted to


# ---------------------------------------------------------------------------------------------- reading
@dataclass
class Run:
    """The files of one run folder; what a folder does not have is empty."""

    folder: Path
    config: dict
    metrics: list[dict]
    samples: list[dict]
    curriculum: list[dict]
    evaluation: dict

    def series(self, key: str) -> dict[int, float]:
        """{step: value} of a metric, without the steps where it is missing, null or not finite."""
        found = {m["step"]: m.get(key) for m in self.metrics}
        return {s: v for s, v in found.items() if v is not None and math.isfinite(v)}

    def held_out(self, key: str) -> dict[int, float]:
        """{updates made: value} of avg_at_16 or pass_at_16: the start is 0, the line of step s is s + 1."""
        found = {step + 1: value for step, value in self.series(f"eval_{key}").items()}
        ends = {0: self.evaluation.get("start"), self.metrics[-1]["step"] + 1: self.evaluation.get("end")}
        return dict(sorted((found | {x: e[key] for x, e in ends.items() if e and key in e}).items()))


@dataclass
class Group:
    """Runs that differ in the seed only: one curve."""

    label: str
    runs: list[Run]
    style: dict


def read(path: Path, needs: tuple[str, ...]) -> list[dict]:
    """The objects of a JSON-lines file that have the fields `needs`; [] without the file. ValueError: a torn line."""
    rows = []
    for number, line in enumerate(path.open(encoding="utf-8") if path.exists() else [], 1):
        try:
            row = json.loads(line)
        except ValueError:
            raise ValueError(f"{path}, line {number}: not JSON (torn?); repair or remove the line") from None
        if not isinstance(row, dict):
            raise ValueError(f"{path}, line {number}: not a JSON object; repair or remove the line")
        if all(name in row for name in needs):  # curriculum.jsonl opens with a header, which is no question
            rows.append(row)
    return rows


def load(folder: Path) -> Run:
    """Read a run folder. Raises ValueError that names the file when there is no metrics.jsonl or a file is torn."""
    if not (folder / "metrics.jsonl").is_file():
        raise ValueError(f"{folder}: no metrics.jsonl there; give the folder of a run, such as runs/sent")
    metrics = read(folder / "metrics.jsonl", ("step", "entropy", "reward"))
    if not metrics:
        raise ValueError(f"{folder / 'metrics.jsonl'}: no step in it yet; draw when the run has made one")
    objects = []
    for name in ("config.json", "evaluation.json"):
        try:
            objects.append(json.loads((folder / name).read_text()) if (folder / name).exists() else {})
        except ValueError:
            raise ValueError(f"{folder / name}: not JSON (torn?); repair or remove the file") from None
    samples = read(folder / "samples.jsonl", ("step", "id", "tokens", "entropy", "covariance", "kl_weight"))
    return Run(folder, objects[0], metrics, samples, read(folder / "curriculum.jsonl", ("id", "se")), objects[1])


def group(runs: list[Run]) -> list[Group]:
    """Runs -> curves. Same method, same settings: seeds of one curve; settings that differ are named in its label."""
    methods: dict[str, list[Run]] = {}
    for run in runs:
        methods.setdefault(run.config.get("method", run.folder.name), []).append(run)
    groups = []
    for method in sorted(methods, key=lambda m: list(STYLE).index(m) if m in STYLE else len(STYLE)):
        same, labels = methods[method], {}
        names = {name for run in same for name in run.config} - NO_SETTING
        differing = sorted(n for n in names if len({json.dumps(run.config.get(n)) for run in same}) > 1)
        for run in same:
            settings = ", ".join(f"{n}={run.config.get(n)}" for n in differing)
            labels.setdefault(f"{method} ({settings})" if settings else method, []).append(run)
        color, line, marker = STYLE.get(method, OTHER)
        for k, (label, members) in enumerate(labels.items()):
            line, marker = VARIANTS[k % len(VARIANTS)] if len(labels) > 1 else (line, marker)
            pale = mix(color, 0.6 * k / len(labels))
            groups.append(Group(label, members, {"color": pale, "linestyle": line, "marker": marker}))
    return groups


def mix(color: str, share: float) -> str:
    """A colour with that share of white in it.

    >>> mix("#000000", 0.5)
    '#7f7f7f'
    """
    return "#" + "".join(f"{int(int(color[i : i + 2], 16) * (1 - share) + 255 * share):02x}" for i in (1, 3, 5))


# ---------------------------------------------------------------------------------------------- curves
def canvas(title: str, rows: int = 1, cols: int = 1, size: tuple[float, float] = (13.33, 7.5), **kw):
    """A Figure without pyplot (nothing global to leak) and its axes as a [rows, cols] array; 16:9 as a slide."""
    from matplotlib.figure import Figure

    fig = Figure(figsize=size, layout="constrained", dpi=140)
    fig.suptitle(title, fontsize=18, fontweight="bold")
    return fig, fig.subplots(rows, cols, squeeze=False, **kw)


def smooth(values: list[float], window: int):
    """Centred running mean; at the ends over what there is. The window is odd, so nothing shifts."""
    import numpy as np

    ones = np.ones(window | 1)
    half = len(ones) // 2
    total, count = (np.convolve(x, ones)[half : half + len(values)] for x in (values, np.ones(len(values))))
    return total / count


def curve(ax, g: Group, series: list[dict[int, float]], window: int = 1, points: bool = False, **style) -> list[float]:
    """One group's mean line, with a band from the lowest to the highest seed; returns the mean, [] without data."""
    import numpy as np

    steps = sorted(set.intersection(*(set(s) for s in series)))  # seeds that got further than others wait for them
    if not steps:
        return []
    raw = np.array([[s[x] for x in steps] for s in series])  # [seeds, steps]
    lines = np.array([smooth(values, window) for values in raw])
    style = {**g.style, "markersize": 7, "markevery": 1 if points else max(1, len(steps) // 8), **style}
    ax.plot(steps, lines.mean(0), label=g.label, **style)
    if len(series) > 1:
        ax.fill_between(steps, lines.min(0), lines.max(0), color=style["color"], alpha=0.2, linewidth=0)
    elif window > 1:
        ax.plot(steps, raw[0], color=style["color"], alpha=0.25, linewidth=1)
    return list(lines.mean(0))


def key_to(fig, ax, groups: list[Group]) -> None:
    """One legend under all panels; says what the bands are."""
    handles, labels = ax.get_legend_handles_labels()
    seeds = {g.label: len(g.runs) for g in groups}
    labels = [f"{x} ({seeds[x]} seeds: mean, min to max)" if seeds.get(x, 1) > 1 else x for x in labels]
    if len(groups) > 1 or max(seeds.values()) > 1:
        fig.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 3), frameon=False)


def stage_marks(ax, run: Run) -> None:
    """Dotted lines where a run enters its next curriculum stage."""
    stages = run.series("stage")
    for step in [s for s in stages if s - 1 in stages and stages[s] != stages[s - 1]]:
        ax.axvline(step, color="#888888", linestyle=":", linewidth=1.2, zorder=0)


def curves(groups: list[Group]):
    """Entropy and reward of every step, avg@16 and pass@16 on held-out questions."""
    fig, axes = canvas("", 2, 2)
    window = max(1, max(len(r.metrics) for g in groups for r in g.runs) // 40) | 1
    kept = []
    for g in groups:
        line = curve(axes[0, 0], g, [r.series("entropy") for r in g.runs], window)
        curve(axes[0, 1], g, [r.series("reward") for r in g.runs], window)
        kept += [f"{g.label} keeps {line[-1] / line[0]:.0%}"] if len(line) > 1 and line[0] > 0 else []
        for ax, key in zip(axes[1], ("avg_at_16", "pass_at_16"), strict=True):
            curve(ax, g, [r.held_out(key) for r in g.runs], points=True)
            if len(g.runs) == 1:  # one run has no band: show how much the questions alone leave open
                error = g.runs[0].held_out(f"{key}_se")
                at = {x: y for x, y in g.runs[0].held_out(key).items() if x in error}
                ax.errorbar(list(at), list(at.values()), [error[x] for x in at], fmt="none", ecolor=g.style["color"])
    staged = next((r for g in groups for r in g.runs if len(set(r.series("stage").values())) > 1), None)
    if staged:
        stage_marks(axes[0, 1], staged)
    of = f", running mean of {window} steps" if window > 1 else ""
    stage = " (dotted: next curriculum stage, other questions)" if staged else ""
    axes[0, 0].set(title="Token entropy of the policy", ylabel=f"nats per token{of}")
    axes[0, 1].set(title="Training reward" + stage, ylabel=f"mean reward{of}")
    axes[1, 0].set(title="Held-out avg@16: how often one answer is right", ylabel="share right")
    axes[1, 1].set(title="Held-out pass@16: is one of 16 right?", ylabel="share of questions")
    for ax in axes.flat:
        ax.set_xlabel("step (rollout batches)")
        ax.set_ylim(bottom=0) if ax is axes[0, 0] else ax.margins(y=0.1)
        if not ax.lines:
            ax.text(0.5, 0.5, "not evaluated", transform=ax.transAxes, ha="center", color="#888888")
    shown = "; ".join(kept[:3]) if len(kept) <= 3 else ""
    fig.suptitle("Entropy: " + shown if shown else "Entropy, reward, and what is left of it on held-out questions",
                 fontsize=18, fontweight="bold")  # fmt: skip
    key_to(fig, axes[0, 0], groups)
    return fig


def grid(groups: list[Group]):
    """One column per method, rows entropy | avg@16 | pass@16, same axes; the other methods grey behind."""
    fig, axes = canvas("Every method on the same axes (grey: the others)", 3, len(groups), sharex=True, sharey="row",
                       size=(max(8, min(20, 3.2 + 1.65 * len(groups))), 8.5))  # fmt: skip
    rows = (("entropy", "entropy\n(nats per token)"), ("avg_at_16", "held-out\navg@16"), ("pass_at_16", "held-out\npass@16"))
    for row, (key, name) in zip(axes, rows, strict=True):
        row[0].set_ylabel(name)
        for g in groups:
            series = [r.series(key) if key == "entropy" else r.held_out(key) for r in g.runs]
            for ax, own in zip(row, groups, strict=True):
                grey = {} if own is g else {"color": "#cccccc", "linestyle": "-", "marker": "", "linewidth": 1, "zorder": 0}
                line = curve(ax, g, series if own is g else series[:1], 5 if key == "entropy" else 1, key != "entropy", **grey)
                if own is g and line:
                    ax.annotate(f"{line[-1]:.2f}", (0.96, 0.05), xycoords="axes fraction", ha="right", fontweight="bold",
                                color=g.style["color"])  # fmt: skip
    axes[0, 0].set_ylim(bottom=0)
    for ax, g in zip(axes[0], groups, strict=True):
        name = "\n".join(textwrap.wrap(g.label.replace("_", " "), 11, break_long_words=False))
        ax.set_title(name, color=g.style["color"], fontsize=14, fontweight="bold")
    for ax in axes.flat:
        ax.locator_params(axis="x", nbins=2)
    fig.supxlabel("step (rollout batches); the number in a panel is its last value", fontsize=14)
    return fig


def covariance(groups: list[Group]):
    """sum of lr * mean Cov against the entropy lost: dH ~ -eta Cov(log pi, A) (arXiv 2505.22617)."""
    import numpy as np

    fig, axes = canvas("What covariance predicts, entropy pays: a straight line while the theory holds")
    for g in groups:
        for run in g.runs:
            cov, lr, entropy = (run.series(key) for key in ("cov_mean", "lr", "entropy"))
            steps = sorted(set(cov) & set(lr) & set(entropy))
            if len(steps) < 2:
                continue
            pushed = np.cumsum([0] + [lr[s] * cov[s] for s in steps[:-1]])  # before step s: the updates of steps < s
            lost = np.array([entropy[steps[0]] - entropy[s] for s in steps])
            slope = pushed @ lost / max(pushed @ pushed, 1e-30)
            label = f"{g.label}: slope {slope:.3g}" if run is g.runs[0] else None
            style = {**g.style, "markevery": max(1, len(steps) // 10), "markersize": 7}
            axes[0, 0].plot(pushed, lost, label=label, **style)
            axes[0, 0].plot(pushed, slope * pushed, color=g.style["color"], linewidth=0.8, alpha=0.6)
    if not axes[0, 0].lines:
        return None
    axes[0, 0].set(xlabel="cumulative covariance  Σ lr · mean Cov(log π, A)   (nats)", ylabel="entropy lost  H₀ − H   (nats per token)")
    axes[0, 0].legend(title="thin: least squares through 0 (Adam, not SGD: no slope of 1)", frameon=False)
    return fig


# ---------------------------------------------------------------------------------------------- reward, pass@k, SE
def fit(entropy, reward) -> tuple[float, float]:
    """Least squares of R = -a e^H + b (arXiv 2505.22617); entropy in nats; returns (a, b).

    >>> [round(x, 6) for x in fit([0.0, math.log(2)], [0.7, 0.4])]
    [0.3, 1.0]
    """
    import numpy as np

    slope, b = np.polyfit(np.exp(entropy), reward, 1)
    return float(-slope), float(b)


def r_squared(truth, predicted) -> float:
    """1 - residual / total sum of squares; below 0: worse than the mean. nan when the truth does not vary."""
    import numpy as np

    total = ((np.asarray(truth) - np.mean(truth)) ** 2).sum()
    return float(1 - ((np.asarray(truth) - predicted) ** 2).sum() / total) if total else math.nan


def reward_entropy(groups: list[Group]):
    """Reward against entropy: fitted on the first part of the run, how well is the rest predicted?"""
    import numpy as np

    groups = [g for g in groups if len(g.runs[0].metrics) >= 6][:2]
    if not groups:
        return None
    fig, axes = canvas(f"Is reward bought with entropy?  R = −a·eᴴ + b, fitted on the first {FIT_SHARE:.0%} of the run",
                       1, len(groups), sharex=True, sharey=True)  # fmt: skip
    for ax, g in zip(axes[0], groups, strict=True):
        step, h, r = (np.array(x) for x in zip(*[(m["step"], m["entropy"], m["reward"]) for run in g.runs
                                                 for m in run.metrics], strict=True))  # fmt: skip
        early = step < FIT_SHARE * (step.max() + 1)
        a, b = fit(h[early], r[early])
        seen, rest = (r_squared(r[part], b - a * np.exp(h[part])) for part in (early, ~early))
        dots = ax.scatter(h, r, c=step, cmap="viridis_r", s=26, alpha=0.8, linewidths=0)
        for part, line, what, r2 in ((early, "-", "fit", seen), (~early, "--", "prediction", rest)):
            x = np.linspace(h[part].min(), h[part].max(), 100)
            ax.plot(x, b - a * np.exp(x), color="black", linestyle=line, linewidth=2.5, label=f"{what}: R² = {r2:.2f}")
        ax.set(title=f"{g.label}:  a = {a:.2f},  b = {b:.2f}", xlabel="token entropy H (nats)", ylabel="training reward")
        ax.legend(loc="lower left")
    axes[0, 0].invert_xaxis()  # the run goes from left to right
    fig.colorbar(dots, ax=axes[0, -1], label="step")
    return fig


def pass_at_k(groups: list[Group]):
    """pass@k for k = 1 ... 64 before and after: does the base cross the trained policy?"""
    import numpy as np

    fig, axes = canvas("pass@k before and after: where does the base overtake?")
    ax, base = axes[0, 0], None
    for g in groups:
        both = [(r.evaluation.get("start") or {}, r.evaluation.get("end") or {}) for r in g.runs]
        both = [(s["pass_at_k"], e["pass_at_k"]) for s, e in both if "pass_at_k" in s and "pass_at_k" in e]
        if not both:
            continue
        ks = sorted(map(int, set.intersection(*(set(s) & set(e) for s, e in both))))
        start, end = (np.array([[pair[i][str(k)] for k in ks] for pair in both]) for i in (0, 1))
        base = base or ax.plot(ks, start.mean(0), color="black", linewidth=3, marker="*", markersize=11, label="base (before)")
        ax.plot(ks, end.mean(0), label=g.label, markersize=8, **g.style)
        ax.fill_between(ks, end.min(0), end.max(0), color=g.style["color"], alpha=0.15, linewidth=0)
    if base is None:
        return None
    ax.set_xscale("log", base=2)
    ax.set(xlabel="k, answers drawn per question", ylabel="pass@k: share of held-out questions with a right one")
    ax.set_xticks(ks, [str(k) for k in ks])
    key_to(fig, ax, groups)
    return fig


def semantic_entropy(groups: list[Group]):
    """Histogram of the questions' semantic entropy, coloured by the stage they are trained in."""
    import numpy as np

    run = next((r for g in groups for r in g.runs if r.curriculum), None)
    if run is None:
        return None
    order = sorted(run.curriculum, key=lambda q: q["se"])  # stable: the file's order among equals
    n = run.config.get("stages") or max(run.series("stage").values(), default=0) + 1
    parts = [order[k * len(order) // n : (k + 1) * len(order) // n] for k in range(n)]
    fig, axes = canvas(f"{len(order)} questions by semantic entropy: trained from left (the base is sure) to right (it is not)")
    labels = []
    for k, part in enumerate(parts):
        right = [q["accuracy"] for q in part if q.get("accuracy") is not None]
        labels.append(f"stage {k + 1}: {part[0]['se']:.2f} to {part[-1]['se']:.2f} nats"
                      + (f", base {np.mean(right):.0%} right" if right else "") if part else f"stage {k + 1}: empty")  # fmt: skip
    shades = [mix("#08306b", 0.75 * (1 - k / max(1, n - 1))) for k in range(n)]
    bins = np.linspace(0, max(0.1, order[-1]["se"]) * 1.001, 33)
    axes[0, 0].hist([[q["se"] for q in part] for part in parts], bins, stacked=True, color=shades, label=labels,
                    edgecolor="white", linewidth=0.8)  # fmt: skip
    for part in parts[1:]:
        axes[0, 0].axvline(part[0]["se"], color="black", linestyle=":", linewidth=1.5) if part else None
    samples = len(order[0].get("clusters", []))
    axes[0, 0].set(xlabel="semantic entropy of the base's answers (nats)" + f", {samples} answers each" * bool(samples),
                   ylabel="questions")  # fmt: skip
    axes[0, 0].legend(title="dotted: stage boundaries, cut by rank", loc="upper right", framealpha=0.95)
    return fig


# ---------------------------------------------------------------------------------------------- tokens
def treatments(rows: list[dict]) -> list[list[str]]:
    """What was done to each token of some samples of one step: a key of TREATED."""
    weights = [w for row in rows for w in row["kl_weight"] if w > 0]
    least = min(weights, default=0.0)

    def name(kl: float, pg: float) -> str:
        return "strong KL" if kl > least else "KL" if kl > 0 else "not treated" if pg else "no policy gradient"

    return [[name(*w) for w in zip(row["kl_weight"], row.get("pg_weight") or [1] * len(row["tokens"]), strict=True)]
            for row in rows]  # fmt: skip


def steps_of(run: Run) -> list[int]:
    """First, middle and last step with stored samples (fewer when there are fewer)."""
    stored = sorted({row["step"] for row in run.samples})
    return sorted({stored[0], stored[len(stored) // 2], stored[-1]}) if stored else []


def tokens(groups: list[Group]):
    """Entropy x covariance of the tokens of one stored batch, coloured by what the method did to them."""
    groups = [g for g in groups if g.runs[0].samples]
    if not groups:
        return None
    cols = min(5, len(groups))
    rows = -(-len(groups) // cols)
    fig, axes = canvas("Which tokens does the method touch?", rows, cols, sharex=True, sharey=True,
                       size=(max(11, min(20, 4.2 * cols)), 7 if rows == 1 else 4.4 * rows))  # fmt: skip
    seen = {}
    for ax, g in zip(axes.flat, groups, strict=False):
        samples = g.runs[0].samples
        step = next((s["step"] for s in samples if any(s["covariance"])), samples[0]["step"])  # a batch that teaches
        batch = [s for s in samples if s["step"] == step]
        points = {}
        for row, names in zip(batch, treatments(batch), strict=True):
            for t, name in enumerate(names):
                points.setdefault(name, []).append((row["entropy"][t], row["covariance"][t]))
        for name, (color, marker, size) in TREATED.items():
            if name in points:
                seen[name] = ax.scatter(*zip(*points[name], strict=True), c=color, marker=marker, s=size, alpha=0.7,
                                        linewidths=1.5 if marker == "x" else 0, rasterized=True)  # fmt: skip
        ax.set_title(f"{g.label}, step {step}\n{len(points.get('not treated', []))} of {sum(map(len, points.values()))} "
                     "tokens left alone", color=g.style["color"])  # fmt: skip
        ax.set_yscale("symlog", linthresh=0.1)
    for ax in axes.flat[len(groups) :]:
        ax.set_visible(False)
    fig.supxlabel("token entropy (nats)", fontsize=14)
    fig.supylabel("covariance of log π and advantage (symlog)", fontsize=14)
    fig.legend(seen.values(), seen, loc="outside lower center", ncols=len(seen), frameon=False, markerscale=1.5)
    return fig


def visible(token: str) -> str:
    """A token as it is drawn: one line, no control characters (a model may write terminal escapes), never empty.

    >>> visible("a\\n"), visible("\\x1b[2J"), visible("<|endoftext|>")
    ('a↵', '·[2J', '■')
    """
    if token.startswith("<") and token.endswith(">"):
        return "■"
    return "".join("↵" if c == "\n" else c if c.isprintable() else "·" for c in token) or "·"


def examples(run: Run, steps: list[int], count: int) -> dict[int, list[dict]]:
    """{step: a few answers to one question}: the same question at every step where the samples allow."""
    at = {step: [row for row in run.samples if row["step"] == step] for step in steps}
    shared = set.intersection(*({row["id"] for row in rows} for rows in at.values()))
    chosen = {}
    for step, rows in at.items():
        question = next((row["id"] for row in rows if row["id"] in shared), rows[0]["id"])
        chosen[step] = [row for row in rows if row["id"] == question][:count]
    return chosen


def wrap(row: dict, width: int, lines: int) -> list[tuple[int, int, int]]:
    """Where each token of an answer goes on a grid of characters: (line, column, token index), at most `lines` lines."""
    places, line, column = [], 0, 0
    for t, token in enumerate(row["tokens"]):
        size = len(visible(token))
        if column and column + size > width:
            line, column = line + 1, 0
        if line == lines:
            break
        places.append((line, column, t))
        column += size
    return places


def answer_cells(ax, row: dict, names: list[str], top: float, width: int, font: float, color_of) -> float:
    """Draw one answer's tokens as coloured cells from the line `top` down; returns the first free line."""
    from matplotlib.patches import Rectangle

    places, line = wrap(row, width, 4), 0
    for line, column, t in places:
        text, y = visible(row["tokens"][t]), top + line * 1.3
        fill = color_of(row["entropy"][t])
        size = min(len(text), width - column)
        ax.add_patch(Rectangle((column, y), size, 1, facecolor=fill, edgecolor="white", linewidth=0.5))
        dark = 0.3 * fill[0] + 0.59 * fill[1] + 0.11 * fill[2] < 0.55
        ax.text(column + size / 2, y + 0.5, text[:size], ha="center", va="center", family="monospace", fontsize=font,
                color="white" if dark else "black", parse_math=False)  # fmt: skip
        if names[t] in ("KL", "strong KL", "no policy gradient"):
            thick = 0.17 if names[t] == "strong KL" else 0.06
            ax.add_patch(Rectangle((column + 0.08, y + 1.02), size - 0.16, thick, color=TREATED[names[t]][0]))
        if row.get("fork") and row["fork"][t]:
            ax.plot(column + size / 2, y - 0.1, marker="v", color="black", markersize=font / 2.6, clip_on=False)
    ax.text(width + 0.4, top + 0.5, "✓" if row.get("reward") else "✗", fontsize=font + 2, va="center", fontweight="bold",
            color="#007a33" if row.get("reward") else "#b00000")  # fmt: skip
    return top + (line + 1) * 1.3 + 0.35


def heatmap(groups: list[Group]):
    """Answers before, during and after: every token a cell coloured by its entropy, its treatment below, forks above."""
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.lines import Line2D

    groups = [g for g in groups if g.runs[0].samples][:2]  # more than two would not be legible
    if not groups:
        return None
    width = (76, 42)[len(groups) - 1]
    deep = max(len(steps_of(g.runs[0])) for g in groups)
    fig, axes = canvas("Where is the policy unsure?  Answers to a question before, during and after training",
                       deep, len(groups), size=(13.33, 1.6 + 2.4 * deep))  # fmt: skip
    scale = ScalarMappable(Normalize(0, 1.2, clip=True), colormaps["YlOrRd"])
    font = 13.33 / len(groups) / (width + 3) / 0.602 * 72 * 0.9
    for col, g in zip(axes.T, groups, strict=True):
        run = g.runs[0]
        for ax, (step, rows) in zip(col, examples(run, steps_of(run), 3).items(), strict=False):
            batch = [row for row in run.samples if row["step"] == step]
            names = [n for row, n in zip(batch, treatments(batch), strict=True) if row in rows]
            y = 0.0
            for row, name in zip(rows, names, strict=True):
                y = answer_cells(ax, row, name, y, width, min(font, 20), scale.to_rgba)
            mean = run.series("entropy").get(step)
            ax.set_title(f"{g.label}, step {step}" + (f", H = {mean:.2f} nats" if mean is not None else "")
                         + f":  {textwrap.shorten(visible(rows[0].get('prompt', '')), 40)}", loc="left", parse_math=False)  # fmt: skip
            ax.set(xlim=(0, width + 2), ylim=(max(y, 4), -0.4))
        for ax in col:
            ax.axis("off")
    fig.colorbar(scale, ax=axes, label="token entropy (nats)", shrink=0.8, pad=0.01)
    marks = [Line2D([], [], color="black", marker="v", linestyle="", label="a fork: a choice the task knows of"),
             Line2D([], [], color=TREATED["KL"][0], linewidth=2, label="KL"),
             Line2D([], [], color=TREATED["strong KL"][0], linewidth=6, label="strong KL"),
             Line2D([], [], color="black", linewidth=2, label="no policy gradient")]  # fmt: skip
    fig.legend(handles=marks, loc="outside lower center", ncols=4, frameon=False)
    return fig


# ---------------------------------------------------------------------------------------------- the terminal
BARS = "▁▂▃▄▅▆▇█"
HEAT = (255, 230, 223, 216, 209, 202, 196, 160)  # ANSI 256 backgrounds, from sure to unsure


def sparkline(values: list[float], width: int) -> str:
    """Values as a line of bars at most `width` wide (means of equal parts), from their lowest to their highest.

    >>> sparkline([0, 1, 2, 3], 2)
    '▁█'
    """
    n = min(width, len(values))
    parts = [values[i * len(values) // n : (i + 1) * len(values) // n] for i in range(n)]
    means = [sum(part) / len(part) for part in parts]
    low, span = min(means), max(means) - min(means)
    return "".join(BARS[int((m - low) / span * 7.99) if span else 0] for m in means)


def text(runs: list[Run], width: int, color: bool) -> str:
    """Sparklines of each run, and tokens by entropy: background colours, or bars under the text without colour."""
    out = []
    for run in runs:
        out.append(f"{run.folder}  {len(run.metrics)} steps")
        for name, values in (("entropy (nats)", run.series("entropy")), ("reward", run.series("reward")),
                             ("held-out avg@16", run.held_out("avg_at_16"))):  # fmt: skip
            if values := list(values.values()):
                line = sparkline(values, max(8, width - 36))
                out.append(f"  {name:<16}{values[0]:6.3f} {line} {values[-1]:.3f}")
        for step, rows in examples(run, steps_of(run), 2).items() if run.samples else ():
            out.append(f"  step {step}: {textwrap.shorten(visible(rows[0].get('prompt', '')), max(20, width - 14))}")
            for row in rows:
                out += ["  " + line for line in text_cells(row, max(8, width - 4), color)]
    return "\n".join(out)


def text_cells(row: dict, width: int, color: bool) -> list[str]:
    """One answer as lines for the terminal; a fork is underlined (with colour) or marked ^ (without)."""
    lines: dict[int, list[str]] = {}
    for line, _, t in wrap(row, width, 8):
        shown, level = visible(row["tokens"][t])[:width], min(7, int(row["entropy"][t] / 1.2 * 8))
        fork = bool(row.get("fork") and row["fork"][t])
        if color:
            lines.setdefault(line, [""])[0] += f"\x1b[{'4;' * fork}30;48;5;{HEAT[level]}m{shown}\x1b[0m"
        else:
            cells = lines.setdefault(line, ["", ""])
            cells[0] += shown
            cells[1] += ("^" if fork else BARS[level] if level else " ") * len(shown)
    verdict = "right" if row.get("reward") else "wrong"
    return [part for line in lines.values() for part in line] + [f"({verdict})"]


# ---------------------------------------------------------------------------------------------- main
PICTURES = (curves, semantic_entropy, tokens, heatmap, grid, reward_entropy, pass_at_k, covariance)


def draw(folders: list[Path], out: Path) -> list[Path]:
    """Write every picture that the folders have files for, as PNG and SVG; returns the paths.

    Raises ValueError that names the file when a folder has no metrics.jsonl or a file is torn.
    """
    groups = group([load(Path(folder)) for folder in folders])
    import warnings

    import matplotlib

    paths = []
    out.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(RC), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # a model may write what no font has: an empty box
        for picture in PICTURES:
            fig = picture(groups)
            for ending in ("png", "svg") if fig else ():
                paths.append(out / f"{picture.__name__}.{ending}")
                # no date: the same run gives the same file
                fig.savefig(paths[-1], metadata={"Date": None} if ending == "svg" else None)
    return paths


def main(argv: list[str] | None = None) -> int:
    """Returns the exit code: 0 done, 2 bad input (one line on stderr)."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, metavar="RUN", help="run folders; metrics.jsonl is enough")
    parser.add_argument("--out", type=Path, help="where the pictures go [RUN/figures for one run, else figures]")
    parser.add_argument("--text", action="store_true", help="print to the terminal instead; FORCE_COLOR=1 colours a pipe")
    args = parser.parse_args(argv)
    out = args.out or (args.folders[0] / "figures" if len(args.folders) == 1 else Path("figures"))
    try:
        if args.text:
            color = sys.stdout.isatty() or bool(os.environ.get("FORCE_COLOR"))
            print(text([load(folder) for folder in args.folders], shutil.get_terminal_size().columns, color))
        else:
            print("\n".join(map(str, draw(args.folders, out))))
    except (ValueError, OSError) as error:
        print(f"figures.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
