"""The equations, on tensors: entropy, covariance, advantages, the treatments and the one loss.

This file knows no model, no file and no rank: whoever calls it hands over the *whole* rollout batch (gathered over
ranks), so that a quantile or a mean never depends on micro-batch size or on the number of GPUs.

Shapes: Q questions, G answers each, B = Q*G rows, T response positions, V vocabulary. Masks are bool [B, T], True on
response tokens, EOS included. Entropies and log-probabilities are in nats, at the sampling temperature.

Only tensor *methods* (x.exp(), not torch.exp(x)): `train.py --help` reads METHODS from here and must not wait the
1.8 s that importing torch takes.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

AVERAGES = ("sequence", "token", "constant")  # how token losses become one number: see `normaliser`


# ---------------------------------------------------------------------------------------------- entropy, log-probs
def wide(x: Tensor) -> Tensor:
    """bf16/fp16 -> float32. In bf16, 5 to 15 of 512 tokens change sides of the 80 % entropy cut."""
    return x.float() if x.element_size() < 4 else x


def token_entropy(logits: Tensor) -> Tensor:
    """H_t = -sum_j p_tj log p_tj of the next-token distribution; [B, T, V] -> [B, T], nats, float32 at least.

    Divide the logits by the sampling temperature first: the policy that is scored is the policy that sampled.

    >>> import torch
    >>> token_entropy(torch.zeros(1, 1, 4)).item()  # uniform over 4: log 4
    1.3862943649291992
    """
    logp = wide(logits).log_softmax(-1)
    # clamp: a banned token (logit -inf) contributes 0, but 0 * -inf is nan
    return -(logp.exp() * logp.clamp_min(-1e4)).sum(-1)


def token_logprobs(logits: Tensor, tokens: Tensor) -> Tensor:
    """log pi(o_t) of the tokens that were sampled; [B, T, V], [B, T] int64 -> [B, T], nats, float32 at least.

    >>> import torch
    >>> token_logprobs(torch.tensor([[[0.0, 0.0]]]), torch.tensor([[1]])).item()  # log 1/2
    -0.6931471824645996
    """
    return wide(logits).log_softmax(-1).gather(-1, tokens[..., None])[..., 0]


def semantic_entropy(clusters: list[int], logprobs: list[float] | None = None, lengths: list[int] | None = None,
                     estimator: str = "frequency") -> float:  # fmt: skip
    """SE = -sum_k p_k log p_k over the meaning clusters of one question's M answers, nats; p_k ~ sum_{o in C_k} P(o|q).

    P(o|q), and so what SE is an estimate of (duplicated responses: every sample counts):
      frequency          1 / M: the entropy of the answer's *meaning* by plain Monte Carlo. Biased low (at most log M).
      likelihood         exp(logprob): the paper's equation. It weights by likelihood what was already sampled by
                         likelihood: the entropy of a sharpened distribution. Log-probs of long answers differ by tens
                         of nats, the likeliest takes all the mass, and SE -> 0 whatever the answers say.
      length_normalised  exp(logprob / length), a per-token geometric mean: no probability, but it does not degenerate.
    Args: clusters [M] ids; logprobs [M] summed over a response's tokens, nats; lengths [M] in tokens.
    Raises ValueError for no answers, missing or unequally long inputs, log-probs that are nan or all -inf, length < 1.

    >>> round(semantic_entropy([0, 0, 1, 1]), 4)  # log 2
    0.6931
    >>> semantic_entropy([0, 0, 0]), round(semantic_entropy([0, 1], [-2000.0, -2000.0], estimator="likelihood"), 4)
    (0.0, 0.6931)
    """
    needed = {"frequency": [], "likelihood": [logprobs], "length_normalised": [logprobs, lengths]}
    if estimator not in needed:
        raise ValueError(f"unknown estimator {estimator!r}; choose one of {', '.join(needed)}")
    if not clusters:
        raise ValueError("semantic_entropy: no answers to cluster (M = 0); sample at least one per question")
    if any(x is None or len(x) != len(clusters) for x in needed[estimator]):
        raise ValueError(f"semantic_entropy: estimator {estimator!r} needs one log-prob (and length) per answer")
    weights = [0.0] * len(clusters) if estimator == "frequency" else list(logprobs)
    if estimator == "length_normalised":
        if min(lengths) < 1:
            raise ValueError("semantic_entropy: an answer of length 0 has no mean log-prob; EOS counts as a token")
        weights = [w / n for w, n in zip(weights, lengths, strict=True)]
    top = max(weights)  # log-sum-exp: exp(-800) underflows to 0, exp(-800 - top) does not
    if any(math.isnan(w) or w == math.inf for w in weights) or top == -math.inf:
        raise ValueError("semantic_entropy: log-probs must be numbers below +inf, not all of them -inf")
    mass: dict[int, float] = {}
    for cluster, weight in zip(clusters, weights, strict=True):
        mass[cluster] = mass.get(cluster, 0.0) + math.exp(weight - top)
    total = sum(mass.values())
    shares = [m / total for m in mass.values()]  # a share may underflow to 0 where its mass did not: test the share
    # fsum rounds once: equal partitions get equal SE in whatever order the clusters appeared, so ties stay ties
    return math.fsum(-p * math.log(p) for p in shares if p > 0)


# ---------------------------------------------------------------------------------------------- advantage, covariance
def group_advantages(rewards: Tensor, scale: bool = True) -> Tensor:
    """A_i = (R_i - mean_g) / (std_g + 1e-6) over each question's own group; [Q, G] -> [Q, G]. GRPO's advantage.

    std is unbiased (n - 1). A group of equal rewards gets exactly 0: dividing rounding noise by the 1e-6 gives eight
    rewards of 0.7 an |A| of up to 0.8. `scale=False` leaves the std out (Dr. GRPO, arXiv 2503.20783).
    Raises ValueError for G < 2: one answer has nothing to be compared with.

    >>> import torch
    >>> group_advantages(torch.tensor([[1.0, 0.0], [0.7, 0.7]]))
    tensor([[ 0.7071, -0.7071],
            [ 0.0000,  0.0000]])
    """
    if rewards.shape[1] < 2:
        raise ValueError("group_advantages: a group needs at least 2 answers; raise --group-size")
    centred = rewards - rewards.mean(1, keepdim=True)
    if scale:
        centred = centred / (rewards.std(1, keepdim=True) + 1e-6)
    return centred.masked_fill((rewards == rewards[:, :1]).all(1, keepdim=True), 0.0)


def token_covariance(logprobs: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
    """Cov_t = (log pi(o_t) - mean log pi) (A_t - mean A), means over all valid tokens; all [B, T], 0 outside the mask.

    Its mean drives entropy down: dH = -eta Cov(log pi, A) to first order in a natural-gradient step (arXiv 2505.22617;
    derived, with the plain step, in benchmarks/dynamics.py). In float64, so that neither the order of rows nor the
    number of ranks decides which token is in the top 0.02 %. When all advantages or all log-probs are equal it is
    exactly 0, not rounding noise that a top-k would then select.

    >>> import torch
    >>> token_covariance(torch.tensor([[-1.0, -3.0]]), torch.tensor([[1.0, -1.0]]), torch.tensor([[True, True]]))
    tensor([[1., 1.]])
    """
    out = logprobs.new_zeros(logprobs.shape)
    lp, adv = logprobs[mask].double(), advantages.expand_as(mask)[mask].double()
    if lp.numel() and adv.min() < adv.max() and lp.min() < lp.max():
        out[mask] = ((lp - lp.mean()) * (adv - adv.mean())).to(out.dtype)
    return out


def parse_threshold(spec: str | float) -> tuple[float, bool]:
    """A flag that takes a quantile or a number: "80%" -> (0.8, True), 0.35 -> (0.35, False). ValueError otherwise."""
    text = str(spec).strip()
    is_quantile = text.endswith("%")
    try:
        value = float(text.removesuffix("%"))
    except ValueError:
        value = math.nan
    if math.isnan(value) or (is_quantile and not 0 < value < 100):
        raise ValueError(f"threshold {spec!r}: give a quantile strictly between 0% and 100% (80%) or a number (0.35)")
    return (value / 100, True) if is_quantile else (value, False)


def threshold(values: Tensor, spec: str | float) -> float:
    """The cut that `spec` names in `values` [N]: its quantile (linear interpolation, as numpy) or the number itself.

    By sorting: torch.quantile refuses more than 2^24 elements, which one release-sized rollout batch can exceed.
    A quantile of no values is +inf.

    >>> import torch
    >>> threshold(torch.arange(11.0), "80%"), threshold(torch.arange(11.0), 0.5)
    (8.0, 0.5)
    """
    value, is_quantile = parse_threshold(spec)
    if not is_quantile or values.numel() == 0:
        return math.inf if is_quantile else value
    position = value * (values.numel() - 1)
    low, high = values.sort().values[[math.floor(position), math.ceil(position)]].double()
    return (low + (high - low) * (position - math.floor(position))).item()


def top_share(scores: Tensor, among: Tensor, share: float) -> Tensor:
    """The max(1, int(N * share)) highest scores among N tokens; [B, T] float, [B, T] bool -> [B, T] bool.

    Ties go to the earlier position: a run repeats. Scores that are all 0 (every advantage 0) select nothing, where
    the code of KL-Cov and of the release pushes arbitrary tokens.

    >>> import torch
    >>> top_share(torch.tensor([[3.0, 1.0, 3.0]]), torch.tensor([[True, True, True]]), 0.5)
    tensor([[ True, False, False]])
    """
    picked = among.new_zeros(among.shape)
    inside = scores[among]
    if inside.any():
        chosen = among.new_zeros(len(inside))
        chosen[inside.argsort(descending=True, stable=True)[: max(1, int(len(inside) * share))]] = True
        picked[among] = chosen
    return picked


# ---------------------------------------------------------------------------------------------- treatments
@dataclass(frozen=True)
class Treatment:
    """What a method does to each token. Everything here is constant: no gradient flows through it.

    The defaults are plain GRPO. `kl_anchor`: "ref" is the k3 estimator against the frozen start, "old" is
    abs(log pi - log pi_old). `kl_coef` puts k3 to the start on *every* token, on top. `average`: see `normaliser`.
    `strong`: the kl_weight from which metrics count a token as held hard; the loss does not read it.
    """

    advantages: Tensor  # [B, T]
    pg_weight: Tensor  # [B, T] on the clipped policy-gradient term
    kl_weight: Tensor  # [B, T] beta_t
    kl_anchor: str = "ref"
    kl_coef: float = 0.0
    entropy_coef: float = 0.0
    clip_low: float = 0.2
    clip_high: float = 0.2
    average: str = "sequence"
    strong: float = math.inf

    @property
    def needs_reference(self) -> bool:
        """Whether the loss reads ref_logprobs."""
        return self.kl_coef > 0 or (self.kl_anchor == "ref" and bool(self.kl_weight.any()))

    def rows(self, index: Tensor | slice, width: int | None = None) -> Treatment:
        """The same treatment on some rows, cut to `width` positions: what a micro-batch or a rank needs."""
        cut = {k: getattr(self, k)[index][:, :width] for k in ("advantages", "pg_weight", "kl_weight")}
        return replace(self, **cut)


def _plain(advantages: Tensor, mask: Tensor, **changes: object) -> Treatment:
    """GRPO's treatment with some fields changed."""
    weight = mask.to(advantages.dtype)
    return replace(Treatment(advantages, pg_weight=weight, kl_weight=weight * 0), **changes)


