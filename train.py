"""SENT: reinforcement learning for reasoning that keeps its entropy. The run: config, loop, checkpoints, metrics.

    python train.py                                  SENT on the embedded task: a laptop, some minutes
    python train.py --method grpo                    the baseline that collapses
    torchrun --nproc_per_node=8 train.py --model Qwen/Qwen2.5-Math-1.5B --questions BytedTsinghua-SIA/DAPO-Math-17k

Departures from the paper (Cao et al., arXiv 2512.04359) and from the authors' release (github.com/zldscr0/SENT):
  1. Which tokens are treated is decided once per rollout, from pi_old, over the whole batch of all ranks. The release
     decides per micro-batch of one rank, so a memory flag changes its algorithm.
  2. The token KL is k3 against the frozen start, as in the paper. The release has |log pi - log pi_old| (inert in the
     first update of each rollout); `--method sent_release` is that, with its integer-mask index repaired.
  3. A group of equal rewards has advantage exactly 0; an answer cut off at the length limit has reward 0 and stays in
     the loss, and its share is logged.
  4. The paper's beta, tau, M and number of stages are not known to us. Ours were chosen on the embedded task (README).
  5. Semantic entropy counts meanings by frequency unless told otherwise (see entropy.semantic_entropy for why), and an
     answer that never finishes is a meaning of its own, so that it makes a question hard, not easy.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import inspect
import json
import math
import os
import re
import shutil
import signal
import sys
import time
import typing
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

from curriculum import (
    ESTIMATORS,
    Parser,
    append_rows,
    describe,
    hold,
    load_curriculum,
    load_questions,
    located,
    make_folder,
    render,
    replace_file,
    say,
    semantic_order,
    stages,
)
from entropy import (
    METHODS,
    Treatment,
    check_settings,
    group_advantages,
    k3,
    normaliser,
    policy_loss,
    settings_of,
    threshold,
    token_covariance,
    treat,
)
from verify import grade

if typing.TYPE_CHECKING:
    from torch import Tensor


@dataclass
class Config:
    """One run. Every field is a flag; its comment is the flag's help."""

    method: str = "sent"  # treatment of the tokens, a name in entropy.METHODS
    model: str = "arithmetic"  # a Hugging Face folder or hub name; arithmetic: the embedded base model
    questions: str = "arithmetic"  # training questions: .jsonl .json .parquet .csv, a folder, a hub name, arithmetic
    heldout: str | None = None  # questions to evaluate on; none: the embedded task's own, with its questions; else none
    heldout_split: str | None = None  # as --split, of the held-out questions
    heldout_subset: str | None = None  # as --subset, of the held-out questions
    question_field: str | None = None  # where a question is, held out or not; a.b: b inside a; none: usual names
    answer_field: str | None = None  # where its answer is, likewise
    split: str | None = None  # of a hub dataset (none: train), or how a folder's files begin (none: all of them)
    subset: str | None = None  # configuration of a hub dataset, such as gsm8k's main
    curriculum: str | None = None  # a curriculum.jsonl made before; none: made when stages > 1
    out: str | None = None  # run folder; none: runs/METHOD, with the seed when it is not 0
    seed: int = 0  # every random choice is a function of (seed, step, question)
    steps: int = 100  # rollout batches

    stages: int | None = None  # stages, low to high semantic entropy; none: 4 for sent, sent_release, else 1 (shuffled)
    reverse: bool = False  # stages from high to low semantic entropy: a control
    curriculum_samples: int = 8  # M, answers per question for its semantic entropy
    estimator: str = "frequency"  # of semantic entropy: frequency, likelihood, length_normalised

    questions_per_step: int = 16  # Q, over all processes
    group_size: int = 16  # G, answers per question
    minibatches: int = 2  # optimizer updates per rollout and epoch
    epochs: int = 1  # passes over each rollout
    temperature: float = 1.0  # of sampling and of scoring: one policy
    max_prompt_tokens: int = 1024  # longer prompts are dropped, and counted
    max_new_tokens: int = 64  # longer answers are cut off: reward 0
    instruction: str | None = None  # appended to the question; none: a default when there is a chat template
    advantage_std: bool = True  # divide advantages by the group's std; off with --average constant: Dr. GRPO

    lr: float = 5e-4  # AdamW's peak learning rate (1e-6 for a real model)
    warmup_steps: int = 10  # linear warm-up
    schedule: str = "constant"  # constant or cosine (towards 0 at the end)
    weight_decay: float = 0.0  # AdamW's
    max_grad_norm: float = 1.0  # gradients are clipped to this norm

    average: str | None = None  # sequence, token or constant; none for this and those below: the method's own default
    clip_low: float | None = None  # epsilon below 1
    clip_high: float | None = None  # epsilon above 1
    kl_coef: float | None = None  # k3 to the start on every token, on top of the treatment
    beta_low: float | None = None  # sent, high_entropy_kl: KL weight
    beta_high: float | None = None  # sent: KL weight where covariance is high
    tau_entropy: str | None = None  # sent, sent_release, high_entropy_kl: entropy cut, a quantile (80%%) or nats (0.3)
    tau_cov: str | None = None  # sent: covariance cut among low-entropy tokens, a quantile (98%%) or a number
    entropy_coef: float | None = None  # entropy_bonus
    alpha: float | None = None  # entropy_advantage
    kappa: float | None = None  # entropy_advantage
    fork_share: float | None = None  # forking_tokens
    cov_share: float | None = None  # clip_cov, kl_cov, sent_release: share of tokens selected
    cov_low: float | None = None  # clip_cov
    cov_high: float | None = None  # clip_cov
    kl_old_coef: float | None = None  # kl_cov, sent_release

    eval_every: int = 25  # steps between held-out evaluations (avg@16, pass@16); 0: only at start and end
    eval_samples: int = 64  # answers per held-out question at start and end; 0: no evaluation at all
    log_every: int = 10  # steps between printed lines
    checkpoint_every: int = 50  # steps between checkpoints; each held-out evaluation on the way is followed by one too
    keep_checkpoints: int = 2  # newest to keep, besides the best by held-out avg@16
    log_kl: bool = True  # log KL to the start even when the loss does not need it (one more forward per step)
    figures: bool = True  # draw the pictures at the end

    device: str | None = None  # cpu or cuda; none: cuda when there is one
    attention: str | None = None  # attention implementation; none: sound for the device
    gradient_checkpointing: bool = False  # recompute activations: less memory, a third slower
    tokens_per_micro_batch: int | None = None  # memory, nothing else; none: 2048 on a CPU, 16384 on a GPU


