"""entropy.py against references written as plain loops over floats, and the facts it teaches, each a test.

The references are the equations and nothing else: no tensor, no broadcasting, no autograd (gradients by hand), so that
a mistake would have to be made twice, in two styles, to go unseen.
"""

import itertools
import math
import subprocess
import sys
from collections import defaultdict
from dataclasses import dataclass
from decimal import Decimal, localcontext
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from entropy import (
    AVERAGES,
    METHODS,
    Treatment,
    check_settings,
    group_advantages,
    k3,
    normaliser,
    policy_loss,
    semantic_entropy,
    settings_of,
    threshold,
    token_covariance,
    token_entropy,
    token_logprobs,
    top_share,
    treat,
)

torch.set_num_threads(1)
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-5}
MAX_NEW_TOKENS = 9

# Every method with its published defaults, and with settings under which it treats many of a few dozen tokens.
VARIANTS = [
    ("grpo", {}),
    ("grpo", {"clip_low": 0.1, "clip_high": 0.4, "kl_coef": 0.3}),
    ("clip_higher", {}),
    ("entropy_bonus", {}),
    ("entropy_bonus", {"entropy_coef": 0.4}),
    ("entropy_advantage", {}),
    ("entropy_advantage", {"alpha": 2.0, "kappa": 1.5}),
    ("forking_tokens", {}),
    ("forking_tokens", {"fork_share": 0.55}),
    ("clip_cov", {}),
    ("clip_cov", {"cov_low": 0.05, "cov_high": 2.0, "cov_share": 0.1}),
    ("kl_cov", {}),
    ("kl_cov", {"cov_share": 0.3, "kl_old_coef": 0.5}),
    ("high_entropy_kl", {}),
    ("high_entropy_kl", {"tau_entropy": 1.2, "beta_low": 0.3}),
    ("sent", {}),
    ("sent", {"tau_entropy": "60%", "tau_cov": "50%", "beta_low": 0.1, "beta_high": 0.7}),
    ("sent", {"tau_entropy": 1.3, "tau_cov": 0.05}),
    ("sent_release", {}),
    ("sent_release", {"tau_entropy": "65%", "cov_share": 0.2, "kl_old_coef": 0.6, "kl_coef": 0.2}),
]
STRONG = {method: own for method, own in VARIANTS}  # the last of each method: the one that treats many tokens


# ---------------------------------------------------------------------------------------------- inputs
@dataclass
class Batch:
    old: torch.Tensor  # logits [B, T, V] of the policy that sampled
    new: torch.Tensor  # of the live policy
    ref: torch.Tensor  # of the frozen start
    tokens: torch.Tensor  # [B, T]
    advantages: torch.Tensor  # [B, 1]
    mask: torch.Tensor  # [B, T]

    @property
    def old_logprobs(self):
        return token_logprobs(self.old, self.tokens)

    @property
    def ref_logprobs(self):
        return token_logprobs(self.ref, self.tokens)

    def treat(self, method, **own):
        return treat(method, self.old_logprobs, token_entropy(self.old), self.advantages, self.mask, seed=5, **own)

    def select(self, rows, width=None):
        return Batch(*(x[rows][:, :width] for x in vars(self).values()))


def make_batch(case="ragged", dtype=torch.float64, groups=2, group_size=4, width=7, vocabulary=5, seed=0) -> Batch:
    """A rollout batch with the trouble that `case` names."""
    g = torch.Generator().manual_seed(seed)
    rows = groups * group_size
    if case == "one_row":
        rows = 1
    old = torch.randn(rows, width, vocabulary, generator=g, dtype=torch.float64) * 1.5
    if case == "ties":  # the same position of every row has the same logits
        old = old[:1].repeat(rows, 1, 1)
    step = 1.5 if case == "clipped_on_both_sides" else 0.3
    new = old + step * torch.randn(old.shape, generator=g, dtype=torch.float64)
    ref = old + 0.5 * torch.randn(old.shape, generator=g, dtype=torch.float64)
    tokens = sample(old, g)
    if case == "ties":
        tokens = tokens[:1].repeat(rows, 1)
    if case == "ratio_above_3":
        new.scatter_add_(-1, tokens[..., None], torch.full((rows, width, 1), 2.5, dtype=torch.float64))
    rewards = (torch.arange(rows) % 3 == 0).double().view(-1, rows if rows == 1 else group_size)
    if case == "equal_rewards":
        rewards = torch.full_like(rewards, 0.7)
    advantages = rewards.view(-1, 1) if case == "one_row" else group_advantages(rewards).view(-1, 1)
    if case == "one_advantage":
        advantages = torch.ones_like(advantages)
    lengths = torch.tensor([width, 1, 3, width - 1, 2, width, 4, 5] * groups)[:rows]
    if case == "empty_row":
        lengths[1] = 0
    if case == "empty_batch":
        lengths[:] = 0
    mask = torch.arange(width) < lengths[:, None]
    return Batch(old.to(dtype), new.to(dtype), ref.to(dtype), tokens, advantages.to(dtype), mask)


def sample(logits, generator):
    """[B, T, V] -> [B, T]."""
    draws = torch.multinomial(logits.softmax(-1).flatten(0, -2), 1, generator=generator)
    return draws.view(logits.shape[:-1])


CASES = ("ragged", "clipped_on_both_sides", "ratio_above_3", "ties", "empty_row", "empty_batch", "one_row",
         "equal_rewards", "one_advantage")  # fmt: skip


def loss_and_gradient(batch, treatment, count, max_rows=None):
    """The code under test, micro-batch by micro-batch: summed loss / count, and its gradient in the logits."""
    new = batch.new.clone().requires_grad_()
    total = 0.0
    for rows in torch.arange(len(new)).split(max_rows or len(new)):
        width = max(1, int(batch.mask[rows].sum(1).max()))  # a micro-batch is cut to its longest row
        part, live, mask = treatment.rows(rows, width), new[rows, :width], batch.mask[rows, :width]
        tokens = batch.tokens[rows, :width]
        loss, _ = policy_loss(token_logprobs(live, tokens), batch.old_logprobs[rows, :width],
                              batch.ref_logprobs[rows, :width], part, mask, token_entropy(live))  # fmt: skip
        (loss.sum() / count).backward()
        total += loss.sum().item() / count
    return total, new.grad


# ---------------------------------------------------------------------------------------------- references in loops
def naive_quantile(values, q):
    ordered = sorted(values)
    position = q * (len(ordered) - 1)
    below = ordered[int(position)]
    above = ordered[min(int(position) + 1, len(ordered) - 1)]
    return below + (above - below) * (position - int(position))


def naive_cut(values, spec):
    if isinstance(spec, float):
        return spec
    return naive_quantile(values, float(spec[:-1]) / 100) if values else math.inf


def naive_covariance(logp, adv):
    """Both are dicts from place to float, over the valid places of the whole batch."""
    n = len(logp)
    if n == 0 or len(set(adv.values())) == 1 or len(set(logp.values())) == 1:
        return dict.fromkeys(logp, 0.0)
    mean_logp, mean_adv = math.fsum(logp.values()) / n, math.fsum(adv.values()) / n
    return {p: (logp[p] - mean_logp) * (adv[p] - mean_adv) for p in logp}


def naive_top(scores, among, share):
    if all(scores[p] == 0 for p in among):
        return set()
    return set(sorted(among, key=lambda p: (-scores[p], p))[: max(1, int(len(among) * share))])


