"""Pictures of one run or of many, drawn from the files in their folders. No model is loaded, nothing is recomputed.

    python figures.py runs/sent                            into runs/sent/figures/
    python figures.py runs/sent runs/grpo --out figures    side by side; folders that differ in the seed only: a band
    python figures.py runs/sent --text                     sparklines and a heat map, for people without a screen

Each function named in PICTURES is one picture: groups of runs in, a Figure out, or None when the files it needs are
missing. Figures are made without pyplot, whose global state a training process would keep. Entropies are in nats.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import shutil
import sys
import textwrap
import warnings
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
TREATED = {  # what a method does to a token: colour, marker, size
    "not treated": ("#a6a6a6", "o", 14),
    "KL": ("#0072b2", "o", 26),
    "strong KL": ("#d62728", "D", 60),
    "no policy gradient": ("#000000", "x", 30),
}
# What does not change what is learned makes no second curve.
NO_SETTING = {"method", "seed", "out", "device", "figures", "log_every", "log_kl", "checkpoint_every", "eval_every",
              "keep_checkpoints", "gradient_checkpointing", "tokens_per_micro_batch", "attention"}  # fmt: skip
LOOK = {"font.size": 14, "axes.titlesize": 15, "figure.titlesize": 18, "figure.titleweight": "bold",
        "legend.fontsize": 13, "legend.handlelength": 3, "lines.linewidth": 2.2, "lines.markersize": 7,
        "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.25,
        "text.parse_math": False, "svg.hashsalt": "nanosent"}  # fmt: skip
FIT_SHARE = 0.36  # of the run, that R = -a e^H + b is fitted to
POWERS = [str(2**i) for i in range(20)]  # the k of pass@k that are drawn
LINES = 3  # of an answer, that a heat map shows
HOT = 1.2  # nats: the darkest cell of a heat map, a choice between three or four


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
        return {step: value for step, value in found.items() if value is not None and math.isfinite(value)}

    @property
    def staged(self) -> bool:
        """Whether a curriculum changed the questions on the way, which moves the training reward by itself."""
        return any(self.series("stage").values())

    def held_out(self, key: str) -> dict[int, float]:
        """{updates made: value} of avg_at_16 or pass_at_16: the start is at 0, the line of step s at s + 1."""
        found = {step + 1: value for step, value in self.series(f"eval_{key}").items()}
        ends = {0: self.evaluation.get("start"), self.metrics[-1]["step"] + 1: self.evaluation.get("end")}
        return dict(sorted((found | {x: e[key] for x, e in ends.items() if e and key in e}).items()))

    def examples(self, count: int) -> dict[int, list[dict]]:
        """{step: some answers to one question} at the first, middle and last stored step; one question if it can be."""
        stored = sorted({row["step"] for row in self.samples})
        at = {step: [row for row in self.samples if row["step"] == step]
              for step in sorted({stored[0], stored[len(stored) // 2], stored[-1]} if stored else ())}  # fmt: skip
        shared = set.intersection(*({row["id"] for row in rows} for rows in at.values())) if at else ()
        for step, rows in at.items():
            question = next((row["id"] for row in rows if row["id"] in shared), rows[0]["id"])
            at[step] = [row for row in rows if row["id"] == question][:count]
        return at


@dataclass
class Group:
    """Runs that differ in the seed only: one curve."""

    label: str
    runs: list[Run]
    style: dict


def parse(text: str, where: str) -> dict:
    """A JSON object. Raises ValueError that names `where` it should stand."""
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise ValueError(f"{where}: not a JSON object (torn?); repair or remove it")
    return value


def load(folder: Path) -> Run:
    """Read a run folder. Raises ValueError that names the file when there are no metrics or when one is torn."""

    def lines(name: str, *needs: str) -> list[dict]:
        text = (folder / name).read_text("utf-8", errors="replace") if (folder / name).exists() else ""
        rows = [parse(row, f"{folder / name}, line {n}") for n, row in enumerate(text.split("\n"), 1) if row]
        return [row for row in rows if all(field in row for field in needs)]  # curriculum.jsonl opens with a header

    def whole(name: str) -> dict:
        path = folder / name
        return parse(path.read_text("utf-8", errors="replace"), str(path)) if path.exists() else {}

    metrics = lines("metrics.jsonl", "step")
    if not metrics:
        raise ValueError(f"{folder / 'metrics.jsonl'}: missing or empty; give the folder of a run, such as runs/sent")
    samples = lines("samples.jsonl", "step", "id", "tokens", "entropy", "covariance", "kl_weight", "pg_weight")
    curriculum = lines("curriculum.jsonl", "se", "accuracy")
    return Run(folder, whole("config.json"), metrics, samples, curriculum, whole("evaluation.json"))


def group(runs: list[Run]) -> list[Group]:
    """Runs -> curves. Same method, same settings: seeds of one curve; settings that differ are named in its label."""
    methods: dict[str, list[Run]] = {}
    for run in runs:
        methods.setdefault(run.config.get("method", run.folder.name), []).append(run)
    groups = []
    for method in sorted(methods, key=lambda m: list(STYLE).index(m) if m in STYLE else len(STYLE)):
        same, labels = methods[method], {}
        names = sorted({name for run in same for name in run.config} - NO_SETTING)
        differing = [n for n in names if len({json.dumps(run.config.get(n)) for run in same}) > 1]
        for run in same:
            given = {n: "default" if run.config.get(n) is None else run.config[n] for n in differing}
            settings = ", ".join(f"{name}={value}" for name, value in given.items())
            labels.setdefault(f"{method} ({settings})" if settings else method, []).append(run)
        color, line, marker = STYLE.get(method, OTHER)
        for k, (label, members) in enumerate(labels.items()):
            line, marker = VARIANTS[k % len(VARIANTS)] if len(labels) > 1 else (line, marker)
            style = {"color": paler(color, 0.6 * k / len(labels)), "linestyle": line, "marker": marker}
            groups.append(Group(label, members, style))
    return groups


def paler(color: str, white: float) -> str:
    """A colour with that share of white in it.

    >>> paler("#000000", 0.5)
    '#7f7f7f'
    """
    return "#" + "".join(f"{int(int(color[i : i + 2], 16) * (1 - white) + 255 * white):02x}" for i in (1, 3, 5))


# ---------------------------------------------------------------------------------------------- curves
def canvas(title: str, rows: int = 1, cols: int = 1, size: tuple[float, float] = (13.33, 7.5), **kw):
    """A Figure, 16:9 as a slide, and its axes as a [rows, cols] array."""
    from matplotlib.figure import Figure

    fig = Figure(figsize=size, layout="constrained", dpi=140)
    fig.suptitle(title)
    return fig, fig.subplots(rows, cols, squeeze=False, **kw)


def smooth(values: list[float], window: int):
    """Running mean over an odd window, centred so that nothing shifts; at the ends over what there is.

    >>> smooth([0.0, 3.0, 6.0, 9.0], 3).tolist()
    [1.5, 3.0, 6.0, 7.5]
    """
    import numpy as np

    ones = np.ones(window | 1)
    total, count = (np.convolve(x, ones)[window // 2 :][: len(values)] for x in (values, np.ones(len(values))))
    return total / count


def curve(ax, label: str, series: list[dict[int, float]], style: dict, window: int = 1,
          band: bool = True) -> list[float]:  # fmt: skip
    """One mean line over seeds with a band from the lowest to the highest; returns the line, [] without data."""
    import numpy as np

    steps = sorted(set.intersection(*(set(s) for s in series)))  # seeds that got further wait for the others
    if not steps:
        return []
    raw = np.array([[s[x] for x in steps] for s in series])  # [seeds, steps]
    lines = np.array([smooth(values, window) for values in raw])
    ax.plot(steps, lines.mean(0), label=label, markevery=max(1, len(steps) // 8), **style)
    if band and len(series) > 1:
        ax.fill_between(steps, lines.min(0), lines.max(0), color=style["color"], alpha=0.2, linewidth=0)
    elif band and window > 1:
        ax.plot(steps, raw[0], color=style["color"], alpha=0.25, linewidth=1)
    return list(lines.mean(0))


def key_to(fig, ax, groups: list[Group]) -> None:
    """One legend under all panels; says what the bands are."""
    handles, labels = ax.get_legend_handles_labels()
    seeds = {g.label: len(g.runs) for g in groups}
    labels = [f"{x} ({seeds[x]} seeds: mean, min to max)" if seeds.get(x, 1) > 1 else x for x in labels]
    fig.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 3) or 1, frameon=False)


def curves(groups: list[Group]):
    """Entropy and reward of every step, avg@16 and pass@16 on held-out questions."""
    fig, axes = canvas("", 2, 2)
    window = max(len(run.metrics) for g in groups for run in g.runs) // 25 | 1
    kept = []
    for g in groups:
        line = curve(axes[0, 0], g.label, [run.series("entropy") for run in g.runs], g.style, window)
        kept += [f"{g.label} keeps {line[-1] / line[0]:.0%}"] if line and line[0] > 0 else []
        curve(axes[0, 1], g.label, [run.series("reward") for run in g.runs], g.style, window)
        for ax, key in zip(axes[1], ("avg_at_16", "pass_at_16"), strict=True):
            curve(ax, g.label, [run.held_out(key) for run in g.runs], g.style)
            alone = len(g.runs) == 1 and len(groups) <= 3  # no band says how sure one run is
            error = g.runs[0].held_out(f"{key}_se") if alone else {}
            at = {x: y for x, y in g.runs[0].held_out(key).items() if x in error}
            ax.errorbar(list(at), list(at.values()), [error[x] for x in at], fmt="none", ecolor=g.style["color"])
            ax.set_xlabel("step (bars: standard error over questions)" if at else ax.get_xlabel() or "step")
    stages = next((run.series("stage") for g in groups for run in g.runs if run.staged), {})
    for step in [s for s in stages if stages[s] != stages.get(s - 1, stages[s])]:
        axes[0, 1].axvline(step, color="#888888", linestyle=":", linewidth=1.5, zorder=0)
    axes[0, 0].set(title="Token entropy of the policy", ylabel="nats per token", ylim=(0, None))
    axes[0, 1].set(title="Training reward" + " (dotted: curriculum stages)" * bool(stages), ylabel="mean of the batch")
    axes[1, 0].set(title="Held-out avg@16: is an answer right?", ylabel="share of answers")
    axes[1, 1].set(title="Held-out pass@16: is one of 16 right?", ylabel="share of questions")
    for ax in axes[0]:
        ax.set_xlabel("step" + f" (running mean of {window})" * (window > 1))
    for ax in (ax for ax in axes.flat if not ax.lines):
        ax.text(0.5, 0.5, "no data", transform=ax.transAxes, ha="center")
    few = 0 < len(kept) <= 3
    fig.suptitle("Entropy: " + ", ".join(kept) if few else "Entropy, reward, and what held-out questions say of them")
    key_to(fig, axes[0, 0], groups)
    return fig


def grid(groups: list[Group]):
    """One column per method; rows entropy | avg@16 | pass@16; all on the same axes, the other methods grey behind."""
    if len(groups) < 2:
        return None  # nothing to compare: `curves` shows it
    fig, axes = canvas("Each method against all others (grey), on the same axes", 3, len(groups), sharex=True,
                       sharey="row", size=(max(9, min(20, 3.2 + 1.65 * len(groups))), 8.5))  # fmt: skip
    rows = {"entropy": "entropy\n(nats per token)", "avg_at_16": "held-out\navg@16", "pass_at_16": "held-out\npass@16"}
    grey = {"color": "#cccccc", "linestyle": "-", "linewidth": 1, "zorder": 0}
    white = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1}
    for row, (key, name) in zip(axes, rows.items(), strict=True):
        row[0].set_ylabel(name)
        window = 5 if key == "entropy" else 1
        for g in groups:
            series = [run.series(key) if key == "entropy" else run.held_out(key) for run in g.runs]
            for ax, own in zip(row, groups, strict=True):
                if own is not g:
                    curve(ax, g.label, series, grey, window, band=False)
                elif line := curve(ax, g.label, series, g.style, window):
                    ax.annotate(f"{line[-1]:.2f}", (0.97, 0.05), xycoords="axes fraction", ha="right", bbox=white,
                                fontweight="bold", color=g.style["color"])  # fmt: skip
    axes[0, 0].set_ylim(bottom=0)
    for ax, g in zip(axes[0], groups, strict=True):
        name = textwrap.wrap(g.label.replace("_", " "), 11 if len(groups) > 4 else 40)
        ax.set_title("\n".join(name), color=g.style["color"], fontsize=14, fontweight="bold")
    for ax in axes.flat:
        ax.locator_params(axis="x", nbins=2)
    fig.align_ylabels()
    fig.supxlabel("step; the number in a panel is its last value", fontsize=14)
    return fig


def covariance(groups: list[Group]):
    """sum of lr * mean Cov against the entropy lost: dH ~ -eta Cov(log pi, A) (arXiv 2505.22617)."""
    import numpy as np

    fig, axes = canvas("Does covariance predict the loss of entropy?  A straight line says yes")
    for g in groups:
        both = [[run.series(key) for key in ("cov_mean", "lr", "entropy")] for run in g.runs]
        steps = sorted(set.intersection(*(set(s) for series in both for s in series)))
        if len(steps) < 2:
            continue
        # H of step s is measured before its update: it has felt the pushes of the steps before s
        pushed = np.mean([np.cumsum([0] + [lr[s] * cov[s] for s in steps[:-1]]) for cov, lr, _ in both], 0)
        lost = np.mean([smooth([h[steps[0]] - h[s] for s in steps], len(steps) // 25) for _, _, h in both], 0)
        slope = pushed @ lost / max(pushed @ pushed, 1e-30)
        axes[0, 0].plot(pushed, lost, label=f"{g.label}: slope {slope:.3g}", markevery=len(steps) // 10 or 1, **g.style)
        axes[0, 0].plot(pushed, slope * pushed, color=g.style["color"], linewidth=1, alpha=0.6)
    axes[0, 0].set_xlabel("cumulative covariance  Σ lr · mean Cov(log π, A)  (nats)")
    axes[0, 0].set_ylabel("entropy lost  H₀ − H  (nats per token)")
    if not axes[0, 0].lines:
        return None
    axes[0, 0].legend(title="thin: least squares through 0 (with Adam, not 1)", frameon=False, alignment="left")
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
    """1 - residual / total sum of squares. Below 0: worse than the mean. nan when the truth does not vary."""
    total = ((truth - truth.mean()) ** 2).sum()
    return float(1 - ((truth - predicted) ** 2).sum() / total) if total else math.nan


def reward_entropy(groups: list[Group]):
    """Reward against entropy: fitted on the first part of the run, how well is the rest predicted?"""
    import numpy as np

    found = []
    for g in ([g for g in groups if not g.runs[0].staged] or groups)[:2]:
        points = [(m["step"], m.get("entropy"), m.get("reward")) for run in g.runs for m in run.metrics]
        step, h, r = np.array(points, float).T  # null becomes nan
        step, h, r = (x[np.isfinite(h + r)] for x in (step, h, r))
        early = step < FIT_SHARE * (step.max(initial=0) + 1)
        if len(set(h[early])) > 1 and not early.all():
            found.append((g.label + " (stages: other questions, other reward)" * g.runs[0].staged, step, h, r, early))
    if not found:
        return None
    fig, axes = canvas(f"Is reward bought with entropy?  R = −a·eᴴ + b, fitted on the first {FIT_SHARE:.0%} of the run",
                       1, len(found), sharex=True, sharey=True)  # fmt: skip
    for ax, (label, step, h, r, early) in zip(axes[0], found, strict=True):
        a, b = fit(h[early], r[early])
        dots = ax.scatter(h, r, c=step, cmap="viridis_r", s=26, alpha=0.8, linewidths=0, rasterized=True)
        for part, line, what in ((early, "-", "fit"), (~early, "--", "prediction")):
            x = np.linspace(h[part].min(), h[part].max(), 100)
            r2 = r_squared(r[part], b - a * np.exp(h[part]))
            ax.plot(x, b - a * np.exp(x), color="black", linestyle=line, linewidth=2.5, label=f"{what}: R² = {r2:.2f}")
        ax.set(title=f"{label}:  a = {a:.2f},  b = {b:.2f}", xlabel="token entropy H (nats)")
        ax.legend(loc="best")
    axes[0, 0].set_ylabel("training reward")
    axes[0, 0].invert_xaxis()  # the run goes from left to right
    fig.colorbar(dots, ax=axes[0, -1], label="step")
    return fig


def pass_at_k(groups: list[Group]):
    """pass@k for k = 1 ... 64 before and after: does the base cross the trained policy?"""
    fig, axes = canvas("pass@k before and after: does the base overtake?")
    ax, ks = axes[0, 0], set()
    base = {"color": "black", "linestyle": "-", "marker": "*", "linewidth": 3, "markersize": 12}
    for g in groups:
        both = [[(run.evaluation.get(when) or {}).get("pass_at_k", {}) for run in g.runs] for when in ("start", "end")]
        start, end = ([{int(k): p for k, p in found.items() if k in POWERS} for found in runs] for runs in both)
        if not ks:
            curve(ax, "base, before", start, base)
        curve(ax, g.label, end, g.style)
        ks |= set.union(*(set(found) for found in start + end))
    ax.set_xscale("log", base=2)
    ax.set(xlabel="k, answers drawn per question", ylabel="pass@k: share of held-out questions with a right one")
    ax.set_xticks(sorted(ks), [str(k) for k in sorted(ks)])
    key_to(fig, ax, groups)
    return fig if ks else None


def semantic_entropy(groups: list[Group]):
    """Histogram of the questions' semantic entropy, coloured by the stage they are trained in."""
    import numpy as np

    from curriculum import stages

    run = next((run for g in groups for run in g.runs if run.curriculum), None)
    if run is None:
        return None
    order = sorted(run.curriculum, key=lambda q: q["se"])  # stable: the file's order among equals
    n = min(len(order), run.config.get("stages") or max(run.series("stage").values(), default=0) + 1)
    highest = order[-1]["se"]
    parts = stages(order[::-1] if run.config.get("reverse") else order, n)
    fig, axes = canvas(f"{len(order)} questions by semantic entropy: from left (the base is sure) to right (it is not)")
    labels = [f"stage {k}: {part[0]['se']:.2f} to {part[-1]['se']:.2f} nats, base "
              f"{np.mean([q['accuracy'] for q in part]):.0%} right" for k, part in enumerate(parts, 1)]  # fmt: skip
    shades = [paler("#08306b", 0.75 * (1 - k / max(1, n - 1))) for k in range(n)]
    half = max(0.1, highest) / 64
    bins = np.arange(-half, highest + 2 * half, 2 * half)  # 0 in the middle of a bar
    axes[0, 0].hist([[q["se"] for q in part] for part in parts], bins, stacked=True, color=shades, label=labels,
                    edgecolor="white", linewidth=0.8)  # fmt: skip
    for part in parts[1:]:
        axes[0, 0].axvline(part[0]["se"], color="black", linestyle=":", linewidth=1.5)
    answers = f", {len(order[0]['clusters'])} each" if "clusters" in order[0] else ""
    axes[0, 0].set(xlabel=f"semantic entropy of the base's answers{answers} (nats)", ylabel="questions")
    axes[0, 0].legend(title="dotted: where a stage begins (cut by rank)", loc="upper right", framealpha=0.95)
    return fig