GAP = {"cpu": 1e-3, "cuda": 2.0}  # nats that sampled and scored log-probs may differ at most: fp32, and bf16 rounding
# Names that the index of a checkpoint may use. By name, not by module: `filesystem` imports os, and the pickle protocol
# takes dotted names, so that "os.system" of an allowed module would be found.
IN_AN_INDEX = {
    "torch": ("Size",),
    "torch.serialization": ("_get_layout",),
    "torch.distributed.checkpoint.filesystem": ("_StorageInfo",),
    "torch.distributed.checkpoint.metadata": ("Metadata", "MetadataIndex", "StorageMeta", "ChunkStorageMetadata",
                                              "TensorProperties", "TensorStorageMetadata", "_MEM_FORMAT_ENCODING"),
}  # fmt: skip
METHOD_SETTINGS = [f.name for f in dataclasses.fields(Config) if any(f.name in settings_of(m) for m in METHODS)]


# ---------------------------------------------------------------------------------------------- config
def make_parser() -> Parser:
    """Flags from the fields of Config, help from their comments, one place for both."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--config", metavar="FILE", help="a saved config.json; flags given beside it win")
    parser.add_argument("--resume", metavar="DIR", help="continue the run in this folder; takes no other flag")
    comments = dict(re.findall(r"^    (\w+): .*?  # (.+)$", inspect.getsource(Config), re.MULTILINE))
    hints = typing.get_type_hints(Config)
    for field in dataclasses.fields(Config):
        kind = next(t for t in (typing.get_args(hints[field.name]) or [hints[field.name]]) if t is not type(None))
        shown = "" if field.default is None else f" [{field.default}]"
        switch, typed = {"action": argparse.BooleanOptionalAction}, {"type": kind, "metavar": kind.__name__}
        flag = "--" + field.name.replace("_", "-")
        parser.add_argument(flag, default=argparse.SUPPRESS, help=comments[field.name] + shown,
                            **switch if kind is bool else typed)  # fmt: skip
    return parser


def load_config(path: Path) -> Config:
    """A Config from JSON. Raises ValueError that names the file and the field."""
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: not a readable config ({error}); give the config.json of a run") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path}: a config is a JSON object of flag names and values")
    hints = typing.get_type_hints(Config)
    for name, value in values.items():
        if name not in hints:
            raise ValueError(f"{path}: no flag is called {name!r}; python train.py --help lists them")
        kinds = typing.get_args(hints[name]) or (hints[name],)
        allowed = kinds + ((int,) if float in kinds else ())
        if not isinstance(value, allowed) or (isinstance(value, bool) and bool not in kinds):
            raise ValueError(f"{path}: {name} = {value!r} should be {' or '.join(k.__name__ for k in kinds)}")
    return Config(**values)


def parse(argv: list[str] | None) -> tuple[Config, bool]:
    """Command line -> (checked config, whether this continues a run). Raises ValueError; imports nothing slow."""
    given = vars(make_parser().parse_args(argv))
    base, resume = given.pop("config", None), given.pop("resume", None)
    if resume is not None:
        if given or base:
            raise ValueError("--resume takes everything from the run's own config.json; drop the other flags")
        if not (Path(resume) / "config.json").is_file():
            raise ValueError(f"--resume {resume}: no config.json there; give a run folder such as runs/sent")
        config = dataclasses.replace(load_config(Path(resume) / "config.json"), out=resume)
    else:
        config = dataclasses.replace(load_config(Path(base)) if base else Config(), **given)
    if config.out is None:
        config.out = f"runs/{config.method}" + (f"-seed{config.seed}" if config.seed else "")
    check(config, resume is not None)
    return config, resume is not None


def method_settings(config: Config) -> dict[str, object]:
    """The settings that were given; what is None stays the method's own default."""
    return {name: value for name in METHOD_SETTINGS if (value := getattr(config, name)) is not None}


def check(config: Config, resume: bool) -> None:
    """Everything that can be refused before torch is imported. Raises ValueError with the flag and the remedy."""
    check_settings(config.method, method_settings(config))
    world = int(os.environ.get("WORLD_SIZE", "1"))
    least = {"steps": 1, "group_size": 2, "minibatches": 1, "epochs": 1, "questions_per_step": 1, "max_new_tokens": 1,
             "max_prompt_tokens": 1, "curriculum_samples": 2, "tokens_per_micro_batch": 1, "stages": 1,
             "keep_checkpoints": 1, "log_every": 1, "checkpoint_every": 1, "eval_every": 0, "eval_samples": 0,
             "warmup_steps": 0, "seed": 0, "lr": 0, "weight_decay": 0, "temperature": 1e-6,
             "max_grad_norm": 1e-12}  # fmt: skip
    for name, low in least.items():
        value = getattr(config, name)
        if value is not None and not low <= value < math.inf:
            raise ValueError(f"--{name.replace('_', '-')} {value}: must be at least {low}, and finite")
    if config.questions_per_step % (config.minibatches * world):
        raise ValueError(f"--questions-per-step {config.questions_per_step} must be a multiple of minibatches x "
                         f"processes = {config.minibatches} x {world}")  # fmt: skip
    for name, choices in {"schedule": ("constant", "cosine"), "device": (None, "cpu", "cuda"),
                          "estimator": ESTIMATORS}.items():  # fmt: skip
        if getattr(config, name) not in choices:
            raise ValueError(f"--{name} {getattr(config, name)}: choose one of {', '.join(filter(None, choices))}")
    if n_stages(config) == 1 and (config.curriculum or config.reverse or config.estimator != Config.estimator):
        raise ValueError("--curriculum, --reverse and --estimator need --stages 2 or more; one stage is shuffled")
    if n_stages(config) > config.steps:
        raise ValueError(f"--stages {config.stages}: each needs a step, and --steps is {config.steps}")
    if 0 < config.eval_samples < 16:
        raise ValueError(f"--eval-samples {config.eval_samples}: at least 16, for avg@16 and pass@16, or 0 for none")
    if not resume:
        if config.heldout and not config.eval_samples:
            raise ValueError("--heldout: --eval-samples 0 evaluates nothing; drop one of the two")
        must_be_free(Path(config.out))
        if config.curriculum and not Path(config.curriculum).is_file():  # a resumed run has its copy
            raise ValueError(f"--curriculum {config.curriculum}: no such file; python curriculum.py makes one")


def must_be_free(out: Path) -> None:
    """Raises ValueError where there is a run, or anything else, already; what dies before its config.json is none."""
    if above := next((p for p in out.parents if p.exists() and not p.is_dir()), None):
        raise ValueError(f"--out {out}: {above} is a file, not a folder; give a place that can be written")
    if out.exists() and (not out.is_dir() or {p.name for p in out.iterdir()} - {"lock", "config.json.tmp"}):
        raise ValueError(f"{out} is not empty: --resume {out} continues that run, --out DIR starts another")


# ---------------------------------------------------------------------------------------------- schedule
def stage_at(step: int, steps: int, n_stages: int) -> int:
    """Which stage a step belongs to: equal shares of the run, in order.

    >>> [stage_at(s, 8, 4) for s in range(8)]
    [0, 0, 1, 1, 2, 2, 3, 3]
    """
    return step * n_stages // steps


