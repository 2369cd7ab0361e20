"""Whole runs of train.py on a tiny base: end to end, killed and resumed, micro-batched, in two processes."""

import dataclasses
import itertools
import json
import os
import pickle
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

import train

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))
from reliability import BOMBS, killed_in, small_task, start  # noqa: E402

SMALL = ["--questions-per-step", "4", "--group-size", "4", "--max-new-tokens", "32", "--curriculum-samples", "2",
         "--stages", "2", "--eval-samples", "16", "--eval-every", "2", "--no-figures", "--device", "cpu"]  # fmt: skip


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    """Model folder, questions and held-out questions: the embedded task, built small."""
    return [Path(path) for path in small_task(tmp_path_factory.mktemp("cache"))[1::2]]


def flags(base, out, *more):
    """`base`: model, questions, and held-out questions if the run is to evaluate."""
    paths = [f"--{name}={path}" for name, path in zip(("model", "questions", "heldout"), base, strict=False)]
    return [*paths, "--out", str(out), *SMALL, *more]


def weights(folder):
    from safetensors.torch import load_file

    return load_file(folder / "model" / "model.safetensors")


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def same_but_time(a, b):
    """Two metrics files agree in everything that is not measured with a clock."""
    def strip(rows):
        return [{k: v for k, v in row.items() if "second" not in k} for row in rows]

    return strip(lines(a / "metrics.jsonl")) == strip(lines(b / "metrics.jsonl"))


@pytest.fixture(scope="session")
def whole(base, tmp_path_factory):
    """An uninterrupted run of four steps."""
    out = tmp_path_factory.mktemp("whole") / "run"
    assert train.main(flags(base, out, "--steps", "4", "--checkpoint-every", "1")) == 0
    return out


def test_end_to_end(whole):
    metrics = lines(whole / "metrics.jsonl")
    assert [m["step"] for m in metrics] == [0, 1, 2, 3] and [m["stage"] for m in metrics] == [0, 0, 1, 1]
    for m in metrics:
        assert 0 <= m["reward"] <= m["pass_at_g"] <= 1
        assert m["entropy_q10"] <= m["entropy_q50"] <= m["entropy_q90"]
        assert 0 < m["entropy"] < 5 and m["logprob_gap"] < 1e-4
        assert 0.7 < m["share_low"] + m["share_high"] < 0.85  # the lowest 80 % by entropy
        assert m["entropy_fork"] is not None and m["tokens"] > 0
    assert metrics[0]["kl_ref"] == pytest.approx(0, abs=1e-9)  # the first rollout is from the start itself
    assert any(m["grad_norm"] > 0 for m in metrics)
    assert "eval_avg_at_16" in metrics[1] and "eval_avg_at_16" not in metrics[0]
    evaluation = json.loads((whole / "evaluation.json").read_text())
    assert set(evaluation) == {"start", "end"}
    # checkpoint-every 1: the newest two, and the only one that was evaluated
    assert [p.name for p in train.checkpoints(whole)] == ["step-0000002", "step-0000003", "step-0000004"]
    assert {"settings"} == set(lines(whole / "curriculum.jsonl")[0])
    row = lines(whole / "samples.jsonl")[0]
    assert len(row["tokens"]) == len(row["entropy"]) == len(row["kl_weight"]) == len(row["fork"])


def test_the_final_model_is_an_ordinary_folder(whole):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = (c.from_pretrained(whole / "model") for c in (AutoModelForCausalLM, AutoTokenizer))
    assert model.generate(**tokenizer("1+2=?", return_tensors="pt"), max_new_tokens=2).shape[0] == 1


