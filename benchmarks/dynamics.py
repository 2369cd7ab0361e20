"""Why entropy falls and what a KL to the start adds: theory against measurement on a bandit, exactly.

    python benchmarks/dynamics.py            draws results/dynamics.png, writes results/dynamics.md (seconds)

One state, n actions, pi = softmax(theta), H = -sum pi log pi, reward R_a, J = E_pi[R], A_a = R_a - J, start policy rho.
Expectations over a ~ pi are exact (every action once, weighted by pi), the loss is entropy.policy_loss itself.

Any step.   dH/dtheta_a = -pi_a (log pi_a + H), and E_pi[log pi] = -H, so for any small change of the logits

                dH = -Cov_{a~pi}(log pi_a, dtheta_a) + O(dtheta^2)                                              (1)

Policy gradient.   dJ/dtheta_a = pi_a A_a. One plain step moves the logits by eta pi_a A_a:

                dH = -eta Cov(log pi, pi A)                                                                     (2)

Natural policy gradient.   The Fisher matrix F = diag(pi) - pi pi' has F A = pi A (as E_pi[A] = 0), so the natural step
is eta A_a, without the factor pi, and

                dH = -eta Cov(log pi, A)                                                                        (3)

which is minus eta times the mean of entropy.token_covariance over samples. A likely action that pays is a likely action
with A > 0: covariance is positive, entropy falls. (2) and (3) are statements about different steps: (2) holds for
gradient descent on the logits, (3) for the natural step (arXiv 2505.22617 has both); neither is right for the other.

k3 to the start.   A sampled action pays beta_a k3(d), d = log rho_a - log pi_a, whose slope in log pi_a is
1 - rho_a/pi_a. Averaged over a ~ pi, sampling not differentiated, with g_a = beta_a (pi_a - rho_a):

    sum_a pi_a beta_a (1 - rho_a/pi_a) grad log pi_a  =  g - pi sum(g)      (grad log pi_a = e_a - pi)
                dH = -eta Cov(log pi, pi A - g + pi sum(g))                                                     (4)

With one beta for all actions sum(g) = 0 and the pull is beta (pi - rho), the gradient of beta KL(rho || pi), the
*forward* KL: k3 is an unbiased estimate of the reverse KL whose gradient is not that KL's gradient. For a uniform start
the KL adds eta beta Cov(log pi, pi) >= 0: it raises entropy whatever pi is. Where it balances the reward,
pi_a A_a = beta (pi_a - rho_a), that is

                pi_a = beta rho_a / (beta + J - R_a),   J > max R - beta the one root of sum(pi) = 1            (5)

so for every beta > 0 the entropy that is kept is known beforehand, equally right actions keep the odds they had at the
start, and without KL (beta -> 0) only best actions survive, where the likelier one has grown faster.
"""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from entropy import Treatment, policy_loss, token_entropy  # noqa: E402


@dataclass
class Bandit:
    """One state. float64, so that the error of the theory is not the rounding of the arithmetic."""

    rewards: Tensor  # [n]
    start: Tensor  # [n] log rho

    def advantages(self, theta: Tensor) -> Tensor:
        """A_a = R_a - E_pi[R]; [n] -> [n]."""
        return self.rewards - (theta.softmax(0) * self.rewards).sum()

    def expected_loss(self, theta: Tensor, beta: Tensor) -> Tensor:
        """E_{a~pi} of the project's loss, with KL weight beta [n] per action; sampling is not differentiated."""
        logp, ones = theta.log_softmax(0)[:, None], torch.ones(len(theta), 1, dtype=theta.dtype)  # every action: [n, 1]
        t = Treatment(self.advantages(theta).detach()[:, None], ones, beta[:, None], average="token")
        loss, _ = policy_loss(logp, logp.detach(), self.start[:, None], t, ones.bool())
        return (logp.detach().exp() * loss).sum()

    def direction(self, theta: Tensor, beta: Tensor, natural: bool = False) -> Tensor:
        """dtheta / eta: minus the gradient of the loss; natural: solved with the Fisher matrix of the softmax."""
        theta = theta.detach().requires_grad_()
        descent = -torch.autograd.grad(self.expected_loss(theta, beta), theta)[0]
        if natural:
            pi = theta.detach().softmax(0)
            descent = torch.linalg.pinv(pi.diag() - pi.outer(pi)) @ descent
        return descent

    def predicted(self, theta: Tensor, beta: Tensor, natural: bool = False) -> float:
        """dH / eta by equation (4), or (3) for the natural step (without KL)."""
        logp = theta.log_softmax(0)
        pi, A = logp.exp(), self.advantages(theta)
        g = beta * (pi - self.start.exp())
        step = A if natural else pi * A - g + pi * g.sum()
        return -(pi * logp * (step - (pi * step).sum())).sum().item()

    def equilibrium(self, beta: float) -> Tensor:
        """Equation (5) by bisection; [n] probabilities. beta > 0, the same for all actions."""
        low, high = self.rewards.max().item() - beta, self.rewards.max().item()
        for _ in range(200):
            middle = (low + high) / 2
            pi = beta * self.start.exp() / (beta + middle - self.rewards)
            low, high = (middle, high) if pi.sum() > 1 else (low, middle)
        return pi


