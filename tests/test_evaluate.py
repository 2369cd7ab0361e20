"""Two numbers with known answers, tables that say them, and responses that survive a kill."""

import itertools
import json
import math
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import evaluate
import rollout
from curriculum import Question

ROOT = Path(__file__).parent.parent


def test_pass_at_k_is_the_share_of_subsets():
    for n, c in itertools.product(range(1, 8), range(8)):
        for k in range(1, n + 1) if c <= n else []:
            subsets = list(itertools.combinations([1] * c + [0] * (n - c), k))
            assert evaluate.pass_at_k(n, c, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))


def test_pass_at_k_is_unbiased():
    """Over n = 10 draws that are right with probability p, its mean is 1 - (1 - p)^k; the plug-in's is not."""
    n, k, p = 10, 4, 0.2
    weights = [math.comb(n, c) * p**c * (1 - p) ** (n - c) for c in range(n + 1)]
    mean = sum(w * evaluate.pass_at_k(n, c, k) for c, w in enumerate(weights))
    assert mean == pytest.approx(1 - (1 - p) ** k)
    assert sum(w * (1 - (1 - c / n) ** k) for c, w in enumerate(weights)) < mean - 0.02


@pytest.mark.parametrize("n, c, k", [(8, 1, 9), (8, 9, 1), (8, 1, 0), (8, -1, 1)])
def test_k_beyond_the_samples_is_refused(n, c, k):
    with pytest.raises(ValueError, match="--samples"):
        evaluate.pass_at_k(n, c, k)


def test_scores_of_known_rewards():
    rewards = [[1, 0, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1]]
    score = evaluate.score_rewards(rewards)
    assert score["correct"] == [1, 0, 4] and (score["questions"], score["samples"]) == (3, 4)
    assert score["pass_at_k"] == {"1": pytest.approx(5 / 12), "2": pytest.approx(1.5 / 3), "4": pytest.approx(2 / 3)}
    assert score["avg_at_4"] == pytest.approx(5 / 12) and score["avg_at_2"] == pytest.approx((0.5 + 0 + 1) / 3)
    assert score["pass_at_2_se"] == pytest.approx(0.5 / math.sqrt(3))  # of 0.5, 0, 1: deviation 0.5, three questions
    assert evaluate.score_rewards([[1, 0]])["avg_at_2_se"] is None  # one question has no spread
    assert set(evaluate.score_rewards(rewards, [3])["pass_at_k"]) == {"3"}


def test_standard_error_is_the_spread_of_repeated_means():
    rng = random.Random(0)
    means, errors = zip(*(evaluate.mean_and_error([rng.random() for _ in range(50)]) for _ in range(2000)), strict=True)
    spread = math.sqrt(sum((m - 0.5) ** 2 for m in means) / len(means))
    assert sum(errors) / len(errors) == pytest.approx(spread, rel=0.05)


# ------------------------------------------------------------------------------------------- sampled answers
class Letters:
    chat_template = None

    def __call__(self, texts):
        return {"input_ids": [[ord(c) for c in text] for text in texts]}


class Sampler:
    """A sample() whose answers depend on the seeds only: one in three right, one in ten cut off."""

    def __init__(self, dies=None):
        self.calls, self.dies = [], dies

    def __call__(self, model, tokenizer, prompts, group_size, max_new_tokens, temperature, seeds, top_p=1.0):
        self.calls.append(prompts)
        if len(self.calls) == self.dies:
            raise KeyboardInterrupt
        draws = [random.Random(f"{seed} {g}").random() for seed in seeds for g in range(group_size)]
        texts = [rf"\boxed{{{'1' if u < 0.4 else '2'}}}" for u in draws]
        shape = torch.ones(len(draws), 3)
        return rollout.Rollout(None, None, None, shape.bool(), -shape, texts, torch.tensor([0.1 < u for u in draws]))


QUESTIONS = [Question(f"id{i}", f"{i}?", "1") for i in range(7)]
PROMPTS = [q.prompt for q in QUESTIONS]