def test_killed_and_resumed_is_the_uninterrupted_run(base, whole, tmp_path):
    """kill -9 in three phases; twenty times, and in all of them: benchmarks/reliability.py."""
    out, dice = tmp_path / "run", random.Random(0)
    command, fell = flags(base, out, "--steps", "4", "--checkpoint-every", "1"), []
    for phase, call in (("evaluating", 1), ("updating", 2), ("writing a checkpoint", 1)):
        fell.append(killed_in(phase, call, dice.uniform(0, 0.02), tmp_path / "note", *command))
        command = ["--resume", str(out)]
    assert None not in fell
    assert train.main(command) == 0
    assert same_but_time(out, whole)
    ours, theirs = weights(out), weights(whole)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_sigterm_leaves_a_checkpoint_and_says_how_to_go_on(base, tmp_path):
    out = tmp_path / "run"
    process = subprocess.Popen([sys.executable, ROOT / "train.py", *flags(base, out, "--steps", "10000")],
                               stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)  # fmt: skip
    while not (out / "metrics.jsonl").exists() and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=180)
    assert process.returncode == 128 + signal.SIGTERM
    assert f"--resume {out}" in said and "Traceback" not in said
    done = json.loads((train.checkpoints(out)[-1] / "meta.json").read_text())["next_step"]
    assert done == len(lines(out / "metrics.jsonl"))


def first_gradient(base, out, monkeypatch, *more):
    """The gradient of a run's first update, unclipped, and the shares of treated tokens; steps go nowhere."""
    seen = {}

    def look(parameters, max_norm):
        seen.setdefault("gradient", torch.cat([p.grad.flatten() for p in parameters]).clone())
        return seen["gradient"].norm()

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", look)
    whole_batch = ["--steps", "1", "--stages", "1", "--minibatches", "1", "--group-size", "8"]
    assert train.main(flags(base, out, *whole_batch, *more)) == 0
    m = lines(out / "metrics.jsonl")[0]
    return seen["gradient"], (m["share_low"], m["share_high"], m["entropy"])


@pytest.mark.parametrize("budget", [1, 100, 100000])
def test_micro_batches_change_nothing(base, tmp_path, monkeypatch, budget):
    """A memory knob: the same tokens are treated and the gradient is the same, whatever fits at a time."""
    whole, treated = first_gradient(base, tmp_path / "a", monkeypatch)
    flag = "--tokens-per-micro-batch"
    pieces, treated_in_pieces = first_gradient(base, tmp_path / "b", monkeypatch, flag, str(budget))
    assert whole.norm() > 0.01 and treated_in_pieces == pytest.approx(treated, abs=1e-6)
    assert (whole - pieces).norm() < 1e-5 * whole.norm()


def test_two_processes_take_the_same_step(base, tmp_path):
    """Gradient norm and every metric of the first step; later ones differ by what AdamW makes of rounding."""
    steps = ["--steps", "2", "--minibatches", "1", "--checkpoint-every", "1", "--stages", "1"]
    assert train.main(flags(base, tmp_path / "one", *steps)) == 0
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2",
               str(ROOT / "train.py"), *flags(base, tmp_path / "two", *steps)]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    one, two = (lines(tmp_path / name / "metrics.jsonl") for name in ("one", "two"))
    assert [m["step"] for m in two] == [0, 1]
    assert one[0]["grad_norm"] > 0.01
    for name, value in one[0].items():
        if "second" not in name and value is not None:
            assert two[0][name] == pytest.approx(value, rel=1e-4, abs=1e-5), name
    ours, theirs = weights(tmp_path / "one"), weights(tmp_path / "two")
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name], rtol=0, atol=5e-4)
    # and back: a checkpoint of two processes goes on in one
    again = train.Config(**json.loads((tmp_path / "two" / "config.json").read_text()) | {"steps": 3})
    (tmp_path / "two" / "config.json").write_text(json.dumps(train.asdict(again)))
    assert train.main(["--resume", str(tmp_path / "two")]) == 0
    assert [m["step"] for m in lines(tmp_path / "two" / "metrics.jsonl")] == [0, 1, 2]


def set_steps(folder, steps):
    config = json.loads((folder / "config.json").read_text()) | {"steps": steps}
    (folder / "config.json").write_text(json.dumps(config))


