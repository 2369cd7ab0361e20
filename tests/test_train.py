"""train.py without a model: config, schedule, files. The runs themselves are in test_run.py."""

import json
import subprocess
import sys
import time
from dataclasses import asdict

import pytest

import train
from train import Config, batch_at, keep_until, load_config, make_parser, method_settings, parse, stage_at, troubles


def test_every_flag_has_help():
    shown = make_parser().format_help()
    for name in asdict(Config()):
        assert f"--{name.replace('_', '-')} " in shown, name


def test_help_and_argument_errors_answer_in_under_a_second():
    for arguments, code in ((["--help"], 0), (["--method", "nonsense"], 2), (["--group-size", "1"], 2)):
        began = time.perf_counter()
        done = subprocess.run([sys.executable, train.__file__, *arguments], capture_output=True, text=True)
        assert done.returncode == code
        assert time.perf_counter() - began < 1.5  # 0.15 s on a quiet machine; importing torch alone takes longer
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


HEALTHY = dict(truncated=0.0, missing=0.0, unparsed=0.0, groups_all_right=0.1, groups_all_wrong=0.1, reward=0.5,
               entropy=0.5, logprob_gap=1e-6, share_low=0.7, share_high=0.02, grad_norm=0.3)  # fmt: skip


@pytest.mark.parametrize("name, change", [
    ("truncated", {"truncated": 0.9}),
    ("unparsed", {"missing": 1.0}),
    ("equal groups", {"groups_all_right": 0.25, "groups_all_wrong": 0.75, "grad_norm": 0.0}),
    ("gap", {"logprob_gap": 0.1}),
    ("untreated", {"share_low": 0.0, "share_high": 0.0}),
    ("no gradient", {"grad_norm": 0.0}),
])  # fmt: skip
def test_trouble_is_named(name, change):
    assert troubles([HEALTHY], Config()) == {}
    assert list(troubles([HEALTHY | change], Config())) == [name]


def test_trouble_over_time_is_named():
    assert list(troubles([HEALTHY] + [HEALTHY | {"entropy": 0.01}], Config())) == ["collapse"]
    assert list(troubles([HEALTHY] + [HEALTHY | {"entropy": 1.5}], Config())) == ["explosion"]
    assert list(troubles([HEALTHY | {"reward": 0.0}] * 20, Config())) == ["no reward"]


def test_one_update_with_a_method_that_needs_two():
    assert "one update" in troubles([HEALTHY], Config(method="kl_cov", minibatches=1))
    assert "one update" not in troubles([HEALTHY], Config(method="kl_cov", minibatches=2))


def test_a_run_orders_only_questions_it_can_ask():
    config = Config(steps=2, questions_per_step=4)
    some = train.can_be_asked(100, config)
    assert len(set(some)) == 8 and some == sorted(some) and max(some) < 100
    other = train.can_be_asked(100, Config(steps=2, questions_per_step=4, seed=1))
    assert some == train.can_be_asked(100, config) != other
    assert train.can_be_asked(5, config) == [0, 1, 2, 3, 4]
