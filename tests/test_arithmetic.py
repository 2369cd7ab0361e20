"""arithmetic.py: the task says what it means, the base is an ordinary model folder, the cache is whole or not there."""

import dataclasses
import json
import random
import re
from fractions import Fraction
from itertools import islice

import pytest
import torch

import arithmetic
from arithmetic import BOX, FORK_AFTER, FORMS, Settings, ensure, make_questions, make_solution, question_text, solve
from verify import reward

TINY = Settings(train_questions=40, heldout_questions=16, hidden=16, layers=1, heads=2, steps=6, batch=8)
EXACT = dataclasses.replace(TINY, slip=0.0, slip_at_once=0.0, stop=0.0)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    return ensure(tmp_path_factory.mktemp("cache"), quiet=True, settings=TINY)


@pytest.fixture(scope="module")
def tokenizer(built):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(built[0])


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def some_questions(n, settings=TINY):
    return make_questions(dataclasses.replace(settings, train_questions=n, heldout_questions=0))


def evaluate(question):
    """The value of a question's text, by another road than the one that made it."""
    digits, divisor = re.fullmatch(r"\(?([\d+]+)\)?(?:/(\d))?=\?", question).groups()
    return Fraction(sum(int(d) for d in digits.split("+")), int(divisor or 1))


# ---------------------------------------------------------------------------------------------- questions
def test_golds_agree_with_an_independent_evaluation(built):
    for path in built[1:]:
        for row in lines(path):
            assert Fraction(row["answer"]) == evaluate(row["question"])
            assert row["level"] == len(re.findall(r"\d", row["question"].split(")")[0].split("=")[0]))


def test_train_and_heldout_share_no_question_and_hold_every_level():
    settings = Settings()
    questions = [question_text(*q) for q in make_questions(settings)]
    assert len(questions) == len(set(questions)) == settings.train_questions + settings.heldout_questions
    assert settings.train_questions >= 2000 and settings.heldout_questions >= 256
    for part in (questions[: settings.train_questions], questions[settings.train_questions :]):
        levels = [q.split("=")[0].count("+") + 1 for q in part]
        assert all(levels.count(2 + i) > 0.02 * len(part) for i in range(len(settings.levels)))


def test_supervised_learning_never_sees_a_heldout_question(tokenizer):
    heldout = {question_text([a, b], d) for a in range(1, 9) for b in range(1, 9) for d in (1, 2, 4)}  # of 81 x 3
    for tokens, labels, _ in islice(arithmetic.solution_batches(TINY, tokenizer, heldout), 64):
        for row, label in zip(tokens.tolist(), labels.tolist(), strict=True):
            prompt = row[: next(i for i, x in enumerate(label) if x != -100)]
            assert tokenizer.decode(prompt) not in heldout


# ---------------------------------------------------------------------------------------------- solutions
def test_exact_working_is_always_right_and_at_once_only_up_to_three_digits():
    rng = random.Random(0)
    for digits, divisor in some_questions(200):
        gold = arithmetic.write_answer(sum(digits), divisor, "lowest")
        assert reward(solve(digits, divisor, False, EXACT, rng), gold) == 1
        assert reward(solve(digits, divisor, True, EXACT, rng), gold) == (len(digits) <= 3)


def test_every_solution_has_the_format_and_works_along_the_question():
    rng = random.Random(0)
    for digits, divisor in some_questions(300):
        text = make_solution(digits, divisor, TINY, rng)
        working, box, answer = text.partition(BOX)
        assert box and re.fullmatch(r"\d+(/[24]|\.\d+)?\}", answer), text
        if working:
            assert re.fullmatch(r"\d(\+\d=\d+)+ ", working), text
            used = [int(working[0]), *map(int, re.findall(r"\+(\d)=", working))]
            assert used == digits[: len(used)]  # left to right, possibly stopped early


def test_slips_and_stops_happen_as_often_as_the_settings_say():
    rng = random.Random(0)
    digits = [1] * 8
    slippery = dataclasses.replace(EXACT, slip_at_once=0.3)
    slipped = [solve(digits, 1, True, slippery, rng) != "\\boxed{3}" for _ in range(2000)]
    assert abs(sum(slipped) / 2000 - 0.3) < 0.04
    texts = [solve(digits, 1, False, dataclasses.replace(EXACT, stop=0.1), rng) for _ in range(2000)]
    assert abs(sum("{8}" in text for text in texts) / 2000 - 0.9**6) < 0.04  # at least one sum, then six chances


def test_one_meaning_three_strings():
    for divisor in (2, 4):
        for total in range(2, 50):
            written = [arithmetic.write_answer(total, divisor, form) for form in FORMS]
            assert {Fraction(w) for w in written} == {Fraction(total, divisor)}
    assert len({arithmetic.write_answer(14, 4, form) for form in FORMS}) == 3
    assert arithmetic.write_answer(8, 4, "decimal") == "2"


def test_the_choice_of_habit_does_not_look_at_the_question():
    for length in (2, 8):
        rng = random.Random(length)
        at_once = [make_solution([1] * length, 1, TINY, rng).startswith(BOX) for _ in range(2000)]
        assert abs(sum(at_once) / 2000 - TINY.at_once) < 0.04


def test_forks_stand_where_a_choice_is_made(built, tokenizer):
    assert json.loads((built[0] / "forks.json").read_text()) == {"after": FORK_AFTER}

    def forks(response):
        prompt, pieces = "(7+5+3)/2=?", [tokenizer.decode([t]) for t in tokenizer(response)["input_ids"]]
        return [i for i in range(len(pieces)) if (prompt + "".join(pieces[:i])).endswith(tuple(FORK_AFTER))]

    assert forks("\\boxed{15/2}") == [0]  # to work or not to work
    assert forks("7+5=12+3=15 \\boxed{7.5}") == [0, 13]  # and how to write the answer