def grpo(logprobs: Tensor, entropy: Tensor, advantages: Tensor, mask: Tensor) -> Treatment:
    """No treatment: the clipped policy gradient alone (DeepSeekMath, arXiv 2402.03300), mean per sequence first."""
    return _plain(advantages, mask)


def clip_higher(logprobs: Tensor, entropy: Tensor, advantages: Tensor, mask: Tensor) -> Treatment:
    """DAPO (arXiv 2503.14476): a wider upper clip lets unlikely tokens grow; mean over tokens."""
    return _plain(advantages, mask, clip_high=0.28, average="token")


def entropy_bonus(logprobs: Tensor, entropy: Tensor, advantages: Tensor, mask: Tensor, *,
                  entropy_coef: float = 0.001) -> Treatment:  # fmt: skip
    """Loss - c H_t, with gradient through H_t. Explodes when c is too large."""
    return _plain(advantages, mask, entropy_coef=entropy_coef)


def entropy_advantage(logprobs: Tensor, entropy: Tensor, advantages: Tensor, mask: Tensor, *,
                      alpha: float = 0.4, kappa: float = 2.0) -> Treatment:  # fmt: skip
    """A + min(alpha H_t, |A| / kappa), H detached (arXiv 2506.14758). Out of place: `A +=` accumulates over epochs."""
    return _plain(advantages + (alpha * entropy).minimum(advantages.abs() / kappa), mask)


