"""Questions from any file, an order that survives every kill, and what is refused."""

import hashlib
import itertools
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import curriculum
import rollout
from curriculum import Question, load_curriculum, load_questions, render, semantic_order, stages
from entropy import semantic_entropy

ROOT = Path(__file__).parent.parent


def write(path: Path, rows: list) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


# ------------------------------------------------------------------------------------------- questions from files
ROWS = [{"id": "a", "question": "1+1=?", "answer": "2"}, {"id": "b", "question": "half of 1, é?", "answer": r"\frac12"}]


def as_jsonl(folder, monkeypatch):
    return write(folder / "q.jsonl", [ROWS[0], "", ROWS[1]])  # a blank line is no question


def as_json(folder, monkeypatch):
    (folder / "q.json").write_text(json.dumps(ROWS, indent=1))
    return folder / "q.json"


def as_csv(folder, monkeypatch):
    (folder / "q.csv").write_text('\ufeffid,question,answer\na,1+1=?,2\nb,"half of 1, é?",\\frac12\n', encoding="utf-8")
    return folder / "q.csv"


def as_parquet(folder, monkeypatch):
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), folder / "q.parquet")
    return folder / "q.parquet"


def as_folder(folder, monkeypatch):
    (folder / "data").mkdir()
    write(folder / "data" / "train-0.jsonl", ROWS[:1])
    write(folder / "data" / "train-1.jsonl", ROWS[1:])
    (folder / "README.md").write_text("not questions")
    return folder


def as_hub_name(folder, monkeypatch):
    import datasets

    asked, table = [], datasets.Dataset.from_list(ROWS)
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **kw: asked.append((args, kw)) or table)
    yield "someone/some-data.v1"
    assert asked == [(("someone/some-data.v1", None), {"split": "train"})]


SOURCES = [as_jsonl, as_json, as_csv, as_parquet, as_folder, as_hub_name]


@pytest.mark.parametrize("make", SOURCES, ids=lambda f: f.__name__)
def test_every_source_gives_the_same_questions(tmp_path, monkeypatch, make):
    made = make(tmp_path, monkeypatch)
    for source in made if make is as_hub_name else [made]:
        assert load_questions(source) == [Question("a", "1+1=?", "2"), Question("b", "half of 1, é?", r"\frac12")]


CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1+1?"}]


@pytest.mark.parametrize("row, gold", [
    ({"problem": "1+1?", "answer": "2", "solution": r"so \boxed{3}"}, "2"),  # an answer goes before a solution
    ({"question": "1+1?", "answer": "Add: <<1+1=2>>2.\n#### 2"}, "2"),  # GSM8K
    ({"question": "1+1?", "answer": "#### 1,234"}, "1,234"),
    ({"problem": "1+1?", "solution": r"Not \boxed{3}, but \boxed{\frac{4}{2}}."}, r"\frac{4}{2}"),  # MATH
    ({"prompt": "1+1?", "ground_truth": "336^\\circ"}, "336^\\circ"),  # AIME 2025
    ({"question": "1+1?", "final_answer": ["2", "2.0"]}, ["2", "2.0"]),  # OlympiadBench on the hub
    ({"problem": "1+1?", "answer": ["2\n", None]}, ["2"]),  # Minerva
    ({"problem": "1+1?", "answer": 27.0}, "27.0"),  # AMC 2023
    ({"problem": "1+1?", "answer": "073"}, "073"),  # AIME 2024
    ({"prompt": CHAT, "reward_model": {"ground_truth": "2", "style": "rule"}}, "2"),  # DAPO
])  # fmt: skip
def test_fields_are_found(tmp_path, row, gold):
    (question,) = load_questions(write(tmp_path / "q.jsonl", [row]))
    assert (question.id, question.prompt, question.gold) == ("q:0", "1+1?", gold)
    assert question.instructed == ("reward_model" in row)


def test_fields_can_be_named(tmp_path):
    path = write(tmp_path / "q.jsonl", [{"question": "no", "answer": "0", "deep": {"q": "yes?", "a": 1}}])
    (question,) = load_questions(path, question_field="deep.q", answer_field="deep.a")
    assert (question.prompt, question.gold) == ("yes?", "1")


