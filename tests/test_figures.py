"""Pictures from run folders made up here: curves as a run has them, a torn file, a model that writes nonsense."""

import contextlib
import io
import json
import math
import random
import re
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
        stage = step * 4 // steps if method == "sent" else 0
        line = {"step": step, "stage": stage, "reward": reward, "entropy": entropy, "lr": 5e-4,
                "cov_mean": max(0.0, (before - decay) * 300 + rng.gauss(0, 0.05)), "entropy_fork": None}  # fmt: skip
        if (step + 1) % max(1, steps // 4) == 0:
            done = (step + 1) / steps
            line |= {"eval_avg_at_16": 0.33 + 0.3 * done + rng.gauss(0, 0.01), "eval_avg_at_16_se": 0.015,
                     "eval_pass_at_16": 0.95 - 0.1 * (1 - kept) * done, "eval_pass_at_16_se": 0.01}  # fmt: skip
        metrics.append(line)
        if step == 0 or "eval_avg_at_16" in line:
            samples += [made_tokens(rng, step, method, entropy * 1.6) for _ in range(rows)]
            samples += [made_tokens(rng, step, method, entropy * 1.6) | {"id": "asked", "probe": 1} for _ in range(4)]
    accuracy = [rng.random() for _ in range(200)]
    order = sorted(({"id": f"q{i}", "index": i, "accuracy": a, "se": round(2 * (1 - a) * rng.random() * 8) / 8,
                     "clusters": list(range(8))} for i, a in enumerate(accuracy)), key=lambda q: q["se"])  # fmt: skip
    ends = (("start", 0.33, 0.7), ("end", 0.6 + rng.gauss(0, 0.01), 0.2 + 0.4 * kept))
    curve = {name: {str(2**i): 1 - (1 - first) * 2 ** (-i * power) for i in range(7)} for name, first, power in ends}
    evaluation = {name: {"avg_at_16": c["1"], "pass_at_16": c["16"], "avg_at_16_se": 0.015, "pass_at_k": c}
                  for name, c in curve.items()}  # fmt: skip
    for name, lines in (("metrics", metrics), ("samples", samples), ("curriculum", [{"settings": {"M": 8}}, *order])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evaluation.json").write_text(json.dumps(evaluation))
    return folder


def groups_of(*folders: Path) -> list[figures.Group]:
    return figures.group([figures.load(folder) for folder in folders])


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Path]:
    base = tmp_path_factory.mktemp("runs")
    return {f"{method}{seed}": make_run(base / f"{method}{seed}", method, seed) for method, seed in
            (("grpo", 0), ("sent", 0), ("sent", 1), ("forking_tokens", 0))}  # fmt: skip


# ---------------------------------------------------------------------------------------------- files
def test_one_run_draws_its_pictures_into_its_folder(runs, capsys):
    assert figures.main([str(runs["sent0"])]) == 0
    out = runs["sent0"] / "figures"
    # grid compares methods; where stages change the questions, reward is not entropy's alone
    alone = [name for name in NAMES if name not in ("grid", "reward_entropy")]
    for name in alone:
        assert (out / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert "</svg>" in (out / f"{name}.svg").read_text()
    assert len(capsys.readouterr().out.splitlines()) == 2 * len(alone)


def test_several_runs_make_every_picture(runs):
    groups = groups_of(*runs.values())
    assert [g.label for g in groups] == ["grpo", "sent", "forking_tokens"]
    made = {picture.__name__: picture(groups) for picture in figures.PICTURES}
    assert None not in made.values()
    assert len(made["grid"].axes) == 9 and len(made["tokens"].axes) == 3
    assert made["reward_entropy"].axes[0].get_title().startswith("grpo:")


@pytest.mark.parametrize("name, lost", [
    ("samples.jsonl", {"tokens", "heatmap"}), ("evaluation.json", {"pass_at_k"}),
    ("curriculum.jsonl", {"semantic_entropy"}), ("config.json", set()),
])  # fmt: skip
def test_a_missing_file_costs_only_its_pictures(tmp_path, name, lost):
    run = make_run(tmp_path / "run", "grpo", steps=12, rows=3)
    (run / name).unlink()
    assert {picture.__name__ for picture in figures.PICTURES if picture(groups_of(run)) is None} == lost | {"grid"}


def test_ten_methods_and_a_search_without_evaluations_share_one_grid(tmp_path):
    folders = [make_run(tmp_path / method, method, steps=4, rows=1) for method in figures.STYLE]
    folders.append(make_run(tmp_path / "sent@5-seed0", "sent", steps=4, rows=1, beta_low=0.1))
    for name, keep in (("metrics.jsonl", "eval"), ("evaluation.json", None)):
        lines = [json.loads(line) for line in (folders[-1] / name).read_text().splitlines()]
        bare = [{k: v for k, v in line.items() if keep and not k.startswith(keep)} for line in lines]
        (folders[-1] / name).write_text("\n".join(map(json.dumps, bare)))
    axes = figures.grid(groups_of(*folders)).axes
    titles = [ax.get_title() for ax in axes]
    assert len(axes) == 33 and titles[0].startswith("sent\n0.") and titles[1].startswith("sent@5\n0.")
    assert [i for i, title in enumerate(titles) if title == "no data"] == [12, 23]
    assert len({(ax.get_xlim(), ax.get_ylim()) for ax in axes[11:22]}) == 1
    assert {len(ax.lines) for ax in axes[:11]} == {12}, "its own and all, grey"


def test_metrics_of_one_step_are_enough(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 0, "entropy": 0.5, "reward": null}\n')
    drawn = {path.name for path in figures.draw([tmp_path], tmp_path / "out")}
    assert drawn == {"curves.png", "curves.svg"}


def test_the_same_run_gives_the_same_file(tmp_path, runs, monkeypatch):
    monkeypatch.setattr(figures, "PICTURES", (figures.pass_at_k,))
    first, second = (figures.draw([runs["grpo0"]], tmp_path / name) for name in "ab")
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


# ---------------------------------------------------------------------------------------------- grouping
def test_seeds_are_one_curve_and_settings_are_another_named_by_its_folder(tmp_path):
    folders = [make_run(tmp_path / "x-seed0", "sent", 0, steps=4, rows=1),
               make_run(tmp_path / "x-seed1", "sent", 1, steps=4, rows=1, tokens_per_micro_batch=1, eval_every=7),
               make_run(tmp_path / "strong-seed0", "sent", 0, steps=4, rows=1, beta_low=0.1)]  # fmt: skip
    groups = groups_of(*folders)
    assert {g.label: len(g.runs) for g in groups} == {"x": 2, "strong": 1}
    assert len({g.style["color"] for g in groups}) == 1 and len({g.style["marker"] for g in groups}) == 2
    assert [g.label for g in groups_of(*folders[:2])] == ["sent"]


def test_without_a_config_a_run_is_named_after_its_folder(tmp_path):
    run = make_run(tmp_path / "mine", steps=4, rows=1)
    (run / "config.json").unlink()
    assert [g.label for g in groups_of(run)] == ["mine"]


def test_every_method_has_a_look_of_its_own_also_without_colour():
    from entropy import METHODS

    assert set(METHODS) == set(figures.STYLE)
    assert len({marker for _, _, marker in figures.STYLE.values()}) == len(METHODS)


# ---------------------------------------------------------------------------------------------- numbers
def test_held_out_starts_at_zero_and_counts_updates(runs):
    found = figures.load(runs["sent0"]).series("eval_avg_at_16")
    assert list(found) == [0, 10, 20, 30, 40] and found[0] == pytest.approx(0.33)


def test_a_metric_that_is_null_or_not_a_number_has_no_place(tmp_path):
    rows = [{"step": 0, "kl_ref": None}, {"step": 1, "kl_ref": math.nan}, {"step": 2}, {"step": 3, "kl_ref": 0.5}]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert figures.load(tmp_path).series("kl_ref") == {3: 0.5}


def test_a_band_spans_the_seeds_and_ends_with_the_shortest():
    ax = figures.canvas("")[1]
    g = figures.Group("x", [], {"color": "#000000"})
    assert figures.curve(ax, g, [{0: 1.0, 1: 2.0, 2: 3.0}, {0: 3.0, 1: 4.0}]).tolist() == [2.0, 3.0]
    assert ax.collections[0].get_paths()[0].get_extents().extents.tolist() == [0, 1, 1, 4]
    assert ax.lines[0].get_label() == "x (mean and range of 2 seeds)"


def test_the_headline_compares_runs_after_the_same_number_of_steps(tmp_path):
    """The longer run collapses only after the shorter one has ended; what is kept is a share, of the last ten steps."""
    for name, steps in (("long", 100), ("short", 20)):
        rows = [{"step": s, "entropy": 0.5 if s < 10 else 0.25 if s < 20 else 0.0} for s in range(steps)]
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
    title = figures.curves(groups_of(tmp_path / "long", tmp_path / "short")).get_suptitle()
    assert title == "Entropy after 20 steps: long keeps 50%, short keeps 50%"


def test_a_smoothed_line_is_not_shifted():
    ax = figures.canvas("")[1]
    figures.curve(ax, figures.Group("x", [], {"color": "#000000"}), [{s: float(s) for s in range(100)}], smooth=True)
    x, y = ax.lines[0].get_data()
    assert len(x) == 96 and y == pytest.approx(x)  # a mean of five, without the two steps at either end


def test_fit_recovers_a_and_b_and_predicts_the_rest(tmp_path):
    entropy = [0.6 - 0.004 * step for step in range(100)]
    rows = [{"step": s, "entropy": h, "reward": -0.7 * math.exp(h) + 1.6} for s, h in enumerate(entropy)]
    for row in rows[36:]:
        row["reward"] += 0.1  # what happens later does not change the fit
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
    ax = figures.reward_entropy(groups_of(tmp_path)).axes[0]
    fitted, predicted = (t.get_text() for t in ax.get_legend().get_texts())
    assert fitted == "fit to the first 36%: R² = 1.00"
    late = [row["reward"] for row in rows[36:]]
    missed = 1 - 0.1**2 * len(late) / sum((r - sum(late) / len(late)) ** 2 for r in late)
    assert predicted == f"prediction: R² = {missed:.2f}" and missed < 0.5
    assert "a = 0.70,  b = 1.60" in ax.get_title()


def test_covariance_of_a_step_is_paid_for_in_the_next(tmp_path):
    rows = [{"step": s, "entropy": 0.5 - 0.02 * s * (s - 1) / 2, "cov_mean": s, "lr": 0.01} for s in range(5)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
    ax = figures.covariance(groups_of(tmp_path)).axes[0]
    pushed, lost = ax.lines[0].get_data()
    assert pushed.tolist() == pytest.approx([0, 0, 10, 30, 60]) and lost == pytest.approx(2 * pushed / 1000)


def test_stages_are_cut_by_rank(tmp_path):
    run = make_run(tmp_path / "run", steps=4, rows=1, stages=2)
    lines = [{"settings": {}}] + [{"se": se, "accuracy": a} for se, a in ((0.0, 1), (0.5, 1), (1.0, 0), (1.5, 0))]
    (run / "curriculum.jsonl").write_text("\n".join(map(json.dumps, lines)))
    texts = figures.semantic_entropy(groups_of(run)).axes[0].get_legend().get_texts()
    assert [t.get_text() for t in texts] == ["stage 1: the base gets 100% right", "stage 2: the base gets 0% right"]


def test_pass_at_k_has_the_base_first(runs):
    ax = figures.pass_at_k(groups_of(runs["sent0"], runs["grpo0"])).axes[0]
    assert [line.get_label() for line in ax.lines] == ["base", "sent", "grpo"]
    assert ax.lines[0].get_xdata().tolist() == [1, 2, 4, 8, 16, 32, 64]
    assert ax.lines[0].get_ydata()[0] == pytest.approx(1 - 0.33)


def test_tokens_are_named_by_their_treatment():
    rows = [{"kl_weight": [0, 0.02, 0.2, 0], "pg_weight": [1, 1, 1, 0]}, {"kl_weight": [0.2], "pg_weight": [1]}]
    assert figures.treatments(rows) == ["not selected", "KL", "strong KL", "no policy gradient", "strong KL"]


def test_examples_are_answers_to_one_question_before_during_and_after(runs):
    """During: of the steps 9, 19 and 29 that are stored between, the one nearest to the geometric mean entropy."""
    run = figures.load(runs["sent0"])
    entropy = run.series("entropy")
    halfway = math.sqrt(entropy[0] * entropy[39])
    during = min((9, 19, 29), key=lambda step: abs(entropy[step] - halfway))
    asked = {step: [row["id"] for row in rows] for step, rows in run.examples(3).items()}
    assert asked == {step: ["asked"] * 3 for step in (0, during, 39)}
    for row in run.metrics:  # a run that collapses later
        row["entropy"] = 0.6 if row["step"] < 25 else 0.01 if row["step"] > 32 else 0.08
    assert list(run.examples(3)) == [0, 29, 39]


def test_a_heatmap_shows_tokens_forks_and_whether_an_answer_is_right(runs):
    fig = figures.heatmap(groups_of(runs["grpo0"]))
    answers = figures.load(runs["grpo0"]).examples(3)[0]
    ax = fig.axes[0]
    written = [text.get_text() for text in ax.texts]
    assert [mark for mark in written if mark in "✓✗"] == ["✗✓"[int(row["reward"])] for row in answers]
    assert written.count("■") == 3 and len(ax.patches) == sum(len(row["tokens"]) for row in answers)
    assert len(ax.lines) == sum(sum(row["fork"]) for row in answers) > 0


# ---------------------------------------------------------------------------------------------- text, hostile text
HOSTILE = ["$\\frac$", "\x1b[31m", "", "日本", "a\nb", "�", "<|endoftext|>", "x" * 300]


def hostile(folder: Path) -> Path:
    """A model that writes half formulas, terminal escapes, signs no font has, and words wider than the page."""
    n = len(HOSTILE)
    row = {"step": 0, "id": "$_{", "prompt": "$\\frac", "tokens": HOSTILE, "entropy": [0.0, 9.0] * (n // 2),
           "covariance": [0.1] * n, "kl_weight": [0.0] * n, "pg_weight": [1.0] * n, "fork": None,
           "probe": 1}  # fmt: skip
    folder.mkdir()
    (folder / "samples.jsonl").write_text(json.dumps(row))
    (folder / "metrics.jsonl").write_text('{"step": 0, "entropy": 0.5, "reward": 0.5}\n')
    return folder


def test_a_notebooks_stdout_is_written_to(tmp_path):
    """It is no text file: it cannot be told what to do with characters that it does not know."""
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert figures.main([str(make_run(tmp_path / "sent")), "--text"]) == 0
    assert "token entropy" in out.getvalue()


OURS = re.compile(r"\x1b\[(4;)?30;48;5;\d+m|\x1b\[0m")  # the colours that text() writes itself


def test_what_a_model_writes_cannot_break_a_picture_or_a_terminal(tmp_path, monkeypatch):
    run = hostile(tmp_path / "$_{run")
    monkeypatch.setattr(figures, "PICTURES", (figures.heatmap,))
    assert len(figures.draw([run], tmp_path)) == 2
    assert "\x1b" not in OURS.sub("", figures.text(figures.load(run), 80))


@pytest.mark.parametrize("width", [40, 100])
def test_text_fits_the_terminal_and_shows_curves_and_coloured_tokens(runs, width):
    lines = figures.text(figures.load(runs["sent0"]), width).splitlines()[1:]
    assert max(len(OURS.sub("", line)) for line in lines) <= width
    assert any(line.startswith("  token entropy (nats)") and "█" in line for line in lines)
    answers = [line for line in lines if OURS.search(line)]
    assert len({code for line in answers for code in re.findall(r"48;5;(\d+)m", line)}) > 2, "sure and unsure"
    assert "\x1b[4;30;48;5;" in "".join(answers), "a fork is underlined"


# ---------------------------------------------------------------------------------------------- bad input
@pytest.mark.parametrize("name, content", [
    (None, None),  # no such folder
    ("metrics.jsonl", None),
    ("metrics.jsonl", ""),
    ("metrics.jsonl", '{"step": 0, "entropy": 0.5, "reward": 1}\n{"step": 1, "ent'),
    ("metrics.jsonl", "\x00\x01"),
    ("samples.jsonl", "[1]"),
    ("config.json", '{"method": "se'),
    ("evaluation.json", "[]"),
])  # fmt: skip
def test_bad_input_is_one_line_and_exit_code_2(tmp_path, capsys, name, content):
    run = tmp_path / "nowhere"
    if name:
        run = make_run(tmp_path / "run", steps=2, rows=1)
        (run / name).unlink() if content is None else (run / name).write_text(content)
    assert figures.main([str(run)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("figures.py: ") and error.count("\n") == 1 and (name or "nowhere") in error


def test_a_wrong_flag_is_one_line_and_exit_code_2(capsys):
    with pytest.raises(SystemExit) as stop:
        figures.main(["runs/sent", "--txt"])
    assert stop.value.code == 2 and capsys.readouterr().err.count("\n") == 1


def test_drawing_leaves_no_pyplot(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 0, "entropy": 0.5, "reward": 0.5}\n')
    code = f"""import sys, figures; figures.PICTURES = (figures.pass_at_k, figures.curves)
figures.main([{str(tmp_path)!r}]); assert "matplotlib.pyplot" not in sys.modules and "torch" not in sys.modules"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
