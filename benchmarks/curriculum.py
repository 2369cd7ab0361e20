"""What a curriculum costs, and which estimator of semantic entropy orders questions best.

    python benchmarks/curriculum.py cost [FILE ...]     clustering 17,000 questions x 8 answers, linear or not
    python benchmarks/curriculum.py estimators          on the embedded task; writes results/estimators.md

`cost` makes its answers from the golds of the given questions files (any that load_questions takes), else from
templates: each gold in several spellings, near misses, answers that are no formula, responses without an answer. Every
response goes through extraction, grading against its gold, clustering and entropy, as in a real curriculum.

`estimators` draws 64 + 256 answers to some training questions from the base model. The 256 measure each question's
accuracy; the 64, cut into groups of M, give semantic entropies as a curriculum would see them. A low entropy should
mean a high accuracy: the table has Spearman's rank correlation between the two, mean over the groups, and its standard
error by bootstrap over questions. Samples are kept in --work, so that it can be killed and continued.
"""

import argparse
import random
import sys
import time
from datetime import date
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402

from curriculum import ESTIMATORS, describe, load_questions, respond, stages, stream_rows  # noqa: E402
from entropy import semantic_entropy  # noqa: E402
from verify import cluster_answers, grade  # noqa: E402


# ---------------------------------------------------------------------------------------------- cost
def templates(rng: random.Random) -> str:
    """A gold of the kinds that competition mathematics has."""
    kinds = ("AB", r"A", r"-A", r"\frac{A}{B}", r"A.B", r"A\sqrt{C}", r"A+Bi", r"(A, B)", r"[A, 1A)", r"\frac{A\pi}{C}",
             "Ax^2-Bx+C", "A,BCC", r"A^\circ", r"A\text{ cm}", r"A,B,C", r"\frac{A+\sqrt{C}}{B}", r"2^{A}-1",
             r"\binom{A}{C}", r"\begin{pmatrix} A \\ B \end{pmatrix}")  # fmt: skip
    numbers = {"A": rng.randint(10, 99), "B": rng.randint(10, 99), "C": rng.choice((2, 3, 5, 7))}
    return "".join(str(numbers.get(c, c)) for c in rng.choice(kinds))


def spellings(gold: str, rng: random.Random) -> list[str]:
    """Eight responses as the samples of one question look: the gold in other words, misses, and no answer at all."""
    miss = str(rng.randint(100, 999))
    inside = [gold, f" {gold} ", f"x = {gold}", gold.replace("frac", "dfrac"), f"{gold}.", f"{gold}+{miss}", miss,
              rf"\text{{none of {miss}}}"]  # fmt: skip
    box = [*(f"\\boxed{{{text}}}" for text in inside), "I cannot tell.", f"The answer is {gold}."]
    reasoning = "We compute step by step, and then again, to be sure. " * 20
    return [reasoning + "So " + rng.choice(box) for _ in range(8)]


def cost(files: list[str]) -> None:
    """Seconds for growing numbers of questions, one process."""
    golds = [q.gold if isinstance(q.gold, str) else q.gold[0] for file in files for q in load_questions(file)]
    print("| questions | answers | seconds | µs per answer |\n|---|---|---|---|")
    for n in (1_000, 2_000, 4_000, 8_000, 17_000):
        rng = random.Random(n)  # other answers in each row: none is in a cache from the row before
        asked = [rng.choice(golds) if golds else templates(rng) for _ in range(n)]
        responses = [spellings(gold, rng) for gold in asked]
        began = time.perf_counter()
        for gold, group in zip(asked, responses, strict=True):
            answers = [grade(text, gold)[1] for text in group]
            semantic_entropy(cluster_answers(answers))
        seconds = time.perf_counter() - began
        print(f"| {n} | {8 * n} | {seconds:.1f} | {1e6 * seconds / 8 / n:.0f} |", flush=True)


# ---------------------------------------------------------------------------------------------- estimators
def ranks(x: np.ndarray) -> np.ndarray:
    """Ranks, equal values share their mean rank."""
    _, place, count = np.unique(x, return_inverse=True, return_counts=True)
    return (np.cumsum(count) - (count - 1) / 2)[place]


def spearman(x: np.ndarray, y: np.ndarray) -> float:
    """Rank correlation, ties included; 0 where one of the two does not vary."""
    x, y = ranks(x), ranks(y)
    return float(np.corrcoef(x, y)[0, 1]) if x.std() > 0 and y.std() > 0 else 0.0


def draw(work: Path, questions: int, seed: int, device: str | None) -> list[dict]:
    """320 answers to some training questions: rows of respond() without the texts."""
    from arithmetic import ensure
    from curriculum import answer_limit, open_model, render

    model_path, train, _ = map(str, ensure())
    asked = random.Random(seed).sample(load_questions(train), questions)
    model, tokenizer = open_model(model_path, device, None)
    prompts, _ = render(asked, tokenizer)
    limit = answer_limit(model, tokenizer, prompts, None)
    settings = describe(model_path, train, asked, prompts, samples=320, max_new_tokens=limit, seed=seed)

    def some(indices: list[int]) -> list[dict]:
        rows = respond(model, tokenizer, asked, prompts, indices, 320, limit, 1.0, seed)
        return [{k: v for k, v in row.items() if k != "texts"} for row in rows]

    return stream_rows(work / "samples.jsonl", settings, questions, some, 16)