def test_exact_duplicates_are_dropped_and_counted(tmp_path, capsys):
    rows = [{"id": str(i), "question": f"{i % 3}+1=?", "answer": str(i % 3 + 1)} for i in range(300)]
    assert [q.id for q in load_questions(write(tmp_path / "q.jsonl", rows))] == ["0", "1", "2"]
    assert "297 exact duplicates" in capsys.readouterr().err


def test_golds_that_cannot_be_earned_are_named_and_dropped(tmp_path, capsys):
    rows = [{"id": f"id{i}", "question": f"{i}?", "answer": str(i)} for i in range(200)]
    rows[7]["answer"] = "?!"  # no key: rewarding it would reward any punctuation
    rows[9]["answer"] = None  # a hole in 200 is a flaw of the data, see the table below for more
    kept = load_questions(write(tmp_path / "q.jsonl", rows))
    said = capsys.readouterr().err
    assert len(kept) == 198 and not {"id7", "id9"} & {q.id for q in kept}
    assert "id7" in said and "id9" in said and "line 10" in said


@pytest.mark.parametrize("text, words", [
    ("", ["q.jsonl", "no questions"]),
    ("\n\n", ["q.jsonl", "no questions"]),
    ("{", ["line 1", "not JSON"]),
    ('{"question": "x", "answer": "1"}\n{"question": "y", "ans', ["line 2", "not JSON"]),
    ("[" * 100_000, ["line 1", "not JSON"]),
    ("[1]", ["line 1", "object"]),
    ('{"answer": "1"}', ["line 1", "question", "--question-field", "answer"]),
    ('{"question": "x", "reply": "1"}', ["line 1", "--answer-field", "reply"]),
    ('{"question": "x", "answer": "1"}\n{"question": "y"}', ["line 2", "answer"]),
    ('{"question": "x", "answer": null}', ["line 1", "no gold"]),
    ('{"question": "x", "answer": NaN}', ["line 1", "no gold"]),
    ('{"question": "x", "answer": ""}', ["line 1", "no gold"]),
    ('{"question": "x", "answer": []}', ["line 1", "no gold"]),
    ('{"question": "x", "solution": "it is 7"}', ["line 1", "no gold"]),  # prose without a box is no gold
    ('{"question": "x", "answer": "?!"}', ["0", "no gold can be read"]),
    ('{"question": "x", "answer": true}', ["line 1", "answer", "bool"]),
    ('{"question": "x", "answer": {"a": 1}}', ["line 1", "answer", "dict"]),
    ('{"question": null, "answer": "1"}', ["line 1", "question"]),
    ('{"question": " ", "answer": "1"}', ["line 1", "question"]),
    ('{"question": 7, "answer": "1"}', ["line 1", "question"]),
    ('{"question": "\\ud800", "answer": "1"}', ["line 1", "question"]),
    ('{"prompt": [{"role": "system", "content": "x"}], "answer": "1"}', ["line 1", "prompt", "user"]),
    ('{"id": 1, "question": "x", "answer": "1"}\n{"id": "1", "question": "y", "answer": "1"}', ["line 2", "line 1"]),
])  # fmt: skip
def test_bad_questions_are_refused(tmp_path, text, words):
    (tmp_path / "q.jsonl").write_text(text)
    with pytest.raises(ValueError) as refusal:
        load_questions(tmp_path / "q.jsonl")
    said = str(refusal.value)
    assert "\n" not in said and all(word in said for word in [*words, "q.jsonl"]), said