def forking_tokens(logprobs: Tensor, entropy: Tensor, advantages: Tensor, mask: Tensor, *,
                   fork_share: float = 0.2) -> Treatment:  # fmt: skip
    """Policy gradient only on the top share of entropy (arXiv 2506.01939). The denominator stays *all* tokens, as in
    the paper; the authors' code divides by the selected count, which makes the loss 5 times as large."""
    forks = top_share(entropy, mask, fork_share)
    return _plain(advantages, mask, pg_weight=forks.to(advantages.dtype), clip_high=0.28, average="token")


def clip_cov(logprobs: Tensor, entropy: Tensor, advantages: Tensor, mask: Tensor, *,
             cov_share: float = 2e-4, cov_low: float = 1.0, cov_high: float = 5.0,
             seed: int = 0) -> Treatment:  # fmt: skip
    """Clip-Cov (arXiv 2505.22617): a random share of tokens with cov_low < Cov < cov_high loses its policy gradient
    (and stays in the denominator). "Not already clipped" holds for every token here: the choice is made at ratio 1.
    `seed` is the caller's function of position, so that a resumed run draws the same tokens."""
    import torch

    cov = token_covariance(logprobs, advantages, mask)
    found = (mask & (cov > cov_low) & (cov < cov_high)).nonzero()  # [n, 2]
    generator = torch.Generator().manual_seed(seed)  # on the CPU: the same draw on every device
    quota = max(1, int(int(mask.sum()) * cov_share))  # int first: tensor * float would be float32
    chosen = found[torch.randperm(len(found), generator=generator)[:quota].to(found.device)]
    weight = mask.to(advantages.dtype)
    weight[chosen[:, 0], chosen[:, 1]] = 0.0
    return _plain(advantages, mask, pg_weight=weight, clip_low=1.0, clip_high=1.0, average="token")