# ---------------------------------------------------------------------------------------------- the model folder
def test_tokenizer_gives_back_every_text(tokenizer):
    rng = random.Random(0)
    assert tokenizer.is_fast
    for digits, divisor in some_questions(100):
        for text in (question_text(digits, divisor), make_solution(digits, divisor, TINY, rng)):
            ids = tokenizer(text)["input_ids"]
            assert tokenizer.decode(ids) == text and tokenizer.unk_token_id not in ids
            assert len(ids) == len(text) - 6 * text.count(BOX)  # one per character, and one for the box


def test_special_tokens(tokenizer):
    assert len({tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id}) == 3
    assert tokenizer("1é\n")["input_ids"][1:] == [tokenizer.unk_token_id] * 2
    assert tokenizer("1" + tokenizer.eos_token)["input_ids"][-1] == tokenizer.eos_token_id
    assert tokenizer.decode(tokenizer("12")["input_ids"] + [tokenizer.eos_token_id], skip_special_tokens=True) == "12"
    assert tokenizer.chat_template is None


def test_an_ordinary_folder_loads(built, tokenizer):
    from transformers import AutoModelForCausalLM, GenerationConfig

    model = AutoModelForCausalLM.from_pretrained(built[0])
    assert (built[0] / "model.safetensors").is_file()
    assert model.config.eos_token_id == tokenizer.eos_token_id and model.config.vocab_size == len(tokenizer)
    assert model(**tokenizer("7+5=?", return_tensors="pt")).logits.isfinite().all()
    generation = GenerationConfig.from_pretrained(built[0])
    assert generation.do_sample and generation.temperature == 1 and generation.top_k == 0 and generation.top_p == 1
    assert generation.eos_token_id == tokenizer.eos_token_id


def test_default_size():
    assert 0.2e6 <= sum(p.numel() for p in arithmetic.make_model(Settings()).parameters()) <= 1e6


def test_a_batch_weighs_each_token_alike(tokenizer):
    """Length-sorted batches with their own mean would teach short solutions, the answers at once, too often."""
    batches = list(islice(arithmetic.solution_batches(TINY, tokenizer, set()), 16))
    counts, labelled = {count for _, _, count in batches}, [int((labels != -100).sum()) for _, labels, _ in batches]
    assert len(counts) == 1 and min(labelled) < 0.7 * max(labelled)
    assert counts.pop() == pytest.approx(sum(labelled) / 16)


# ---------------------------------------------------------------------------------------------- the cache
def test_same_settings_same_files_and_foreign_random_numbers_untouched(built, tmp_path):
    random.seed(1), torch.manual_seed(1)
    before = random.getstate(), torch.get_rng_state()
    again = ensure(tmp_path, quiet=True, settings=TINY)
    assert random.getstate() == before[0] and torch.equal(torch.get_rng_state(), before[1])
    for a, b in zip(built[1:], again[1:], strict=True):
        assert a.read_bytes() == b.read_bytes()
    assert (built[0] / "model.safetensors").read_bytes() == (again[0] / "model.safetensors").read_bytes()


def test_a_second_call_builds_nothing_and_other_settings_have_another_folder(built, monkeypatch):
    root = built[1].parent.parent
    calls = []
    monkeypatch.setattr(arithmetic, "build", lambda folder, settings, quiet: calls.append(settings))
    assert ensure(root, quiet=True, settings=TINY) == built and not calls
    other = dataclasses.replace(TINY, seed=1)
    assert ensure(root, quiet=True, settings=other)[1].parent != built[1].parent and calls == [other]


def test_a_build_that_dies_leaves_nothing_that_is_used(tmp_path, monkeypatch):
    def die(folder, settings, quiet):
        (folder / "train.jsonl").write_text("{")
        raise KeyboardInterrupt

    real = arithmetic.build
    monkeypatch.setattr(arithmetic, "build", die)
    with pytest.raises(KeyboardInterrupt):
        ensure(tmp_path, quiet=True, settings=TINY)
    assert not list(tmp_path.iterdir())
    half = tmp_path / ".arithmetic-killed"  # what a process leaves that was killed outright
    half.mkdir()
    monkeypatch.setattr(arithmetic, "build", real)
    model, train, _ = ensure(tmp_path, quiet=True, settings=TINY)
    assert half not in model.parents and len(lines(train)) == TINY.train_questions


def test_losing_a_race_is_fine(tmp_path, monkeypatch):
    real = arithmetic.build

    def while_another_wins(folder, settings, quiet):
        monkeypatch.setattr(arithmetic, "build", real)
        ensure(tmp_path, quiet=True, settings=settings)
        real(folder, settings, quiet)

    monkeypatch.setattr(arithmetic, "build", while_another_wins)
    model, train, _ = ensure(tmp_path, quiet=True, settings=TINY)
    assert train.is_file() and (model / "forks.json").is_file() and len(list(tmp_path.iterdir())) == 1


def test_where_the_cache_is(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.delenv("NANOSENT_CACHE", raising=False)
    assert arithmetic.default_cache() == tmp_path / "xdg" / "nanosent"
    monkeypatch.setenv("NANOSENT_CACHE", str(tmp_path / "own"))
    assert arithmetic.default_cache() == tmp_path / "own"


def test_main_says_where_and_what(built, monkeypatch, capsys):
    monkeypatch.setattr(arithmetic, "ensure", lambda: built)
    arithmetic.main()
    out = capsys.readouterr().out
    assert str(built[0]) in out and "level 2" in out and "=?" in out