def test_bad_files_are_refused(tmp_path):
    (tmp_path / "bytes.jsonl").write_bytes(b'{"question": "x", "answer": "1"}\n{"question": "\xff", "answer": "1"}\n')
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe")
    (tmp_path / "one.json").write_text('{"question": "x", "answer": "1"}')
    (tmp_path / "torn.parquet").write_bytes(b"PAR1 torn")
    (tmp_path / "q.txt").write_text("1+1=?")
    (tmp_path / "empty").mkdir()
    with (tmp_path / "long.jsonl").open("wb") as file:
        file.truncate(2**30)  # 1 GB in one line, sparse on disk; must not be read
    for name, word in (("bytes.jsonl", "line 2: not UTF-8"), ("bytes.json", "not JSON"), ("one.json", ".jsonl"),
                       ("torn.parquet", "not a parquet"), ("q.txt", ".csv"), ("empty", "no .jsonl"),
                       ("no.json", "no readable"), ("no/such", "no readable"), ("long.jsonl", "line 1: longer")):
        with pytest.raises(ValueError, match=word):
            load_questions(tmp_path / name)


def test_a_hub_that_does_not_answer_is_one_line(monkeypatch):
    import datasets

    def fail(*args, **kw):
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(ValueError, match="^some/name: .*no route to host.*--split"):
        load_questions("some/name")


# ------------------------------------------------------------------------------------------- prompts
class Letters:
    """A tokenizer of characters, as far as render() and answer_limit() look."""

    def __init__(self, chat_template=None):
        self.chat_template = chat_template

    def __call__(self, texts):
        return {"input_ids": [[ord(c) for c in text] for text in texts]}

    def apply_chat_template(self, messages, tokenize, add_generation_prompt):
        assert not tokenize and add_generation_prompt
        return f"<{messages[0]['role']}>{messages[0]['content']}<assistant>"


def test_render_follows_the_tokenizer():
    plain, chat = Question("0", "1+1=?", "2"), Question("1", "1+1? Answer: ...", "2", instructed=True)
    assert render([plain, chat], Letters())[0] == ["1+1=?", "1+1? Answer: ..."]
    assert render([plain], Letters(), "Box it.")[0] == ["1+1=?\nBox it."]
    assert render([plain, chat], Letters("x"))[0] == [
        f"<user>1+1=?\n{curriculum.INSTRUCTION}<assistant>", "<user>1+1? Answer: ...<assistant>"]  # fmt: skip
    assert render([plain, chat], Letters("x"), "Box it.")[0][1] == "<user>1+1? Answer: ...\nBox it.<assistant>"
    assert render([plain], Letters("x"), "")[0] == ["<user>1+1=?<assistant>"]
    assert render([], Letters()) == ([], [])


def test_render_with_a_real_tokenizer():
    from arithmetic import make_tokenizer

    tokenizer = make_tokenizer()
    assert render([Question("0", "1+1=?", "2")], tokenizer) == (["1+1=?"], [0])
    tokenizer.chat_template = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}" \
                              "{% if add_generation_prompt %}[assistant]{% endif %}"  # fmt: skip
    assert render([Question("0", "1+1=?", "2")], tokenizer, "=")[0] == ["[user]1+1=?\n=[assistant]"]


def test_long_prompts_are_dropped_and_counted(capsys):
    questions = [Question(str(i), "x" * n, "1") for i, n in enumerate((5, 11, 10, 12))]
    assert render(questions, Letters(), max_prompt_tokens=10) == (["x" * 5, "x" * 10], [0, 2])
    assert "2 of 4 prompts dropped" in capsys.readouterr().err
    with pytest.raises(ValueError, match="--max-prompt-tokens"):
        render(questions, Letters(), max_prompt_tokens=4)


def test_answers_fit_the_context():
    from transformers import GenerationConfig, Qwen2Config

    class Model:
        config, generation_config = Qwen2Config(max_position_embeddings=100), GenerationConfig()

    limit = lambda wanted: curriculum.answer_limit(Model, Letters(), ["x" * 30, "x"], wanted)  # noqa: E731
    assert limit(None) == 70 and limit(70) == 70
    with pytest.raises(ValueError, match="room for 70"):
        limit(71)
    Model.generation_config = GenerationConfig(max_new_tokens=20)
    assert limit(None) == 20


