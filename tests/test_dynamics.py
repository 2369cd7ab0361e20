"""The entropy of a softmax bandit moves as the theory says: equations (1) to (5) of benchmarks/dynamics.py."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import dynamics
from benchmarks.dynamics import EXAMPLE, PROBE, Bandit, entropy_of, errors, main, sent_beta, walk
from entropy import policy_loss, token_covariance, treat

torch.set_num_threads(1)
ETAS = [0.02, 0.01, 0.005]


def random_bandit(seed: int, n: int = 6, uniform_start: bool = False) -> tuple[Bandit, torch.Tensor]:
    """Rewards, a start policy, and logits somewhere else."""
    g = torch.Generator().manual_seed(seed)
    rewards = torch.randn(n, generator=g, dtype=torch.float64)
    start = torch.randn(n, generator=g, dtype=torch.float64) * (not uniform_start)
    theta = torch.randn(n, generator=g, dtype=torch.float64)
    return Bandit(rewards, start.log_softmax(0)), theta


def covariance(pi, x, y):
    """Cov_{a~pi}(x_a, y_a), on floats."""
    pi, x, y = pi.tolist(), x.tolist(), y.tolist()
    mean_x, mean_y = (sum(p * v for p, v in zip(pi, z, strict=True)) for z in (x, y))
    return sum(p * (a - mean_x) * (b - mean_y) for p, a, b in zip(pi, x, y, strict=True))


def is_second_order(found: list[float]) -> None:
    """Halving the step quarters the error: nothing of first order is missing."""
    assert found[0] < 1e-2
    for coarse, fine in zip(found, found[1:], strict=False):
        assert coarse / fine == pytest.approx(4, rel=0.15) or coarse < 1e-9, found


@pytest.mark.parametrize("seed", range(6))
def test_a_policy_gradient_step_changes_entropy_by_minus_eta_cov_of_log_pi_and_pi_times_a(seed):
    bandit, theta = random_bandit(seed)
    none, pi = torch.zeros(6), theta.softmax(0)
    predicted = -covariance(pi, pi.log(), pi * bandit.advantages(theta))
    assert bandit.predicted(theta, none) == pytest.approx(predicted, abs=1e-14)
    is_second_order(errors(bandit, theta, none, ETAS))


@pytest.mark.parametrize("seed", range(6))
def test_a_natural_step_changes_entropy_by_minus_eta_cov_of_log_pi_and_a(seed):
    bandit, theta = random_bandit(seed)
    none, pi = torch.zeros(6), theta.softmax(0)
    A = bandit.advantages(theta)
    assert bandit.predicted(theta, none, natural=True) == pytest.approx(-covariance(pi, pi.log(), A), abs=1e-14)
    step = bandit.direction(theta, none, natural=True)
    assert torch.allclose(step - step.mean(), A - A.mean(), atol=1e-12)  # a constant shift of logits is no change
    is_second_order(errors(bandit, theta, none, ETAS, natural=True))


def test_neither_covariance_is_right_for_the_other_step():
    """The error is then of first order: halving the step halves it."""
    bandit, theta = random_bandit(0)
    none = torch.zeros(6)
    for natural in (False, True):
        direction, slope = bandit.direction(theta, none, natural), bandit.predicted(theta, none, not natural)
        coarse, fine = (
            abs(entropy_of(theta + eta * direction) - entropy_of(theta) - eta * slope) for eta in (2e-3, 1e-3)
        )
        assert coarse / fine == pytest.approx(2, rel=0.05)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.lists(st.floats(0, 1), min_size=6, max_size=6))
def test_sents_kl_adds_what_the_theory_says(seed, beta):
    """Any weight per action, any start: dH = -eta Cov(log pi, pi A - g + pi sum(g)), g = beta (pi - rho)."""
    bandit, theta = random_bandit(seed)
    beta = torch.tensor(beta, dtype=torch.float64)
    pi, rho = theta.softmax(0), bandit.start.exp()
    g = beta * (pi - rho)
    added = bandit.predicted(theta, beta) - bandit.predicted(theta, beta * 0)
    assert added == pytest.approx(covariance(pi, pi.log(), g - pi * g.sum()), abs=1e-12)
    gradient = bandit.direction(theta, beta * 0) - bandit.direction(theta, beta)
    assert torch.allclose(gradient, g - pi * g.sum(), atol=1e-12)
    error = errors(bandit, theta, beta, [1e-2, 1e-4])
    assert error[1] < 1e-7 and error[1] < max(error[0] * 1e-3, 1e-13)


@pytest.mark.parametrize("method", ["grpo", "sent"])
def test_a_rollout_batch_of_the_bandit_moves_its_entropy_as_predicted(method):
    """treat() and policy_loss() on 64 sampled rows, whose frequencies are pi exactly: the batch is the expectation."""
    counts = torch.tensor([20, 16, 12, 8, 5, 3])
    actions = torch.arange(6).repeat_interleave(counts)
    theta = (counts / 64).double().log()
    bandit = Bandit(torch.tensor([1.0, 0, 0, 1, 0, 1], dtype=torch.float64), random_bandit(3)[0].start)
    logp, mask = theta.log_softmax(0)[actions, None], torch.ones(64, 1, dtype=torch.bool)
    advantages = bandit.advantages(theta)[actions, None]
    own = {"tau_entropy": 9.0, "tau_cov": "70%", "beta_low": 0.2, "beta_high": 0.8} if method == "sent" else {}
    treatment = treat(method, logp, torch.full_like(logp, entropy_of(theta)), advantages, mask, **own)
    beta = torch.stack([treatment.kl_weight[actions == a].unique(dim=0)[0, 0] for a in range(6)])  # one per action
    assert len(beta.unique()) == (2 if method == "sent" else 1)

    live = theta.clone().requires_grad_()
    loss, _ = policy_loss(live.log_softmax(0)[actions, None], logp, bandit.start[actions, None], treatment, mask)
    (loss.sum() / 64).backward()
    measured = [abs(entropy_of(theta - eta * live.grad) - entropy_of(theta) - eta * bandit.predicted(theta, beta))
                for eta in ETAS]  # fmt: skip
    is_second_order(measured)
    # And token_covariance, whose mean train.py logs as cov_mean, is the natural step's -dH / eta
    mean = token_covariance(logp, advantages, mask).mean().item()
    assert mean == pytest.approx(-bandit.predicted(theta, beta, natural=True), abs=1e-12)


@pytest.mark.parametrize("seed", range(20))
def test_kl_to_a_uniform_start_raises_entropy_wherever_the_policy_is(seed):
    bandit, theta = random_bandit(seed, uniform_start=True)
    beta = torch.full((6,), 0.3, dtype=torch.float64)
    added = bandit.predicted(theta, beta) - bandit.predicted(theta, beta * 0)
    pi = theta.softmax(0)
    assert added == pytest.approx(0.3 * covariance(pi, pi.log(), pi), abs=1e-12) and added > 0


def test_kl_to_a_peaked_start_lowers_entropy_of_a_policy_that_is_flatter():
    """The KL keeps entropy near the *start's*; it is no entropy bonus."""
    bandit, _ = random_bandit(0)
    flat = torch.linspace(0.01, 0, 6, dtype=torch.float64) + 0.2 * bandit.start
    still = Bandit(torch.zeros(6, dtype=torch.float64), bandit.start)
    assert entropy_of(flat) > entropy_of(bandit.start)
    assert still.predicted(flat, torch.full((6,), 0.3, dtype=torch.float64)) < 0