def naive_treatment(method, logp, ent, adv, own):
    """What happens to each valid place: dicts A, pg, beta (k3 to the start), beta_old (abs to pi_old); constants."""
    places, s = sorted(logp), settings_of(method) | own
    cov = naive_covariance(logp, adv)
    t = {"A": dict(adv), "pg": dict.fromkeys(places, 1.0), "beta": defaultdict(float), "beta_old": defaultdict(float),
         "c": 0.0, "low": 0.2, "high": 0.2, "kl_coef": 0.0, "average": "sequence"}  # fmt: skip
    if method == "clip_higher":
        t |= {"high": 0.28, "average": "token"}
    if method == "entropy_bonus":
        t["c"] = s["entropy_coef"]
    if method == "entropy_advantage":
        for p in places:
            t["A"][p] = adv[p] + min(s["alpha"] * ent[p], abs(adv[p]) / s["kappa"])
    if method == "forking_tokens":
        forks = naive_top(ent, places, s["fork_share"])
        t |= {"pg": {p: float(p in forks) for p in places}, "high": 0.28, "average": "token"}
    if method == "clip_cov":
        inside = [p for p in places if s["cov_low"] < cov[p] < s["cov_high"]]
        draw = torch.randperm(len(inside), generator=torch.Generator().manual_seed(5)).tolist()
        for i in draw[: max(1, int(len(places) * s["cov_share"]))]:
            t["pg"][inside[i]] = 0.0
        t |= {"low": 1.0, "high": 1.0, "average": "token"}
    if method == "kl_cov":
        for p in naive_top(cov, places, s["cov_share"]):
            t["beta_old"][p] = s["kl_old_coef"]
        t |= {"low": math.inf, "high": math.inf, "average": "token"}
    if method in ("high_entropy_kl", "sent", "sent_release"):
        tau = naive_cut([ent[p] for p in places], s["tau_entropy"])
        low = [p for p in places if ent[p] < tau]
    if method == "high_entropy_kl":
        for p in set(places) - set(low):
            t["beta"][p] = s["beta_low"]
    if method == "sent":
        tau_cov = naive_cut([cov[p] for p in low], s["tau_cov"])
        for p in low:
            t["beta"][p] = s["beta_high"] if cov[p] > tau_cov else s["beta_low"]
    if method == "sent_release":
        for p in naive_top({p: -cov[p] for p in low}, low, s["cov_share"]):
            t["beta_old"][p] = 0.5 * s["kl_old_coef"]
        for p in naive_top(cov, low, s["cov_share"]):
            t["beta_old"][p] = 2.0 * s["kl_old_coef"]
        t |= {"low": math.inf, "high": math.inf, "average": "token", "kl_coef": 0.001}
    shared = {"clip_low": "low", "clip_high": "high", "average": "average", "kl_coef": "kl_coef"}
    return t | {short: own[name] for name, short in shared.items() if name in own}


def naive_softmax(z):
    top = max(z)
    total = math.fsum(math.exp(x - top) for x in z)
    return [math.exp(x - top) / total for x in z]


def naive_loss(batch, t):
    """Loss, its gradient in every logit, and the number of clipped tokens; everything by hand, on floats."""
    old, new, ref, tokens = (x.tolist() for x in (batch.old, batch.new, batch.ref, batch.tokens))
    places = sorted(t["A"])
    rows, width = batch.mask.shape
    length = [sum(1 for p in places if p[0] == i) for i in range(rows)]
    count = max(1, {"sequence": rows, "token": len(places), "constant": rows * MAX_NEW_TOKENS}[t["average"]])
    total, clipped, gradient = 0.0, 0, [[[0.0] * len(z) for z in row] for row in new]
    for i, j in places:
        o, A = tokens[i][j], t["A"][i, j]
        p = naive_softmax(new[i][j])
        logp, logp_old, logp_ref = (math.log(naive_softmax(x[i][j])[o]) for x in (new, old, ref))
        r = math.exp(logp - logp_old)
        bounded = max(1 - t["low"], min(1 + t["high"], r))
        value = -t["pg"][i, j] * min(r * A, bounded * A)
        slope = -t["pg"][i, j] * r * A if r * A <= bounded * A else 0.0  # d value / d logp
        clipped += t["pg"][i, j] > 0 and bounded * A < r * A
        d, beta = logp_ref - logp, t["beta"][i, j] + t["kl_coef"]
        value += beta * (math.exp(d) - d - 1)
        slope += beta * (1 - math.exp(d))
        value += t["beta_old"][i, j] * abs(logp - logp_old)
        slope += t["beta_old"][i, j] * ((logp > logp_old) - (logp < logp_old))
        H = -math.fsum(x * math.log(x) for x in p)
        value -= t["c"] * H
        w = 1 / (length[i] if t["average"] == "sequence" else 1) / count
        total += w * value
        for k, x in enumerate(p):
            gradient[i][j][k] = w * (slope * ((k == o) - x) + t["c"] * x * (math.log(x) + H))
    return total, gradient, clipped


def valid(batch, x):
    """[B, T] -> {(row, position): float} over the valid tokens."""
    x = x.expand(batch.mask.shape)
    return {(i, j): x[i, j].item() for i, j in batch.mask.nonzero().tolist()}


# ---------------------------------------------------------------------------------------------- the proof
@pytest.mark.parametrize("dtype", TOLERANCE, ids=["float64", "float32"])
@pytest.mark.parametrize("average", [None, *AVERAGES])
@pytest.mark.parametrize(("method", "own"), VARIANTS)
def test_loss_and_gradient_match_the_loops(method, own, average, dtype):
    own = own | ({"average": average} if average else {})
    for case in CASES:
        batch = make_batch(case, dtype)
        treatment = batch.treat(method, **own)
        # The loops get the code's own log-probs and entropies (proven below), or a tie could break differently.
        places = (valid(batch, x) for x in (batch.old_logprobs, token_entropy(batch.old), batch.advantages))
        t = naive_treatment(method, *places, own)
        expected, gradient, _ = naive_loss(batch, t)
        count = normaliser(treatment.average, batch.mask, MAX_NEW_TOKENS)
        loss, found = loss_and_gradient(batch, treatment, count)
        gap = (found.double() - torch.tensor(gradient, dtype=torch.float64)).abs().max().item()
        assert abs(loss - expected) < TOLERANCE[dtype], (case, loss, expected)
        assert gap < TOLERANCE[dtype], (case, gap)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("method", "own"), VARIANTS)
def test_the_treated_tokens_are_those_of_the_loops(method, own, case):
    batch = make_batch(case)
    treatment = batch.treat(method, **own)
    places = (valid(batch, x) for x in (batch.old_logprobs, token_entropy(batch.old), batch.advantages))
    t = naive_treatment(method, *places, own)
    beta = t["beta_old" if treatment.kl_anchor == "old" else "beta"]
    assert valid(batch, treatment.kl_weight) == pytest.approx({p: beta[p] for p in t["A"]})
    assert valid(batch, treatment.pg_weight) == t["pg"]
    assert valid(batch, treatment.advantages) == pytest.approx(t["A"])
    for x in (treatment.kl_weight, treatment.pg_weight):
        assert (x[~batch.mask] == 0).all()


@pytest.mark.parametrize("method", METHODS)
def test_clipped_counts_the_tokens_whose_gradient_the_clip_removed(method):
    batch = make_batch("clipped_on_both_sides", groups=8)
    treatment = batch.treat(method, **STRONG[method])
    places = (valid(batch, x) for x in (batch.old_logprobs, token_entropy(batch.old), batch.advantages))
    clipped = naive_loss(batch, naive_treatment(method, *places, STRONG[method]))[2]
    new = token_logprobs(batch.new, batch.tokens)
    stats = policy_loss(new, batch.old_logprobs, batch.ref_logprobs, treatment, batch.mask, token_entropy(batch.new))[1]
    assert stats["clipped"].item() == clipped
    assert (clipped > 0) == (treatment.clip_high < math.inf)