def rank_process(torchrun, rank):
    """The pid of a rank, a child of torchrun."""
    for pid in Path(f"/proc/{torchrun}/task/{torchrun}/children").read_text().split():
        if f"\0RANK={rank}\0".encode() in Path(f"/proc/{pid}/environ").read_bytes():
            return int(pid)


def test_one_process_goes_on_as_two_and_a_dead_rank_ends_both(base, tmp_path):
    """The checkpoint of one process in two: the same next step. Then kill -9 one rank: the other ends, and says why."""
    out = tmp_path / "run"
    steps = ["--minibatches", "1", "--checkpoint-every", "1", "--stages", "1"]
    assert train.main(flags(base[:2], out, *steps, "--steps", "1")) == 0
    shutil.copytree(out, tmp_path / "alone")
    set_steps(tmp_path / "alone", 2)
    assert train.main(["--resume", str(tmp_path / "alone")]) == 0
    set_steps(out, 100_000)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2",
               str(ROOT / "train.py"), "--resume", str(out)]  # fmt: skip
    with (tmp_path / "said").open("w") as said:  # not a pipe: a rank that hangs would hold it open
        two = subprocess.Popen(command, stdout=said, stderr=said, start_new_session=True)
    try:
        deadline = time.monotonic() + 300
        while (out / "metrics.jsonl").read_text().count("\n") < 3:
            assert two.poll() is None and time.monotonic() < deadline, (tmp_path / "said").read_text()
            time.sleep(0.05)
        os.kill(rank_process(two.pid, 1), signal.SIGKILL)
        assert two.wait(timeout=60) != 0
    finally:
        if two.poll() is None:
            os.killpg(two.pid, signal.SIGKILL)
    said = (tmp_path / "said").read_text()
    assert f"another process of this run has ended, so this one (rank 0) does too; its own message says why; then " \
        f"torchrun ... python train.py --resume {out}" in said  # fmt: skip
    one, more = (lines(folder / "metrics.jsonl")[1] for folder in (tmp_path / "alone", out))
    assert one["grad_norm"] > 0.01
    for name, value in one.items():
        if "second" not in name and value is not None:
            assert more[name] == pytest.approx(value, rel=1e-3, abs=1e-5), name


def test_two_runs_do_not_share_a_folder(base, whole, tmp_path, capsys):
    """The second is refused in one line while the first is alive, and no longer: the kernel holds the lock."""
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    before = (out / "metrics.jsonl").read_bytes()
    hold = "import sys, time, pathlib; sys.path.insert(0, sys.argv[1]); from curriculum import hold\n" \
        "file = hold(pathlib.Path(sys.argv[2])); print('held', flush=True); time.sleep(600)"  # fmt: skip
    other = subprocess.Popen([sys.executable, "-c", hold, ROOT, out / "lock"], stdout=subprocess.PIPE, text=True)
    assert other.stdout.readline() == "held\n"
    assert train.main(["--resume", str(out)]) == 2
    said = capsys.readouterr().err
    assert f"{out / 'lock'}: another process is writing here" in said and "Traceback" not in said
    assert (out / "metrics.jsonl").read_bytes() == before
    other.kill()
    other.wait()
    other.stdout.close()
    assert train.main(["--resume", str(out)]) == 0


def test_a_run_that_came_while_this_one_loaded_is_not_overwritten(base, tmp_path, monkeypatch, capsys):
    out, setup = tmp_path / "run", train.setup

    def slow(config):
        run = setup(config)
        out.mkdir()
        (out / "config.json").write_text("theirs")
        return run

    monkeypatch.setattr(train, "setup", slow)
    assert train.main(flags(base, out, "--steps", "2")) == 2
    assert "is not empty" in capsys.readouterr().err and (out / "config.json").read_text() == "theirs"