@functools.lru_cache(maxsize=4)
def shuffle(n: int, *position: int) -> list[int]:
    """The numbers 0 .. n - 1 in an order that is a function of position."""
    import numpy as np

    return np.random.default_rng(position).permutation(n).tolist()


def batch_at(step: int, steps: int, stages: list[list[int]], size: int, seed: int) -> list[int]:
    """The questions of a step: a pure function of position, so a resumed run sees what it would have seen.

    Inside its stage the run walks through shuffles of the stage, a new one each time around.

    >>> batch_at(0, 4, [[0, 1], [2, 3]], 2, 0) in ([0, 1], [1, 0]), sorted(batch_at(2, 4, [[0, 1], [2, 3]], 2, 0))
    (True, [2, 3])
    """
    stage = stage_at(step, steps, len(stages))
    first = next(s for s in range(step + 1) if stage_at(s, steps, len(stages)) == stage)
    questions = stages[stage]
    picked = []
    for position in range((step - first) * size, (step - first + 1) * size):
        around, place = divmod(position, len(questions))
        picked.append(questions[shuffle(len(questions), seed, stage, around)[place]])
    return picked


def lr_at(step: int, config: Config) -> float:
    """Linear warm-up, then constant or a half cosine to 0.

    >>> lr_at(0, Config(lr=1.0, warmup_steps=4)), lr_at(50, Config(lr=1.0, warmup_steps=4))
    (0.25, 1.0)
    """
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.lr
    done = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    return config.lr * 0.5 * (1 + math.cos(math.pi * done))


# ---------------------------------------------------------------------------------------------- one step
@dataclass
class Run:
    """What stays the same from step to step."""

    config: Config
    folder: Path
    rank: int
    world: int
    device: typing.Any  # torch.device
    tokenizer: typing.Any
    model: typing.Any
    reference: typing.Any  # the frozen start, or None when nothing reads it
    optimizer: typing.Any
    prompts: list[str]  # of the questions, chat template applied
    questions: list
    heldout_prompts: list[str]
    heldout: list
    stages: list[list[int]]
    fork_after: tuple[str, ...] | None  # a fork is the token after one of these strings, where the task knows

    @property
    def budget(self) -> int:
        """Tokens per micro-batch. A CPU is fastest when a piece fits its cache, a GPU when it is full."""
        return self.config.tokens_per_micro_batch or (2048 if self.device.type == "cpu" else 16384)


@dataclass
class Batch:
    """One rollout batch: what this rank trains on, and what all ranks know of all rows (for treatment and metrics)."""

    rollout: typing.Any
    old_logprobs: Tensor  # [b, T] this rank's rows
    ref_logprobs: Tensor | None  # [b, T]
    treatment: Treatment  # [b, T]
    everything: dict[str, Tensor]  # [B, T] or [B], all rows of all ranks in global order
    whole: Treatment  # [B, T]
    questions: list[int]  # this step's questions, in global order
    seconds: dict[str, float]


def of_all_ranks(run: Run, per_token: dict[str, Tensor], per_row: dict[str, Tensor]) -> dict[str, Tensor]:
    """This rank's tensors, [b, T] and [b] by name -> those of all ranks, [B, T] and [B], in the order of one process.

    A rank holds, for each minibatch, its share of that minibatch's questions (`own_share` says which).
    """
    import torch

    from rollout import gather

    everything = {}
    for tensors in (per_token, per_row):  # a collective for each kind, not for each name
        rows = gather(torch.stack([x.to(per_token["mask"].device) for x in tensors.values()], 1))  # rank by rank
        rows = rows.unflatten(0, (run.world, run.config.minibatches, -1)).transpose(0, 1).flatten(0, 2)
        everything |= dict(zip(tensors, rows.unbind(1), strict=True))
    return everything | {"mask": everything["mask"].bool()}


def own_share(run: Run, n: int) -> Tensor:
    """Which of n questions, or rows, in global order this rank holds."""
    import torch

    return torch.arange(n).view(run.config.minibatches, run.world, -1)[:, run.rank].flatten()


def graded(rollout, golds: list[str | list[str]]) -> tuple[Tensor, tuple[str, ...]]:
    """Rewards [b] of answers and the verifier's statuses; cut off: reward 0, even with a box in it."""
    import torch

    rights, _, statuses = zip(*map(grade, rollout.texts, golds), strict=True)
    return torch.tensor(rights) * rollout.finished.cpu(), statuses


def score_rollout(run: Run, rollout) -> tuple[Tensor, Tensor, Tensor | None]:
    """Without gradient: log-probs and entropy of the policy, log-probs of the frozen start if there is one; [b, T]."""
    import torch

    from rollout import score

    with torch.no_grad():
        old, entropy = score(run.model, rollout, run.config.temperature, tokens_per_micro_batch=run.budget)
        ref = None
        if run.reference is not None:
            ref, _ = score(run.reference, rollout, run.config.temperature, False, tokens_per_micro_batch=run.budget)
            if hasattr(run.reference, "reshard"):  # without a backward FSDP's root would stay gathered
                run.reference.reshard()
    return old, entropy, ref


def collect(run: Run, step: int) -> Batch:
    """Questions -> samples -> rewards -> advantages -> treatment. No gradient anywhere."""
    import torch

    from rollout import gathered, position_seed, sample

    c, clock = run.config, [time.perf_counter()]
    questions = batch_at(step, c.steps, run.stages, c.questions_per_step, c.seed)
    places = own_share(run, len(questions)).tolist()
    mine = [questions[place] for place in places]
    with gathered(run.model):
        # by place, not by question: one that comes twice in a small stage gets two different groups
        seeds = [position_seed(c.seed, step, place) for place in places]
        rollout = sample(run.model, run.tokenizer, [run.prompts[q] for q in mine], c.group_size, c.max_new_tokens,
                         c.temperature, seeds)  # fmt: skip
    clock.append(time.perf_counter())
    golds = [run.questions[q].gold for q in mine for _ in range(c.group_size)]
    rewards, statuses = graded(rollout, golds)
    advantages = group_advantages(rewards.view(-1, c.group_size), scale=c.advantage_std).view(-1, 1)  # [b, 1]
    clock.append(time.perf_counter())
    old, entropy, ref = score_rollout(run, rollout)
    clock.append(time.perf_counter())
    mask = rollout.mask
    per_token = {"sampled": rollout.logprobs, "old": old, "ref": old if ref is None else ref, "entropy": entropy,
                 "mask": mask.float(), "advantages": advantages.to(old) * mask,
                 "fork": fork_mask(run, rollout).to(old)}  # fmt: skip
    per_row = {"reward": rewards, "finished": rollout.finished.float()}
    per_row |= {s: torch.tensor([float(status == s) for status in statuses]) for s in ("missing", "unparsed", "capped")}
    everything = of_all_ranks(run, per_token, per_row)
    whole = treat(c.method, steady(everything["old"]), steady(everything["entropy"]), everything["advantages"],
                  everything["mask"], seed=position_seed(c.seed, step), **method_settings(c))  # fmt: skip
    treatment = whole.rows(own_share(run, len(everything["mask"])).to(old.device), mask.shape[1])
    took = [end - begin for begin, end in zip(clock, clock[1:], strict=False)]
    seconds = dict(zip(("seconds_sample", "seconds_grade", "seconds_score"), took, strict=True))
    return Batch(rollout, old, ref, treatment, everything, whole, questions, seconds)