def test_the_cases_hold_what_their_names_say():
    def ratio(batch):
        return (token_logprobs(batch.new, batch.tokens) - batch.old_logprobs).exp()

    batch = make_batch("clipped_on_both_sides")
    r, A = ratio(batch), batch.advantages.expand(batch.mask.shape)
    assert ((r > 2) & (A > 0) & batch.mask).any() and ((r < 0.8) & (A < 0) & batch.mask).any()
    batch = make_batch("ratio_above_3")
    assert ((ratio(batch) > 3) & (batch.advantages < 0) & batch.mask).any()
    batch = make_batch("ties")
    assert len(set(valid(batch, token_entropy(batch.old)).values())) <= batch.mask.shape[1]
    assert not make_batch("empty_batch").mask.any() and not make_batch("empty_row").mask[1].any()
    assert not make_batch("equal_rewards").advantages.any()
    for method in METHODS:  # a reference that treats nothing proves nothing
        t = make_batch().treat(method, **STRONG[method])
        if method in ("sent", "sent_release"):
            assert len(t.kl_weight.unique()) == 3, method
        if method in ("kl_cov", "high_entropy_kl"):
            assert len(t.kl_weight.unique()) == 2, method
        if method in ("clip_cov", "forking_tokens"):
            assert 0 < (t.pg_weight * make_batch().mask).sum() < make_batch().mask.sum(), method


@pytest.mark.parametrize("dtype", TOLERANCE, ids=["float64", "float32"])
def test_entropy_and_logprobs_match_the_loops(dtype):
    batch = make_batch(dtype=dtype)
    entropy, logprobs = token_entropy(batch.old), token_logprobs(batch.old, batch.tokens)
    assert entropy.dtype == logprobs.dtype == dtype
    for i, j in itertools.product(*map(range, batch.mask.shape)):
        p = naive_softmax(batch.old[i, j].tolist())
        assert entropy[i, j].item() == pytest.approx(-sum(x * math.log(x) for x in p), abs=TOLERANCE[dtype])
        assert logprobs[i, j].item() == pytest.approx(math.log(p[batch.tokens[i, j]]), abs=TOLERANCE[dtype])


def test_entropy_of_a_banned_token_is_a_number_and_so_is_its_gradient():
    logits = torch.tensor([[[0.0, 0.0, -math.inf]]], requires_grad=True)
    token_entropy(logits).sum().backward()
    assert token_entropy(logits).item() == pytest.approx(math.log(2)) and logits.grad.isfinite().all()


def test_every_method_is_a_method_of_its_own():
    """A name that runs another method is a bug that a table of results cannot show."""
    batch = make_batch("clipped_on_both_sides")
    gradients = {}
    for method, function in METHODS.items():
        assert function.__name__ == method
        treatment = batch.treat(method, **STRONG[method], average="token")
        gradients[method] = loss_and_gradient(batch, treatment, 1)[1]
    for a, b in itertools.combinations(METHODS, 2):
        assert (gradients[a] - gradients[b]).abs().max() > 1e-3, (a, b)


def test_published_defaults():
    """The table of the README, from the papers it names: clip range, average, own settings."""
    batch = make_batch()
    expected = {  # method: (clip_low, clip_high, average, anchor, own settings)
        "grpo": (0.2, 0.2, "sequence", "ref", {}),
        "clip_higher": (0.2, 0.28, "token", "ref", {}),
        "entropy_bonus": (0.2, 0.2, "sequence", "ref", {"entropy_coef": 0.001}),
        "entropy_advantage": (0.2, 0.2, "sequence", "ref", {"alpha": 0.4, "kappa": 2.0}),
        "forking_tokens": (0.2, 0.28, "token", "ref", {"fork_share": 0.2}),
        "clip_cov": (1.0, 1.0, "token", "ref", {"cov_share": 2e-4, "cov_low": 1.0, "cov_high": 5.0}),
        "kl_cov": (math.inf, math.inf, "token", "old", {"cov_share": 0.002, "kl_old_coef": 1.0}),
        "high_entropy_kl": (0.2, 0.2, "sequence", "ref", {"tau_entropy": "80%"}),
        "sent": (0.2, 0.2, "sequence", "ref", {"tau_entropy": "80%"}),
        "sent_release": (math.inf, math.inf, "token", "old",
                         {"kl_old_coef": 0.1, "cov_share": 2e-4, "tau_entropy": "80%"}),
    }  # fmt: skip
    assert set(expected) == set(METHODS)
    for method, (low, high, average, anchor, own) in expected.items():
        t = batch.treat(method)
        assert (t.clip_low, t.clip_high, t.average, t.kl_anchor) == (low, high, average, anchor), method
        assert own.items() <= settings_of(method).items(), method


# ---------------------------------------------------------------------------------------------- what is constant
@pytest.mark.parametrize("method", METHODS)
def test_what_is_constant_gets_no_gradient(method):
    batch = make_batch("clipped_on_both_sides")
    inputs = [x.requires_grad_() for x in (batch.old_logprobs, token_entropy(batch.old), batch.advantages.clone())]
    t = treat(method, *inputs, batch.mask, **STRONG[method])
    assert not any(x.requires_grad for x in (t.advantages, t.pg_weight, t.kl_weight))
    new = token_logprobs(batch.new, batch.tokens).requires_grad_()
    entropy, ref = token_entropy(batch.new).requires_grad_(), batch.ref_logprobs.requires_grad_()
    loss, stats = policy_loss(new, inputs[0], ref, t, batch.mask, entropy)
    loss.sum().backward()
    assert [x.grad for x in (*inputs, ref)] == [None] * 4 and not stats["clipped"].requires_grad
    assert new.grad[batch.mask].any() and not new.grad[~batch.mask].any()
    assert (entropy.grad is not None) == (method == "entropy_bonus")


def test_the_entropy_bonus_has_the_gradient_of_the_closed_form():
    """d H / d z_j = -p_j (log p_j + H); averaged once, inside the mask only."""
    batch = make_batch()
    batch.advantages.zero_()
    treatment = batch.treat("entropy_bonus", entropy_coef=0.5)
    gradient = loss_and_gradient(batch, treatment, 3)[1]
    p, H = batch.new.softmax(-1), token_entropy(batch.new)[..., None]
    weight = batch.mask / batch.mask.sum(1, keepdim=True) / 3
    assert torch.allclose(gradient, 0.5 * p * (p.log() + H) * weight[..., None], atol=1e-12)
    assert gradient[batch.mask].abs().max() > 1e-3


def test_an_entropy_bonus_without_gradient_is_refused():
    """Computed under no_grad it is a constant: logged, and without any effect."""
    batch = make_batch()
    treatment, new = batch.treat("entropy_bonus"), token_logprobs(batch.new, batch.tokens).requires_grad_()
    for entropy in (None, token_entropy(batch.new)):
        with pytest.raises(ValueError, match="live entropy"):
            policy_loss(new, batch.old_logprobs, None, treatment, batch.mask, entropy)
    policy_loss(new.detach(), batch.old_logprobs, None, treatment, batch.mask, token_entropy(batch.new))  # no training


def test_logprobs_may_serve_as_their_own_old_logprobs():
    """One update per rollout: r = 1, and the gradient is the policy gradient -A, not the 0 of (x - x)."""
    batch = make_batch()
    new = token_logprobs(batch.new, batch.tokens).requires_grad_()
    loss, _ = policy_loss(new, new, None, batch.treat("grpo", average="token"), batch.mask)
    loss.sum().backward()
    assert torch.allclose(new.grad, -batch.advantages * batch.mask)