# ---------------------------------------------------------------------------------------------- tokens
def treatments(rows: list[dict]) -> list[list[str]]:
    """What was done to each token of the samples of one step: a key of TREATED."""
    least = min((w for row in rows for w in row["kl_weight"] if w > 0), default=0.0)

    def name(kl: float, pg: float) -> str:
        return "strong KL" if kl > least else "KL" if kl > 0 else "not treated" if pg else "no policy gradient"

    return [[name(*w) for w in zip(row["kl_weight"], row["pg_weight"], strict=True)] for row in rows]


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
        batch = [s for s in samples if s["step"] == step and not s.get("probe")]
        points = [(name, h, cov) for s, names in zip(batch, treatments(batch), strict=True)
                  for name, h, cov in zip(names, s["entropy"], s["covariance"], strict=True)]  # fmt: skip
        for treated, (color, marker, size) in TREATED.items():
            if some := [(h, cov) for name, h, cov in points if name == treated]:
                seen[treated] = ax.scatter(*zip(*some, strict=True), c=color, marker=marker, s=size, alpha=0.7,
                                           linewidths=1.5 * (marker == "x"), rasterized=True)  # fmt: skip
        touched = sum(name != "not treated" for name, *_ in points)
        ax.set_title(f"{g.label}, step {step}\nKL or mask on {touched} of {len(points)}", color=g.style["color"])
        ax.set_yscale("symlog", linthresh=0.1)
        ax.yaxis.set_major_formatter("{x:g}")
    for ax in axes[-1]:
        ax.set_xlabel("token entropy (nats)")
    for ax in axes.flat[len(groups) :]:
        ax.set_visible(False)
    fig.supylabel("covariance of log π and advantage (symlog)", fontsize=14)
    fig.legend(seen.values(), seen, loc="outside lower center", ncols=len(seen), frameon=False, markerscale=1.5)
    return fig