def steady(nats: Tensor) -> Tensor:
    """To the nearest 2^-14 nats, so that what is equal stays equal and a quantile or a top-k cuts no tie in two.

    Answers to one question share their first states, and so entropies and log-probs there, but for the rounding of a
    matrix product whose shape is that of the micro-batch: unrounded, a memory flag would choose among them.

    >>> import torch
    >>> steady(torch.tensor([0.5, 0.5000001])).unique().tolist()
    [0.5]
    """
    return (nats * 2**14).round() / 2**14


def fork_mask(run: Run, rollout) -> Tensor:
    """Where the task says that a choice is made: the text before the token ends with one of run.fork_after; [b, T]."""
    import torch

    if not run.fork_after:
        return torch.zeros_like(rollout.mask)
    pieces = {}  # token id -> text: decoding each id once, not each position
    longest = max(map(len, run.fork_after))
    rows = []
    for i, (tokens, length) in enumerate(zip(rollout.tokens.tolist(), rollout.mask.sum(1).tolist(), strict=True)):
        text = run.tokenizer.decode(rollout.prompt_tokens[i][rollout.prompt_mask[i].bool()][-longest:])
        rows.append([False] * len(tokens))
        for t, token in enumerate(tokens[:length]):
            rows[i][t] = text.endswith(run.fork_after)
            if token not in pieces:
                pieces[token] = run.tokenizer.decode([token])
            text = (text + pieces[token])[-longest:]
    return torch.tensor(rows, device=rollout.mask.device)


def update(run: Run, batch: Batch, step: int) -> dict[str, float]:
    """Minibatches: forward, loss, backward, clip, step. Raises Broken before a bad update is applied."""
    import torch

    from rollout import gather, micro_batches, score

    c, clipped, tokens, norms = run.config, 0, 0, []
    for group in run.optimizer.param_groups:
        group["lr"] = lr_at(step, c)
    per_minibatch = len(batch.old_logprobs) // c.minibatches
    masks = batch.everything["mask"].chunk(c.minibatches)  # of all ranks: the divisor is global
    for _, m in ((e, m) for e in range(c.epochs) for m in range(c.minibatches)):
        rows = torch.arange(m * per_minibatch, (m + 1) * per_minibatch)
        pieces = micro_batches(batch.rollout.rows(rows).lengths, run.budget)
        most = int(gather(torch.tensor([len(pieces)], device=masks[0].device)).max())
        count = normaliser(batch.treatment.average, masks[m], c.max_new_tokens)
        for i in range(most):
            # every rank runs as many forwards as the busiest: sharded layers are gathered by all or by none
            index = rows[pieces[i % len(pieces)]]
            part = batch.rollout.rows(index)
            width = part.mask.shape[1]
            treatment = batch.treatment.rows(index, width)
            logprobs, entropy = score(run.model, part, c.temperature, with_entropy=treatment.entropy_coef > 0)
            ref = None if batch.ref_logprobs is None else batch.ref_logprobs[index, :width]
            loss, stats = policy_loss(logprobs, batch.old_logprobs[index, :width], ref, treatment, part.mask, entropy)
            real = i < len(pieces)
            # x world: sharded gradients are averaged over ranks, the loss is a sum over them
            (loss.sum() * (real * run.world / count)).backward()
            clipped += stats["clipped"].item() * real
            tokens += int(part.mask.sum()) * real
        # asked for only now: before the backward, FSDP's root may still show its gathered parameters, without gradients
        norm = torch.nn.utils.clip_grad_norm_(list(run.model.parameters()), c.max_grad_norm)
        norm = norm.full_tensor().item() if hasattr(norm, "full_tensor") else norm.item()
        if not math.isfinite(norm):
            run.optimizer.zero_grad(set_to_none=True)
            raise broken(run, step, batch, f"gradient: the norm over minibatch {m} is {norm}")
        norms.append(norm)
        run.optimizer.step()
        run.optimizer.zero_grad(set_to_none=True)
    counts = gather(torch.tensor([[float(clipped), float(tokens)]], device=masks[0].device)).sum(0)
    return {"clip_fraction": (counts[0] / counts[1]).item(), "grad_norm": sum(norms) / len(norms), "lr": lr_at(step, c)}


# ---------------------------------------------------------------------------------------------- metrics
def measure(batch: Batch, config: Config) -> dict[str, float | None]:
    """The step's metrics over all rows of all ranks, weighted by token; README has the glossary. Entropies in nats."""
    e = batch.everything
    mask, entropy, fork = e["mask"], e["entropy"], e["fork"].bool()
    rewards = e["reward"].view(-1, config.group_size)
    inside = entropy[mask]
    covariance = token_covariance(e["old"], e["advantages"], mask)
    cov = covariance[mask]
    lengths, finished = mask.sum(1).float(), e["finished"].bool()
    kl_weight = batch.whole.kl_weight[mask]
    treated = kl_weight > 0
    high = treated & (kl_weight >= batch.whole.strong)  # strong is 0 where --beta-high is

    def mean(x: Tensor) -> float | None:
        return x.float().mean().item() if x.numel() else None

    return {
        "reward": mean(rewards),
        "pass_at_g": mean(rewards.amax(1)),
        "groups_all_right": mean(rewards.amin(1)),
        "groups_all_wrong": mean(1 - rewards.amax(1)),
        "entropy": mean(inside),
        **{f"entropy_q{q}": threshold(inside, f"{q}%") for q in (10, 50, 90)},
        "entropy_fork": mean(entropy[mask & fork]),
        "entropy_other": mean(entropy[mask & ~fork]) if fork.any() else None,
        "truncated": mean(~finished),
        "finished_length": mean(lengths[finished]),
        **{status: mean(e[status]) for status in ("missing", "unparsed", "capped")},
        "kl_ref": mean(k3(e["old"], e["ref"])[mask]) if batch.ref_logprobs is not None else None,
        "share_low": mean(treated & ~high),
        "share_high": mean(high),
        "share_no_gradient": mean(batch.whole.pg_weight[mask] == 0),
        "cov_mean": mean(cov),
        "cov_q99": threshold(cov, "99%"),
        "logprob_gap": (e["sampled"] - e["old"])[mask].abs().max().item(),
        "tokens": int(mask.sum()),
    }


