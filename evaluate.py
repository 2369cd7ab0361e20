"""Pass@K and Avg@K of one or several models on benchmarks, side by side, as two tables.

    python evaluate.py --model arithmetic runs/sent/model
    torchrun --nproc_per_node=8 evaluate.py --model Qwen/Qwen2.5-Math-1.5B runs/sent/model \\
        --benchmarks aime24,aime25,amc23,math500,olympiadbench,minerva --k 8,16,32 --max-new-tokens 8192

n answers per question are drawn (the largest K, or --samples). Pass@K is the unbiased estimator over all n, so it grows
with K. Avg@K is the accuracy of the first K of them: whatever K, an estimate of the same number. The paper's release
evaluates with --top-p 0.6; here every answer is drawn from the policy itself unless you say so. Standard errors are
over questions: the error of a benchmark of 30 questions is that it has 30. --out holds table.md, table.json and every
response; kill it, repeat it, it goes on.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from curriculum import (
    Parser,
    Question,
    add_sampling_flags,
    answer_limit,
    describe,
    load_questions,
    located,
    number,
    open_model,
    render,
    replace_file,
    respond,
    say,
    stream_rows,
)

BENCHMARKS = {  # name: hub id, configuration, split
    "aime24": ("HuggingFaceH4/aime_2024", None, "train"),
    "aime25": ("math-ai/aime25", None, "test"),
    "amc23": ("math-ai/amc23", None, "test"),
    "math500": ("HuggingFaceH4/MATH-500", None, "test"),
    "olympiadbench": ("Hothan/OlympiadBench", "OE_TO_maths_en_COMP", "train"),
    "minerva": ("math-ai/minervamath", None, "test"),
}


# ---------------------------------------------------------------------------------------------- the two numbers
def pass_at_k(n: int, c: int, k: int) -> float:
    """Probability that k of n drawn answers, c of which are right, hold a right one: 1 - C(n-c, k) / C(n, k).

    Unbiased (Chen et al., arXiv 2107.03374, eq. 1); 1 - (1 - c/n)^k would be too low. Raises ValueError for k > n.

    >>> pass_at_k(4, 1, 2), pass_at_k(4, 0, 4), pass_at_k(4, 1, 4)
    (0.5, 0.0, 1.0)
    """
    if not 1 <= k <= n or not 0 <= c <= n:
        raise ValueError(f"pass@{k} of {c} right among {n} answers: draw at least k (raise --samples, or lower --k)")
    return 1.0 - math.comb(n - c, k) / math.comb(n, k)


def mean_and_error(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean over questions and its standard error; None for one question, which has no spread."""
    mean, n = sum(values) / len(values), len(values)
    return mean, math.sqrt(sum((v - mean) ** 2 for v in values) / (n - 1) / n) if n > 1 else None


def score_rewards(rewards: Sequence[Sequence[float]], ks: Iterable[int] | None = None) -> dict:
    """Rewards [Q][n] of 0 or 1 -> counts, and per k avg_at_k, pass_at_k and their standard errors over questions.

    `ks`: default all powers of two up to n, and n; pass_at_k also comes as one dict {"1": ..., "2": ...}.
    """
    n, correct = len(rewards[0]), [int(sum(r)) for r in rewards]
    result = {"questions": len(rewards), "samples": n, "correct": correct, "pass_at_k": {}}
    for k in sorted(set(ks or [n, *(2**i for i in range(n.bit_length()))])):
        result[f"pass_at_{k}"], result[f"pass_at_{k}_se"] = mean_and_error([pass_at_k(n, c, k) for c in correct])
        result[f"avg_at_{k}"], result[f"avg_at_{k}_se"] = mean_and_error([sum(r[:k]) / k for r in rewards])
        result["pass_at_k"][str(k)] = result[f"pass_at_{k}"]
    return result


def evaluate(model, tokenizer, questions: Sequence[Question], prompts: list[str], samples: int, max_new_tokens: int,
             temperature: float, seed: int, top_p: float = 1.0, ks: Iterable[int] | None = None,
             chunk: int = 64) -> dict:  # fmt: skip
    """score_rewards of `samples` answers to each question, drawn by all ranks together, in memory; same on every rank.

    Also `truncated` and `missing`: shares of responses that were cut off, and that hold no answer.
    """
    import torch

    from rollout import gather

    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    grades = torch.zeros(3, len(questions), samples)  # right, cut off, without an answer
    mine = list(range(rank, len(questions), world))
    for first in range(0, len(mine), chunk):
        for row in respond(model, tokenizer, questions, prompts, mine[first : first + chunk], samples, max_new_tokens,
                           temperature, seed, top_p):  # fmt: skip
            grades[:, row["index"]] = torch.tensor([row["rewards"], [not f for f in row["finished"]],
                                                    [a is None for a in row["answers"]]])  # fmt: skip
    grades = gather(grades.view(1, -1)).sum(0).view_as(grades)  # each question was one rank's, zero on the others
    shares = {"truncated": grades[1].mean().item(), "missing": grades[2].mean().item()}
    return score_rewards(grades[0].tolist(), ks) | shares


