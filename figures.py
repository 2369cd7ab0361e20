"""Pictures of one run or of many, drawn from the files in their folders. No model is loaded, nothing is recomputed.

    python figures.py runs/sent                            into runs/sent/figures/
    python figures.py runs/sent runs/grpo --out figures    side by side; folders that differ in the seed only: a band
    python figures.py runs/sent --text                     sparklines and a coloured heat map in the terminal

Each function named in PICTURES is one picture: groups of runs in, a Figure out, or None when the files it needs are
missing. Figures are made without pyplot, whose global state a training process would keep. Entropies are in nats.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import shutil
import sys
import textwrap
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from curriculum import Parser, stages

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
VARIANTS = ((":", "^"), ("-.", "D"), ((0, (1, 1, 4, 1)), "v"), ("--", "s"))  # other settings of a method, in its colour
TREATED = {  # what a method does to a token: colour, marker, size
    "not selected": ("#a6a6a6", "o", 14),
    "KL": ("#0072b2", "o", 26),
    "strong KL": ("#d62728", "D", 60),
    "no policy gradient": ("#000000", "x", 30),
}
PANELS = {  # metric: title
    "entropy": "token entropy (nats)",
    "reward": "training reward",
    "eval_avg_at_16": "held-out avg@16",
    "eval_pass_at_16": "held-out pass@16",
}
# What does not change what is learned makes no second curve.
NO_SETTING = {"method", "seed", "out", "device", "figures", "log_every", "log_kl", "checkpoint_every", "eval_every",
              "eval_samples", "keep_checkpoints", "gradient_checkpointing", "tokens_per_micro_batch",
              "attention"}  # fmt: skip
LOOK = {"font.size": 14, "axes.titlesize": 15, "figure.titlesize": 18, "figure.titleweight": "bold",
        "legend.fontsize": 13, "legend.handlelength": 3, "lines.linewidth": 2.2, "lines.markersize": 7,
        "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.25,
        "text.parse_math": False, "svg.hashsalt": "nanosent"}  # fmt: skip
FIT_SHARE = 0.36  # of the run, that R = -a e^H + b is fitted to
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
        """{step: value} of a metric, without the steps where it is missing, null or not finite.

        eval_... is measured after its step's update, so {updates made: value}, and evaluation.json has both ends.
        """
        found = {m["step"]: m.get(key) for m in self.metrics}
        if key.startswith("eval_"):
            found = {step + 1: value for step, value in found.items()}
            for x, when in ((0, "start"), (max(found), "end")):
                found[x] = (self.evaluation.get(when) or {}).get(key.removeprefix("eval_"), found.get(x))
        return {x: found[x] for x in sorted(found) if found[x] is not None and math.isfinite(found[x])}

    @property
    def staged(self) -> bool:
        """Whether a curriculum changed the questions on the way, which moves the training reward by itself."""
        return any(self.series("stage").values())

    def examples(self, count: int) -> dict[int, list[dict]]:
        """{step: answers to one and the same question}: before, during and after, of the steps that are stored.

        During: where entropy is nearest to the geometric mean of its two ends.
        """
        probes, entropy = [row for row in self.samples if row.get("probe")], self.series("entropy")
        stored = sorted({row["step"] for row in probes if row["step"] in entropy})
        if not stored:
            return {}
        ends = stored[0], stored[-1]
        halfway = math.sqrt(entropy[ends[0]] * entropy[ends[1]])
        during = min(stored[1:-1] or ends, key=lambda step: abs(entropy[step] - halfway))
        return {step: [row for row in probes if row["step"] == step][:count] for step in sorted({*ends, during})}


@dataclass
class Group:
    """Runs that differ in the seed only: one curve."""

    label: str
    runs: list[Run]
    style: dict


def load(folder: Path) -> Run:
    """Read a run folder. Raises ValueError that names the file when there are no metrics or when one is torn."""

    def objects(name: str, *needs: str) -> list[dict]:
        whole = (folder / name).read_text("utf-8", errors="replace") if (folder / name).exists() else ""
        rows = []
        for n, line in enumerate(whole.split("\n") if name.endswith(".jsonl") else [whole], 1):
            try:
                rows.append(json.loads(line or "{}"))
            except ValueError:
                rows.append(None)
            if not isinstance(rows[-1], dict):
                raise ValueError(f"{folder / name}, line {n}: not a JSON object (torn?); repair or remove it")
        return [row for row in rows if all(field in row for field in needs)]  # curriculum.jsonl opens with a header

    metrics = objects("metrics.jsonl", "step")
    if not metrics:
        raise ValueError(f"{folder / 'metrics.jsonl'}: missing or empty; give the folder of a run, such as runs/sent")
    samples = objects("samples.jsonl", "step", "tokens", "entropy", "covariance", "kl_weight", "pg_weight", "fork")
    curriculum = objects("curriculum.jsonl", "se", "accuracy")
    return Run(folder, *objects("config.json"), metrics, samples, curriculum, *objects("evaluation.json"))


def group(runs: list[Run]) -> list[Group]:
    """Runs -> curves, in the order given. A method that comes with several settings is named by their folders."""
    found: dict[str, dict[str, list[Run]]] = {}  # method: settings: runs
    for run in runs:
        settings = json.dumps({k: v for k, v in sorted(run.config.items()) if k not in NO_SETTING})
        found.setdefault(run.config.get("method", run.folder.name), {}).setdefault(settings, []).append(run)
    groups = []
    for method in found:
        color, *first = STYLE.get(method, ("#333333", "-", "o"))
        names = [members[0].folder.name for members in found[method].values()]
        for k, members in enumerate(found[method].values()):
            name = names[k] if names.count(names[k]) == 1 else str(members[0].folder)
            label = re.sub(r"-seed\d+$", "", name) if len(names) > 1 else method
            line, marker = first if label == method else VARIANTS[k % len(VARIANTS)]
            groups.append(Group(label, members, {"color": color, "linestyle": line, "marker": marker}))
    return groups


# ---------------------------------------------------------------------------------------------- curves
def canvas(title: str, width: float = 13.33, height: float = 7.5, **subplots):
    """A Figure, 16:9 as a slide unless told otherwise (inches), and its subplots: one Axes or an array of them."""
    fig = Figure(figsize=(width, height), layout="constrained", dpi=140)
    fig.suptitle(title)
    return fig, fig.subplots(**subplots)


def curve(ax: Axes, g: Group, series: list[dict[int, float]], smooth: bool = False) -> np.ndarray:
    """One mean line over seeds, with a band from the lowest to the highest; returns the line, empty without data.

    smooth: running mean over a twenty-fifth of the run, centred so that nothing shifts.
    """
    steps = sorted(set.intersection(*(set(s) for s in series)))  # seeds that got further wait for the others
    if not steps:
        return np.array([])
    window = len(steps) // 25 | 1 if smooth else 1
    lines = np.array([np.convolve([s[x] for x in steps], np.ones(window) / window, "valid") for s in series])
    steps = steps[window // 2 :][: lines.shape[1]]
    label = g.label + f" (mean and range of {len(series)} seeds)" * (len(series) > 1)
    ax.plot(steps, lines.mean(0), label=label, markevery=max(1, len(steps) // 8), **g.style)
    ax.fill_between(steps, lines.min(0), lines.max(0), color=g.style["color"], alpha=0.2, linewidth=0)
    return lines.mean(0)


def curves(groups: list[Group]) -> Figure | None:
    """Entropy and reward of every step, avg@16 and pass@16 on held-out questions."""
    runs = [run for g in groups for run in g.runs]
    panels = [key for key in PANELS if any(run.series(key) for run in runs)]
    if not panels:
        return None
    fig, axes = canvas("", nrows=-(-len(panels) // 2), ncols=min(2, len(panels)), squeeze=False)
    kept, least = [], min((len(h) for run in runs if (h := run.series("entropy"))), default=0)
    for ax, key in zip(axes.flat, panels, strict=True):
        smooth = not key.startswith("eval_")
        for g in groups:
            series = [run.series(key) for run in g.runs]
            if len(curve(ax, g, series, smooth)) and key == "entropy":
                shares = [np.mean(list(h.values())[:least][-10:]) / next(iter(h.values())) for h in series]
                kept.append(f"{g.label} keeps {np.mean(shares):.0%}")
        changing = smooth and any(run.staged for run in runs)
        ax.set_title(PANELS[key] + "; a curriculum changes the questions" * changing)
        ax.set_xlabel("step" + " (running mean over 1/25 of the run)" * smooth)
    title = f"Entropy after {least} steps: " + ", ".join(kept)
    fig.suptitle(title if 0 < len(kept) < 4 else "Entropy, reward, and held-out questions")
    axes[0, 0].set_ylim(bottom=0)
    fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    return fig


def grid(groups: list[Group]) -> Figure | None:
    """One column per method; rows entropy | avg@16 | pass@16; all on the same axes, the other methods grey behind."""
    if len(groups) < 2:
        return None  # nothing to compare: `curves` shows it
    keys = [key for key in PANELS if key != "reward"]
    fig, axes = canvas("Each method against all others (grey), on the same axes", width=max(13.33, 1.3 * len(groups)),
                       nrows=len(keys), ncols=len(groups), sharex=True, sharey="row", squeeze=False)  # fmt: skip
    for row, key in zip(axes, keys, strict=True):
        row[0].set_ylabel(PANELS[key].replace(" ", "\n", 1))
        for ax, g in zip(row, groups, strict=True):
            line = curve(ax, g, [run.series(key) for run in g.runs], smooth=not key.startswith("eval_"))
            name = textwrap.wrap(g.label.replace("_", " "), 11) if key == "entropy" else []
            last = f"{line[-1]:.3f}" if len(line) else "no data"
            ax.set_title("\n".join([*name, last]), color=g.style["color"], fontsize=13, fontweight="bold")
        drawn = [ax.lines[0].get_data() for ax in row if ax.lines]
        for ax in row:
            for x, y in drawn:
                ax.plot(x, y, color="#cccccc", linewidth=1, zorder=0)
    axes[0, 0].set_ylim(bottom=0)
    axes[0, 0].locator_params(axis="x", nbins=2)
    fig.align_ylabels()
    fig.supxlabel("step; above a panel its last value; bands: lowest to highest seed", fontsize=14)
    return fig


def covariance(groups: list[Group]) -> Figure | None:
    """Sum of lr * mean Cov against the entropy lost: dH ~ -eta Cov(log pi, A) (arXiv 2505.22617)."""
    fig, ax = canvas("Does covariance predict the loss of entropy?  A straight line would say yes")
    for g in groups:
        both = [[run.series(key) for key in ("cov_mean", "lr", "entropy")] for run in g.runs]
        steps = sorted(set.intersection(*(set(s) for series in both for s in series)))
        if len(steps) < 2:
            continue
        # H of step s is measured before its update: it has felt the pushes of the steps before s
        pushed = np.mean([np.cumsum([0] + [1000 * lr[s] * cov[s] for s in steps[:-1]]) for cov, lr, _ in both], 0)
        lost = np.mean([[h[steps[0]] - h[s] for s in steps] for _, _, h in both], 0)
        ax.plot(pushed, lost, label=g.label, markevery=len(steps) // 10 or 1, **g.style)
    if not ax.lines:
        return None
    ax.set_xlabel("cumulative covariance  Σ lr · mean Cov(log π, A)  (thousandths of a nat)")
    ax.set_ylabel("entropy lost  H₀ − H  (nats per token)")
    ax.legend(frameon=False, loc="lower right")
    return fig


# ---------------------------------------------------------------------------------------------- reward, pass@k, SE
def reward_entropy(groups: list[Group]) -> Figure | None:
    """Reward against entropy of the first group without stages (GRPO): does its start predict the rest?

    R = -a e^H + b by least squares, from arXiv 2505.22617; H in nats.
    """
    g = next((g for g in groups if not g.runs[0].staged), None)  # stages change the questions, and so the reward
    both = [(run.series("entropy"), run.series("reward")) for run in (g.runs if g else ())]
    step, h, r = np.array([(s, h[s], r[s]) for h, r in both for s in h if s in r], float).reshape(-1, 3).T
    early = step < FIT_SHARE * (step.max(initial=0) + 1)
    if any(len(set(x[part])) < 2 for x in (h, r) for part in (early, ~early)):
        return None  # too short, or nothing varies
    slope, b = np.polyfit(np.exp(h[early]), r[early], 1)
    fig, ax = canvas("Is reward bought with entropy?  R = −a·eᴴ + b, fitted on the first part of the run")
    dots = ax.scatter(h, r, c=step, cmap="viridis_r", s=26, alpha=0.8, linewidths=0, rasterized=True)
    for part, line, what in ((early, "-", f"fit to the first {FIT_SHARE:.0%}"), (~early, "--", "prediction")):
        x = np.linspace(h[part].min(), h[part].max(), 100)
        r2 = 1 - np.mean((r[part] - slope * np.exp(h[part]) - b) ** 2) / np.var(r[part])  # < 0: worse than the mean
        ax.plot(x, slope * np.exp(x) + b, color="black", linestyle=line, linewidth=3, label=f"{what}: R² = {r2:.2f}",
                path_effects=[withStroke(linewidth=6, foreground="white")])  # seen on dark dots too
    ax.set(title=f"{g.label}:  a = {-slope:.2f},  b = {b:.2f}", xlabel=PANELS["entropy"], ylabel=PANELS["reward"])
    ax.legend()
    ax.invert_xaxis()  # the run goes from left to right
    fig.colorbar(dots, label="step")
    return fig


def pass_at_k(groups: list[Group]) -> Figure | None:
    """Questions not solved in k draws, before and after: does the base cross the trained policy?"""
    fig, ax = canvas("pass@k before and after training: does the base overtake?")
    base = Group("base", groups[0].runs, {"color": "black", "marker": "*", "linewidth": 3, "markersize": 12})
    for g in [base, *groups]:
        ends = [run.evaluation.get("start" if g is base else "end") or {} for run in g.runs]
        curve(ax, g, [{int(k): 1 - p for k, p in end.get("pass_at_k", {}).items()} for end in ends])
    if not ax.lines:
        return None
    ax.set_xscale("log", base=2)
    ax.set_yscale("log")  # at pass@64 all are near 1: what is left of it tells them apart
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_formatter("{x:g}")
    ax.set(xlabel="k: answers drawn per question", ylabel="1 − pass@k: share of questions not solved")
    fig.legend(loc="outside lower center", ncols=3, frameon=False)
    return fig


def semantic_entropy(groups: list[Group]) -> Figure | None:
    """Histogram of the questions' semantic entropy, coloured by the stage they are trained in."""
    run = next((run for g in groups for run in g.runs if run.curriculum), None)
    if run is None:
        return None
    order = run.curriculum  # the file's order is what was trained
    n = run.config.get("stages") or max(run.series("stage").values(), default=0) + 1
    parts = stages(order[::-1] if run.config.get("reverse") else order, n)
    labels = [f"stage {k}: the base gets {np.mean([q['accuracy'] for q in part]):.0%} right"
              for k, part in enumerate(parts, 1)]  # fmt: skip
    fig, ax = canvas(f"Semantic entropy of {len(order)} questions: left the base is sure, right it is not")
    shades = matplotlib.colormaps["Blues"](np.linspace(0.25, 1, n))
    ax.hist([[q["se"] for q in part] for part in parts], 32, stacked=True, color=shades, label=labels,
            edgecolor="black", linewidth=0.8)  # fmt: skip
    ax.set(xlabel="semantic entropy of the base's answers to a question (nats)", ylabel="questions")
    ax.legend()
    return fig