def entropies(rows: list[dict], m: int, estimator: str, stretch: float = 1.0) -> np.ndarray:
    """Semantic entropy of every question in every group of m of its first 64 answers; [64 / m, Q], nats.

    `stretch` multiplies the log-probs: the same answers, each token repeated in kind that many times.
    """
    out = np.empty((64 // m, len(rows)))
    for q, row in enumerate(rows):
        for g in range(64 // m):
            answers, sums, lengths = (row[key][g * m : (g + 1) * m] for key in ("answers", "logprobs", "lengths"))
            out[g, q] = semantic_entropy(cluster_answers(answers), [stretch * x for x in sums], lengths, estimator)
    return out


def correlation(se: np.ndarray, accuracy: np.ndarray, resamples: int = 100) -> np.ndarray:
    """Spearman's correlation, mean over groups; then the same of bootstrap resamples of the questions, the same ones
    in each call, so that two estimators can be compared pair by pair; [groups, Q], [Q] -> [1 + resamples]."""
    rng = np.random.default_rng(0)
    picks = [np.arange(len(accuracy)), *(rng.integers(0, len(accuracy), len(accuracy)) for _ in range(resamples))]
    return np.array([np.mean([spearman(group[p], accuracy[p]) for group in se]) for p in picks])


def shown(values: np.ndarray) -> str:
    """Value ± its bootstrap standard error."""
    return f"{values[0]:+.3f} ± {values[1:].std():.3f}"


def table(header: str, rows: dict[str, list[str]]) -> str:
    """Markdown."""
    lines = [f"| {name} | {' | '.join(cells)} |" for name, cells in rows.items()]
    return "\n".join([header, "|" + "---|" * (header.count("|") - 1), *lines])


def estimators(work: Path, questions: int, seed: int, device: str | None) -> str:
    """The Markdown of results/estimators.md."""
    rows = draw(work, questions, seed, device)
    accuracy = np.array([np.mean(row["rewards"][64:]) for row in rows])
    kinds = {e: (e, 1.0) for e in ESTIMATORS} | {"likelihood, log-probs × 30": ("likelihood", 30.0)}
    se = {(name, m): entropies(rows, m, *kind) for name, kind in kinds.items() for m in (4, 8, 16)}
    found = {name: [correlation(se[name, m], accuracy) for m in (4, 8, 16)] for name in kinds}
    pairs = zip(found["length_normalised"], found["frequency"], strict=True)
    orders = {name: [shown(c) for c in row] for name, row in found.items()}
    orders["*length_normalised − frequency, paired*"] = [shown(a - b) for a, b in pairs]
    rewards = np.array([row["rewards"][:64] for row in rows])
    own = [rewards.reshape(len(rows), -1, m).mean(2).T for m in (4, 8, 16)]
    orders["*own accuracy of the M answers (needs golds)*"] = [shown(correlation(a, accuracy)) for a in own]
    cut = {}
    for name in kinds:
        each = [[accuracy[s].mean() for s in stages(np.argsort(g, kind="stable"), 4)] for g in se[name, 8]]
        blind = ((se["frequency", 8] > 0) & (se[name, 8] < 0.01)).mean()
        cut[name] = [f"{a:.3f}" for a in np.mean(each, 0)] + [f"{blind:.1%}"]
    lengths = np.mean([np.mean(row["lengths"]) for row in rows])
    return f"""# Which estimator of semantic entropy orders questions best?

`python benchmarks/curriculum.py estimators --questions {questions} --seed {seed}`, {date.today()}: base model and
training questions of the embedded task, mean accuracy {accuracy.mean():.3f}, {lengths:.1f} tokens an answer.

Spearman's rank correlation of a question's semantic entropy, from M answers, with its accuracy, from 256 other answers.
Mean over disjoint groups of M, ± standard error by bootstrap over questions. Lower is better.

{table("| estimator | M = 4 | M = 8 | M = 16 |", orders)}

`log-probs × 30` stands for answers of some hundred tokens: one of them then has all of the likelihood.

Accuracy, from the 256, of four stages cut by the entropy of 8 answers; and the share of questions whose answers
disagree though their entropy is below 0.01 nats.

{table("| estimator | stage 1 | stage 2 | stage 3 | stage 4 | blind |", cut)}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("cost").add_argument("files", nargs="*")
    study = commands.add_parser("estimators")
    study.add_argument("--questions", type=int, default=600)
    study.add_argument("--seed", type=int, default=0)
    study.add_argument("--device", choices=("cpu", "cuda"))
    study.add_argument("--work", type=Path, default=ROOT / "runs" / "estimators")
    study.add_argument("--out", type=Path, default=ROOT / "results" / "estimators.md")
    args = parser.parse_args()
    if args.command == "cost":
        cost(args.files)
    else:
        text = estimators(args.work, args.questions, args.seed, args.device)
        args.out.write_text(text)
        print(text)


if __name__ == "__main__":
    main()