def kl_cov(logprobs: Tensor, entropy: Tensor, advantages: Tensor, mask: Tensor, *,
           cov_share: float = 0.002, kl_old_coef: float = 1.0) -> Treatment:  # fmt: skip
    """KL-Cov (arXiv 2505.22617): the top share by Cov pays coef |log pi - log pi_old|; no clip. With one update per
    rollout this is plain policy gradient: at ratio 1 the penalty has value 0 and slope 0."""
    top = top_share(token_covariance(logprobs, advantages, mask), mask, cov_share)
    weight = kl_old_coef * top.to(advantages.dtype)
    return _plain(advantages, mask, kl_weight=weight, kl_anchor="old", clip_low=math.inf, clip_high=math.inf,
                  average="token")  # fmt: skip


def high_entropy_kl(logprobs: Tensor, entropy: Tensor, advantages: Tensor, mask: Tensor, *,
                    beta_low: float = 0.02, tau_entropy: str | float = "80%") -> Treatment:  # fmt: skip
    """SENT's mirror image: KL to the start where entropy is *high*. No public code exists; our definition."""
    high = mask & (entropy >= threshold(entropy[mask], tau_entropy))
    return _plain(advantages, mask, kl_weight=beta_low * high.to(advantages.dtype))


def sent(logprobs: Tensor, entropy: Tensor, advantages: Tensor, mask: Tensor, *,
         beta_low: float = 0.02, beta_high: float = 0.2, tau_entropy: str | float = "80%",
         tau_cov: str | float = "98%") -> Treatment:  # fmt: skip
    """SENT (arXiv 2512.04359): KL to the start on low-entropy tokens only, stronger where Cov is high among them.

        T_low  = {t : H_t < tau_entropy}    T_high = {t in T_low : Cov_t > tau_cov}
        beta_t = beta_high on T_high, beta_low on T_low without T_high, 0 elsewhere

    `tau_entropy` is a quantile over all valid tokens, `tau_cov` one *inside T_low*; or plain numbers.
    """
    low = mask & (entropy < threshold(entropy[mask], tau_entropy))
    cov = token_covariance(logprobs, advantages, mask)
    high = low & (cov > threshold(cov[low], tau_cov))
    dtype = advantages.dtype
    weight = beta_low * (low & ~high).to(dtype) + beta_high * high.to(dtype)
    return _plain(advantages, mask, kl_weight=weight, strong=beta_high)