def visible(token: str) -> str:
    """A token as it is drawn: one line, no control characters (a model may write terminal escapes), never empty.

    >>> visible("a\\n"), visible("\\x1b[2J"), visible("<|endoftext|>")
    ('a↵', '·[2J', '■')
    """
    if re.fullmatch(r"</?\|?\w+\|?>", token):
        return "■"
    return "".join("↵" if c == "\n" else c if c.isprintable() else "·" for c in token) or "·"


def wrap(row: dict, width: int, lines: int) -> list[tuple[int, int, str, int]]:
    """An answer's tokens on a grid of characters: (line, column, what is drawn, index), at most `lines` lines."""
    places, line, column = [], 0, 0
    for t, token in enumerate(row["tokens"]):
        shown = visible(token)[:width]
        if column + len(shown) > width:
            line, column = line + 1, 0
        if line == lines:
            break
        places.append((line, column, shown, t))
        column += len(shown)
    return places


def height(row: dict, width: int) -> float:
    """How much room an answer takes in a heat map, in lines."""
    return 0.35 + 1.3 * (1 + max((line for line, *_ in wrap(row, width, LINES)), default=0))


def answer_cells(ax, row: dict, names: list[str], top: float, width: int, font: float, color_of) -> None:
    """Draw one answer's tokens as coloured cells from the line `top` down."""
    from matplotlib.patches import Rectangle

    line = t = 0
    for line, x, shown, t in wrap(row, width, LINES):
        size, y, fill = len(shown), top + line * 1.3, color_of(row["entropy"][t])
        ink = "white" if 0.3 * fill[0] + 0.59 * fill[1] + 0.11 * fill[2] < 0.55 else "black"
        ax.add_patch(Rectangle((x, y), size, 1, facecolor=fill, edgecolor="white", linewidth=0.5))
        ax.text(x + size / 2, y + 0.5, shown, ha="center", va="center", family="monospace", fontsize=font, color=ink)
        if names[t] != "not treated":
            thick = 0.17 if names[t] == "strong KL" else 0.06
            ax.add_patch(Rectangle((x + 0.08, y + 1.02), size - 0.16, thick, color=TREATED[names[t]][0]))
        if row.get("fork") and row["fork"][t]:
            ax.plot(x + size / 2, y - 0.1, marker="v", color="black", markersize=font / 2.6, clip_on=False)
    mark, color = ("✓", "#007a33") if row.get("reward") else ("✗", "#b00000")
    ax.text(width + 0.4, top + 0.5, mark, fontsize=font + 2, va="center", fontweight="bold", color=color)
    if t + 1 < len(row["tokens"]):  # there is more than is shown
        ax.text(width + 0.4, top + line * 1.3 + 0.5, "…", fontsize=font + 2, va="center")