def test_at_the_start_the_kl_does_nothing():
    beta = torch.full((8,), 0.5, dtype=torch.float64)
    assert EXAMPLE.predicted(EXAMPLE.start, beta) == pytest.approx(
        EXAMPLE.predicted(EXAMPLE.start, beta * 0), abs=1e-12
    )
    assert EXAMPLE.predicted(PROBE, beta) > EXAMPLE.predicted(PROBE, beta * 0) + 1e-3


def test_entropy_settles_where_reward_and_kl_balance():
    """Equation (5): entropy kept, and the odds of equally right actions, are known before the run."""
    kept = EXAMPLE.equilibrium(0.2)
    assert kept.sum().item() == pytest.approx(1) and kept[0] / kept[1] == pytest.approx(2)
    assert EXAMPLE.direction(kept.log(), torch.full_like(kept, 0.2)).abs().max() < 1e-12
    end = walk(EXAMPLE, eta=2.0, steps=500, low=0.2, high=0.2)
    assert end["entropy"][-1] == pytest.approx(entropy_of(kept.log()), abs=1e-3)
    assert torch.allclose(end["pi"], kept, atol=1e-3)


def test_without_kl_entropy_collapses_and_one_of_two_right_actions_dies_out():
    end = walk(EXAMPLE, eta=2.0, steps=500, low=0.0, high=0.0)
    assert end["entropy"][0] > 1.9 and end["entropy"][-1] < 0.05
    assert end["pi"][0] > 0.99 and end["pi"][1] < 0.01 < EXAMPLE.start.exp()[1]
    assert (EXAMPLE.rewards[:2] == 1).all()


def test_strong_kl_stands_where_covariance_is_high():
    beta = sent_beta(EXAMPLE, EXAMPLE.start, 0.1, 0.5, 0.2)
    cov = (EXAMPLE.start + entropy_of(EXAMPLE.start)) * EXAMPLE.advantages(EXAMPLE.start)
    assert cov[beta == 0.5].min() > 0.2 >= cov[beta == 0.1].max()
    assert beta[0] == 0.5 and (beta[6:] == 0.5).all()  # the likely right action, and the unlikely wrong ones


def test_the_picture_and_its_table_are_drawn(tmp_path, monkeypatch):
    monkeypatch.setattr(dynamics, "STEPS", 60)
    main(["--out", str(tmp_path)])
    assert (tmp_path / "dynamics.png").stat().st_size > 20_000
    text = (tmp_path / "dynamics.md").read_text()
    rows = [line.split("|")[1:-1] for line in text.splitlines() if line.startswith("| ")][1:]
    assert [row[0].strip() for row in rows] == ["GRPO", "KL, one weight", "SENT"]
    assert all(float(row[-1].strip(" %")) < 6 for row in rows)  # error of the theory, percent
    assert not math.isnan(float(rows[0][2]))