def test_two_processes_evaluate_as_one(base, tmp_path):
    """Every response and the table, byte for byte."""
    import evaluate

    flags = ["--model", str(base[0]), "--benchmarks", f"mine={base[2]}", "--k", "2,4", "--max-new-tokens", "16",
             "--device", "cpu", "--chunk", "2"]  # fmt: skip
    assert evaluate.main([*flags, "--out", str(tmp_path / "one")]) == 0
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2",
               str(ROOT / "evaluate.py"), *flags, "--out", str(tmp_path / "two")]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    files = [p.relative_to(tmp_path / "one") for p in (tmp_path / "one").rglob("*.jsonl")] + [Path("table.md")]
    assert len(files) == 2
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes(), file


def test_bad_numbers_stop_the_run_before_they_are_applied(base, tmp_path, monkeypatch, capsys):
    """A gradient that is not a number: no update, the batch is kept for inspection, the message names the step."""
    out, calls = tmp_path / "run", []
    clip = torch.nn.utils.clip_grad_norm_

    def poison(parameters, max_norm):
        calls.append(1)
        parameters = list(parameters)
        if len(calls) == 3:  # the first minibatch of step 1
            parameters[0].grad[0] = float("nan")
        return clip(parameters, max_norm)

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", poison)
    assert train.main(flags(base, out, "--steps", "4", "--checkpoint-every", "1")) == 1
    said = capsys.readouterr().err
    assert "step 1: gradient" in said and "broken-step-0000001-rank0.pt" in said and "Traceback" not in said
    kept = torch.load(out / "broken-step-0000001-rank0.pt", weights_only=True)
    assert len(kept["questions"]) == 4 and kept["entropy"].shape == kept["mask"].shape
    assert [m["step"] for m in lines(out / "metrics.jsonl")] == [0]
    assert [p.name for p in train.checkpoints(out)] == ["step-0000001"]


def test_log_probs_that_are_no_numbers_stop_the_run(base, tmp_path, monkeypatch, capsys):
    """Before anything is made of them; the message names tensor and question."""
    import rollout

    out, real, calls = tmp_path / "run", rollout.score, []

    def poison(*arguments, **options):
        logprobs, entropy = real(*arguments, **options)
        if len(logprobs) == 16 and not calls:
            calls.append(1)
            logprobs = logprobs.clone()
            logprobs[5, 0] = float("-inf")  # G = 4: of the second question
        return logprobs, entropy

    monkeypatch.setattr(rollout, "score", poison)
    with small_disk(2_000):  # and a full disk does not hide what is wrong
        assert train.main(flags(base[:2], out, "--steps", "1", "--stages", "1")) == 1
    said = capsys.readouterr().err
    assert "step 0: old: 1 answers, the first to question" in said and "Traceback" not in said
    named, listed = re.search(r"to question (\S+),.*Questions: (.*?);", said).groups()
    assert listed.split(", ")[1] == named
    assert re.search(r"could not be kept in \S+broken-step-0000000-rank0.pt", said)
    assert not (out / "metrics.jsonl").exists()


def test_weights_that_are_no_numbers_stop_the_run(base, tmp_path, monkeypatch, capsys):
    """An update may overflow although its gradient is sound: what the next step samples from has no probabilities."""
    real = train.update

    def overflow(run, *rest):
        done = real(run, *rest)
        next(run.model.parameters()).data.fill_(float("nan"))
        return done

    monkeypatch.setattr(train, "update", overflow)
    assert train.main(flags(base[:2], tmp_path / "run", "--steps", "2", "--stages", "1")) == 1
    said = capsys.readouterr().err
    assert "step 1: sampled: 16 answers, the first to question" in said and "Traceback" not in said


def test_a_run_made_longer_is_evaluated_at_its_new_end(base, tmp_path):
    out = tmp_path / "run"
    assert train.main(flags(base, out, "--steps", "1", "--stages", "1", "--lr", "0.01")) == 0
    before = json.loads((out / "evaluation.json").read_text())
    set_steps(out, 2)
    assert train.main(["--resume", str(out)]) == 0
    after = json.loads((out / "evaluation.json").read_text())
    assert after["start"] == before["start"] and (before["end"]["updates"], after["end"]["updates"]) == (1, 2)


