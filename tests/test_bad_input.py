"""Input that cannot hurt: refused in one line that names culprit and remedy, exit code 2, nothing written.

In the process of the test (importing torch for each row would take minutes); that `--help` and argument errors answer
at once without torch is in test_train.py.
"""

import json
import shutil
from pathlib import Path

import pytest

import curriculum
import evaluate
import figures
import train

GOOD = [{"id": str(i), "question": f"{i}+1=?", "answer": str(i + 1)} for i in range(6)]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A random model folder with a character tokenizer; made to be spoilt."""
    from arithmetic import Settings, ensure

    settings = Settings(train_questions=8, heldout_questions=4, hidden=16, layers=1, heads=1, steps=2, batch=4)
    return ensure(tmp_path_factory.mktemp("cache"), settings=settings, quiet=True)[0]


@pytest.fixture
def here(tmp_path, monkeypatch, model):
    """A working folder with a model, good questions, and a place for a run."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(model, "model")
    write("good.jsonl", GOOD)
    return tmp_path


def write(name, rows):
    Path(name).write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))


def refused(main, arguments, capsys, *words):
    """One line on stderr with these words, exit code 2, no traceback, no new file."""
    before = {p: p.stat().st_mtime_ns for p in Path(".").rglob("*") if p.is_file()}
    try:
        code = main([str(a) for a in arguments])
    except SystemExit as stop:
        code = stop.code
    said = capsys.readouterr().err.strip()
    assert code == 2, said
    last = [line for line in said.splitlines() if line.strip()][-1]
    assert "Traceback" not in said
    for word in words:
        assert word in last, f"{word!r} is not in {last!r}"
    assert {p: p.stat().st_mtime_ns for p in Path(".").rglob("*") if p.is_file()} == before


FLAGS = [  # flags of train.py that are refused before anything is loaded, and a word of the answer
    ("--method sentt", "unknown method"),
    ("--group-size 1", "--group-size"),
    ("--group-size two", "--group-size"),
    ("--steps 0", "--steps"),
    ("--steps -3", "--steps"),
    ("--minibatches 0", "--minibatches"),
    ("--minibatches 5 --questions-per-step 4", "multiple of minibatches"),
    ("--questions-per-step 7 --minibatches 2", "multiple"),
    ("--curriculum-samples 1", "--curriculum-samples"),
    ("--stages 0", "--stages"),
    ("--temperature 0", "--temperature"),
    ("--temperature nan", "--temperature"),
    ("--lr -1", "--lr"),
    ("--lr inf", "--lr"),
    ("--seed -1", "--seed"),
    ("--max-new-tokens 0", "--max-new-tokens"),
    ("--tokens-per-micro-batch 0", "--tokens-per-micro-batch"),
    ("--max-grad-norm 0", "--max-grad-norm"),
    ("--schedule linear", "--schedule"),
    ("--device tpu", "--device"),
    ("--estimator guess", "--estimator"),
    ("--average median", "average"),
    ("--no-such-flag 1", "--no-such-flag"),
    ("--tau-entropy 120%", "120%"),
    ("--tau-entropy 0%", "0%"),
    ("--tau-cov many", "many"),
    ("--beta-low 0.2 --beta-high 0.1", "beta_high"),
    ("--beta-low -0.1", "beta_low"),
    ("--beta-low 0.1 --method grpo", "no setting of method grpo"),
    ("--entropy-coef 0.1", "no setting of method sent"),
    ("--method entropy_bonus --entropy-coef -1", "entropy_coef"),
    ("--method kl_cov --cov-share 1.5", "cov_share"),
    ("--method clip_cov --cov-low 5 --cov-high 1", "cov_low"),
    ("--method entropy_advantage --kappa 0", "kappa"),
    ("--config nowhere.json", "nowhere.json"),
    ("--config good.jsonl", "good.jsonl"),
    ("--config unknown.json", "colour"),
    ("--config typed.json", "steps"),
    ("--resume nowhere", "nowhere"),
    ("--resume model", "config.json"),
    ("--resume model --steps 3", "--resume"),
    ("--out full", "full"),
    ("--out good.jsonl", "good.jsonl"),
    ("--out good.jsonl/below", "good.jsonl"),
]


@pytest.mark.parametrize("line, word", FLAGS, ids=[line for line, _ in FLAGS])
def test_flags_are_refused(here, capsys, line, word):
    Path("unknown.json").write_text('{"colour": "red"}')
    Path("typed.json").write_text('{"steps": "many"}')
    Path("full").mkdir()
    Path("full/something").write_text("x")
    arguments = line.split()
    if "--out" not in line and "--resume" not in line:
        arguments += ["--out", "run"]
    refused(train.main, arguments, capsys, word)