def sent_release(logprobs: Tensor, entropy: Tensor, advantages: Tensor, mask: Tensor, *,
                 kl_old_coef: float = 0.1, cov_share: float = 2e-4,
                 tau_entropy: str | float = "80%") -> Treatment:  # fmt: skip
    """What the authors' released code was *meant* to do. Inside the lowest 80 % of H: the top share of Cov pays
    2 coef |d log pi_old|, the lowest share 0.5 coef; no clip, token mean, plus 0.001 k3 to the start on all tokens.
    (As shipped, an integer mask used as an index picks the covariances of the wrong tokens.)"""
    low = mask & (entropy < threshold(entropy[mask], tau_entropy))
    cov = token_covariance(logprobs, advantages, mask)
    top = top_share(cov, low, cov_share)
    bottom = top_share(-cov, low, cov_share) & ~top
    weight = kl_old_coef * (2.0 * top.to(advantages.dtype) + 0.5 * bottom.to(advantages.dtype))
    return _plain(advantages, mask, kl_weight=weight, kl_anchor="old", kl_coef=0.001, clip_low=math.inf,
                  clip_high=math.inf, average="token", strong=2.0 * kl_old_coef)  # fmt: skip


METHODS: dict[str, Callable[..., Treatment]] = {
    f.__name__: f
    for f in (grpo, clip_higher, entropy_bonus, entropy_advantage, forking_tokens, clip_cov, kl_cov, high_entropy_kl,
              sent, sent_release)
}  # fmt: skip
SHARED_SETTINGS = ("clip_low", "clip_high", "average", "kl_coef")  # fields of Treatment that every method lets you set


def settings_of(method: str) -> dict[str, object]:
    """The settings of a method with its published defaults, its own and the shared ones (None: the method's own).

    >>> settings_of("sent")["tau_entropy"], settings_of("grpo")
    ('80%', {'clip_low': None, 'clip_high': None, 'average': None, 'kl_coef': None})
    """
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}; choose one of {', '.join(METHODS)}")
    own = inspect.signature(METHODS[method]).parameters.values()
    own = {p.name: p.default for p in own if p.kind is p.KEYWORD_ONLY and p.name != "seed"}
    return own | dict.fromkeys(SHARED_SETTINGS)