def troubles(metrics: list[dict], config: Config) -> dict[str, str]:
    """What the metrics so far say is wrong, in words: {name: cause and remedy}. Each is printed once."""
    m, first, recent, settings = metrics[-1], metrics[0], metrics[-10:], settings_of(config.method)
    equal = m["groups_all_right"] + m["groups_all_wrong"] == 1
    unread = m["missing"] + m["unparsed"]
    readable = unread + m["truncated"] < 0.1
    selected = m["share_low"] + m["share_high"] + m["share_no_gradient"]
    selects = {"cov_share", "fork_share", "beta_low"} & settings.keys() and config.beta_low != 0
    found = {
        "truncated": (m["truncated"] > 0.25, f"{m['truncated']:.0%} of the answers were cut off at --max-new-tokens "
                      f"{config.max_new_tokens} and count as wrong: that teaches to be short, not right; raise it, or "
                      "prompt for less"),
        "unparsed": (m["missing"] > 0.9 or (unread > 0.9 and m["reward"] == 0), "hardly an answer could be read: is it "
                     "in \\boxed{} or after 'Answer:'? set --instruction, and look at samples.jsonl"),
        "equal groups": (equal, "every group is all right or all wrong: every advantage is 0 and nothing is learned "
                         "from this batch; take easier (or harder) questions or a larger --group-size"),
        "no reward": (len(recent) >= min(10, config.steps) and not any(r["reward"] for r in recent),
                      f"reward was 0 in all of the last {len(recent)} steps: a policy that is never right cannot "
                      "learn from this reward; " + ("its answers can be read, so compare the golds with samples.jsonl"
                      if readable else "take easier questions or a better base")),
        "collapse": (m["entropy"] < 0.1 * first["entropy"], f"entropy fell to {m['entropy']:.3f} nats, under a tenth "
                     "of its start: the policy is nearly deterministic; lower --lr, or raise --beta-low"),
        "explosion": (m["entropy"] > 2 * first["entropy"] + 0.1, f"entropy rose to {m['entropy']:.2f} nats, over twice "
                      "its start: the policy forgets; lower --lr, --entropy-coef, or --temperature"),
        "gap": (m["logprob_gap"] > GAP[config.device or "cpu"], "sampled and scored log-probs differ by up to "
                f"{m['logprob_gap']:.3g} nats: the sampling policy is not the one that is trained"),
        "untreated": (selects and selected == 0 and not equal, f"{config.method} selected no token: the step was plain "
                      "policy gradient; look at --tau-entropy, --cov-low, --cov-share"),
        "one update": (config.method in ("kl_cov", "sent_release") and config.minibatches * config.epochs == 1,
                       "with one update per rollout a penalty against pi_old has no gradient: this is plain policy "
                       "gradient; use --minibatches 2"),
        "no gradient": (m["grad_norm"] == 0 and not equal, "the gradient is 0 although groups differ: every treated "
                        "token is clipped or masked; look at --clip-low, --clip-high, --fork-share"),
    }  # fmt: skip
    return {name: text for name, (holds, text) in found.items() if holds}


def token_rows(run: Run, step: int, rollout, prompts: list[tuple[str, str]], values: dict[str, Tensor], more: dict,
               n: int) -> Iterator[dict]:  # fmt: skip
    """The first n answers with what happened to each token, for samples.jsonl: pictures, and reading.

    prompts: (id, prompt) of each row; values: [B, T] by name; more: what is the same for a whole row, [B] by name.
    """
    forks = fork_mask(run, rollout)
    for i in range(min(n, len(prompts))):
        length = int(rollout.mask[i].sum())
        yield {
            "step": step, "id": prompts[i][0], "prompt": prompts[i][1], "response": rollout.texts[i],
            **{name: float(value[i]) for name, value in more.items()},
            "tokens": [run.tokenizer.decode([t]) for t in rollout.tokens[i, :length].tolist()],
            **{name: [round(x, 5) for x in value[i, :length].tolist()] for name, value in values.items()},
            "fork": forks[i, :length].tolist() if run.fork_after else None,
        }  # fmt: skip


def batch_rows(run: Run, batch: Batch, step: int) -> Iterator[dict]:
    """Rows of the step's own batch, the first minibatch of rank 0; more of them at the start, for the scatter."""
    e, g = batch.everything, run.config.group_size
    own = len(e["mask"]) // run.world // run.config.minibatches
    prompts = [(run.questions[q].id, run.prompts[q]) for q in batch.questions for _ in range(g)][:own]
    values = {"entropy": e["entropy"], "logprob": e["old"],
              "covariance": token_covariance(e["old"], e["advantages"], e["mask"]),
              "kl_weight": batch.whole.kl_weight, "pg_weight": batch.whole.pg_weight}  # fmt: skip
    more = {"reward": e["reward"], "advantage": e["advantages"][:, 0]}
    return token_rows(run, step, batch.rollout, prompts, values, more, 128 if step == 0 else 32)


def probe_rows(run: Run, step: int) -> Iterator[dict]:
    """Answers to one and the same question each time: how it looks before, during and after a collapse."""
    import torch

    from rollout import gathered, position_seed, sample, score

    c = run.config
    question, prompt = (run.heldout or run.questions)[0], (run.heldout_prompts or run.prompts)[0]
    with torch.no_grad(), gathered(run.model):
        rollout = sample(run.model, run.tokenizer, [prompt], 8, c.max_new_tokens, c.temperature,
                         position_seed(c.seed, step, -1))  # fmt: skip
    with torch.no_grad():
        logprobs, entropy = score(run.model, rollout, c.temperature, tokens_per_micro_batch=run.budget)
    none = logprobs * 0
    values = {"entropy": entropy, "logprob": logprobs, "covariance": none, "kl_weight": none, "pg_weight": none + 1}
    more = {"reward": graded(rollout, [question.gold] * 8)[0], "probe": [1] * 8}
    return token_rows(run, step, rollout, [(question.id, prompt)] * 8, values, more, 8)


# ---------------------------------------------------------------------------------------------- files
def keep_until(path: Path, step: int) -> list[dict]:
    """Rewrite a file of JSON lines with the steps before `step` only; returns them. A torn last line is said."""
    if not path.exists():
        return []
    kept = []
    lines = path.read_text().splitlines()
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
        except ValueError:
            if number < len(lines):
                raise ValueError(f"{path}, line {number}: not JSON; repair or remove the line") from None
            print(f"{path}: the last line was torn when the run died; dropped", file=sys.stderr)
            continue
        if not isinstance(row, dict) or "step" not in row:
            raise ValueError(f"{path}, line {number}: no step in it; repair or remove the line")
        if row["step"] < step:
            kept.append(row)
    replace_file(path, "".join(json.dumps(row) + "\n" for row in kept))
    return kept


def checkpoints(folder: Path) -> list[Path]:
    """The whole checkpoints of a run, oldest first. What is being written has another name."""
    return sorted(p for p in (folder / "checkpoints").glob("step-*") if not p.suffix)


def training_state(run: Run) -> dict:
    """Weights and AdamW moments by parameter name, tensors only: torch.distributed.checkpoint pickles anything else.

    The rest of the optimizer (learning rate, betas) is the config's. Loads in any number of processes.
    """
    from torch.distributed.checkpoint.state_dict import get_state_dict

    model, optimizer = get_state_dict(run.model, run.optimizer)
    return {"model": model, "moments": optimizer["state"]}