@pytest.mark.parametrize("method", METHODS)
def test_inputs_are_left_as_they_were(method):
    """`adv += bonus` through a view accumulates over epochs."""
    batch = make_batch()
    inputs = [batch.old_logprobs, token_entropy(batch.old), batch.advantages.expand(batch.mask.shape).clone()]
    before = [x.clone() for x in inputs]
    first = treat(method, *inputs, batch.mask, **STRONG[method])
    again = treat(method, *inputs, batch.mask, **STRONG[method])
    assert all(map(torch.equal, inputs, before))
    for name in ("advantages", "pg_weight", "kl_weight"):
        assert torch.equal(getattr(first, name), getattr(again, name))


def test_a_mask_that_is_not_bool_is_an_error():
    """An integer mask used as an index reads elements 0 and 1 over and over: in the release, Cov of wrong tokens."""
    batch = make_batch()
    cov = token_covariance(batch.old_logprobs, batch.advantages, batch.mask)
    assert set(cov.flatten()[batch.mask.long().flatten()].tolist()) <= set(cov.flatten()[:2].tolist())
    batch.mask = batch.mask.long()
    with pytest.raises((RuntimeError, IndexError)):
        batch.treat("sent")


@pytest.mark.parametrize("method", METHODS)
def test_the_reference_is_needed_exactly_when_the_loss_reads_it(method):
    batch = make_batch()
    new = token_logprobs(batch.new, batch.tokens)
    for coef in (0.0, 0.5):
        t = batch.treat(method, **(STRONG[method] | {"kl_coef": coef}))
        assert t.needs_reference == (coef > 0 or method in ("high_entropy_kl", "sent"))
        losses = []
        for ref in (batch.ref_logprobs, batch.ref_logprobs - 1):
            entropy = token_entropy(batch.new)
            losses.append(policy_loss(new, batch.old_logprobs, ref, t, batch.mask, entropy)[0].sum().item())
        assert (losses[0] != losses[1]) == t.needs_reference
        if t.needs_reference:
            with pytest.raises(ValueError, match="ref_logprobs"):
                policy_loss(new, batch.old_logprobs, None, t, batch.mask, token_entropy(batch.new))
    no_kl = {"sent": {"beta_low": 0, "beta_high": 0}, "high_entropy_kl": {"beta_low": 0}}
    if method in no_kl:  # beta 0 is plain GRPO, without the cost of a second model
        assert not batch.treat(method, **no_kl[method]).needs_reference


def test_sent_with_beta_0_is_grpo():
    batch = make_batch("clipped_on_both_sides")
    pairs = [loss_and_gradient(batch, batch.treat(m, **own), 8)
             for m, own in (("grpo", {}), ("sent", {"beta_low": 0.0, "beta_high": 0.0}))]  # fmt: skip
    assert pairs[0][0] == pairs[1][0] and torch.equal(pairs[0][1], pairs[1][1])


# ---------------------------------------------------------------------------------------------- what changes nothing
@pytest.mark.parametrize("method", METHODS)
def test_the_order_of_rows_changes_nothing(method):
    batch = make_batch("clipped_on_both_sides", groups=3)
    order = torch.randperm(len(batch.mask), generator=torch.Generator().manual_seed(1))
    own = STRONG[method]
    if method == "clip_cov":  # draws at random by position; with room for every candidate the draw is no matter
        own = own | {"cov_share": 0.99}
    t, shuffled = batch.treat(method, **own), batch.select(order).treat(method, **own)
    for name in ("advantages", "pg_weight", "kl_weight"):
        assert torch.equal(getattr(t, name)[order], getattr(shuffled, name)), name
    gradient = loss_and_gradient(batch, t, 10)[1]
    assert torch.allclose(gradient[order], loss_and_gradient(batch.select(order), shuffled, 10)[1], atol=1e-12)


@pytest.mark.parametrize("filler", [0.0, 50.0, math.nan])
@pytest.mark.parametrize("method", METHODS)
def test_the_width_of_the_padding_and_what_stands_in_it_change_nothing(method, filler):
    batch = make_batch("clipped_on_both_sides")
    t = batch.treat(method, **STRONG[method])
    expected, gradient = loss_and_gradient(batch, t, 10)
    wide = Batch(*(torch.cat([x, x.new_zeros(x.shape[0], 3, *x.shape[2:])], 1) for x in vars(batch).values()))
    wide.advantages = batch.advantages
    for x in (wide.old, wide.new, wide.ref):
        x[~wide.mask] = filler
    loss, found = loss_and_gradient(wide, wide.treat(method, **STRONG[method]), 10)
    assert loss == pytest.approx(expected, abs=1e-12)
    assert torch.allclose(found[:, :-3][batch.mask], gradient[batch.mask], atol=1e-12)
    if not math.isnan(filler):  # through the softmax of nan logits nothing but nan can come back
        assert not found[~wide.mask].any()


@pytest.mark.parametrize("average", AVERAGES)
@pytest.mark.parametrize("method", METHODS)
def test_nan_in_the_padding_does_not_reach_the_gradient(method, average):
    """masked at the end only, the loss is right and the gradient is nan: nan * 0 in the backward pass."""
    batch = make_batch("empty_row")
    arguments = [token_logprobs(batch.new, batch.tokens), batch.old_logprobs, batch.ref_logprobs,
                 token_entropy(batch.new), batch.advantages.expand(batch.mask.shape)]  # fmt: skip
    new, old, ref, entropy, advantages = (x.masked_fill(~batch.mask, math.nan) for x in arguments)
    t = treat(method, old, entropy, advantages, batch.mask, **STRONG[method], average=average)
    leaves = [new.requires_grad_(), entropy.requires_grad_()]
    loss, stats = policy_loss(new, old, ref, t, batch.mask, entropy)
    loss.sum().backward()
    for x in (loss, *(x.grad for x in leaves if x.grad is not None)):
        assert x.isfinite().all() and not x[~batch.mask].any() and x[batch.mask].any()
    assert stats["clipped"] <= batch.mask.sum()


@pytest.mark.parametrize("average", AVERAGES)
@pytest.mark.parametrize("method", METHODS)
def test_the_size_of_the_micro_batch_changes_nothing(method, average):
    batch = make_batch("clipped_on_both_sides")
    t = batch.treat(method, **STRONG[method], average=average)
    count = normaliser(average, batch.mask, MAX_NEW_TOKENS)
    expected, gradient = loss_and_gradient(batch, t, count)
    for size in (1, 2, 3, 8):
        loss, found = loss_and_gradient(batch, t, count, max_rows=size)
        assert loss == pytest.approx(expected, abs=1e-12) and torch.allclose(found, gradient, atol=1e-12), size


@pytest.mark.parametrize("average", AVERAGES)
@pytest.mark.parametrize("method", METHODS)
def test_the_number_of_ranks_changes_nothing(method, average):
    """Each rank treats the gathered batch, keeps its rows, sums its loss, divides by the global count."""
    batch = make_batch("clipped_on_both_sides")
    t = batch.treat(method, **STRONG[method], average=average)
    count = normaliser(average, batch.mask, MAX_NEW_TOKENS)
    expected, gradient = loss_and_gradient(batch, t, count)
    total, found = 0.0, torch.zeros_like(gradient)
    for rank in range(2):
        own = torch.arange(rank, len(batch.mask), 2)
        everything = batch.treat(method, **STRONG[method], average=average)  # what all_gather gives every rank
        loss, found[own] = loss_and_gradient(batch.select(own), everything.rows(own), count)
        total += loss
    assert total == pytest.approx(expected, abs=1e-12) and torch.allclose(found, gradient, atol=1e-12)