# ------------------------------------------------------------------------------------------- the order
def fake_sample(answers):
    """A sample() that answers question p with answers[p], a list of (text, finished, log-prob, length)."""

    def sample(model, tokenizer, prompts, group_size, max_new_tokens, temperature, seeds, top_p=1.0):
        drawn = [answers[prompt][g] for prompt in prompts for g in range(group_size)]
        width = max(n for *_, n in drawn)
        texts, finished, sums, lengths = zip(*drawn, strict=True)
        mask = torch.arange(width) < torch.tensor(lengths)[:, None]
        logprobs = (torch.tensor(sums) / torch.tensor(lengths))[:, None] * mask
        return rollout.Rollout(None, None, None, mask, logprobs, list(texts), torch.tensor(finished))

    return sample


def settings(questions, samples=4, **other):
    return {"Q": len(questions), "M": samples, "temperature": 1.0, "max_new_tokens": 8, "seed": 0,
            "estimator": "frequency"} | other  # fmt: skip


def test_semantic_order_is_what_it_says(tmp_path, monkeypatch):
    def box(text):
        return rf"\boxed{{{text}}}", True, -1.0, 5

    answers = {
        "sure": [box("1/2"), box("0.5"), box(r"\frac{2}{4}"), box("1/2")],
        "wrong": [box("3")] * 4,
        "torn": [(r"\boxed{7} and so on", False, -1.0, 8)] * 4,  # cut off: four meanings of their own, reward 0
        "mute": [("", True, -1.0, 1)] * 4,
        "split": [box("1"), box("2"), box("1"), box("2")],
    }
    questions = [Question(p, p, {"sure": "0.5", "torn": "7", "split": "1"}.get(p, "0")) for p in answers]
    monkeypatch.setattr(rollout, "sample", fake_sample(answers))
    path = tmp_path / "deep" / "order.jsonl"
    rows = semantic_order(None, None, questions, list(answers), path, settings(questions), chunk=2)
    assert [r["id"] for r in rows] == ["sure", "wrong", "split", "torn", "mute"]
    assert [r["index"] for r in rows] == [0, 1, 4, 2, 3]
    assert [r["se"] for r in rows] == pytest.approx([0, 0, math.log(2), math.log(4), math.log(4)])
    assert [r["accuracy"] for r in rows] == [1, 0, 0.5, 0, 0]
    assert rows[0]["clusters"] == [0, 0, 0, 0] and len(set(rows[3]["clusters"])) == 4
    assert rows[3]["answers"] == [None] * 4 and rows[3]["finished"] == [False] * 4
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines == [{"settings": settings(questions)}, *rows]
    assert set(rows[0]) == {"id", "index", "se", "accuracy", "clusters", "answers", "lengths", "logprobs", "finished"}
    assert rows[0]["lengths"] == [5] * 4 and rows[0]["logprobs"] == pytest.approx([-1.0] * 4, abs=1e-6)
    assert load_curriculum(path, questions, settings(questions)) == (rows, [])
    said = curriculum.summary(rows)
    assert "always right 20.0%, always wrong alike 20.0%" in said and "40.0%, cut off: 20.0% of all" in said


def test_the_estimator_is_used(tmp_path, monkeypatch):
    drawn = [(r"\boxed{1}", True, -3.0, 6), (r"\boxed{2}", True, -9.0, 9), (r"\boxed{1}", True, -4.0, 5)]
    monkeypatch.setattr(rollout, "sample", fake_sample({"q": drawn}))
    questions = [Question("q", "q", "1")]
    for estimator in curriculum.ESTIMATORS:
        s = settings(questions, 3, estimator=estimator)
        (row,) = semantic_order(None, None, questions, ["q"], tmp_path / estimator, s)
        assert row["se"] == pytest.approx(semantic_entropy([0, 1, 0], [-3, -9, -4], [6, 9, 5], estimator), rel=1e-5)
    with pytest.raises(ValueError, match="--samples"):
        semantic_order(None, None, questions, ["q"], tmp_path / "one", settings(questions, 1))


def test_broken_log_probs_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(rollout, "sample", fake_sample({"q": [("1", True, math.nan, 2)] * 2}))
    with pytest.raises(ValueError, match="question q.*nan"):
        semantic_order(None, None, [Question("q", "q", "1")], ["q"], tmp_path / "o", settings([0], 2))


