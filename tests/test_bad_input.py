"""Input that cannot hurt: refused in one line that names culprit and remedy, exit code 2, nothing written.

In the process of the test (importing torch for each row would take minutes); that `--help` and argument errors answer
at once without torch is in test_train.py.
"""

import json
import shlex
import shutil
import socket
import time
from pathlib import Path

import pytest
import torch

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
    monkeypatch.setattr("arithmetic.ensure", lambda *args: pytest.fail("minutes of work before the input is looked at"))
    shutil.copytree(model, "model")
    write("good.jsonl", GOOD)
    return tmp_path


def write(name, rows):
    Path(name).write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))


def refused(main, arguments, capsys, *words):
    """One line on stderr with these words, exit code 2, no traceback, no new file, in 5 s."""
    before = {p: p.stat().st_mtime_ns for p in Path(".").rglob("*") if p.is_file()}
    began = time.process_time()  # of the CPU: a busy neighbour is not our fault
    try:
        code = main([str(a) for a in arguments])
    except SystemExit as stop:
        code = stop.code
    assert time.process_time() - began < 5
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
    ("--curriculum nowhere.jsonl", "--curriculum nowhere.jsonl"),
    ("--estimator guess", "--estimator"),
    ("--average median", "average"),
    ("--no-such-flag 1", "--no-such-flag"),
    ("--tau-entropy 120%", "120%"),
    ("--tau-entropy 0%", "0%"),
    ("--tau-cov many", "tau_cov"),
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
    ("--resume ''", "config.json"),
    ("--resume model", "config.json"),
    ("--resume model --steps 3", "--resume"),
    ("--out full", "full"),
    ("--out good.jsonl", "good.jsonl"),
    ("--out good.jsonl/below", "good.jsonl"),
    ("--resume torn", "torn/config.json"),
    ("--method high_entropy_kl --tau-entropy 100%", "100%"),
    ("--beta-high 0", "beta_high"),
    ("--kl-coef -1", "kl_coef"),
    ("--clip-low nan", "clip_low"),
    ("--weight-decay -1", "--weight-decay"),
    ("--eval-samples 8", "--eval-samples"),
    ("--stages 9 --steps 8", "--stages"),
    ("--method grpo --reverse", "--stages"),
    ("--method grpo --estimator likelihood", "--estimator"),
    ("--heldout good.jsonl --eval-samples 0", "--heldout"),
    ("--model model --questions good.jsonl --split test", "no split to choose"),
    ("--model model --questions good.jsonl --heldout good.jsonl --heldout-subset main", "no subset to choose"),
    ("--model model --questions model --subset main", "no subset to choose"),
]


@pytest.mark.parametrize("line, word", FLAGS, ids=[line for line, _ in FLAGS])
def test_flags_are_refused(here, capsys, line, word):
    Path("unknown.json").write_text('{"colour": "red"}')
    Path("typed.json").write_text('{"steps": "many"}')
    Path("torn").mkdir()
    Path("torn/config.json").write_text('{"steps": 3, "me')
    Path("full").mkdir()
    Path("full/something").write_text("x")
    arguments = shlex.split(line)
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


SCRIPTS = {"train": (train, "--model model --questions {} --out run"),
           "curriculum": (curriculum, "--model model --questions {} --out order.jsonl"),
           "evaluate": (evaluate, "--model model --benchmarks b={} --out e")}  # fmt: skip


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_line_of_a_gigabyte_is_refused(here, capsys, name):
    with open("huge.jsonl", "wb") as file:
        file.truncate(2**30)  # a hole: it takes no room
    script, line = SCRIPTS[name]
    refused(script.main, line.format("huge.jsonl").split(), capsys, "huge.jsonl, line 1", "longer than 16 MB")


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_port_in_use_is_refused(here, capsys, monkeypatch, name):
    """As torchrun sets it up, or a script on a cluster: rank 0 has to listen where somebody already does."""
    with socket.create_server(("localhost", 0)) as taken:
        port = str(taken.getsockname()[1])
        one = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": port}
        for variable, value in one.items():
            monkeypatch.setenv(variable, value)
        script, line = SCRIPTS[name]
        refused(script.main, line.format("good.jsonl").split(), capsys, port, "another")