# ---------------------------------------------------------------------------------------------- tables
def tables(results: dict[str, dict[str, dict]], ks: Sequence[int]) -> str:
    """{model: {benchmark: score}} -> two Markdown tables, per cent, best model of each row and K in bold."""
    text = []
    for title, key in (("Pass@K", "pass_at_{}"), ("Avg@K", "avg_at_{}")):
        columns = [(label, k) for label in results for k in ks]
        text += [f"### {title}", "", "| benchmark | questions | " + " | ".join(f"{m} @{k}" for m, k in columns) + " |",
                 "|---|---|" + "---|" * len(columns)]  # fmt: skip
        names = list(next(iter(results.values())))
        for name in [*names, "average"] if len(names) > 1 else names:
            cells = {}
            for label, k in columns:
                rows = results[label].values() if name == "average" else [results[label][name]]
                errors = [r[key.format(k) + "_se"] for r in rows]
                error = None if None in errors else math.sqrt(sum(e * e for e in errors)) / len(errors)
                cells[label, k] = sum(r[key.format(k)] for r in rows) / len(errors), error
            asked = sum(r["questions"] for n, r in next(iter(results.values())).items() if name in (n, "average"))
            text.append(f"| {name} | {asked} | " + " | ".join(_cell(cells, c, results) for c in columns) + " |")
        text.append("")
    return "\n".join(text)


def _cell(cells: dict, column: tuple[str, int], results: dict) -> str:
    value, error = cells[column]
    best = value > max((cells[label, column[1]][0] for label in results if label != column[0]), default=math.inf)
    shown = f"**{100 * value:.1f}**" if best else f"{100 * value:.1f}"
    return shown if error is None else f"{shown} ± {100 * error:.1f}"


# ---------------------------------------------------------------------------------------------- command line
def whole_numbers(text: str) -> list[int]:
    """argparse type of --k: 8,16,32."""
    return sorted({int(number(int, 1)(part)) for part in text.split(",")})


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line. Exits with one line on stderr when it is refused."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    add = parser.add_argument
    add("--model", nargs="+", default=["arithmetic"], help="folders or hub names [arithmetic: the embedded base]")
    add("--benchmarks", default="arithmetic", help="with commas between: arithmetic (held-out questions), name=path to "
        "questions, or " + ", ".join(BENCHMARKS) + " (from the hub) [arithmetic]")  # fmt: skip
    add("--k", type=whole_numbers, default=[8, 16, 32], help="with commas between [8,16,32]")
    add("--samples", type=number(int, 1), help="n, answers per question [the largest k]")
    add("--top-p", type=number(float, 1e-6, 1), default=1.0, help="nucleus that is sampled from [1, the policy itself]")
    add("--out", type=Path, default=Path("runs/eval"), help="folder for tables and responses [runs/eval]")
    add_sampling_flags(parser)
    args = parser.parse_args(argv)
    args.samples = args.samples or args.k[-1]
    if args.k[-1] > args.samples:
        parser.error(f"--k {args.k[-1]} needs as many answers, --samples is {args.samples}")
    if len(set(args.model)) < len(args.model):
        parser.error("--model names a model twice; one column each is enough")
    return args


def load_benchmarks(args: argparse.Namespace) -> dict[str, list[Question]]:
    """{name: questions}; raises ValueError for a name that is not known."""
    benchmarks = {}
    for entry in args.benchmarks.split(","):
        name, _, source = entry.strip().partition("=")
        subset = split = None
        if name in benchmarks:
            raise ValueError(f"--benchmarks names {name} twice; one row each is enough")
        if not source and name == "arithmetic":
            source = located(name, 2)
        elif not source:
            if name not in BENCHMARKS:
                raise ValueError(f"--benchmarks {name!r}: not arithmetic, {', '.join(BENCHMARKS)} or name=path")
            source, subset, split = BENCHMARKS[name]
        benchmarks[name] = load_questions(source, args.question_field, args.answer_field, split, subset)
    return benchmarks


def evaluate_model(path: str, benchmarks: dict[str, list[Question]], args: argparse.Namespace) -> dict[str, dict]:
    """Scores of one model by benchmark; its responses go to OUT/responses/MODEL/BENCHMARK.jsonl as they come."""
    path = located(path, 0)
    model, tokenizer = open_model(path, args.device, args.attention)
    results = {}
    for name, questions in benchmarks.items():
        prompts, kept = render(questions, tokenizer, args.instruction, args.max_prompt_tokens)
        asked = [questions[i] for i in kept]
        limit = answer_limit(model, tokenizer, prompts, args.max_new_tokens)
        settings = describe(path, name, asked, prompts, samples=args.samples, max_new_tokens=limit,
                            temperature=args.temperature, top_p=args.top_p, seed=args.seed)  # fmt: skip

        def work(indices, asked=asked, prompts=prompts, limit=limit):
            return respond(model, tokenizer, asked, prompts, indices, args.samples, limit, args.temperature, args.seed,
                           args.top_p)  # fmt: skip

        file = args.out / "responses" / re.sub(r"[^\w.-]+", "-", path).strip("-") / f"{name}.jsonl"
        rows = stream_rows(file, settings, len(asked), work, args.chunk)
        cut = sum(not done for row in rows for done in row["finished"]) / len(rows) / args.samples
        results[name] = score_rewards([row["rewards"] for row in rows], args.k) | {"truncated": cut}
    return results


def main(argv: list[str] | None = None) -> int:
    """Exit code: 0 done, 2 bad input, 130 interrupted."""
    args = parse(argv)
    try:
        benchmarks = load_benchmarks(args)
        results = {path: evaluate_model(path, benchmarks, args) for path in args.model}
        if os.environ.get("RANK", "0") == "0":
            text = tables(results, args.k)
            replace_file(args.out / "table.md", text)
            shown = {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()}
            replace_file(args.out / "table.json", json.dumps({"settings": shown, "results": results}, indent=1))
            print(f"{text}\nwrote {args.out}: table.md, table.json, responses")
    except (ValueError, OSError) as error:
        print(f"evaluate.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        say("evaluate.py: interrupted; the same command goes on from here")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