def test_ties_break_by_accuracy_then_index():
    pairs = [(0.5, 0.2), (0.0, 0.0), (0.0, 1.0), (0.0, 1.0)]
    rows = [{"se": se, "accuracy": accuracy, "index": i} for i, (se, accuracy) in enumerate(pairs)]
    assert [r["index"] for r in sorted(rows, key=curriculum.easy_to_hard)] == [2, 3, 1, 0]


def test_stages_lose_nothing():
    for size, n in itertools.product(range(1, 30), range(1, 30)):
        if n > size:
            with pytest.raises(ValueError, match="--stages"):
                stages(range(size), n)
            continue
        cut = stages(range(size), n)
        assert [i for stage in cut for i in stage] == list(range(size)) and len(cut) == n
        assert max(map(len, cut)) - min(map(len, cut)) <= 1


# ------------------------------------------------------------------------------------------- killed and continued
def made(index):
    return {"index": index, "value": hashlib.sha256(str(index).encode()).hexdigest()[:8]}


class Work:
    """work() that notes what it was asked for, and dies in the chunk with number `dies`."""

    def __init__(self, dies=None):
        self.asked, self.dies = [], dies

    def __call__(self, indices):
        self.asked.append(indices)
        if len(self.asked) == self.dies:
            raise KeyboardInterrupt
        return [made(i) for i in indices]


def stream(path, work, total=10, chunk=3, order=lambda row: -row["index"], **other):
    return curriculum.stream_rows(path, {"seed": 0, "model": "m"} | other, total, work, chunk, order)


def test_an_uninterrupted_file(tmp_path):
    work = Work()
    assert stream(tmp_path / "f", work) == [made(i) for i in reversed(range(10))]
    assert work.asked == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9]]
    assert [p.name for p in tmp_path.iterdir()] == ["f"]
    again = Work()
    assert stream(tmp_path / "f", again) == [made(i) for i in reversed(range(10))] and again.asked == []


def test_cut_anywhere_and_continued(tmp_path, capsys):
    """A part file that ends at any byte whatever is continued to the same file, and no whole chunk is made twice."""
    stream(tmp_path / "whole", Work())
    with pytest.raises(KeyboardInterrupt):
        stream(tmp_path / "f", Work(dies=4))
    part = (tmp_path / "f.part0").read_bytes()
    ends = [i + 1 for i, byte in enumerate(part) if byte == 10]  # of header, row 0, row 1, ...
    for size in range(len(part) + 1):
        (tmp_path / "f.part0").write_bytes(part[:size])
        work = Work()
        stream(tmp_path / "f", work)
        assert (tmp_path / "f").read_bytes() == (tmp_path / "whole").read_bytes(), size
        rows = max(0, sum(end <= size for end in ends) - 1)
        assert work.asked == [c for c in ([0, 1, 2], [3, 4, 5], [6, 7, 8], [9]) if c[-1] >= rows], size
        (tmp_path / "f").unlink()
    assert "cut off" in capsys.readouterr().err


def test_a_full_disk_loses_nothing(tmp_path, capsys):  # capsys: what is said goes to memory, not to a file
    import resource

    stream(tmp_path / "whole", Work())
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (250, before[1]))  # no file may grow beyond 250 bytes
    try:
        with pytest.raises(OSError, match="f.part0: .*make room"):
            stream(tmp_path / "f", Work())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (tmp_path / "f.part0").stat().st_size == 250 and not (tmp_path / "f").exists()
    stream(tmp_path / "f", Work())
    assert (tmp_path / "f").read_bytes() == (tmp_path / "whole").read_bytes()