def check_settings(method: str, settings: dict[str, object]) -> None:
    """Refuse what the method does not have (never ignore it) and values outside their range. Raises ValueError."""
    known = settings_of(method)
    for name, value in settings.items():
        if name not in known:
            raise ValueError(f"{name} is no setting of method {method}, which takes {', '.join(known)}")
        if value is None:
            continue
        if name.startswith("tau_"):
            try:
                parse_threshold(value)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None
            continue
        if name == "average":
            ok, rule = value in AVERAGES, f"choose one of {', '.join(AVERAGES)}"
        elif name.endswith("_share"):
            ok, rule = 0 < value < 1, "a share lies strictly between 0 and 1"
        elif name == "kappa":
            ok, rule = 0 < value < math.inf, "must be positive"
        else:  # nan fails every comparison; an infinite clip range is no clipping
            ok, rule = 0 <= value and (value < math.inf or name.startswith("clip_")), "must be finite and not negative"
        if not ok:
            raise ValueError(f"{name} = {value}: {rule}")
    values = known | {name: value for name, value in settings.items() if value is not None}
    low, high = values.get("beta_low"), values.get("beta_high")
    if high is not None and not (high > low > 0 or high == low == 0):  # both 0 is plain GRPO, on purpose
        raise ValueError(f"beta_low = {low}, beta_high = {high}: SENT needs beta_high > beta_low > 0")
    if "cov_high" in known and not values["cov_high"] > values["cov_low"]:
        raise ValueError(f"cov_low = {values['cov_low']}, cov_high = {values['cov_high']}: must be low < high")


def treat(method: str, logprobs: Tensor, entropy: Tensor, advantages: Tensor, mask: Tensor, *, seed: int = 0,
          **settings: object) -> Treatment:  # fmt: skip
    """The treatment of every token of a rollout batch, decided once, before minibatches are cut.

    Args: logprobs, entropy, advantages, mask, all [B, T] of the whole batch of all ranks, from the policy that sampled
    (advantages may be [B, 1]); seed for the one method that draws at random; settings as in `settings_of(method)`.
    Raises ValueError for an unknown method, a setting the method does not have, a value out of range, and a method of
    your own that returns no Treatment of these shapes.

    >>> import torch
    >>> H, A, mask = torch.tensor([[0.1, 0.9]]), torch.tensor([[1.0, 1.0]]), torch.tensor([[True, True]])
    >>> treat("sent", -H, H, A, mask, tau_entropy=0.5).kl_weight
    tensor([[0.0200, 0.0000]])
    """
    check_settings(method, settings)
    settings = {name: value for name, value in settings.items() if value is not None}
    shared = {name: settings.pop(name) for name in SHARED_SETTINGS if name in settings}
    if "seed" in inspect.signature(METHODS[method]).parameters:
        settings["seed"] = seed
    advantages = advantages.detach().expand_as(mask)
    made = METHODS[method](logprobs.detach(), entropy.detach(), advantages, mask, **settings)
    for name in ("advantages", "pg_weight", "kl_weight"):
        value = getattr(made, name, None)
        if getattr(value, "shape", None) != mask.shape or not value.is_floating_point():
            raise ValueError(f"method {method} must return a Treatment whose {name} is a float tensor [B, T]")
    return replace(made, **shared)