def heatmap(groups: list[Group]):
    """Answers before, during and after: a token is a cell coloured by its entropy; treatment below, forks above."""
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.lines import Line2D

    groups = [g for g in groups if g.runs[0].samples][:2]  # more than two would not be legible
    if not groups:
        return None
    shown = [list(g.runs[0].examples(3).items()) for g in groups]
    longest = max(sum(len(visible(t)) for t in row["tokens"]) for at in shown for _, rows in at for row in rows)
    width = min(longest, (76, 48)[len(groups) - 1])
    if longest > 2 * width:
        shown = [[(step, rows[:2]) for step, rows in at] for at in shown]
    font = min(20, 12 / len(groups) / (width + 3) / 0.602 * 72)  # a monospaced character is 0.602 em wide
    tall = [0.4 + max(sum(height(row, width) for row in at[k][1]) for at in shown if k < len(at))
            for k in range(max(map(len, shown)))]  # fmt: skip
    fig, axes = canvas("Where is the policy unsure?  Answers to a question before, during and after training",
                       len(tall), len(groups), size=(13.33, 1.8 + 0.45 * len(tall) + 0.025 * font * sum(tall)),
                       height_ratios=tall)  # fmt: skip
    scale = ScalarMappable(Normalize(0, HOT, clip=True), colormaps["OrRd"])
    for ax in axes.flat:
        ax.axis("off")
    for col, g, at in zip(axes.T, groups, shown, strict=True):
        for ax, (step, rows), lines in zip(col, at, tall, strict=False):
            batch, y = [row for row in g.runs[0].samples if row["step"] == step], 0.0
            for row, names in zip(batch, treatments(batch), strict=True):
                if any(row is example for example in rows):  # not ==: answers repeat each other
                    answer_cells(ax, row, names, y, width, font, scale.to_rgba)
                    y += height(row, width)
            mean, prompt = g.runs[0].series("entropy").get(step, math.nan), visible(rows[0].get("prompt", ""))
            question = prompt if len(prompt) < 30 else rows[0]["id"]
            ax.set_title(f"{g.label}, step {step}, H = {mean:.2f} nats:  {question}", loc="left", fontsize=14)
            ax.set(xlim=(0, width + 2), ylim=(lines - 0.4, -0.4))
    fig.colorbar(scale, ax=axes, label="token entropy (nats)", shrink=0.8, pad=0.01, extend="max")
    marks = [Line2D([], [], color="black", marker="v", linestyle="", label="a fork: a choice the task knows of")]
    marks += [Line2D([], [], color=TREATED[name][0], linewidth=2 + 4 * (name == "strong KL"), label=name)
              for name in list(TREATED)[1:]]  # fmt: skip
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