# ---------------------------------------------------------------------------------------------- tokens
def treatments(rows: list[dict]) -> list[str]:
    """What was done to each token of the samples of one step, row after row: keys of TREATED."""
    weights = [pair for row in rows for pair in zip(row["kl_weight"], row["pg_weight"], strict=True)]
    least = min((kl for kl, _ in weights if kl > 0), default=0.0)
    return ["strong KL" if kl > least else "KL" if kl > 0 else "not selected" if pg else "no policy gradient"
            for kl, pg in weights]  # fmt: skip


def tokens(groups: list[Group]) -> Figure | None:
    """Entropy x covariance of the tokens of one stored batch, coloured by what the method did to them."""
    groups = [g for g in groups if g.runs[0].samples]
    if not groups:
        return None
    rows = -(-len(groups) // 5)
    cols = -(-len(groups) // rows)
    fig, axes = canvas("Which tokens does a method select for a KL or a mask?", height=2.5 + 4.5 * rows, nrows=rows,
                       ncols=cols, sharex=True, sharey=True, squeeze=False)  # fmt: skip
    seen = {}
    for ax, g in zip(axes.flat, groups, strict=False):
        samples = [row for row in g.runs[0].samples if not row.get("probe")]
        step = next((row["step"] for row in samples if any(row["covariance"])), 0)  # a batch that teaches
        batch = [row for row in samples if row["step"] == step]
        names = np.array(treatments(batch))
        h, cov = (np.array([x for row in batch for x in row[key]]) for key in ("entropy", "covariance"))
        for treated, (color, marker, size) in TREATED.items():
            if any(some := names == treated):
                size *= 3 if some.sum() < 20 else 1  # so that a few can be seen
                seen[treated] = ax.scatter(h[some], cov[some], size, color, marker=marker, alpha=0.7, rasterized=True)
        selected = np.sum(names != "not selected")
        ax.set_title(f"{g.label}\n{selected} of {len(names)}, step {step}", color=g.style["color"])
        ax.set_yscale("symlog", linthresh=0.1)
        ax.yaxis.set_major_formatter("{x:g}")
    for ax in axes.flat[len(groups) :]:
        ax.set_visible(False)
    for ax in axes[-1]:
        ax.set_xlabel("token entropy (nats)")
    fig.supylabel("covariance of log π and advantage (symlog)", fontsize=14)
    fig.legend(seen.values(), seen, loc="outside lower center", ncols=len(seen), frameon=False)
    return fig


def visible(token: str) -> str:
    """A token as it is drawn: one line, no control characters (a model may write terminal escapes), never empty.

    >>> visible("a\\n"), visible("\\x1b[2J"), visible("<|endoftext|>")
    ('a↵', '·[2J', '■')
    """
    if re.fullmatch(r"</?\|?\w+\|?>", token):
        return "■"
    token = token.replace(" ", "␣") if token.isspace() else token
    return "".join("↵" if c == "\n" else c if c.isprintable() else "·" for c in token) or "·"


def wrap(row: dict, width: int, most: int) -> list[list[tuple[int, str, float, bool]]]:
    """An answer in at most that many lines of cells: (column, what is drawn, entropy in nats, fork or not)."""
    lines, column = [[]], 0
    forks = row["fork"] or [False] * len(row["tokens"])  # null where the task knows of none
    for token, entropy, fork in zip(row["tokens"], row["entropy"], forks, strict=True):
        shown = visible(token)[:width]
        if column + len(shown) > width:
            lines, column = [*lines, []], 0
        lines[-1].append((column, shown, entropy, fork))
        column += len(shown)
    return lines[:most]


def draw_answers(ax: Axes, rows: list[dict], width: int, font: float, scale: ScalarMappable) -> None:
    """Answers one below the other, x in characters, y in lines: tokens as cells coloured by entropy, forks marked."""
    y = 0.0
    for row in rows:
        mark, color = ("✓", "#007a33") if row.get("reward") else ("✗", "#b00000")
        ax.text(width + 0.4, y + 0.5, mark, fontsize=font, va="center", fontweight="bold", color=color)
        for line in wrap(row, width, LINES):
            for x, shown, entropy, fork in line:
                middle, ink = x + len(shown) / 2, "white" if entropy > HOT / 2 else "black"
                ax.barh(y + 0.5, len(shown), 1, left=x, color=scale.to_rgba(entropy), edgecolor="white")
                ax.text(middle, y + 0.5, shown, ha="center", va="center", family="monospace", fontsize=font, color=ink)
                if fork:
                    ax.plot(middle, y - 0.15, "v", color="black", markersize=font / 2.6)
            y += 1.4


def heatmap(groups: list[Group]) -> Figure | None:
    """Answers to one question before, during and after: a token is a cell coloured by its entropy, forks marked."""
    shown = [(g, at) for g in groups if (at := g.runs[0].examples(3))]
    shown = sorted(shown, key=lambda pair: -len(pair[1]))[:2]  # more than two would not be legible
    if not shown:
        return None
    answers = [row for _, at in shown for rows in at.values() for row in rows]
    width = min(80 // len(shown), max(sum(len(visible(token)) for token in row["tokens"]) for row in answers))
    lines = 3 * max(len(wrap(row, width, LINES)) for row in answers)  # of one panel
    font = min(20, 12 / len(shown) / (width + 3) / 0.602 * 72)  # a monospaced character is 0.602 em wide
    steps = max(len(at) for _, at in shown)
    fig, axes = canvas("Where is the policy unsure?  Answers to a question before, during and after training",
                       height=1.2 + steps * (0.45 + lines * font / 34), nrows=steps, ncols=len(shown),
                       squeeze=False)  # fmt: skip
    scale = ScalarMappable(Normalize(0, HOT, clip=True), "OrRd")
    for ax in axes.flat:
        ax.axis("off")
    for col, (g, at) in zip(axes.T, shown, strict=True):
        for ax, (step, rows) in zip(col, at.items(), strict=False):
            prompt = textwrap.shorten(visible(rows[0].get("prompt", "")), 40)
            mean = g.runs[0].series("entropy").get(step, math.nan)
            ax.set_title(f"{g.label}, step {step}, batch H = {mean:.2f}:  {prompt}", loc="left", color=g.style["color"])
            draw_answers(ax, rows, width, font, scale)
            ax.set(xlim=(0, width + 2), ylim=(1.4 * lines - 0.3, -0.4))
    forks = "; ▼ fork: a choice" * any(row["fork"] for row in answers)
    fig.colorbar(scale, ax=axes, shrink=0.8, pad=0.01, extend="max", label=f"token entropy (nats); ■ end{forks}")
    return fig


# ---------------------------------------------------------------------------------------------- the terminal
def sparkline(values: list[float], width: int) -> str:
    """Values as a line of bars at most `width` wide (means of equal parts), from their lowest to their highest.

    >>> sparkline([0, 1, 2, 3], 2)
    '▁█'
    """
    means = [np.mean(part) for part in np.array_split(values, min(width, len(values)))]
    low, span = min(means), (max(means) - min(means)) or 1
    return "".join("▁▂▃▄▅▆▇█"[int((mean - low) / span * 7.99)] for mean in means)


def text(run: Run, width: int) -> str:
    """Sparklines and some answers, tokens coloured by entropy and forks underlined, `width` characters wide."""
    heat = (255, 230, 223, 216, 209, 202, 196, 160)  # ANSI 256 backgrounds, from sure to unsure
    out = [f"{run.folder}  {len(run.metrics)} steps"]
    for key, name in PANELS.items():
        if values := list(run.series(key).values()):
            out.append(f"  {name:<21}{values[0]:6.3f} {sparkline(values, max(4, width - 36))} {values[-1]:.3f}")
    for step, rows in run.examples(2).items():
        out.append(f"  step {step}: " + textwrap.shorten(visible(rows[0].get("prompt", "")), max(20, width - 14)))
        for line in (line for row in rows for line in wrap(row, max(8, width - 4), 8)):
            cells = ((heat[min(7, int(entropy / HOT * 8))], shown, "4;" * fork) for _, shown, entropy, fork in line)
            out.append("  " + "".join(f"\x1b[{under}30;48;5;{color}m{shown}\x1b[0m" for color, shown, under in cells))
    return "\n".join(out)


# ---------------------------------------------------------------------------------------------- main
PICTURES = (curves, semantic_entropy, tokens, heatmap, grid, reward_entropy, pass_at_k, covariance)


def draw(folders: list[Path], out: Path, *pictures: Callable) -> list[Path]:
    """Write these pictures, or all, as far as the folders have files for them, as PNG and SVG; returns the paths.

    Raises ValueError that names the file when a folder has no metrics.jsonl or a file is torn.
    """
    groups = group([load(Path(folder)) for folder in folders])
    paths = []
    out.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(LOOK), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # a model may write what no font has: an empty box
        for picture in pictures or PICTURES:
            fig = picture(groups)
            for ending in ("png", "svg") if fig else ():
                paths.append(out / f"{picture.__name__}.{ending}")
                undated = {"Date": None} if ending == "svg" else None  # the same run gives the same file
                fig.savefig(paths[-1], metadata=undated, bbox_inches="tight", pad_inches=0.2)
    return paths


def main(argv: list[str] | None = None) -> int:
    """Returns the exit code: 0 done, 2 bad input (one line on stderr)."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("folders", nargs="+", type=Path, metavar="RUN", help="run folders; metrics.jsonl is enough")
    parser.add_argument("--out", type=Path, help="where the pictures go [RUN/figures for one run, else figures]")
    parser.add_argument("--text", action="store_true", help="print to the terminal instead")
    args = parser.parse_args(argv)
    if hasattr(sys.stdout, "reconfigure"):  # a notebook's stdout has none
        sys.stdout.reconfigure(errors="replace")  # a terminal that is not UTF-8 gets "?" for bars, not a traceback
    try:
        if args.text:
            print(*(text(load(folder), shutil.get_terminal_size().columns) for folder in args.folders), sep="\n")
        else:
            alone = args.folders[0] / "figures" if len(args.folders) == 1 else Path("figures")
            print(*draw(args.folders, args.out or alone), sep="\n")
    except (ValueError, OSError) as error:
        print(f"figures.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
