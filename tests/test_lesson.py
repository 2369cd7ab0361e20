"""LESSON.md: every block is run, pasted line by line as a reader would, and prints what the text says it prints.

On a small base and in short, where a block trains: there only the form of what is printed can be checked.
"""

import code
import contextlib
import io
import json
import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "LESSON.md").read_text("utf-8")
EXERCISES = re.split(r"^## (?=\d\. )", TEXT, flags=re.M)[1:]
BLOCKS = [(int(exercise[0]), kind, text) for exercise in EXERCISES
          for kind, text in re.findall(r"^```(python|sh)\n(.*?)^```$", exercise, re.M | re.S)]  # fmt: skip
NUMBER = r"-?\d+\.\d+|-?\d+"
SHORT = ["--steps", "2", "--questions-per-step", "4", "--group-size", "4", "--max-new-tokens", "24", "--device", "cpu"]


class Prompt(code.InteractiveConsole):
    """`python`, into which blocks are pasted; errors are raised, not printed."""

    def showtraceback(self):
        raise  # noqa: PLE0704 (called while the exception is handled)

    showsyntaxerror = lambda self, *args, **kwargs: Prompt.showtraceback(self)  # noqa: E731


def paste(block: str) -> list[str]:
    """Lines that a python block prints when it is pasted, as the old prompt takes it: an empty line ends a `def`."""
    prompt, out = Prompt({"__name__": "__main__"}), io.StringIO()
    with contextlib.redirect_stdout(out):
        more = False
        for line in block.splitlines():
            more = prompt.push(line)
        assert not more, "the block ends inside a statement: an empty line is missing"
    return out.getvalue().splitlines()


def expected(block: str) -> list[str]:
    """The comments below the block's last statement, without their #."""
    lines = block.rstrip("\n").split("\n")
    first = next(i for i in range(len(lines), -1, -1) if i == 0 or not lines[i - 1].startswith("# "))
    return [line.removeprefix("# ") for line in lines[first:]]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A folder to run in, as the repository's root, with a small base in place of the embedded one."""
    import torch

    import arithmetic
    import train

    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("lesson")
    (folder / "results").symlink_to(ROOT / "results")
    (folder / "benchmarks").symlink_to(ROOT / "benchmarks")
    settings = arithmetic.Settings(train_questions=24, heldout_questions=6, levels=(1,), warm_levels=(1,),
                                   largest_digit=4, hidden=32, layers=1, heads=2, steps=150)  # fmt: skip
    base = arithmetic.ensure(folder / "cache", quiet=True, settings=settings)
    main = train.main

    def quietly(argv: list[str]) -> int:
        with contextlib.redirect_stdout(io.StringIO()):
            return main([*argv, *SHORT])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(arithmetic, "ensure", lambda: base)
        patch.setattr(train, "main", quietly)
        patch.setattr(train, "grade", train.grade)  # exercise 6 replaces it: put back at the end
        patch.chdir(folder)
        yield folder


def test_eight_exercises_with_solutions():
    assert [int(exercise[0]) for exercise in EXERCISES] == list(range(1, 9))
    for exercise in EXERCISES:
        part = exercise.split("\n## ")[0]
        assert part.count("<details>") == part.count("</details>") == 1
        assert re.search(r"<summary>.*[Ss]olution</summary>\n\n\S", part)  # the empty line: Markdown inside
    for kind in re.findall(r"^```(\w*)\n.*?^```$", TEXT, re.M | re.S):
        assert kind in ("python", "sh", "text"), "a block that no test runs"


def test_blocks_are_short_and_say_what_they_print():
    assert {number for number, _, _ in BLOCKS} == set(range(1, 9))
    for number, kind, block in BLOCKS:
        if kind == "python":
            statements = [line for line in block.splitlines() if line and not line.startswith("#")]
            assert len(statements) <= 15, f"exercise {number}: {len(statements)} lines"
            assert expected(block) or number == 5  # whose numbers are the solution


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)]+)\)", TEXT):
        assert target.startswith("https://arxiv.org/abs/") or (ROOT / target).exists(), target


def run(command: str) -> None:
    """`python FILE.py FLAGS`, train.py in short. Through main(): importing torch anew takes seconds."""
    import figures
    import train

    python, script, *argv = shlex.split(command)
    assert python == "python"
    assert {"train.py": train, "figures.py": figures}[script].main(argv) == 0, command


@pytest.mark.parametrize("number", range(1, 9))  # in this order: a block may read what the one before wrote
def test_an_exercise_does_what_it_says(number, root):
    for _, kind, block in (b for b in BLOCKS if b[0] == number):
        if kind == "sh":
            for command in block.splitlines():
                run(command)
            continue
        printed, says = paste(block), expected(block)
        if number == 5:  # the solution shows it below
            says = re.search(r"```text\n(.*?)\n```", EXERCISES[4], re.S)[1].split("\n")
        assert len(printed) == len(says)
        for got, line in zip(printed, says, strict=True):
            if line.startswith("about "):  # another base, fewer steps: the same words around other numbers
                got, line = (re.sub(NUMBER, "0", text) for text in (got, line.removeprefix("about ")))
            assert got == line


def test_the_pictures_of_exercise_4_are_drawn(root):
    for name in ("curves", "heatmap"):
        assert (root / f"runs/collapse/figures/{name}.png").stat().st_size > 10_000


def test_a_flipped_reward_is_seen_in_the_groups(root):
    """Exercise 6: same answers, other rewards."""
    sound, broken = ([json.loads(line) for line in (root / f"runs/verifier-{name}/metrics.jsonl").open()]
                     for name in ("sound", "broken"))  # fmt: skip
    assert [r["entropy"] for r in sound] == [r["entropy"] for r in broken]
    assert [r["tokens"] for r in sound] == [r["tokens"] for r in broken]


def test_the_broken_runs_show_their_faults():
    """Exercise 8, whatever the wording: what each solution points at is in the files."""
    runs = {}
    for name in "abc":
        folder = ROOT / "results/broken" / name
        runs[name] = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        assert len(runs[name]) == 40 and json.loads((folder / "config.json").read_text())["steps"] == 40
    explosion, truncation, dead = runs["a"], runs["b"], runs["c"]
    assert explosion[0]["truncated"] == 0 and explosion[-1]["entropy"] > 10 * explosion[0]["entropy"]
    assert explosion[0]["reward"] > 0.2 and explosion[-1]["reward"] == 0
    assert truncation[0]["truncated"] > 0.4 and truncation[-1]["truncated"] < 0.05
    assert truncation[-1]["entropy"] < truncation[0]["entropy"] / 2
    assert max(row["finished_length"] for row in truncation) < 12
    assert all(row["reward"] == row["grad_norm"] == 0 and row["truncated"] == 0 for row in dead)
    assert max(row["missing"] for row in dead) < 0.01 < 0.5 < min(row["entropy_fork"] for row in dead)