def test_evaluate_counts_what_was_drawn(monkeypatch):
    monkeypatch.setattr(rollout, "sample", Sampler())
    score = evaluate.evaluate(None, Letters(), QUESTIONS, PROMPTS, 32, 8, 1.0, seed=5)
    expected = []
    for i in range(7):
        draws = [random.Random(f"{rollout.position_seed(5, i)} {g}").random() for g in range(32)]
        expected.append(sum(0.1 < u < 0.4 for u in draws))  # cut off: not right, whatever is in the box
    assert score["correct"] == expected
    assert score["truncated"] == pytest.approx(score["missing"]) and 0.03 < score["truncated"] < 0.2
    assert {"avg_at_16", "avg_at_16_se", "pass_at_16", "pass_at_16_se"} <= set(score)
    assert set(score["pass_at_k"]) == {"1", "2", "4", "8", "16", "32"}


@pytest.mark.parametrize("world, chunk", [(1, 2), (2, 64), (3, 1), (8, 4)])
def test_ranks_and_chunks_change_nothing(monkeypatch, world, chunk):
    monkeypatch.setattr(rollout, "sample", Sampler())
    whole = evaluate.evaluate(None, Letters(), QUESTIONS, PROMPTS, 4, 8, 1.0, seed=0)
    parts = []
    for rank in range(world):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", str(world))
        monkeypatch.setattr(rollout, "gather", lambda local: parts.append(local) or local)
        evaluate.evaluate(None, Letters(), QUESTIONS, PROMPTS, 4, 8, 1.0, seed=0, chunk=chunk)
    monkeypatch.setattr(rollout, "gather", lambda local: torch.cat(parts))
    assert evaluate.evaluate(None, Letters(), QUESTIONS, PROMPTS, 4, 8, 1.0, seed=0, chunk=chunk) == whole


# ------------------------------------------------------------------------------------------- tables
def test_tables_say_the_numbers():
    results = {"base": {"a": evaluate.score_rewards([[1, 0], [0, 0]]), "b": evaluate.score_rewards([[0, 0], [0, 0]])},
               "ours": {"a": evaluate.score_rewards([[1, 1], [1, 0]]), "b": evaluate.score_rewards([[0, 0], [0, 0]])}}
    text = evaluate.tables(results, [1, 2])
    assert "| benchmark | questions | base @1 | base @2 | ours @1 | ours @2 |" in text
    passes, averages = text.split("### Avg@K")
    assert "| a | 2 | 25.0 ± 25.0 | 50.0 ± 50.0 | **75.0** ± 25.0 | **100.0** ± 0.0 |" in passes
    assert "| b | 2 | 0.0 ± 0.0 | 0.0 ± 0.0 | 0.0 ± 0.0 | 0.0 ± 0.0 |" in passes  # a tie has no best
    assert "| average | 4 | 12.5 ± 12.5 | 25.0 ± 25.0 | **37.5** ± 12.5 | **50.0** ± 0.0 |" in passes
    assert "| a | 2 | 50.0 ± 50.0 | 25.0 ± 25.0 | **100.0** ± 0.0 | **75.0** ± 25.0 |" in averages
    assert "average" not in evaluate.tables({"base": {"a": results["base"]["a"]}}, [1])