@contextmanager
def small_disk(size):
    """No file may grow beyond this many bytes: a write that would is cut short, and the next one raises OSError."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("where, call, room, file, code", [
    ("begin", 1, 50, "config.json.tmp", 2),
    ("make_stages", 1, 500, "curriculum.jsonl.part0", 1),
    ("evaluate_and_note", 1, 100, "evaluation.json.tmp", 1),
    ("append_rows", 5, "metrics.jsonl", "metrics.jsonl", 1),
    ("append_rows", 4, "samples.jsonl", "samples.jsonl", 1),
    ("save_checkpoint", 2, 2000, "step-0000002.tmp", 1),
    ("save_model", 1, 2000, "model.tmp", 1),
])  # fmt: skip
def test_a_full_disk_loses_nothing(base, whole, tmp_path, monkeypatch, capsys, where, call, room, file, code):
    """One line that names the file; what was there stays; with room again the run ends as one that always had it."""
    out, real, calls = tmp_path / "run", getattr(train, where), []

    def full(*arguments):
        calls.append(1)
        if len(calls) != call:
            return real(*arguments)
        with small_disk(room if isinstance(room, int) else (out / room).stat().st_size + 20):
            return real(*arguments)

    monkeypatch.setattr(train, where, full)
    command = flags(base, out, "--steps", "4", "--checkpoint-every", "1")
    assert train.main(command) == code
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("train.py: ") and file in said and ("--resume" in said) == (code == 1)
    torn = isinstance(room, str) and not (out / room).read_text().endswith("\n")
    assert train.main(["--resume", str(out)] if code == 1 else command) == 0
    assert ("torn" in capsys.readouterr().err) == torn == isinstance(room, str)
    assert same_but_time(out, whole)
    ours, theirs = weights(out), weights(whole)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_kill_while_an_old_checkpoint_is_deleted(base, whole, tmp_path, monkeypatch):
    """Half of a deleted checkpoint is not taken for a whole one, and goes with the next save."""
    out, remove = tmp_path / "run", shutil.rmtree

    def killed(folder, **options):
        (Path(folder) / "meta.json").unlink()
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", killed)
    assert train.main(flags(base, out, "--steps", "4", "--checkpoint-every", "1")) == 130
    monkeypatch.setattr(shutil, "rmtree", remove)
    assert [p.name for p in train.checkpoints(out)] == ["step-0000002", "step-0000003"]
    assert train.main(["--resume", str(out)]) == 0
    assert not list((out / "checkpoints").glob("*.tmp")) and same_but_time(out, whole)


def test_sigterm_outside_the_loop_says_how_to_go_on(base, whole, tmp_path, monkeypatch, capsys):
    """In the first evaluation, before there is a step that could be finished."""
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(train, "held_out", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
        assert train.main(flags(base, out, "--steps", "4", "--checkpoint-every", "1")) == 128 + signal.SIGTERM
    assert f"interrupted; go on with: python train.py --resume {out}" in capsys.readouterr().err
    assert train.main(["--resume", str(out)]) == 0 and same_but_time(out, whole)


def test_a_second_ctrl_c_stops_at_once(base, tmp_path):
    """The first asks for the end of the step, which here would take ten minutes."""
    note = tmp_path / "note"
    slow = f"import train, time; train.update = lambda *_: (open({str(note)!r}, 'w').close(), time.sleep(600))"
    process = start(*flags(base[:2], tmp_path / "run", "--steps", "2", "--stages", "1"), first=slow)
    while not note.exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=10) == -signal.SIGINT


def test_a_checkpoint_that_names_foreign_code_is_refused(base, whole, tmp_path, capsys):
    """The index of torch's checkpoints is a pickle; one that would call something is not opened."""
    out = tmp_path / "run"
    shutil.copytree(whole, out)

    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "executed"),)

    # a dotted name is looked up attribute by attribute: os, which an allowed module has imported, and its mkdir
    plain, path = pickle.dumps(Evil(), 4), b"torch.distributed.checkpoint.filesystem"
    dotted = plain.replace(b"\x05posix", b"%c%s" % (len(path), path)).replace(b"\x05mkdir", b"\x08os.mkdir")
    for index in (plain, dotted):
        index = index[:2] + index[11:]  # without the frame, whose length is another now
        (train.checkpoints(out)[-1] / ".metadata").write_bytes(index)
        assert train.main(["--resume", str(out)]) == 2
        assert "mkdir, which no checkpoint of ours does" in capsys.readouterr().err
        assert not (tmp_path / "executed").exists()