def read_index(folder: Path) -> dict[str, typing.Any]:
    """{name: what is stored} of a checkpoint. Its index is a pickle: every name of code in it is looked at before it
    is used, here and so before torch loads it. Raises ValueError."""
    import pickle

    import torch

    class Names(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> typing.Any:
            path = module.startswith("pathlib") and name in ("PosixPath", "WindowsPath")
            dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
            if name in IN_AN_INDEX.get(module, ()) or path or dtype:
                return super().find_class(module, name)
            raise ValueError(f"{folder}: its index names {module}.{name}, which no checkpoint of ours does; not loaded")

    try:
        with (folder / ".metadata").open("rb") as file:
            return Names(file).load().state_dict_metadata
    except (OSError, EOFError, pickle.UnpicklingError) as error:
        raise ValueError(f"{folder}: not a whole checkpoint ({error}); remove it to use the one before") from None


def why(error: BaseException) -> str:
    """The first cause in a CheckpointException, which holds the traceback of every rank; one line."""
    from rollout import brief

    return brief(next(iter(error.failures.values()))[0])


@contextmanager
def one_process_is_meant() -> Iterator[None]:
    """Inside, torch does not warn that it saves or loads for a single process; it would with no_dist=True as well."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")
        yield


def save_checkpoint(run: Run, next_step: int, score: float | None) -> None:
    """Everything a resumed run needs; the rest (data order, random numbers, schedule) is a function of the step."""
    import torch.distributed.checkpoint as dcp

    from rollout import barrier

    final = run.folder / "checkpoints" / f"step-{next_step:07d}"
    beside = final.with_suffix(".tmp")
    if run.rank == 0:
        for left in beside.parent.glob("*.tmp"):  # by a run that was killed here
            shutil.rmtree(left)
    barrier()
    try:
        with one_process_is_meant():
            dcp.save(training_state(run), checkpoint_id=beside, no_dist=run.world == 1)
    except dcp.api.CheckpointException as error:  # which is no Exception
        raise OSError(f"{beside}: {why(error)}; the checkpoint before is whole") from None
    if run.rank == 0:
        replace_file(beside / "meta.json", json.dumps({"next_step": next_step, "score": score}))
        os.replace(beside, final)
        whole = checkpoints(run.folder)
        scores = {p: json.loads((p / "meta.json").read_text())["score"] for p in whole}
        best = max((p for p in whole if scores[p] is not None), key=scores.get, default=None)
        for old in whole[: -run.config.keep_checkpoints]:
            if old != best:
                os.replace(old, beside)  # a kill in the midst leaves nothing that looks whole
                shutil.rmtree(beside)
    barrier()


def load_checkpoint(run: Run) -> int:
    """Fill model and optimizer from the newest checkpoint; returns the step to go on with (0: there is none yet)."""
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

    whole = checkpoints(run.folder)
    if not whole:
        return 0
    state, index = training_state(run), read_index(whole[-1])
    ours = {f"model.{name}": weight.shape for name, weight in state["model"].items()}
    theirs = {name: getattr(stored, "size", None) for name, stored in index.items() if name.startswith("model.")}
    if other := [name for name in sorted(ours | theirs) if ours.get(name) != theirs.get(name)]:
        raise ValueError(f"{whole[-1]} is of another model than {run.config.model}: {other[0]} is "
                         f"{theirs.get(other[0], 'not')} there, {ours.get(other[0], 'not')} here")  # fmt: skip
    try:
        with one_process_is_meant():
            dcp.load(state, checkpoint_id=whole[-1], no_dist=run.world == 1)
    except dcp.api.CheckpointException as error:
        raise ValueError(f"{whole[-1]}: {why(error)}; remove it to use the checkpoint before") from None
    _, optimizer = get_state_dict(run.model, run.optimizer)
    optimizer["state"] = state["moments"]
    set_state_dict(run.model, run.optimizer, model_state_dict=state["model"], optim_state_dict=optimizer)
    return json.loads((whole[-1] / "meta.json").read_text())["next_step"]


# ---------------------------------------------------------------------------------------------- the run
class Broken(RuntimeError):
    """The run must stop: a number that is none, or two policies where there should be one. Exit code 1."""


def setup(config: Config) -> Run:
    """Load everything, what is quick to refuse first; writes nothing."""
    model_path, questions_path = located(config.model, 0), located(config.questions, 1)
    fields, heldout = (config.question_field, config.answer_field), []
    questions = load_questions(questions_path, *fields, config.split, config.subset)
    if config.eval_samples and (config.heldout or config.questions == "arithmetic"):
        heldout_path = located(config.heldout or "arithmetic", 2)
        heldout = load_questions(heldout_path, *fields, config.heldout_split, config.heldout_subset)

    import torch

    from rollout import distributed, load_model, load_tokenizer, shard

    rank, world, device = distributed(config.device)
    # none means the best there is here, arithmetic the folder of today
    config = dataclasses.replace(config, device=device.type, model=model_path, questions=questions_path)
    tokenizer = load_tokenizer(model_path)
    model = load_model(model_path, device, torch.float32, config.attention)
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None) or math.inf
    room = min(config.max_prompt_tokens, context - config.max_new_tokens)
    if room < 1:
        raise ValueError(f"--max-new-tokens {config.max_new_tokens} leaves no room for a prompt in the model's context "
                         f"of {context}; lower it")  # fmt: skip
    prompts, kept = render(questions, tokenizer, config.instruction, room)
    if n_stages(config) > 1 and not config.curriculum:
        some = can_be_asked(len(kept), config)  # ordering costs M answers a question: not for those never asked
        prompts, kept = [prompts[i] for i in some], [kept[i] for i in some]
    questions = [questions[i] for i in kept]
    heldout_prompts, kept = render(heldout, tokenizer, config.instruction, room)
    heldout = [heldout[i] for i in kept]
    if n_stages(config) > len(questions):
        raise ValueError(f"--stages {n_stages(config)}: there are only {len(questions)} questions")
    if config.curriculum and not (Path(config.out) / "curriculum.jsonl").exists():
        load_curriculum(config.curriculum, questions)  # refused here, before anything is written
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable()
        model.train()  # transformers recomputes in training mode only; load_model has set every dropout to 0
    model = shard(model)
    needs_reference = config.log_kl or reads_reference(config)
    frozen = torch.bfloat16 if device.type == "cuda" else torch.float32  # never updated: no fp32 masters
    reference = shard(load_model(model_path, device, frozen, config.attention)) if needs_reference else None
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.lr, betas=(0.9, 0.95), weight_decay=config.weight_decay)
    return Run(config, Path(config.out), rank, world, device, tokenizer, model, reference, optimizer, prompts,
               questions, heldout_prompts, heldout, [], read_forks(model_path))  # fmt: skip


def begin(run: Run, given: Config, resume: bool) -> tuple[int, list[dict]]:
    """Note the config, order the questions, load the newest checkpoint; the next step and the metrics so far."""
    from rollout import barrier

    if run.rank == 0 and not resume:
        must_be_free(run.folder)  # once more: another run may have come and gone while we loaded
        replace_file(run.folder / "config.json", json.dumps(asdict(given), indent=2) + "\n")
    barrier()
    run.stages = make_stages(run)  # from the start policy: before a checkpoint loads
    start = load_checkpoint(run)
    history = []
    if run.rank == 0:
        history = keep_until(run.folder / "metrics.jsonl", start)
        keep_until(run.folder / "samples.jsonl", start)
    return start, history


def n_stages(config: Config) -> int:
    """The curriculum is half of SENT; the other methods shuffle unless told otherwise."""
    return config.stages or (min(4, config.steps) if config.method in ("sent", "sent_release") else 1)


def can_be_asked(n: int, config: Config) -> list[int]:
    """Which of n questions a run has the steps to ask: all, or a choice by seed, in their order.

    >>> len(can_be_asked(100, Config(steps=2, questions_per_step=16))), can_be_asked(3, Config())
    (32, [0, 1, 2])
    """
    import numpy as np

    most = config.steps * config.questions_per_step
    return sorted(np.random.default_rng(config.seed).permutation(n)[:most].tolist())


def reads_reference(config: Config) -> bool:
    """Whether this method's loss can read the frozen start; if not, no second model is needed."""
    settings = settings_of(config.method) | method_settings(config)
    return bool(settings.get("beta_low") or settings["kl_coef"] or config.method == "sent_release")


def make_stages(run: Run) -> list[list[int]]:
    """The curriculum: a given file, one this run has made, or a new one. One stage is plain shuffling, without."""
    from rollout import barrier, gathered

    c = run.config
    n = n_stages(c)
    if n == 1:
        return [list(range(len(run.questions)))]
    path = run.folder / "curriculum.jsonl"
    settings = describe(c.model, c.questions, run.questions, run.prompts, M=c.curriculum_samples,
                        temperature=c.temperature, max_new_tokens=c.max_new_tokens, seed=c.seed,
                        estimator=c.estimator)  # fmt: skip
    if c.curriculum and not path.exists() and run.rank == 0:
        replace_file(path, Path(c.curriculum).read_text())
    barrier()
    if not c.curriculum:
        with gathered(run.model):
            semantic_order(run.model, run.tokenizer, run.questions, run.prompts, path, settings)
    rows, notes = load_curriculum(path, run.questions, settings)
    for text in notes if run.rank == 0 else []:
        print(f"warning: {text}", file=sys.stderr)
    order = [row["index"] for row in rows]
    return stages(order[::-1] if c.reverse else order, n)


def read_forks(model_path: str) -> tuple[str, ...] | None:
    """A task may ship forks.json beside its model: {"after": [...]}, strings after which the next token is a choice."""
    path = Path(model_path) / "forks.json"
    return tuple(json.loads(path.read_text())["after"]) if path.is_file() else None


def held_out(run: Run, samples: int, position: int) -> dict:
    """avg@k, pass@k and per-question counts on the held-out questions, `samples` answers each."""
    from evaluate import evaluate
    from rollout import gathered, position_seed

    c = run.config
    at_once = max(1, (1024 if run.device.type == "cpu" else 16384) // samples)  # a CPU's cache holds some 1,000 rows
    with gathered(run.model):
        return evaluate(run.model, run.tokenizer, run.heldout, run.heldout_prompts, samples, c.max_new_tokens,
                        c.temperature, position_seed(c.seed, position), chunk=at_once)  # fmt: skip


def interrupt(signum: int, frame: object) -> None:
    """SIGTERM while loading, ordering or evaluating: as Ctrl-C. All of these go on where they were."""
    raise KeyboardInterrupt(signum)


@contextmanager
def interruptible() -> Iterator[list[int]]:
    """Inside, SIGTERM and Ctrl-C ask the loop to stop after this step; a second one stops at once. What was caught.

    The step is finished, not abandoned: on one rank among many there is no place to abandon it where the others agree.
    torchrun waits 30 s for that, then kills; the run then goes on from the last checkpoint, or from this step with
    torchrun --shutdown-timeout of more seconds than a step takes.
    """
    caught: list[int] = []

    def note(signum: int, frame: object) -> None:
        caught.append(signum)
        for each in before:
            signal.signal(each, signal.SIG_DFL)  # by the kernel: at once even inside a matrix product
        patience = " (torchrun waits 30 s for that, or its --shutdown-timeout)" * ("TORCHELASTIC_RUN_ID" in os.environ)
        say(f"\nstopping after this step{patience}; once more stops at once")

    before = {signum: signal.signal(signum, note) for signum in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield caught
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def bad_numbers(run: Run, batch: Batch) -> str | None:
    """Which tensor of the rollout has what is no number, and the question whose answer it comes from; None if none."""
    for name in ("sampled", "old", "ref", "entropy"):
        bad = (~batch.everything[name].isfinite()).any(1).nonzero()
        if len(bad):
            question = run.questions[batch.questions[int(bad[0]) // run.config.group_size]].id
            return (f"{name}: {len(bad)} answers, the first to question {question}, have log-probs or entropies that "
                    "are not numbers")  # fmt: skip
    return None


def broken(run: Run, step: int, batch: Batch, flaw: str) -> Broken:
    """The exception that names step and questions; the batch goes beside the run's files, for inspection."""
    import torch

    ids = [run.questions[q].id for q in batch.questions]
    path = run.folder / f"broken-step-{step:07d}-rank{run.rank}.pt"
    kept = f"Its tensors are in {path} (torch.load)"
    try:
        torch.save({"questions": ids, "tokens": batch.rollout.tokens, **batch.everything}, path)
    except (OSError, RuntimeError) as full:
        kept = f"Its tensors could not be kept in {path} ({full})"
    return Broken(f"step {step}: {flaw}. This update was not applied. {kept}. "
                  f"Questions: {', '.join(ids[:8])}{', ...' * (len(ids) > 8)}")  # fmt: skip


def one_step(run: Run, step: int) -> tuple[dict, list[dict]]:
    """Rollout, update and, when due, evaluation: the step's line for metrics.jsonl and its rows for samples.jsonl."""
    c, began = run.config, time.perf_counter()
    batch = collect(run, step)
    if flaw := bad_numbers(run, batch):
        raise broken(run, step, batch, flaw)
    m = {"step": step, "stage": stage_at(step, c.steps, len(run.stages)), **measure(batch, c)}
    if step == 0 and m["logprob_gap"] > GAP[c.device]:
        raise Broken(f"step 0: sampled and scored log-probs differ by {m['logprob_gap']:.2g} nats: two policies")
    last = step + 1 == c.steps  # which the evaluation at the end follows: not twice
    due = c.eval_every > 0 and (step + 1) % c.eval_every == 0
    rows = [*batch_rows(run, batch, step), *probe_rows(run, step)] if step == 0 or due or last else []
    updating = time.perf_counter()
    m |= update(run, batch, step) | batch.seconds
    m["seconds_update"] = time.perf_counter() - updating
    m["seconds"] = time.perf_counter() - began
    m["tokens_per_second"] = m["tokens"] / m["seconds"]
    if due and not last and run.heldout:
        e = held_out(run, 16, step + 1)
        m |= {f"eval_{name}": e[name] for name in ("avg_at_16", "avg_at_16_se", "pass_at_16", "pass_at_16_se")}
    return m, rows


def train(run: Run, start: int, history: list[dict], caught: list[int]) -> int:
    """The loop. Returns 0 when the last step is done, else the exit code of the signal that stopped it."""
    import torch
    from tqdm import tqdm

    from rollout import gather

    c, said = run.config, set()
    bar = tqdm(range(start, c.steps), initial=start, total=c.steps, disable=run.rank > 0, desc=c.method)
    for step in bar:
        m, rows = one_step(run, step)
        if run.rank == 0:
            for name, added in (("metrics.jsonl", [m]), ("samples.jsonl", rows)):
                with (run.folder / name).open("ab", buffering=0) as file:
                    append_rows(file, added)
            history.append(m)
            report(bar, history, c, said)
        # a signal to one rank stops all of them, after the same step
        stopped = int(gather(torch.tensor([max(caught, default=0)], device=run.device)).max())
        if stopped or (step + 1) % c.checkpoint_every == 0 or step + 1 == c.steps or "eval_avg_at_16" in m:
            save_checkpoint(run, step + 1, m.get("eval_avg_at_16"))
        if stopped and step + 1 < c.steps:
            if run.rank == 0:
                bar.close()
                print(f"stopped after {step + 1} of {c.steps} steps; go on with: python train.py --resume {run.folder}",
                      file=sys.stderr)  # fmt: skip
            return 128 + stopped
    return 0


def report(bar, history: list[dict], config: Config, said: set[str]) -> None:
    """The progress bar, one line every log_every steps, and each warning once."""
    m = history[-1]
    bar.set_postfix(reward=f"{m['reward']:.2f}", entropy=f"{m['entropy']:.3f}", s=f"{m['seconds']:.2f}")
    if m["step"] % config.log_every == 0 or m["step"] + 1 == config.steps:
        equal = m["groups_all_right"] + m["groups_all_wrong"]
        line = (f"step {m['step']:4d}  reward {m['reward']:.3f}  pass@{config.group_size} {m['pass_at_g']:.3f}  "
                f"entropy {m['entropy']:.3f} nats  equal groups {equal:.0%}  "
                f"truncated {m['truncated']:.0%}  |grad| {m['grad_norm']:.2f}  {m['tokens_per_second']:.0f} tok/s")
        if "eval_avg_at_16" in m:
            line += f"  held-out avg@16 {m['eval_avg_at_16']:.3f} pass@16 {m['eval_pass_at_16']:.3f}"
        bar.write(line)
    for name, text in troubles(history, config).items():
        if name not in said:
            said.add(name)
            bar.write(f"warning, step {m['step']}: {text}")


def save_model(run: Run, folder: Path) -> None:
    """The policy and its tokenizer as an ordinary Hugging Face folder, whole or not at all."""
    from safetensors import SafetensorError
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    weights = get_model_state_dict(run.model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if run.rank == 0:
        beside = folder.with_name(folder.name + ".tmp")
        shutil.rmtree(beside, ignore_errors=True)
        tied = run.model.all_tied_weights_keys  # gathered, a tied head is a copy; saved once, as the start was
        try:
            run.model.save_pretrained(beside, state_dict={k: v for k, v in weights.items() if k not in tied})
        except SafetensorError as error:
            raise OSError(f"{beside}: {error}; make room") from None
        run.tokenizer.save_pretrained(beside)
        if run.fork_after:
            (beside / "forks.json").write_text(json.dumps({"after": run.fork_after}))
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(beside, folder)


def evaluate_and_note(run: Run, name: str) -> None:
    """`start` or `end` of evaluation.json: pass@k for all k up to --eval-samples, counts per question, `updates`."""
    path = run.folder / "evaluation.json"
    try:
        noted = json.loads(path.read_text()) if path.exists() else {}
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error}); remove it to evaluate again") from None
    updates = 0 if name == "start" else run.config.steps
    if run.heldout and (name not in noted or noted[name].get("updates", updates) != updates):  # it may be longer now
        say(f"{name}: {run.config.eval_samples} answers to each of {len(run.heldout)} held-out questions")
        result = {"updates": updates} | held_out(run, run.config.eval_samples, updates)
        if run.rank == 0:
            replace_file(path, json.dumps(noted | {name: result}) + "\n")
            print(f"{name}: held-out avg@16 {result['avg_at_16']:.3f}, pass@16 {result['pass_at_16']:.3f}")


def main(argv: list[str] | None = None) -> int:
    """Returns the exit code: 0 done, 1 broken numbers, disk or peer, 2 bad input, 128 + n stopped by signal n."""
    config, run, running = None, None, False

    def again() -> str:
        return f"python train.py --resume {config.out}" if run and (run.folder / "config.json").exists() else ""

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        config, resume = parse(argv)
        run = setup(config)
        if run.rank == 0:
            make_folder(run.folder)
        with hold(run.folder / "lock") if run.rank == 0 else nullcontext():  # nobody else writes to this folder
            start, history = begin(run, config, resume)
            running = True
            evaluate_and_note(run, "start")
            with interruptible() as caught:
                code = train(run, start, history, caught)
            if code == 0:
                finish(run)
            return code
    except KeyboardInterrupt as stop:
        say("train.py: interrupted" + (f"; go on with: {again()}" if again() else ""))
        return 128 + (stop.args[0] if stop.args else signal.SIGINT)
    except (Broken, ValueError, OSError) as error:
        mended = f"; when that is mended: {again()}" if again() and not isinstance(error, ValueError) else ""
        print(f"train.py: {error}{mended}", file=sys.stderr)
        return 1 if running or (again() and isinstance(error, OSError)) else 2
    except RuntimeError as error:
        from rollout import peer_is_gone

        if not peer_is_gone(error):
            raise
        print(f"train.py: another process of this run has ended, so this one (rank {os.environ['RANK']}) does too; "
              f"its own message says why; then torchrun ... {again()}", file=sys.stderr)  # fmt: skip
        return 1
    finally:
        signal.signal(signal.SIGTERM, before)


def finish(run: Run) -> None:
    """The last evaluation, the policy as a folder, the pictures."""
    evaluate_and_note(run, "end")
    save_model(run, run.folder / "model")
    if run.config.figures and run.rank == 0:
        from figures import draw

        draw([run.folder], run.folder / "figures")


if __name__ == "__main__":
    sys.exit(main())
