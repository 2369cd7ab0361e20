"""verify.py against math-verify on labelled pairs, and on the golds of benchmark files. Prints Markdown.

    python benchmarks/verify.py DATA/verifier             # cases.jsonl, derived.jsonl, nasty.jsonl; needs math-verify
    python benchmarks/verify.py DATA/verifier --ours      # without math-verify
    python benchmarks/verify.py --golds DATA              # does every gold of DATA/*/ get a key, and accept itself?

A row of a labelled file: {"gold": text or list of texts, "pred": response, "expected": true, false or null}; with
"answer_only" true, the response is a bare answer, and is put in a box. CPU times are of the process that judges:
wall time measures the neighbours. math-verify runs in a process of its own, because nothing else can stop it.
"""

import argparse
import json
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
import verify  # noqa: E402

PATIENCE = 30  # seconds of wall time for one pair, then the process is killed and the pair counts as refused
FIELDS = ("answer", "final_answer", "ground_truth")


def ours(response: str, gold: str | list[str]) -> bool:
    return verify.reward(response, gold) == 1.0


def math_verify_worker(pipe) -> None:
    """Plain math-verify, its own time-outs on, in the main thread of this process."""
    from math_verify import parse
    from math_verify import verify as agree

    def judge(response, gold):
        golds = gold if isinstance(gold, list) else [gold]
        golds = [g if "$" in g or "\\boxed" in g else f"${g}$" for g in golds]
        answer = parse(response)
        return any(agree(parse(g), answer) for g in golds)

    judge("$1$", "1")  # imports and grammars are loaded once, outside the timing
    pipe.send(True)
    while True:
        try:
            row = pipe.recv()
        except EOFError:
            return  # the benchmark is over
        start = time.process_time()
        try:
            verdict = judge(*row)
        except Exception as error:  # a crash of the other library is a refusal, and must not end the benchmark
            print(f"math-verify: {type(error).__name__} on {str(row)[:80]}", file=sys.stderr)
            verdict = False
        pipe.send((bool(verdict), time.process_time() - start))


class MathVerify:
    """math-verify behind a pipe, started again after each kill."""

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        self.pipe, other = multiprocessing.Pipe()
        spawn = multiprocessing.get_context("spawn")
        self.process = spawn.Process(target=math_verify_worker, args=(other,), daemon=True)
        self.process.start()
        self.pipe.recv()

    def __call__(self, response: str, gold: str | list[str]) -> tuple[bool, float]:
        self.pipe.send((response, gold))
        if self.pipe.poll(PATIENCE):
            return self.pipe.recv()
        self.process.kill()
        self.start()
        return False, float(PATIENCE)


def timed(judge: Callable) -> Callable:
    def call(response, gold):
        start = time.process_time()
        verdict = judge(response, gold)
        return verdict, time.process_time() - start
    return call


def labelled(path: Path) -> list[dict]:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
        if row.get("answer_only") and "\\boxed" not in row["pred"]:
            row["pred"] = f"\\boxed{{{row['pred']}}}"
    return rows


def score(name: str, judge: Callable, rows: list[dict]) -> tuple[str, list[dict]]:
    """One line of the table, and the rows that were judged against their label."""
    times, wrong = [], []
    for row in rows:
        verdict, seconds = judge(row["pred"], row["gold"])
        times.append(1e3 * seconds)
        if row["expected"] is not None and verdict != row["expected"]:
            wrong.append(row)
    right, false = [sum(row["expected"] is label for row in rows) for label in (True, False)]
    missed, taken = [sum(row["expected"] is label for row in wrong) for label in (True, False)]
    p99 = statistics.quantiles(times, n=100, method="inclusive")[98]
    agreement = 1 - len(wrong) / (right + false)
    return (f"| {name} | {agreement:.1%} | {right - missed}/{right} = {1 - missed / right:.1%} | {taken}/{false} | "
            f"{statistics.median(times):.3f} | {p99:.1f} | {max(times):.1f} |"), wrong


def compare(folder: Path, judges: dict[str, Callable]) -> None:
    for name in ("cases", "derived", "nasty"):
        rows = labelled(folder / f"{name}.jsonl")
        print(f"\n### {name}.jsonl, {len(rows)} pairs, {sum(r['expected'] is not None for r in rows)} with a label\n")
        print("| verifier | as labelled | recall | false accepts | CPU ms, median | 99th percentile | worst |")
        print("|---|---|---|---|---|---|---|")
        for judge_name, judge in judges.items():
            line, wrong = score(judge_name, judge, rows)
            print(line, flush=True)
            if judge is judges["verify.py"]:
                ours_wrong = wrong
        for row in ours_wrong:
            gold, response = str(row["gold"])[:60], row["pred"][-60:]
            print(f"\nagainst its label ({row['expected']}): gold `{gold}`, response `{response!r}`")


def golds_of(path: Path) -> list:
    """The golds of a file in any of the usual shapes: one item a question, a text or a list of rewrites."""
    if path.suffix == ".parquet":
        import pyarrow.parquet
        return [row["reward_model"]["ground_truth"] for row in pyarrow.parquet.read_table(path).to_pylist()]
    text = path.read_text()
    rows = json.loads(text) if text.lstrip().startswith("[") else [json.loads(line) for line in text.splitlines()]
    golds = [next(row[field] for field in FIELDS if field in row) for row in rows]
    return [gold.split("####")[-1].strip() if isinstance(gold, str) else gold for gold in golds]


def gold_report(folder: Path) -> None:
    print("| file | golds | none or empty | key is the text | accept themselves |\n|---|---|---|---|---|")
    listed = []
    for path in sorted(p for part in ("benchmarks", "train") for p in (folder / part).iterdir()):
        empty = fallback = accepted = 0
        golds = golds_of(path)
        for gold in golds:
            texts = gold if isinstance(gold, list) else [gold]
            if not all(isinstance(text, (str, float, int)) and str(text).strip() for text in texts):
                empty += 1
                continue
            keys = [verify.grade(f"\\boxed{{{text}}}", text) for text in texts]
            fallback += any(status != "ok" for *_, status in keys)
            listed += [f"{path.name}: `{answer}` ({status})" for _, answer, status in keys if status != "ok"]
            accepted += all(verify.reward(f"\\boxed{{{text}}}", gold) == 1.0 for text in texts)
        rate = f"{accepted}/{len(golds) - empty} = {accepted / (len(golds) - empty):.2%}"
        print(f"| {path.name} | {len(golds)} | {empty} | {fallback} | {rate} |")
    print("\nGolds whose key is their text:", *listed or ["none"], sep="\n- ")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("labelled", nargs="?", type=Path, help="folder with cases.jsonl, derived.jsonl, nasty.jsonl")
    parser.add_argument("--golds", type=Path, help="folder with benchmarks/ and train/")
    parser.add_argument("--ours", action="store_true", help="do not run math-verify")
    arguments = parser.parse_args()
    if not arguments.labelled and not arguments.golds:
        parser.error("give a folder of labelled pairs, or --golds with a folder of question files")
    if arguments.golds:
        gold_report(arguments.golds)
    if arguments.labelled:
        others = {} if arguments.ours else {"math-verify": MathVerify()}
        compare(arguments.labelled, {"verify.py": timed(ours)} | others)


if __name__ == "__main__":
    main()