@pytest.mark.parametrize("average", AVERAGES)
@pytest.mark.parametrize("method", METHODS)
def test_minibatches_treat_the_tokens_that_the_whole_batch_chose(method, average):
    """A minibatch has a divisor of its own, because it is an update of its own; its treatment is the batch's."""
    batch = make_batch("clipped_on_both_sides")
    t = batch.treat(method, **STRONG[method], average=average)
    whole = normaliser(average, batch.mask, MAX_NEW_TOKENS)
    gradient = loss_and_gradient(batch, t, whole)[1]
    for rows in torch.arange(len(batch.mask)).chunk(2):
        count = normaliser(average, batch.mask[rows], MAX_NEW_TOKENS)
        found = loss_and_gradient(batch.select(rows), t.rows(rows), count)[1]
        assert torch.allclose(found * count / whole, gradient[rows], atol=1e-12)


@pytest.mark.parametrize("device", ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"])
@pytest.mark.parametrize("method", METHODS)
def test_the_device_changes_nothing(method, device):
    """The same tokens, also those drawn at random: masks and indices stay on the device, the generator on the CPU."""
    batch = make_batch("clipped_on_both_sides", groups=8)
    there = Batch(*(x.to(device) for x in vars(batch).values()))
    t, found = batch.treat(method, **STRONG[method]), there.treat(method, **STRONG[method])
    for name in ("advantages", "pg_weight", "kl_weight"):
        assert getattr(found, name).device.type == device
        assert torch.allclose(getattr(found, name).cpu(), getattr(t, name), atol=1e-12), name
    expected, gradient = loss_and_gradient(batch, t, 10)
    loss, there_gradient = loss_and_gradient(there, found, 10)
    assert loss == pytest.approx(expected, abs=1e-12) and torch.allclose(there_gradient.cpu(), gradient, atol=1e-12)


def test_the_mean_of_micro_batch_means_is_not_the_mean():
    """What a divisor per micro-batch does: a memory flag changes the gradient, here by more than a tenth."""
    batch = make_batch()
    t = batch.treat("grpo", average="token")
    right = loss_and_gradient(batch, t, normaliser("token", batch.mask, MAX_NEW_TOKENS))[1]
    wrong = torch.zeros_like(right)
    for rows in torch.arange(8).split(1):
        count = 8 * normaliser("token", batch.mask[rows], MAX_NEW_TOKENS)
        wrong[rows] = loss_and_gradient(batch.select(rows), t.rows(rows), count)[1]
    assert (wrong - right).norm() / right.norm() > 0.1


def test_a_treatment_per_micro_batch_is_another_treatment():
    """verl and the release take quantiles and means of what fits into memory: other tokens, other gradient."""
    batch = make_batch(groups=4)
    whole = batch.treat("sent", **STRONG["sent"]).kl_weight
    pieces = [batch.select(rows).treat("sent", **STRONG["sent"]).kl_weight for rows in torch.arange(16).split(2)]
    assert ((torch.cat(pieces) != whole) & batch.mask).sum() > 5


@pytest.mark.parametrize(("average", "divisor"), [("sequence", 3), ("token", 6), ("constant", 30)])
def test_normaliser(average, divisor):
    mask = torch.arange(4) < torch.tensor([[4], [2], [0]])
    assert normaliser(average, mask, 10) == divisor
    assert normaliser(average, mask[:0], 10) == 1  # nothing to average: 0 / 1, not 0 / 0


def test_the_averages_weigh_long_answers_differently():
    """One answer of 4 tokens with A = 1, one of 1 token with A = -1, ratio 1. Worked by hand."""
    lp, mask = torch.zeros(2, 4), torch.arange(4) < torch.tensor([[4], [1]])
    adv = torch.tensor([[1.0], [-1.0]])
    for average, expected in {"sequence": 0.0, "token": -3 / 5, "constant": -3 / 20}.items():
        loss, _ = policy_loss(lp, lp, None, treat("grpo", lp, lp, adv, mask, average=average), mask)
        assert loss.sum().item() / normaliser(average, mask, 10) == pytest.approx(expected)


# ---------------------------------------------------------------------------------------------- settings
def test_a_setting_of_another_method_is_refused_not_ignored():
    names = {name for method in METHODS for name in settings_of(method)}
    for method in METHODS:
        for name in names - set(settings_of(method)):
            with pytest.raises(ValueError, match=f"{name} is no setting of method {method}"):
                check_settings(method, {name: 0.5})
        with pytest.raises(ValueError, match="no setting"):
            check_settings(method, {"seed": 1})
        check_settings(method, settings_of(method))  # its own defaults pass


@pytest.mark.parametrize(
    ("method", "bad"),
    [
        ("grpo", {"clip_low": -0.1}),
        ("grpo", {"clip_high": math.nan}),
        ("grpo", {"average": "mean"}),
        ("grpo", {"kl_coef": -1.0}),
        ("grpo", {"kl_coef": math.inf}),
        ("entropy_bonus", {"entropy_coef": -0.001}),
        ("entropy_bonus", {"entropy_coef": math.inf}),
        ("entropy_advantage", {"alpha": -1.0}),
        ("entropy_advantage", {"kappa": 0.0}),
        ("entropy_advantage", {"kappa": -2.0}),
        ("forking_tokens", {"fork_share": 0.0}),
        ("forking_tokens", {"fork_share": 1.0}),
        ("forking_tokens", {"fork_share": 20.0}),
        ("clip_cov", {"cov_share": math.nan}),
        ("clip_cov", {"cov_low": 5.0, "cov_high": 1.0}),
        ("clip_cov", {"cov_low": 6.0}),
        ("kl_cov", {"cov_share": 1.5}),
        ("kl_cov", {"kl_old_coef": -1.0}),
        ("high_entropy_kl", {"beta_low": -0.02}),
        ("sent", {"beta_low": 0.3, "beta_high": 0.2}),
        ("sent", {"beta_low": 0.2, "beta_high": 0.2}),
        ("sent", {"beta_low": 0.0, "beta_high": 0.2}),
        ("sent", {"beta_low": 0.3}),
        ("sent", {"beta_high": 0.0}),
        ("sent", {"tau_entropy": "0%"}),
        ("sent", {"tau_entropy": "100%"}),
        ("sent", {"tau_entropy": "120%"}),
        ("sent", {"tau_entropy": "nan"}),
        ("sent", {"tau_cov": "high"}),
        ("sent", {"tau_cov": ""}),
    ],
    ids=str,
)
def test_values_out_of_range_are_refused(method, bad):
    with pytest.raises(ValueError, match="|".join(bad) + "|threshold"):
        check_settings(method, bad)
    with pytest.raises(ValueError):
        make_batch().treat(method, **bad)


def test_an_unknown_method_is_refused_with_the_list():
    with pytest.raises(ValueError, match="'ppo'.*grpo.*sent_release"):
        settings_of("ppo")
    with pytest.raises(ValueError, match="unknown method"):
        make_batch().treat("ppo")


def test_none_is_the_methods_own_value():
    batch = make_batch()
    assert batch.treat("clip_higher", **settings_of("clip_higher")).clip_high == 0.28
    assert batch.treat("clip_higher", clip_high=0.5).clip_high == 0.5


def test_an_infinite_clip_range_is_no_clipping():
    batch = make_batch("clipped_on_both_sides")
    t = batch.treat("grpo", clip_low=math.inf, clip_high=math.inf)
    new = token_logprobs(batch.new, batch.tokens)
    loss, stats = policy_loss(new, batch.old_logprobs, None, t, batch.mask)
    ratio = (new - batch.old_logprobs).exp() / batch.mask.sum(1, keepdim=True)
    assert torch.allclose(loss, -ratio * batch.advantages * batch.mask) and stats["clipped"] == 0


def test_argument_errors_do_not_wait_for_torch():
    code = ("import sys, entropy; entropy.check_settings('sent', entropy.settings_of('sent')); "
            "entropy.semantic_entropy([0, 1]); sys.exit('torch' in sys.modules)")  # fmt: skip
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent.parent).returncode == 0