def test_two_processes_do_not_write_one_file(tmp_path):
    """Whoever comes second is refused, and changes nothing; an end of the first in between is noticed too."""
    with pytest.raises(KeyboardInterrupt):
        stream(tmp_path / "f", Work(dies=3))
    before = (tmp_path / "f.part0").read_bytes()
    with curriculum.hold(tmp_path / "f.part0"):  # as another process would: the lock is the open file's
        work = Work()
        with pytest.raises(ValueError, match="f.part0: another process is writing here.*--out"):
            stream(tmp_path / "f", work)
    assert work.asked == [] and (tmp_path / "f.part0").read_bytes() == before
    stream(tmp_path / "f", Work())
    whole = (tmp_path / "f").read_bytes()
    (tmp_path / "f").rename(tmp_path / "later")
    hold = curriculum.hold

    def late(path):
        (tmp_path / "later").rename(tmp_path / "f")
        return hold(path)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(ValueError, match="just been made"):
        patch.setattr(curriculum, "hold", late)
        stream(tmp_path / "f", Work())
    assert (tmp_path / "f").read_bytes() == whole


def test_parts_of_other_ranks_are_used(tmp_path):
    header = {"settings": {"seed": 0, "model": "m"}}
    write(tmp_path / "f.part1", [header, *map(made, (3, 4, 5))])
    write(tmp_path / "f.part7", [header, made(9)])
    work = Work()
    assert stream(tmp_path / "f", work) == [made(i) for i in reversed(range(10))]
    assert work.asked == [[0, 1, 2], [6, 7, 8]] and [p.name for p in tmp_path.iterdir()] == ["f"]


