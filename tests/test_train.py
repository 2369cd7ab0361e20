"""train.py without a model: config, schedule, files. The runs themselves are in test_run.py."""

import inspect
import json
import re
import resource
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

import train
from train import Config, batch_at, keep_until, load_config, make_parser, method_settings, parse, stage_at, troubles


def test_every_flag_has_help():
    shown = make_parser().format_help()
    for name in asdict(Config()):
        assert f"--{name.replace('_', '-')} " in shown, name


def test_help_and_argument_errors_answer_without_torch():
    def cpu():
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime

    for arguments, code in ((["--help"], 0), (["--method", "nonsense"], 2), (["--group-size", "1"], 2)):
        began = cpu()
        done = subprocess.run([sys.executable, train.__file__, *arguments], capture_output=True, text=True)
        assert done.returncode == code
        assert cpu() - began < 1.5  # 0.3 s; importing torch alone takes longer
        if code:
            assert len(done.stderr.splitlines()) == 1 and "Traceback" not in done.stderr


def test_config_survives_its_own_json(tmp_path):
    config = Config(method="kl_cov", kl_old_coef=0.5, steps=7)
    (tmp_path / "config.json").write_text(json.dumps(asdict(config)))
    assert load_config(tmp_path / "config.json") == config


def test_flags_win_over_the_config_file(tmp_path):
    (tmp_path / "c.json").write_text(json.dumps({"steps": 7, "seed": 3}))
    config, resume = parse(["--config", str(tmp_path / "c.json"), "--seed", "4", "--out", str(tmp_path / "x")])
    assert (config.steps, config.seed, resume) == (7, 4, False)


def test_only_given_settings_reach_the_method():
    assert method_settings(Config()) == {}
    assert method_settings(Config(beta_low=0.1, beta_high=0.3)) == {"beta_low": 0.1, "beta_high": 0.3}


def test_batches_visit_each_question_of_a_stage_once_around():
    stages = [[0, 1, 2, 3, 4, 5], [6, 7, 8]]
    first = [q for step in range(3) for q in batch_at(step, 6, stages, 2, seed=0)]
    assert sorted(first) == stages[0]
    second = [q for step in range(3, 6) for q in batch_at(step, 6, stages, 2, seed=0)]
    assert sorted(second) == [6, 6, 7, 7, 8, 8]  # twice around
    assert first != [q for step in range(3) for q in batch_at(step, 6, stages, 2, seed=1)]


def test_stages_get_equal_shares_of_the_run():
    shares = [stage_at(s, 200, 4) for s in range(200)]
    assert shares == sorted(shares) and [shares.count(i) for i in range(4)] == [50] * 4