@pytest.mark.parametrize("name", SCRIPTS)
@pytest.mark.parametrize("place", ["/proc/nowhere", "good.jsonl/below"])
def test_a_place_that_cannot_be_written_is_refused(here, capsys, name, place):
    script, line = SCRIPTS[name]
    line = line.format("good.jsonl").split()[:-1] + [f"{place}/o.jsonl" if name == "curriculum" else place]
    if name == "train":
        line += ["--stages", "1", "--eval-samples", "0"]
    refused(script.main, line, capsys, place, "--out" if place.startswith("/proc") else "good.jsonl")


@pytest.mark.parametrize("line, word", [
    ("--samples 1", "--samples"), ("--samples many", "--samples"), ("--temperature nan", "--temperature"),
    ("--seed -1", "--seed"), ("--chunk 0", "--chunk"), ("--estimator guess", "--estimator"),
    ("--device tpu", "--device"), ("--max-new-tokens 0", "--max-new-tokens"), ("--no-such-flag", "--no-such-flag"),
    ("--max-new-tokens 100000", "--max-new-tokens"), ("--max-prompt-tokens 1", "--max-prompt-tokens"),
    ("--answer-field solution", "solution"), ("--question-field text", "text"),
])  # fmt: skip
def test_flags_of_curriculum_are_refused(here, capsys, line, word):
    arguments = "--model model --questions good.jsonl --out order.jsonl".split() + line.split()
    refused(curriculum.main, arguments, capsys, word)


@pytest.mark.parametrize("settings, word", [({"seed": 1}, "seed: 1 there, 0 here"), ({"fingerprint": "f00"}, "f00"),
                                            ({"M": 2}, "M: 2 there"), ({}, "content")])  # fmt: skip
def test_a_curriculum_made_otherwise_is_not_continued(here, capsys, settings, word):
    """Of another seed, another model, another M, other questions: refused, and left as it is."""
    flags = ["--model", "model", "--questions", "good.jsonl", "--out", "order.jsonl", "--max-new-tokens", "4"]
    assert curriculum.main(flags) == 0
    head, *rows = Path("order.jsonl").read_text().splitlines()
    write("order.jsonl", [{"settings": json.loads(head)["settings"] | settings}, *rows])
    if not settings:
        write("good.jsonl", GOOD[:5])
    refused(curriculum.main, flags, capsys, "order.jsonl was made with other settings", word, "--out")


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