def text_cells(row: dict, width: int, color: bool) -> str:
    """One answer for the terminal: entropy as background and forks underlined; without colour, bars below it."""
    out: dict[int, list[str]] = {}
    for line, _, shown, t in wrap(row, width, 8):
        level = min(7, int(row["entropy"][t] / HOT * 8))
        fork = "4;" if row.get("fork") and row["fork"][t] else ""
        cells = out.setdefault(line, ["  ", "" if color else "\n  "])
        cells[0] += f"\x1b[{fork}30;48;5;{HEAT[level]}m{shown}\x1b[0m" if color else shown
        cells[1] += "" if color else (BARS[level] if level else " ") * len(shown)
    return "\n".join("".join(cells).rstrip() for cells in out.values())


def text(runs: list[Run], width: int, color: bool) -> str:
    """Sparklines of each run, and some answers with their tokens marked by entropy, `width` characters wide."""
    out = []
    for run in runs:
        out.append(f"{run.folder}  {len(run.metrics)} steps")
        for name, series in (("entropy (nats)", run.series("entropy")), ("reward", run.series("reward")),
                             ("held-out avg@16", run.held_out("avg_at_16"))):  # fmt: skip
            if values := list(series.values()):
                line = sparkline(values, max(8, width - 36))
                out.append(f"  {name:<16}{values[0]:6.3f} {line} {values[-1]:.3f}")
        for step, rows in run.examples(2).items():
            prompt = textwrap.shorten(visible(rows[0].get("prompt", "")), max(20, width - 14))
            out += [f"  step {step}: {prompt}", *(text_cells(row, max(8, width - 4), color) for row in rows)]
    return "\n".join(out)