EXAMPLE = Bandit(
    rewards=torch.tensor([1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0], dtype=torch.float64),
    start=torch.tensor([0.2, 0.1, 0.25, 0.15, 0.1, 0.1, 0.06, 0.04], dtype=torch.float64).log(),
)
PROBE = EXAMPLE.start + 1.5 * EXAMPLE.rewards  # where the error is measured: at the start itself the KL has no slope
# name: (beta_low, beta_high, whose colour)
WALKS = {"GRPO": (0.0, 0.0, "grpo"), "KL, one weight": (0.1, 0.1, "kl_cov"), "SENT": (0.1, 0.5, "sent")}
ETA, STEPS, TAU = 0.5, 2000, 0.2
ETAS = [2.0**-k for k in range(10)]


def entropy_of(theta: Tensor) -> float:
    """[n] logits -> nats."""
    return token_entropy(theta[None, None]).item()


def sent_beta(bandit: Bandit, theta: Tensor, low: float, high: float, tau: float) -> Tensor:
    """SENT's weights in one low-entropy state: beta_high where Cov_a > tau, else beta_low; [n]."""
    logp = theta.log_softmax(0)
    cov = (logp + entropy_of(theta)) * bandit.advantages(theta)
    return theta.new_tensor([low, high])[(cov > tau).long()]


def walk(bandit: Bandit, eta: float, steps: int, low: float, high: float, tau: float = TAU) -> dict[str, list]:
    """Plain steps from the start: entropy before each step, its measured and its predicted change; the last pi."""
    theta, out = bandit.start.clone(), {"entropy": [], "measured": [], "predicted": []}
    for _ in range(steps):
        beta, before = sent_beta(bandit, theta, low, high, tau), entropy_of(theta)
        change = eta * bandit.predicted(theta, beta)
        theta = theta + eta * bandit.direction(theta, beta)
        out["entropy"].append(before)
        out["predicted"].append(change)
        out["measured"].append(entropy_of(theta) - before)
    return out | {"pi": theta.softmax(0)}


def errors(bandit: Bandit, theta: Tensor, beta: Tensor, etas: list[float], natural: bool = False) -> list[float]:
    """|measured - predicted| change of entropy of one step, for each step size."""
    direction, slope = bandit.direction(theta, beta, natural), bandit.predicted(theta, beta, natural)
    return [abs(entropy_of(theta + eta * direction) - entropy_of(theta) - eta * slope) for eta in etas]