QUESTIONS = {  # what is in the file, a word of the answer
    "empty": ([], "questions.jsonl"),
    "not json": (["{"], "line 1"),
    "a list": (["[1, 2]"], "line 1"),
    "no answer": ([{"question": "1+1=?"}], "answer"),
    "no question": ([{"answer": "2"}], "question"),
    "null answer": ([*GOOD, {"question": "x", "answer": None}], "line 7"),
    "nan answer": ([*GOOD, '{"question": "x", "answer": NaN}'], "line 7"),
    "wrong type": ([{"question": {"a": 1}, "answer": "2"}], "question"),
    "empty question": ([{"question": "", "answer": "2"}], "line 1"),
    "duplicate id": ([{"id": "a", "question": "1", "answer": "1"}, {"id": "a", "question": "2", "answer": "2"}], "a"),
    "no gold can be read": ([{"question": "1+1=?", "answer": ""}], "questions.jsonl"),
    "cut in half": ([*GOOD, '{"question": "1+1=?", "answ'], "line 7"),
}


@pytest.mark.parametrize("name", QUESTIONS)
@pytest.mark.parametrize("script", [train, curriculum], ids=["train", "curriculum"])
def test_questions_are_refused(here, capsys, name, script):
    rows, word = QUESTIONS[name]
    write("questions.jsonl", rows)
    out = ["--out", "run"] if script is train else ["--out", "order.jsonl"]
    refused(script.main, ["--model", "model", "--questions", "questions.jsonl", *out], capsys, "questions.jsonl", word)


def test_invalid_utf8_is_refused(here, capsys):
    Path("bytes.jsonl").write_bytes(b'{"question": "1+1=\xff", "answer": "2"}\n')
    arguments = ["--model", "model", "--questions", "bytes.jsonl", "--out", "run"]
    refused(train.main, arguments, capsys, "bytes.jsonl", "UTF-8")


@pytest.mark.parametrize("name", ["nowhere.jsonl", "nowhere/", "model/config.txt"])
def test_missing_questions_are_refused(here, capsys, name):
    refused(train.main, ["--model", "model", "--questions", name, "--out", "run"], capsys, name.rstrip("/"))


def spoil_tokenizer(change):
    path = Path("model/tokenizer_config.json")
    path.write_text(json.dumps(change(json.loads(path.read_text()))))


def without_eos():
    spoil_tokenizer(lambda c: {k: v for k, v in c.items() if k != "eos_token"})


def without_tokenizer():
    for path in Path("model").glob("token*"):
        path.unlink()


def without_weights():
    Path("model/model.safetensors").unlink()


def torn_weights():
    path = Path("model/model.safetensors")
    path.write_bytes(path.read_bytes()[:500])


def other_shape():
    path = Path("model/config.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"hidden_size": 24, "intermediate_size": 8}))


def small_vocabulary():
    path = Path("model/config.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"vocab_size": 3}))


def gone():
    shutil.rmtree("model")


@pytest.mark.parametrize("spoil", [without_eos, without_tokenizer, without_weights, torn_weights, other_shape,
                                   small_vocabulary, gone], ids=lambda f: f.__name__)  # fmt: skip
def test_models_are_refused(here, capsys, spoil):
    spoil()
    refused(train.main, ["--model", "model", "--questions", "good.jsonl", "--out", "run"], capsys, "model")


@pytest.mark.parametrize("name, rows, word", [
    ("empty", [], "order.jsonl"),
    ("no header", [{"id": "0", "index": 0, "se": 0.0}], "order.jsonl"),
    ("cut in half", [{"settings": {}}, '{"id": "0", "ind'], "line 2"),
    ("other questions", [{"settings": {}}, {"id": "no such", "index": 0, "se": 0.0, "accuracy": 1.0}], "no such"),
])  # fmt: skip
def test_curricula_are_refused(here, capsys, name, rows, word):
    write("order.jsonl", rows)
    arguments = ["--model", "model", "--questions", "good.jsonl", "--curriculum", "order.jsonl", "--out", "run"]
    refused(train.main, arguments, capsys, "order.jsonl", word)


@pytest.mark.parametrize("line, word", [
    ("--model nowhere --benchmarks good=good.jsonl --out e", "nowhere"),
    ("--model model --benchmarks no_such_benchmark --out e", "no_such_benchmark"),
    ("--model model --benchmarks good=nowhere.jsonl --out e", "nowhere.jsonl"),
    ("--model model --benchmarks good=good.jsonl --k 0 --out e", "0"),
    ("--model model --benchmarks good=good.jsonl --k eight --out e", "eight"),
    ("--model model --benchmarks good=good.jsonl --k 16 --samples 8 --out e", "16"),
    ("--model model --benchmarks good=good.jsonl --temperature 0 --out e", "temperature"),
    ("--model model --benchmarks good=good.jsonl --top-p 2 --out e", "top"),
])  # fmt: skip
def test_evaluations_are_refused(here, capsys, line, word):
    refused(evaluate.main, line.split(), capsys, word)


@pytest.mark.parametrize("line, word", [("nowhere", "nowhere"), ("model", "metrics.jsonl"), ("", "")])
def test_figures_are_refused(here, capsys, line, word):
    refused(figures.main, line.split(), capsys, word)