def short_context():
    path = Path("model/config.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"max_position_embeddings": 66}))  # 64 for the answer


def shorter_context():
    path = Path("model/config.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"max_position_embeddings": 64}))


def pickled():
    """Weights as a pickle that would run something: there is nothing else to load, and it is not opened."""
    Path("model/model.safetensors").unlink()
    torch.save({"weights": Evil()}, "model/pytorch_model.bin")


class Evil:
    def __reduce__(self):
        return Path.touch, (Path("executed"),)


def remote_code():
    """A model of its own kind, whose class stands in a file beside it."""
    path = Path("model/config.json")
    own = {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}}
    path.write_text(json.dumps(json.loads(path.read_text()) | own))
    Path("model/evil.py").write_text(f"open({str(Path('executed').absolute())!r}, 'w').close()\n")


@pytest.mark.parametrize("spoil", [without_eos, without_tokenizer, without_weights, torn_weights, other_shape,
                                   small_vocabulary, gone, short_context, shorter_context, pickled, remote_code],
                         ids=lambda f: f.__name__)  # fmt: skip
@pytest.mark.parametrize("script", SCRIPTS)
def test_models_are_refused(here, capsys, spoil, script):
    spoil()
    (script, line), limit = SCRIPTS[script], []
    if "context" in spoil.__name__:
        limit = ["--max-new-tokens", "64"]
    refused(script.main, line.format("good.jsonl").split() + limit, capsys, "context" if limit else "model")
    assert not Path("executed").exists()


SHORT = "--model model --questions good.jsonl --out run --steps 1 --stages 1 --questions-per-step 2 --group-size 4 " \
    "--max-new-tokens 8 --eval-samples 0 --no-figures"  # fmt: skip


def pad_is_eos():
    eos = json.loads(Path("model/tokenizer_config.json").read_text())["eos_token"]
    spoil_tokenizer(lambda c: c | {"pad_token": eos})


def no_pad():
    spoil_tokenizer(lambda c: {k: v for k, v in c.items() if k != "pad_token"})


def large_vocabulary():
    """As Qwen's: more rows than the tokenizer has tokens, and a policy that samples them."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained("model")
    model.resize_token_embeddings(model.config.vocab_size + 40, mean_resizing=False)
    model.save_pretrained("model")


def foreign_weights():
    """A model trained further by a pickle beside the safetensors: which are there, so nobody looks at it."""
    torch.save({"weights": Evil()}, "model/pytorch_model.bin")


@pytest.mark.parametrize("spoil", [pad_is_eos, no_pad, large_vocabulary, foreign_weights], ids=lambda f: f.__name__)
def test_models_that_are_odd_but_sound_are_trained(here, spoil):
    spoil()
    assert train.main(SHORT.split()) == 0
    metrics = json.loads(Path("run/metrics.jsonl").read_text())
    assert metrics["tokens"] > 0 and metrics["logprob_gap"] < 1e-4 and not Path("executed").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("script", ["train", "curriculum", "evaluate"])
def test_a_gpu_that_is_not_there_is_refused(here, capsys, script):
    script, line = SCRIPTS[script]
    refused(script.main, [*line.format("good.jsonl").split(), "--device", "cuda"], capsys, "--device cuda")


def test_a_damaged_evaluation_is_named(here, capsys):
    assert train.main(SHORT.split()) == 0
    Path("run/evaluation.json").write_text("{")
    assert train.main(["--resume", "run"]) == 1
    assert "run/evaluation.json: not JSON" in capsys.readouterr().err.splitlines()[-1]


def test_a_checkpoint_of_another_architecture_is_refused(here, capsys):
    assert train.main(SHORT.split()) == 0
    from transformers import AutoConfig, AutoModelForCausalLM

    for change in ({"hidden_size": 24, "intermediate_size": 8}, {"num_hidden_layers": 2}):
        config = AutoConfig.from_pretrained("model")
        config.update(change)
        AutoModelForCausalLM.from_config(config).save_pretrained("model")
        refused(train.main, ["--resume", "run"], capsys, "step-0000001 is of another model than model", "there", "here")


def test_a_torn_checkpoint_is_refused(here, capsys):
    assert train.main(SHORT.split()) == 0
    data = next(Path("run/checkpoints").glob("step-*/*.distcp"))
    data.write_bytes(data.read_bytes()[:100])
    refused(train.main, ["--resume", "run"], capsys, "step-0000001", "checkpoint before")


def test_a_curriculum_of_another_model_is_used_and_said(here, capsys):
    rows = [{"id": str(i), "index": i, "se": float(i), "accuracy": 0.5} for i in range(6)]
    write("order.jsonl", [{"settings": {"Q": 6, "model": "theirs", "fingerprint": "f00"}}, *rows])
    assert train.main(f"{SHORT} --steps 2 --stages 2 --curriculum order.jsonl".split()) == 0
    assert "was made with model theirs" in capsys.readouterr().err


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
    ("--model model --benchmarks good=good.jsonl, --out e", "--benchmarks ''"),
    ("--model model --benchmarks good=nowhere.jsonl --out e", "nowhere.jsonl"),
    ("--model model --benchmarks good=good.jsonl --k 0 --out e", "0"),
    ("--model model --benchmarks good=good.jsonl --k eight --out e", "eight"),
    ("--model model --benchmarks good=good.jsonl --k 16 --samples 8 --out e", "16"),
    ("--model model --benchmarks good=good.jsonl --temperature 0 --out e", "temperature"),
    ("--model model --benchmarks good=good.jsonl --top-p 2 --out e", "top"),
    ("--model model --benchmarks good=good.jsonl --top-p 0 --out e", "top"),
    ("--model model --benchmarks good=good.jsonl,good=good.jsonl --out e", "twice"),
    ("--model model model --benchmarks good=good.jsonl --out e", "twice"),
    ("--model model --benchmarks good=good.jsonl --no-such-flag --out e", "--no-such-flag"),
])  # fmt: skip
def test_evaluations_are_refused(here, capsys, line, word):
    refused(evaluate.main, line.split(), capsys, word)


@pytest.mark.parametrize("line, word", [("nowhere", "nowhere"), ("model", "metrics.jsonl"), ("", ""),
                                        ("empty", "metrics.jsonl"), ("damaged", "metrics.jsonl"),
                                        ("model --no-such-flag", "--no-such-flag")])  # fmt: skip
def test_figures_are_refused(here, capsys, line, word):
    for name, text in (("empty", ""), ("damaged", '{"step": 0}\n{"st\n{"step": 2}\n')):
        Path(name).mkdir()
        Path(name, "metrics.jsonl").write_text(text)
    refused(figures.main, line.split(), capsys, word)