def test_torn_last_line_is_dropped_and_said(tmp_path, capsys):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 0}\n{"step": 1}\n{"step": 2}\n{"st')
    assert [m["step"] for m in keep_until(path, 2)] == [0, 1]
    assert path.read_text() == '{"step": 0}\n{"step": 1}\n'
    assert "torn" in capsys.readouterr().err


def test_damage_in_the_middle_is_refused_not_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 0}\n{"st\n{"step": 2}\n')
    with pytest.raises(ValueError, match="line 2"):
        keep_until(path, 2)
    assert path.read_text().count("\n") == 3


@pytest.mark.parametrize("row", ['{"reward": 1}', "[0]"])
def test_a_line_without_a_step_is_refused(tmp_path, row):
    (tmp_path / "metrics.jsonl").write_text(f'{{"step": 0}}\n{row}\n')
    with pytest.raises(ValueError, match="metrics.jsonl, line 2"):
        keep_until(tmp_path / "metrics.jsonl", 5)


HEALTHY = dict(truncated=0.02, missing=0.0, unparsed=0.0, groups_all_right=0.1, groups_all_wrong=0.1, reward=0.5,
               entropy=0.5, logprob_gap=1e-6, share_low=0.7, share_high=0.02, share_no_gradient=0.0, grad_norm=0.3)
SICK = {  # name: what the last of ten steps shows, and how the run is set
    "truncated": ({"truncated": 0.4}, {}),
    "unparsed": ({"missing": 0.95}, {}),
    "equal groups": ({"groups_all_right": 0.25, "groups_all_wrong": 0.75, "grad_norm": 0.0}, {}),
    "no reward": ({}, {}),
    "collapse": ({"entropy": 0.01}, {}),
    "explosion": ({"entropy": 1.5}, {}),
    "gap": ({"logprob_gap": 0.1}, {}),
    "untreated": ({"share_low": 0.0, "share_high": 0.0}, {}),
    "one update": ({}, {"method": "kl_cov", "minibatches": 1}),
    "no gradient": ({"grad_norm": 0.0}, {}),
}


@pytest.mark.parametrize("name", SICK)
def test_trouble_is_named(name):
    change, settings = SICK[name]
    healthy = [HEALTHY | ({"reward": 0.0} if name == "no reward" else {})] * 9
    assert list(troubles([*healthy, healthy[-1] | change], Config(**settings))) == [name]


@pytest.mark.parametrize("method", train.METHODS)
def test_a_healthy_run_is_not_warned_of(method):
    for n in (1, 10, 100):
        assert troubles([HEALTHY] * n, Config(method=method)) == {}


def test_trouble_depends_on_what_it_means():
    def named(change, **settings):
        return list(troubles([HEALTHY | change], Config(**settings)))

    assert named({"unparsed": 1.0}) == []  # answers in words, and right: compared as text
    assert "unparsed" in named({"unparsed": 1.0, "reward": 0.0})
    assert named({"share_low": 0.0, "share_high": 0.0}, method="grpo") == []  # selects nothing by design
    assert named({"share_low": 0.0, "share_high": 0.0}, beta_low=0.0, beta_high=0.0) == []  # and so on purpose
    assert named({"share_low": 0.0, "share_high": 0.0}, method="clip_cov") == ["untreated"]
    assert named({"share_low": 0.0, "share_high": 0.0, "share_no_gradient": 1e-3}, method="clip_cov") == []
    text = troubles([HEALTHY | {"reward": 0.0}] * 10, Config())["no reward"]
    assert "golds" in text and "golds" not in troubles([HEALTHY | {"reward": 0.0, "missing": 0.5}] * 10, Config())
    assert "golds" not in troubles([HEALTHY | {"reward": 0.0, "missing": 0.5}] * 10, Config())["no reward"]


def test_every_trouble_has_a_test_and_stands_in_the_readme():
    named = re.findall(r'^        "([\w ]+)": \(', inspect.getsource(troubles), re.MULTILINE)
    table = (Path(train.__file__).parent / "README.md").read_text().split("## Troubleshooting")[1].split("\n## ")[0]
    assert len(named) == 10 and set(named) == SICK.keys()
    assert named == re.findall(r"^\| ([\w ]+) \|", table, re.MULTILINE)[1 : 1 + len(named)]


@pytest.mark.parametrize("name, flaw", [("a", {"explosion", "truncated", "equal groups"}), ("b", {"truncated"}),
                                        ("c", {"equal groups", "no reward"})])  # fmt: skip
def test_the_broken_runs_of_the_lesson_are_told(name, flaw):
    folder = Path(train.__file__).parent / "results" / "broken" / name
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    config, told = load_config(folder / "config.json"), {}
    for n in range(1, 1 + len(metrics)):
        told = troubles(metrics[:n], config) | told
    assert flaw <= told.keys() and told.keys() - flaw <= {"no reward", "equal groups"}
    assert name != "c" or "golds" in told["no reward"]


def test_strong_tokens_are_told_by_the_methods_own_strength():
    """Also when every treated token is held hard, and when none is."""
    import torch

    from entropy import treat

    shape = 2, 6
    mask, generator = torch.ones(shape, dtype=torch.bool), torch.Generator().manual_seed(0)
    logprobs, entropy = -torch.rand(shape, generator=generator), torch.rand(shape, generator=generator)
    advantages = torch.tensor([[1.0], [-1.0]]).expand(shape)
    rows = {name: torch.tensor([1.0, 0.0]) for name in ("reward", "finished", "missing", "unparsed", "capped")}
    tokens = {"old": logprobs, "ref": logprobs, "sampled": logprobs, "entropy": entropy, "fork": mask * 0.0}

    def shares(method, **settings):
        whole = treat(method, logprobs, entropy, advantages, mask, **settings)
        batch = train.Batch(None, logprobs, None, whole, rows | tokens | {"mask": mask, "advantages": advantages},
                            whole, [0], {})  # fmt: skip
        m = train.measure(batch, Config(method=method, group_size=2))
        return m["share_low"] * 12, m["share_high"] * 12

    low = (entropy < 0.5).sum().item()
    assert shares("sent", tau_entropy=0.5, tau_cov=-1e9) == pytest.approx((0, low))  # each of them over the cut
    assert shares("sent", tau_entropy=0.5, tau_cov=1e9) == pytest.approx((low, 0))
    assert shares("high_entropy_kl", tau_entropy=0.5) == pytest.approx((12 - low, 0))
    assert shares("kl_cov", cov_share=0.25) == pytest.approx((3, 0))
    assert shares("sent_release", cov_share=0.25, tau_entropy=0.5) == pytest.approx((max(1, low // 4),) * 2)
    assert shares("grpo") == (0, 0)
    assert shares("sent", beta_low=0.0, beta_high=0.0) == shares("sent_release", kl_old_coef=0.0) == (0, 0)


def test_a_run_orders_only_questions_it_can_ask():
    config = Config(steps=2, questions_per_step=4)
    some = train.can_be_asked(100, config)
    assert len(set(some)) == 8 and some == sorted(some) and max(some) < 100
    other = train.can_be_asked(100, Config(steps=2, questions_per_step=4, seed=1))
    assert some == train.can_be_asked(100, config) != other
    assert train.can_be_asked(5, config) == [0, 1, 2, 3, 4]