def test_a_model_that_writes_bombs_is_trained(base, tmp_path, monkeypatch):
    """Power towers, a megabyte of braces: graded, not right, and the run goes on."""
    import rollout

    real, bombs = rollout.sample, itertools.cycle(BOMBS)

    def hostile(*arguments, **options):
        drawn = real(*arguments, **options)
        return dataclasses.replace(drawn, texts=[next(bombs) for _ in drawn.texts])

    monkeypatch.setattr(rollout, "sample", hostile)
    began = time.process_time()
    assert train.main(flags(base, tmp_path / "run", "--steps", "3")) == 0
    assert time.process_time() - began < 60
    assert [m["reward"] for m in lines(tmp_path / "run" / "metrics.jsonl")] == [0, 0, 0]


def test_questions_the_base_cannot_read_are_said_to_teach_nothing(base, tmp_path, capsys):
    """GSM8K's format on the arithmetic model: runs, reward 0, and says in words why that cannot learn."""
    questions = tmp_path / "words.jsonl"
    rows = [{"question": f"Ann has {i} sacks. How many?", "answer": f"{i}+{i}\n#### {2 * i}00"} for i in range(9)]
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["--model", str(base[0]), "--questions", str(questions), "--out", str(tmp_path / "run"), *SMALL]
    assert train.main([*command, "--steps", "2", "--method", "grpo", "--stages", "1"]) == 0
    assert [m["reward"] for m in lines(tmp_path / "run" / "metrics.jsonl")] == [0, 0]
    said = capsys.readouterr()
    assert "never right cannot learn" in said.out + said.err


# ---------------------------------------------------------------------------------------------- README
README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize("number, method", [(0, "sent"), (1, "only_unsure")])
def test_the_readmes_own_task_and_own_treatment_run(base, tmp_path, monkeypatch, number, method):
    """The two snippets, as they stand, on the small base and for two steps."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("entropy.METHODS", dict(train.METHODS))
    monkeypatch.setattr("train.METHODS", train.METHODS)
    real, codes = train.main, []
    model, questions, heldout = map(str, base)
    given = ["--model", model] + ["--questions", questions, "--heldout", heldout] * (number == 1)
    monkeypatch.setattr(train, "main", lambda argv: codes.append(real([*argv, *given, *SMALL, "--steps", "2"])))
    code = re.findall(r"```python\n(.*?)```", README, re.DOTALL)[number]
    assert len(code.splitlines()) < 20
    exec(code, {})
    assert codes == [0]
    assert len(lines(next(Path("runs").glob("*/metrics.jsonl")))) == 2
    assert json.loads(next(Path("runs").glob("*/config.json")).read_text())["method"] == method


def test_every_function_in_the_readme_exists():
    import importlib

    table = README.split("## Equation → function")[1].split("\n## ")[0]
    rows = re.findall(r"`(\w+)\.(\w+)`", table)
    assert len(rows) > 10
    for module, name in rows:
        assert hasattr(importlib.import_module(module), name), f"{module}.{name}"


def test_the_glossary_names_every_metric_and_no_other(whole):
    table = README.split("## Metrics")[1].split("\n## ")[0]
    named = {name for row in re.findall(r"^\|([^|]*)\|", table, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)}
    written = {name for m in lines(whole / "metrics.jsonl") for name in m if not name.endswith("_se")}
    assert named == written


def test_every_file_the_readme_shows_exists():
    for path in re.findall(r"\]\((?!https?:)([^)]+)\)", README):
        assert (ROOT / path).exists(), path