# ---------------------------------------------------------------------------------------------- the loss
def k3(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """KL(pi || ref) per token by the k3 estimator, exp(d) - d - 1 with d = log ref - log pi; >= 0, slope 0 at d = 0.

    expm1: in float32 the plain form is 0 below |d| of about 2e-4. (As a *loss*, k1 = -d has zero expected gradient
    on-policy, and abs(d) pushes at full size however small d is. The expected gradient of k3 is that of KL(ref || pi):
    benchmarks/dynamics.py.)

    >>> import torch
    >>> k3(torch.tensor(-1.0), torch.tensor(-1.0001)).item() > 0
    True
    """
    d = ref_logprobs - logprobs
    return d.expm1() - d


def normaliser(average: str, mask: Tensor, max_new_tokens: int) -> int:
    """What the summed loss of the rows in `mask` [B, T] is divided by, once, over all ranks and micro-batches; >= 1.

    "sequence": B, each row's tokens already weigh 1/|o_i| (GRPO; short answers count as much as long ones).
    "token": the number of valid tokens (DAPO). "constant": B * max_new_tokens (Dr. GRPO).
    """
    rows, tokens = mask.shape[0], int(mask.sum())
    return max(1, {"sequence": rows, "token": tokens, "constant": rows * max_new_tokens}[average])


def policy_loss(logprobs: Tensor, old_logprobs: Tensor, ref_logprobs: Tensor | None, treatment: Treatment, mask: Tensor,
                entropy: Tensor | None = None) -> tuple[Tensor, dict[str, Tensor]]:  # fmt: skip
    """The one loss of every method, per token; the caller sums it and divides by the global minibatch's `normaliser`.

        w_t [ - pg_t min(r_t A_t, clip(r_t, 1 - lo, 1 + hi) A_t) + beta_t KL_t + kl_coef k3_t - c H_t ]

    w_t = 1/|o_i| for the "sequence" average, else 1; r_t = pi / pi_old; KL_t by `kl_anchor`. Gradient flows through
    `logprobs`, and through `entropy` when there is an entropy coefficient; through nothing else. All [B, T].

    Returns the loss [B, T], 0 outside the mask, and {"clipped": number of tokens whose gradient the clip removed}: a
    sum, not a mean, because sums survive micro-batches and ranks.
    Raises ValueError when the treatment needs ref_logprobs or entropy and they are None, or the entropy is constant.

    >>> import torch
    >>> lp, mask = torch.tensor([[-1.0, -2.0]], requires_grad=True), torch.tensor([[True, True]])
    >>> loss, stats = policy_loss(lp, lp, None, treat("grpo", lp, -lp, torch.ones(1, 2), mask), mask)
    >>> loss.sum().backward()
    >>> loss.sum().item(), lp.grad  # at ratio 1 the loss is -A whatever the log-probs, and its gradient is not 0
    (-1.0, tensor([[-0.5000, -0.5000]]))
    """
    t = treatment
    if t.needs_reference and ref_logprobs is None:
        raise ValueError("policy_loss: this treatment has a KL to the start and needs ref_logprobs")
    if t.entropy_coef and (entropy is None or entropy.requires_grad < logprobs.requires_grad):
        raise ValueError("policy_loss: the entropy bonus needs the live entropy, with its gradient")
    # before any arithmetic: what stands in the padding may be nan, and nan * 0 is nan in the backward pass
    logprobs = logprobs.masked_fill(~mask, 0.0)
    change = logprobs - old_logprobs.detach()
    ratio = change.exp()
    plain, clipped = ratio * t.advantages, ratio.clamp(1 - t.clip_low, 1 + t.clip_high) * t.advantages
    loss = -t.pg_weight * plain.minimum(clipped)
    if t.kl_anchor == "old":
        loss = loss + t.kl_weight * change.abs()
    if t.needs_reference:
        weight = t.kl_coef + t.kl_weight * (t.kl_anchor == "ref")
        loss = loss + weight * k3(logprobs, ref_logprobs.detach())
    if t.entropy_coef:
        loss = loss - t.entropy_coef * entropy
    if t.average == "sequence":
        loss = loss / mask.sum(1, keepdim=True).clamp_min(1)
    return loss.masked_fill(~mask, 0.0), {"clipped": ((clipped < plain) & (t.pg_weight > 0)).sum()}