def test_other_settings_are_refused(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        stream(tmp_path / "f", Work(dies=2))
    before = (tmp_path / "f.part0").read_bytes()
    with pytest.raises(ValueError, match=r"f\.part0 .*seed: 0 there, 1 here.*--out"):
        stream(tmp_path / "f", Work(), seed=1)
    assert (tmp_path / "f.part0").read_bytes() == before
    stream(tmp_path / "f", Work(), model="the same one, from another folder")
    with pytest.raises(ValueError, match="seed: 0 there, 1 here"):
        stream(tmp_path / "f", Work(), seed=1)
    lines = (tmp_path / "f").read_text().splitlines(keepends=True)
    (tmp_path / "f").write_text("".join(lines[:5]))
    with pytest.raises(ValueError, match="4 rows of 10"):
        stream(tmp_path / "f", Work())
    (tmp_path / "f").write_text("".join([*lines[:5], "{torn\n", *lines[6:]]))
    with pytest.raises(ValueError, match="line 6"):
        stream(tmp_path / "f", Work())


# ------------------------------------------------------------------------------------------- curricula from elsewhere
def test_load_curriculum(tmp_path):
    questions = [Question(name, name, "1") for name in "abc"]
    rows = [{"id": "c", "index": 0, "se": 0.0, "accuracy": 0.5}, {"id": "a", "index": 1, "se": 0.7, "accuracy": 0.5}]
    there = {"Q": 2, "M": 8, "model": "theirs", "fingerprint": "f00"}
    path = write(tmp_path / "c.jsonl", [{"settings": there}, *rows])
    loaded, warnings = load_curriculum(path, questions, there | {"fingerprint": "ba5", "model": "ours"})
    assert [(row["id"], row["index"]) for row in loaded] == [("c", 2), ("a", 0)]  # places in these questions, by id
    assert "theirs" in warnings[0] and "'f00' there, 'ba5' here" in warnings[0] and "2 of 3" in warnings[1]
    top = {"settings": there}
    for lines, word in (([top, rows[0]], "1 of 2"), ([top, rows[0], rows[0]], "twice"), ([], "not a whole"),
                        ([top, *rows, '{"id": "b", "ind'], "line 4"), (rows, "line 1"),
                        ([top, rows[0], {**rows[1], "id": "z"}], "line 3.*'z'")):  # fmt: skip
        with pytest.raises(ValueError, match=f"c.jsonl.*{word}"):
            load_curriculum(write(path, lines), questions, there)
    path.write_text(json.dumps({"settings": there}) + "\n" + json.dumps(rows[0]) + "\n" + json.dumps(rows[1])[:-9])
    with pytest.raises(ValueError, match="not a whole"):
        load_curriculum(path, questions, there)


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    """Random weights: all that matters here is that it runs."""
    from arithmetic import Settings, ensure

    small = Settings(train_questions=40, heldout_questions=4, hidden=16, layers=1, heads=1, steps=2, batch=4)
    return ensure(tmp_path_factory.mktemp("cache"), settings=small, quiet=True)[0]


def test_fingerprints_tell_models_apart(model_folder, tmp_path):
    import shutil

    shutil.copytree(model_folder, tmp_path / "copy")
    weights = tmp_path / "copy" / "model.safetensors"
    assert curriculum.fingerprint(model_folder) == curriculum.fingerprint(tmp_path / "copy")
    content = bytearray(weights.read_bytes())
    content[-7] ^= 1
    weights.write_bytes(content)
    assert curriculum.fingerprint(model_folder) != curriculum.fingerprint(tmp_path / "copy")


# ------------------------------------------------------------------------------------------- the command line
def test_help_and_bad_flags_do_not_wait_for_torch():
    code = "import sys, curriculum as c\ntry: c.main(sys.argv[1:])\nfinally: assert 'torch' not in sys.modules"
    for line in ("--help", "--samples 1", "--temperature nan", "--seed x", "--no-such", "--estimator x"):
        done = subprocess.run([sys.executable, "-c", code, *line.split()], cwd=ROOT, capture_output=True, text=True)
        assert line.split()[0] in done.stdout + done.stderr and done.returncode == (0 if line == "--help" else 2)
        assert done.stderr.count("\n") == (0 if line == "--help" else 1), done.stderr


def test_bad_input_is_one_line_and_writes_nothing(model_folder, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    good = str(model_folder.parent / "train.jsonl")
    for flags, word in ((["--questions", "no.jsonl"], "no.jsonl"), (["--model", "no/where/at/all"], "no/where/at/all"),
                        (["--max-prompt-tokens", "1"], "--max-prompt-tokens"),
                        (["--max-new-tokens", "100000"], "--max-new-tokens")):  # fmt: skip
        arguments = {"--model": str(model_folder), "--questions": good, "--out": "o.jsonl"} | dict([flags])
        assert curriculum.main([part for pair in arguments.items() for part in pair]) == 2
        said = capsys.readouterr().err.strip().splitlines()[-1]
        assert word in said and said.startswith("curriculum.py: ") and list(tmp_path.iterdir()) == []


def test_killed_then_continued_by_two_processes(model_folder, tmp_path):
    """kill -9 one process, go on with two: the same bytes as one process that was left alone."""
    flags = ["--model", str(model_folder), "--questions", str(model_folder.parent / "train.jsonl"), "--samples", "4",
             "--max-new-tokens", "8", "--chunk", "2"]  # fmt: skip
    assert curriculum.main([*flags, "--out", str(tmp_path / "whole.jsonl")]) == 0
    out, part = tmp_path / "order.jsonl", tmp_path / "order.jsonl.part0"
    slow = "import sys, time, rollout, curriculum as c\ns = rollout.sample\n" \
           "rollout.sample = lambda *a, **k: (time.sleep(0.3), s(*a, **k))[1]\nc.main(sys.argv[1:])"  # fmt: skip
    first = subprocess.Popen([sys.executable, "-c", slow, *flags, "--out", str(out)], cwd=ROOT)
    deadline = time.monotonic() + 300
    while not part.exists() or part.read_bytes().count(b"\n") < 4:
        assert time.monotonic() < deadline and first.poll() is None
        time.sleep(0.02)
    first.send_signal(signal.SIGKILL)
    first.wait()
    survived = part.read_bytes().count(b"\n") - 1
    assert 3 <= survived < 40 and not out.exists()
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    said = tmp_path / "said.txt"
    with said.open("w") as file:  # not a pipe: workers that hang would hold it open, and the test with it
        command = [*torchrun, str(ROOT / "curriculum.py"), *flags, "--out", str(out)]
        two = subprocess.Popen(command, stdout=file, stderr=file, start_new_session=True,
                               env=os.environ | {"OMP_NUM_THREADS": "1"})  # fmt: skip
    try:
        assert two.wait(timeout=300) == 0, said.read_text()
    finally:
        if two.poll() is None:
            os.killpg(two.pid, signal.SIGKILL)
    assert out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert said.read_text().count("wrote") == 1 and not list(tmp_path.glob("*.part*"))