# ---------------------------------------------------------------------------------------------- parts
def test_equal_rewards_give_exactly_zero():
    """Eight rewards of 0.7: their float32 mean is not 0.7, and the noise divided by 1e-6 is an advantage."""
    rewards = torch.full((1, 8), 0.7)
    noise = (rewards - rewards.mean()) / (rewards.std() + 1e-6)
    assert noise.abs().max() > 0.05
    assert not group_advantages(rewards).any() and not group_advantages(rewards, scale=False).any()


def test_group_advantages_match_the_loops():
    rewards = torch.rand(3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for scale, (q, i) in itertools.product((True, False), itertools.product(range(3), range(5))):
        group = rewards[q].tolist()
        mean = sum(group) / 5
        std = math.sqrt(sum((r - mean) ** 2 for r in group) / 4)  # unbiased
        expected = (group[i] - mean) / ((std + 1e-6) if scale else 1)
        assert group_advantages(rewards, scale)[q, i].item() == pytest.approx(expected, abs=1e-12)
    with pytest.raises(ValueError, match="at least 2"):
        group_advantages(torch.ones(3, 1))


def test_covariance_matches_the_loops_and_its_mean_is_the_covariance():
    batch = make_batch()
    cov = token_covariance(batch.old_logprobs, batch.advantages, batch.mask)
    logp, adv = valid(batch, batch.old_logprobs), valid(batch, batch.advantages)
    assert valid(batch, cov) == pytest.approx(naive_covariance(logp, adv), abs=1e-12)
    assert not cov[~batch.mask].any()
    both = torch.tensor([list(logp.values()), list(adv.values())])
    assert cov[batch.mask].mean().item() == pytest.approx(torch.cov(both, correction=0)[0, 1].item(), abs=1e-6)


def test_covariance_does_not_depend_on_the_order_of_rows_in_float32():
    """Means in float32 would: and with them which token is the top 0.02 %."""
    g = torch.Generator().manual_seed(0)
    lp, adv = -5 * torch.rand(512, 64, generator=g), torch.randn(512, 1, generator=g)
    mask, order = torch.ones(512, 64, dtype=torch.bool), torch.randperm(512, generator=g)
    assert torch.equal(token_covariance(lp, adv, mask)[order], token_covariance(lp[order], adv[order], mask))


@pytest.mark.parametrize("constant", ["logprobs", "advantages"])
def test_covariance_with_a_constant_is_exactly_zero(constant):
    """The mean of 77 times log 1/3 need not be log 1/3, and a top share would select the difference."""
    mask = torch.ones(7, 11, dtype=torch.bool)
    x = torch.full((7, 11), math.log(1 / 3), dtype=torch.float64)
    y = torch.randn(7, 11, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert (x - x.mean()).any()
    assert not token_covariance(*((x, y) if constant == "logprobs" else (y, x)), mask).any()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-10, 10, width=32), min_size=1, max_size=30), st.floats(0.5, 99.5))
def test_quantiles_are_those_of_the_loops_and_of_torch(values, percent):
    found = threshold(torch.tensor(values), f"{percent}%")
    assert found == pytest.approx(naive_quantile(values, percent / 100), abs=1e-9)
    by_torch = torch.quantile(torch.tensor(values, dtype=torch.float64), percent / 100).item()
    assert found == pytest.approx(by_torch, abs=1e-9)


def test_threshold_takes_a_quantile_or_a_number():
    values = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])
    assert [threshold(values, s) for s in ("50%", " 25% ", "0.35", 0.35, "-1e-3", "inf")] == [
        3.0, 2.0, 0.35, 0.35, -0.001, math.inf]  # fmt: skip
    assert threshold(values[:0], "80%") == math.inf  # nothing lies above a quantile of nothing
    for bad in ("", "80 percent", "0%", "100%", "nan", "nan%", None):
        with pytest.raises(ValueError, match="quantile"):
            threshold(values, bad)


def test_quantile_of_more_than_2_24_elements():
    """One release-sized rollout batch: 256 x 8 answers of up to 8192 tokens. torch.quantile refuses it."""
    values = torch.zeros(2**24 + 1)
    values[: 2**23] = 1.0
    with pytest.raises(RuntimeError, match="too large"):
        torch.quantile(values, 0.8)
    assert (threshold(values, "80%"), threshold(values, "40%")) == (1.0, 0.0)


def test_shares_round_down_to_at_least_one_and_ties_go_to_the_earlier_token():
    among = torch.tensor([[True, True, False, True], [True, True, True, True]])
    scores = torch.tensor([[1.0, 2.0, 9.0, 2.0], [2.0, 0.0, 2.0, 2.0]])
    for share, expected in [(1e-4, [1]), (0.28, [1]), (0.3, [1, 3]), (0.58, [1, 3, 4, 6]), (0.99, [0, 1, 3, 4, 6, 7])]:
        assert top_share(scores, among, share).flatten().nonzero().flatten().tolist() == expected, share