def draw(walks: dict[str, dict], path: Path) -> None:
    """Three panels: entropy over steps, predicted against measured change, error against step size."""
    import matplotlib
    from matplotlib.figure import Figure

    from figures import LOOK, STYLE

    with matplotlib.rc_context(LOOK | {"text.parse_math": True}):
        figure = Figure(figsize=(19, 6), layout="constrained")
        over_time, change, error = figure.subplots(1, 3)
        for name, (low, high, style) in WALKS.items():
            (colour, line, marker), w = STYLE[style], walks[name]
            over_time.semilogx(range(1, STEPS + 1), w["entropy"], ls=line, color=colour, label=name)
            if low == high > 0:
                kept = entropy_of(EXAMPLE.equilibrium(low).log())
                over_time.axhline(kept, color=colour, ls="-", lw=0.8, label=f"predicted end: {kept:.2f}")
            every = slice(None, None, 3)
            change.plot(w["predicted"][every], w["measured"][every], marker, color=colour, alpha=0.5, label=name)
            found = errors(EXAMPLE, PROBE, sent_beta(EXAMPLE, PROBE, low, high, TAU), ETAS)
            error.loglog(ETAS, found, marker=marker, ls=line, color=colour, label=name)
        ends = [min(min(w["measured"]) for w in walks.values()), max(max(w["measured"]) for w in walks.values())]
        change.plot(ends, ends, color="#888888", lw=1, label="equal")
        squares = [found[-1] * (eta / ETAS[-1]) ** 2 for eta in ETAS]
        error.loglog(ETAS, squares, color="#888888", lw=1, label="eta squared")
        over_time.set(title="Entropy of the bandit", xlabel="step", ylabel="entropy (nats)", ylim=(0, None))
        change.set(title="Change of entropy in one step (nats)", xlabel="predicted, to first order", ylabel="measured")
        error.set(title="Error of the prediction", xlabel="step size eta", ylabel="|measured − predicted| (nats)")
        for axes in (over_time, change, error):
            axes.legend()
        figure.savefig(path, dpi=100)
        figure.savefig(path.with_suffix(".svg"), metadata={"Date": None})


def main(argv: list[str] | None = None) -> None:
    """Walk, draw, write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "results", help="folder for dynamics.png and dynamics.md")
    out = parser.parse_args(argv).out
    out.mkdir(parents=True, exist_ok=True)
    walks = {name: walk(EXAMPLE, ETA, STEPS, low, high) for name, (low, high, _) in WALKS.items()}
    draw(walks, out / "dynamics.png")
    lines = [
        "# Entropy dynamics on a bandit: theory against measurement",
        "",
        "`python benchmarks/dynamics.py`: float64, exact expectations, no randomness; its docstring is the derivation.",
        "",
        "![entropy, predicted and measured change, error](dynamics.png)",
        "",
        f"Eight actions, two of them right (start: 0.2 and 0.1); {STEPS} plain steps of size {ETA}; nats.",
        "",
        "| | beta_low / beta_high | entropy at the end | reward | the two right actions | error of dH |",
        "|---|---|---|---|---|---|",
    ]
    for name, (low, high, _) in WALKS.items():
        w = walks[name]
        off = sum(abs(m - p) for m, p in zip(w["measured"], w["predicted"], strict=True)) / sum(map(abs, w["measured"]))
        right = " : ".join(f"{x:.3f}" for x in w["pi"][:2].tolist())
        reward, kept = (w["pi"] * EXAMPLE.rewards).sum(), entropy_of(w["pi"].log())
        lines.append(f"| {name} | {low} / {high} | {kept:.3f} | {reward:.3f} | {right} | {off:.1%} |")
    kept = EXAMPLE.equilibrium(0.1)
    coarse, fine = errors(EXAMPLE, PROBE, sent_beta(EXAMPLE, PROBE, 0.1, 0.5, TAU), ETAS[-2:])
    lines += [
        "",
        f"Equation (5) foretells {entropy_of(kept.log()):.3f} nats and {kept[0]:.3f} : {kept[1]:.3f} for one weight.",
        f"Halving a small step divides the error of the prediction by {coarse / fine:.2f}: it falls with eta squared.",
        "Error of dH: sum of |measured - predicted| over the steps, as a share of the sum of |measured|.",
        "",
        "Both right actions earn the same. Without KL the likelier one grows faster and the other all but dies out;",
        "with one weight they keep the odds of the start. The KL is not free: the larger beta, the more reward it",
        "holds back. Covariance is high on the likely right action *and* on unlikely wrong ones, so SENT's strong KL",
        "also pulls wrong actions back up towards the start. One state, chosen weights: equations, no comparison.",
    ]
    (out / "dynamics.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