# ---------------------------------------------------------------------------------------------- main
PICTURES = (curves, semantic_entropy, tokens, heatmap, grid, reward_entropy, pass_at_k, covariance)


def draw(folders: list[Path], out: Path) -> list[Path]:
    """Write every picture that the folders have files for, as PNG and SVG; returns the paths.

    Raises ValueError that names the file when a folder has no metrics.jsonl or a file is torn.
    """
    groups = group([load(Path(folder)) for folder in folders])
    import matplotlib

    paths = []
    out.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(LOOK), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # a model may write what no font has: an empty box
        for picture in PICTURES:
            fig = picture(groups)
            for ending in ("png", "svg") if fig else ():
                paths.append(out / f"{picture.__name__}.{ending}")
                undated = {"Date": None} if ending == "svg" else None  # the same run gives the same file
                fig.savefig(paths[-1], metadata=undated, bbox_inches="tight", pad_inches=0.2)
    return paths


def main(argv: list[str] | None = None) -> int:
    """Returns the exit code: 0 done, 2 bad input (one line on stderr)."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, metavar="RUN", help="run folders; metrics.jsonl is enough")
    parser.add_argument("--out", type=Path, help="where the pictures go [RUN/figures for one run, else figures]")
    parser.add_argument("--text", action="store_true", help="print to the terminal; FORCE_COLOR=1 colours a pipe")
    parser.error = lambda message: parser.exit(2, f"figures.py: {message} (--help lists the flags)\n")  # one line
    args = parser.parse_args(argv)
    out = args.out or (args.folders[0] / "figures" if len(args.folders) == 1 else Path("figures"))
    sys.stdout.reconfigure(errors="replace")  # a terminal that is not UTF-8 gets "?" for bars, not a traceback
    try:
        if args.text:
            color = sys.stdout.isatty() or bool(os.environ.get("FORCE_COLOR"))
            print(text([load(folder) for folder in args.folders], shutil.get_terminal_size().columns, color))
        else:
            print(*draw(args.folders, out), sep="\n")
    except (ValueError, OSError) as error:
        print(f"figures.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