def test_the_lowest_share_is_a_share_of_all_low_entropy_tokens():
    """10 000 tokens, 2e-4: two with the strong penalty and two, not one, with the weak one."""
    lp = -torch.rand(100, 100, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    adv, mask = torch.randn(100, 1, dtype=torch.float64), torch.ones(100, 100, dtype=torch.bool)
    weight = treat("sent_release", lp, -lp, adv, mask, tau_entropy=9.0, kl_old_coef=1.0).kl_weight
    assert {x: int((weight == x).sum()) for x in (2.0, 0.5)} == {2.0: 2, 0.5: 2}


def test_clip_cov_draws_at_random_among_the_candidates():
    lp = -3 * torch.rand(40, 50, generator=torch.Generator().manual_seed(0))
    adv, mask = torch.randn(40, 1, generator=torch.Generator().manual_seed(1)), torch.ones(40, 50, dtype=torch.bool)
    cov = token_covariance(lp, adv, mask)
    candidates = (cov > 0.2) & (cov < 1.5)

    def spared(seed, share=0.01):
        t = treat("clip_cov", lp, -lp, adv, mask, seed=seed, cov_low=0.2, cov_high=1.5, cov_share=share)
        return t.pg_weight == 0

    assert int(spared(0).sum()) == 20 and not (spared(0) & ~candidates).any()
    assert int(spared(0, 2e-4).sum()) == 1
    assert int(spared(0, 0.29).sum()) == min(int(2000 * 0.29), int(candidates.sum()))
    assert torch.equal(spared(3), spared(3)) and not torch.equal(spared(3), spared(4))
    seen = torch.stack([spared(seed) for seed in range(400)]).double().sum(0)[candidates]
    mean = 400 * 20 / int(candidates.sum())  # every candidate is as likely: a Poisson count of this mean
    assert seen.mean().item() == pytest.approx(mean) and (seen == 0).double().mean() < 3 * math.exp(-mean) + 1e-3


def test_rows_of_a_treatment():
    t = make_batch().treat("sent", **STRONG["sent"])
    part = t.rows(torch.tensor([3, 0]), 2)
    assert torch.equal(part.kl_weight, t.kl_weight[[3, 0], :2]) and part.advantages.shape == part.pg_weight.shape
    assert (part.average, part.clip_high) == (t.average, t.clip_high)
    assert t.rows(slice(2, 4)).advantages.shape == (2, 7)


# ---------------------------------------------------------------------------------------------- facts it teaches
@pytest.mark.parametrize("method", ["kl_cov", "sent_release"])
def test_kl_to_the_old_policy_is_inert_on_the_first_update(method):
    """At pi = pi_old its value and its gradient are 0: with one update per rollout these are plain policy gradient."""
    batch = make_batch()
    batch.new = batch.old
    t = batch.treat(method, **(STRONG[method] | {"kl_coef": 0.0}))
    assert t.kl_weight.any()
    plain = batch.treat("grpo", average="token")
    assert torch.equal(loss_and_gradient(batch, t, 7)[1], loss_and_gradient(batch, plain, 7)[1])


def test_kl_to_the_start_is_not_inert_on_the_first_update():
    batch = make_batch()
    batch.new = batch.old
    sent, grpo = (loss_and_gradient(batch, batch.treat(m, **own), 7)[1] for m, own in (VARIANTS[-4], VARIANTS[0]))
    assert (sent - grpo).norm() / grpo.norm() > 0.01


def test_abs_anchor_pushes_at_full_size_on_rounding_noise_k3_does_not():
    """Another kernel, another micro-batch: log-probs differ by 1e-7. abs has slope +-1 there, k3 a slope of 1e-7."""
    lp, mask = -torch.rand(4, 8, generator=torch.Generator().manual_seed(0)), torch.ones(4, 8, dtype=torch.bool)
    new = lp + 1e-7 * torch.randn(4, 8, generator=torch.Generator().manual_seed(1))
    moved = new != lp
    slopes = {}
    for anchor, method, own in (("abs", "kl_cov", {"cov_share": 0.99}), ("k3", "sent", {"tau_entropy": 9.0})):
        t = treat(method, lp, -lp, lp * 0, mask, **own)
        t = type(t)(t.advantages, t.pg_weight, torch.ones_like(lp), t.kl_anchor, average="token")
        live = new.clone().requires_grad_()
        policy_loss(live, lp, lp, t, mask)[0].sum().backward()
        slopes[anchor] = live.grad.abs()
    assert (slopes["abs"][moved] == 1).all() and moved.sum() > 20
    assert slopes["k3"].max() < 1e-6


def test_k3_keeps_its_digits_where_the_plain_form_is_zero():
    d = torch.logspace(-6, -3.8, 50)  # |d| < 2e-4, float32
    exact = torch.expm1(d.double()) - d.double()
    plain = d.exp() - d - 1
    assert ((plain - exact).abs() / exact).max() >= 0.99
    found = k3(-d, torch.zeros(50))
    assert ((found - exact).abs() / exact).max() < 0.2 and (found >= 0).all()
    assert k3(torch.tensor(-1.0), torch.tensor(-2.0)).item() == pytest.approx(math.exp(-1) + 1 - 1)


def test_k1_as_a_loss_has_zero_expected_gradient_on_policy():
    """E_pi[grad(log pi - log ref)] = E_pi[grad log pi] = 0: noise, no pull. k3's expected gradient is pi - ref, that
    of KL(ref || pi), the *forward* KL."""
    z = torch.randn(6, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    ref = torch.randn(6, generator=torch.Generator().manual_seed(1), dtype=torch.float64).log_softmax(0)
    p = z.detach().softmax(0)  # the samples' weights: not differentiated
    k1 = torch.autograd.grad((p * (z.log_softmax(0) - ref)).sum(), z)[0]
    pull = torch.autograd.grad((p * k3(z.log_softmax(0), ref)).sum(), z)[0]
    forward = torch.autograd.grad((ref.exp() * (ref - z.log_softmax(0))).sum(), z)[0]
    assert k1.abs().max() < 1e-15
    assert torch.allclose(pull, p - ref.exp(), atol=1e-14) and torch.allclose(pull, forward, atol=1e-14)
    assert pull.abs().max() > 0.1


def test_forking_tokens_keeps_all_tokens_in_the_denominator():
    """10 tokens, A = 1, ratio 1: the loss is -2/10, not the -2/2 that dividing by the selected count gives."""
    H = torch.rand(2, 5, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(2, 5, dtype=torch.bool)
    t = treat("forking_tokens", -H, H, torch.ones(2, 1), mask)
    loss, _ = policy_loss(-H, -H, None, t, mask)
    assert loss.sum().item() / normaliser(t.average, mask, 5) == pytest.approx(-0.2)
    assert H[t.pg_weight == 1].min() > H[t.pg_weight == 0].max()


def test_clip_cov_keeps_the_spared_tokens_in_the_denominator():
    batch = make_batch()
    t = batch.treat("clip_cov", **STRONG["clip_cov"])
    kept = (t.pg_weight == 1) & batch.mask
    loss, _ = policy_loss(batch.old_logprobs, batch.old_logprobs, None, t, batch.mask)
    assert loss.sum().item() == pytest.approx(-batch.advantages.expand(batch.mask.shape)[kept].sum().item())
    assert normaliser(t.average, batch.mask, MAX_NEW_TOKENS) == batch.mask.sum() > kept.sum()


def test_sent_release_penalises_both_ends_of_the_covariance_and_sent_the_upper_one():
    batch = make_batch(groups=4)
    cov, H = token_covariance(batch.old_logprobs, batch.advantages, batch.mask), token_entropy(batch.old)
    release = batch.treat("sent_release", tau_entropy="65%", cov_share=0.1, kl_old_coef=1.0).kl_weight
    low = batch.mask & (H < threshold(H[batch.mask], "65%"))
    assert cov[release == 2].min() > cov[low & (release == 0)].max() > cov[release == 0.5].max()
    assert not release[~low].any()
    sent = batch.treat("sent", tau_entropy="65%", tau_cov="90%", beta_low=0.1, beta_high=1.0).kl_weight
    assert sent[release == 2].eq(1.0).all() and sent[release == 0.5].eq(0.1).all()
    assert sent[low].min() == 0.1 and not sent[~low].any()


def test_high_entropy_kl_is_sents_mirror_image():
    batch = make_batch(groups=4)
    low = batch.treat("sent", beta_low=0.02).kl_weight > 0
    high = batch.treat("high_entropy_kl", beta_low=0.02).kl_weight > 0
    assert torch.equal(low ^ high, batch.mask) and 0.15 < high.sum() / batch.mask.sum() < 0.25


@pytest.mark.parametrize("method", ["clip_cov", "kl_cov", "sent", "sent_release"])
def test_nothing_selected_when_every_advantage_is_zero(method):
    """No group tells right from wrong: there is no covariance, so no token that stands out by it."""
    batch = make_batch("equal_rewards")
    t = batch.treat(method, **{k: v for k, v in STRONG[method].items() if k in ("cov_share", "tau_entropy", "tau_cov")})
    assert torch.equal(t.pg_weight, batch.mask.double())
    if method == "sent":
        assert t.kl_weight.unique().tolist() == [0.0, settings_of("sent")["beta_low"]]  # T_low, without T_high
    else:
        assert not t.kl_weight.any()


def test_nothing_selected_when_every_logprob_is_equal():
    """A uniform policy: no token is likelier than another."""
    lp, mask = torch.full((7, 11), math.log(1 / 3), dtype=torch.float64), torch.ones(7, 11, dtype=torch.bool)
    adv = torch.randn(7, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert not treat("kl_cov", lp, -lp, adv, mask, cov_share=0.5).kl_weight.any()


def test_bf16_moves_tokens_across_the_cut():
    """Entropies computed in bf16 put 5 and more of 512 tokens on the other side of the 80 % cut. Ours: none."""
    g = torch.Generator().manual_seed(0)
    logits = (3 * torch.randn(1, 512, 5000, generator=g)).bfloat16()

    def below(entropy):
        return entropy < threshold(entropy.flatten(), "80%")

    logp = logits.log_softmax(-1)  # all in bf16
    exact = below(token_entropy(logits.double()))
    assert (below(-(logp.exp() * logp).sum(-1)) != exact).sum() >= 5
    assert token_entropy(logits).dtype == torch.float32 and (below(token_entropy(logits)) != exact).sum() == 0
    tokens = sample(logits.float(), g)
    exact = token_logprobs(logits.double(), tokens)
    assert (token_logprobs(logits, tokens) - exact).abs().max() < 1e-5
    assert (logp.gather(-1, tokens[..., None])[..., 0] - exact).abs().max() > 1e-2


def test_entropy_advantage_never_turns_a_sign_when_kappa_exceeds_1():
    batch = make_batch(groups=4)
    A = batch.advantages.expand(batch.mask.shape)[batch.mask]
    shaped = batch.treat("entropy_advantage", alpha=100.0).advantages[batch.mask]
    assert torch.equal(shaped.sign(), A.sign()) and torch.allclose(shaped, A + A.abs() / 2)


# ---------------------------------------------------------------------------------------------- semantic entropy
LOG2 = math.log(2)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (([0, 0, 0, 0],), 0.0),
        (([0, 1, 2, 3],), 2 * LOG2),  # all different: log M, the most there is
        (([0, 0, 0, 1],), 2 * LOG2 - 0.75 * math.log(3)),
        (([7, -2, 7, -2],), LOG2),  # ids are names
        (([0], [-3.0], [5], "likelihood"), 0.0),
        # masses e^-1 + e^-1 : e^-1
        (([0, 0, 1], [-1.0, -1.0, -1.0], None, "likelihood"), math.log(3) - 2 / 3 * LOG2),
        # 3 : 1
        (([0, 1], [math.log(0.3), math.log(0.1)], None, "likelihood"), 2 * LOG2 - 0.75 * math.log(3)),
        # per token: e^-1 each
        (([0, 1], [-2.0, -200.0], [2, 200], "length_normalised"), LOG2),
        # the same under likelihood: the short answer is e^198 times as likely
        (([0, 1], [-2.0, -200.0], [2, 200], "likelihood"), 0.0),
        # exp underflows below about -745: published code returns -inf or nan here
        (([0, 1], [-1e4, -1e4], None, "likelihood"), LOG2),
        (([0, 1, 1], [-1e4, -1e4, -math.inf], None, "likelihood"), LOG2),
        # a mass of 5e-324, whose share of 2 is 0
        (([0, 0, 1], [0.0, 0.0, -745.0], None, "likelihood"), 0.0),
    ],
)
def test_semantic_entropy_worked_by_hand(arguments, expected):
    assert semantic_entropy(*arguments[:3], **({"estimator": arguments[3]} if len(arguments) > 3 else {})) == (
        pytest.approx(expected, abs=1e-12))  # fmt: skip


def naive_semantic_entropy(clusters, logprobs, lengths, estimator):
    """With 60 digits and no log-sum-exp."""
    with localcontext() as context:
        context.prec, context.Emin, context.Emax = 60, -(10**9), 10**9
        mass = defaultdict(Decimal)
        for i, k in enumerate(clusters):
            weight = {"frequency": 0, "likelihood": logprobs[i], "length_normalised": logprobs[i] / lengths[i]}
            mass[k] += Decimal(weight[estimator]).exp()
        total = sum(mass.values())
        return float(sum(-(m / total) * (m / total).ln() for m in mass.values()))


answers = st.lists(st.tuples(st.integers(0, 4), st.floats(-3000, 0), st.integers(1, 400)), min_size=1, max_size=12)
estimators = st.sampled_from(["frequency", "likelihood", "length_normalised"])


@settings(max_examples=150, deadline=None)
@given(answers, estimators)
def test_semantic_entropy_matches_the_definition(drawn, estimator):
    clusters, logprobs, lengths = map(list, zip(*drawn, strict=True))
    found = semantic_entropy(clusters, logprobs, lengths, estimator)
    assert found == pytest.approx(naive_semantic_entropy(clusters, logprobs, lengths, estimator), abs=1e-9)
    assert 0 <= found <= math.log(len(set(clusters))) + 1e-12
    assert math.copysign(1, found) == 1  # never "-0.0" in a file


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 6), min_size=1, max_size=16), st.randoms(use_true_random=False))
def test_equal_partitions_have_exactly_equal_semantic_entropy(clusters, random):
    """Questions are sorted by (SE, accuracy): a last bit that depends on the answers' order would overrule accuracy."""
    names = random.sample(range(100), 7)
    shuffled = [names[k] for k in clusters]
    random.shuffle(shuffled)
    assert semantic_entropy(shuffled) == semantic_entropy(clusters)