# ------------------------------------------------------------------------------------------- the command line
@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with a benchmark of 7 questions and a model that is never opened."""
    from transformers import GenerationConfig, Qwen2Config

    class Model:
        config, generation_config = Qwen2Config(), GenerationConfig(max_new_tokens=8)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(evaluate, "open_model", lambda path, device, attention: (Model(), Letters()))
    for name in ("m1", "m2"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps({"name": name}))
    rows = [{"id": q.id, "question": q.prompt, "answer": q.gold} for q in QUESTIONS]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


FLAGS = ["--benchmarks", "mine=q.jsonl", "--k", "2,4", "--chunk", "2", "--out", "e"]


def test_command_line_writes_tables_and_every_response(here, monkeypatch, capsys):
    monkeypatch.setattr(rollout, "sample", Sampler())
    assert evaluate.main(["--model", "m1", "m2", *FLAGS]) == 0
    said = capsys.readouterr().out
    assert (here / "e" / "table.md").read_text() in said and "m1 @2 | m1 @4 | m2 @2 | m2 @4" in said
    saved = json.loads((here / "e" / "table.json").read_text())
    assert saved["settings"]["k"] == [2, 4] and set(saved["results"]) == {"m1", "m2"}
    header, *rows = map(json.loads, (here / "e" / "responses" / "m1" / "mine.jsonl").read_text().splitlines())
    assert header["settings"]["samples"] == 4 and header["settings"]["top_p"] == 1.0
    assert [row["id"] for row in rows] == [q.id for q in QUESTIONS]
    assert all(len(row["texts"]) == len(row["answers"]) == len(row["rewards"]) == 4 for row in rows)
    score = saved["results"]["m1"]["mine"]
    assert score["correct"] == [sum(row["rewards"]) for row in rows]
    assert score["truncated"] == pytest.approx(sum(not f for row in rows for f in row["finished"]) / 28)


def written(folder: str) -> dict:
    """All of a folder's files, but for table.json, which names the folder."""
    return {p.relative_to(folder): p.read_bytes() for p in Path(folder).rglob("*.jsonl")} | {
        "table": (Path(folder) / "table.md").read_bytes()}  # fmt: skip


def test_killed_and_continued(here, monkeypatch, capsys):
    monkeypatch.setattr(rollout, "sample", Sampler())
    assert evaluate.main(["--model", "m1", *FLAGS]) == 0
    flags = [*FLAGS[:-1], "f"]
    monkeypatch.setattr(rollout, "sample", Sampler(dies=3))
    assert evaluate.main(["--model", "m1", *flags]) == 130 and not Path("f/table.md").exists()
    again = Sampler()
    monkeypatch.setattr(rollout, "sample", again)
    assert evaluate.main(["--model", "m1", *flags]) == 0
    assert again.calls == [["4?", "5?"], ["6?"]]
    assert written("f") == written("e")
    never = Sampler(dies=1)
    monkeypatch.setattr(rollout, "sample", never)
    assert evaluate.main(["--model", "m1", *flags]) == 0 and never.calls == []
    capsys.readouterr()
    assert evaluate.main(["--model", "m1", *flags, "--seed", "1"]) == 2
    assert "seed: 0 there, 1 here" in capsys.readouterr().err and never.calls == []


def test_benchmark_names_go_to_the_hub(monkeypatch):
    import datasets

    asked = []
    table = datasets.Dataset.from_list([{"problem": "1+1=?", "answer": "2"}])
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **kw: asked.append((*args, kw["split"])) or table)
    args = evaluate.parse(["--benchmarks", ", ".join(evaluate.BENCHMARKS)])
    assert list(evaluate.load_benchmarks(args)) == ["aime24", "aime25", "amc23", "math500", "olympiadbench", "minerva"]
    assert asked == list(evaluate.BENCHMARKS.values())


def test_help_and_bad_flags_do_not_wait_for_torch():
    code = "import sys, evaluate as e\ntry: e.main(sys.argv[1:])\nfinally: assert 'torch' not in sys.modules"
    for line in ("--help", "--k 0", "--k x", "--k 8,", "--k 16 --samples 8", "--top-p 1.5", "--top-p 0", "--model a a"):
        done = subprocess.run([sys.executable, "-c", code, *line.split()], cwd=ROOT, capture_output=True, text=True)
        assert line.split()[0] in done.stdout + done.stderr and done.returncode == (0 if line == "--help" else 2)
        assert done.stderr.count("\n") == (0 if line == "--help" else 1), done.stderr


@pytest.mark.parametrize("benchmarks, word", [("aime23", "aime23"), ("mine=no.jsonl", "no.jsonl"), ("", "--benchmarks"),
                                              ("mine=q.jsonl,mine=q.jsonl", "twice")])  # fmt: skip
def test_bad_benchmarks_are_one_line_and_write_nothing(here, capsys, benchmarks, word):
    assert evaluate.main(["--model", "m1", "--benchmarks", benchmarks, "--out", "e"]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert word in said[-1] and said[-1].startswith("evaluate.py: ") and not Path("e").exists()