def test_likelihood_of_long_answers_says_nothing_about_meaning():
    """Eight long answers that all disagree: sums of log-probs differ by tens of nats, the likeliest takes all."""
    g = torch.Generator().manual_seed(0)
    lengths = (400 + 100 * torch.randn(8, generator=g)).int().tolist()
    logprobs = [-0.5 * n for n in lengths]
    found = {e: semantic_entropy(list(range(8)), logprobs, lengths, e)
             for e in ("frequency", "likelihood", "length_normalised")}  # fmt: skip
    assert found["likelihood"] < 0.01
    assert found["frequency"] == pytest.approx(math.log(8)) == found["length_normalised"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([],), "no answers"),
        (([0, 1], None, None, "likelihood"), "one log-prob"),
        (([0, 1], [-1.0], None, "likelihood"), "one log-prob"),
        (([0, 1], [-1.0, -1.0], None, "length_normalised"), "length"),
        (([0, 1], [-1.0, -1.0], [3], "length_normalised"), "length"),
        (([0, 1], [-1.0, 0.0], [3, 0], "length_normalised"), "length 0"),
        (([0, 1], [-1.0, math.nan], None, "likelihood"), "log-probs must be numbers"),
        (([0, 1], [-math.inf, -math.inf], None, "likelihood"), "log-probs must be numbers"),
        (([0, 1], [-1.0, math.inf], None, "likelihood"), "log-probs must be numbers"),
        (([0, 1], None, None, "entropy"), "unknown estimator"),
    ],
)
def test_semantic_entropy_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        semantic_entropy(*arguments)


@pytest.mark.parametrize("returned", [None, "bool", "scalar", "narrow"])
def test_a_method_of_ones_own_that_returns_something_else_is_told_so(monkeypatch, returned):
    def mine(logprobs, entropy, advantages, mask):
        weight = {"bool": mask, "scalar": 1.0, "narrow": advantages[:, :1]}.get(returned)
        return None if returned is None else Treatment(advantages, weight, advantages * 0)

    monkeypatch.setitem(METHODS, "mine", mine)
    H, mask = torch.rand(2, 3), torch.ones(2, 3, dtype=torch.bool)
    name = "advantages" if returned is None else "pg_weight"
    with pytest.raises(ValueError, match=rf"method mine must return a Treatment whose {name} is a float tensor"):
        treat("mine", -H, H, H, mask)
