"""Model in, tokens out: sample() draws answers, score() gives the log-probs and entropies of answers already drawn.

The one causal shift of the project is in score(); everything it and sample() return is [B, T] over response positions,
EOS included. Both apply the temperature, neither top-k nor (unless asked) top-p: the scored policy is the sampled one.

Shapes: Q prompts, G answers each, B = Q * G rows, P prompt width, T response width, N response tokens, V vocabulary,
D hidden size. Log-probabilities and entropies are float32, in nats.
"""

from __future__ import annotations

import atexit
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

TILE = 8192  # vocabulary entries that the head holds at a time


@dataclass
class Rollout:
    """Answers to prompts. Prompts are padded on the left, answers on the right; masks are bool, True on real tokens."""

    prompt_tokens: Tensor  # [B, P]
    prompt_mask: Tensor  # [B, P]
    tokens: Tensor  # [B, T] EOS included
    mask: Tensor  # [B, T] built from lengths: `tokens != pad` would drop EOS wherever pad is EOS
    logprobs: Tensor  # [B, T] as sampled, 0 outside the mask
    texts: list[str]  # [B] without EOS and other special tokens
    finished: Tensor  # [B] bool: ended by EOS, not by max_new_tokens

    @property
    def lengths(self) -> list[int]:
        """Tokens of each row, prompt and answer: what a forward pass of it costs."""
        return (self.prompt_mask.sum(1) + self.mask.sum(1)).tolist()

    def rows(self, index: Tensor | list[int]) -> Rollout:
        """Some of the rows, without the padding that only the others needed."""
        index = torch.as_tensor(index, device=self.mask.device)
        prompt_mask, mask = self.prompt_mask[index], self.mask[index]
        start = self.prompt_mask.shape[1] - int(prompt_mask.sum(1).max())
        end = int(mask.sum(1).max())
        return Rollout(self.prompt_tokens[index, start:], prompt_mask[:, start:], self.tokens[index, :end],
                       mask[:, :end], self.logprobs[index, :end], [self.texts[i] for i in index.tolist()],
                       self.finished[index])  # fmt: skip


# ---------------------------------------------------------------------------------------------- loading
def _looks_local(path: str) -> bool:
    return Path(path).exists() or path.count("/") != 1 or path.startswith((".", "~", "/"))


def load_tokenizer(path: str | Path):
    """The tokenizer of a local folder or of a hub name; without a pad token, EOS is its pad.

    Raises ValueError for a folder that is missing or has no tokenizer, and for a tokenizer without EOS.
    """
    from transformers import AutoTokenizer

    if _looks_local(str(path)) and not Path(path).is_dir():
        raise ValueError(f"{path}: no such model folder; give a folder or a hub name such as Qwen/Qwen2.5-0.5B")
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, padding_side="left")
    except (OSError, ValueError, ImportError) as error:
        raise ValueError(f"{path}: no tokenizer could be loaded: {str(error).splitlines()[0]}") from error
    if not tokenizer("a 1")["input_ids"]:  # transformers makes an empty one from a folder that has none
        raise ValueError(f"{path}: no tokenizer there that reads text; save the model's tokenizer beside it")
    if tokenizer.eos_token_id is None:
        raise ValueError(f"{path}: the tokenizer has no EOS token, so no answer could ever end; set eos_token")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_model(path: str | Path, device: torch.device | str, dtype: torch.dtype, attention: str | None = None):
    """A causal LM from the safetensors of a local folder or a hub name, in eval mode, without any dropout.

    Raises ValueError for a missing folder, weights that cannot be loaded, a vocabulary smaller than the tokenizer's,
    and an architecture that does to its logits what score() does not know.
    """
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    tokenizer = load_tokenizer(path)
    try:
        model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, attn_implementation=attention,
                                                     use_safetensors=True)  # fmt: skip
    except (OSError, ValueError, ImportError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"{path}: no model could be loaded: {str(error).splitlines()[0]}") from error
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        raise ValueError(f"{path}: the tokenizer has {len(tokenizer)} tokens but the model embeds {rows}; "
                         "resize the embeddings or take the model's own tokenizer")  # fmt: skip
    for module in model.modules():  # dropout would make the scored policy another one than the sampled
        for name, value in list(vars(module).items()):
            if isinstance(value, float) and ("dropout" in name or (name == "p" and isinstance(module, nn.Dropout))):
                setattr(module, name, 0.0)
    model = model.to(device).eval()
    check_head(model)
    return model


# ---------------------------------------------------------------------------------------------- sampling
def position_seed(*position: int) -> int:
    """A seed that is a function of a place, e.g. (run's seed, step, question): a resumed run draws the same numbers.

    >>> position_seed(0, 1, 2) == position_seed(0, 1, 2) != position_seed(0, 2, 1)
    True
    """
    return int.from_bytes(hashlib.blake2b(repr(position).encode(), digest_size=8).digest()) >> 1


def _mix(x: Tensor) -> Tensor:
    """splitmix64's finaliser on int64 (Steele, Lea & Flood 2014): neighbouring inputs, unrelated outputs."""
    for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15), (31, 1)):
        x = (x ^ ((x >> shift) & ((1 << (64 - shift)) - 1))) * factor  # the mask makes >> a logical shift
    return x


def uniforms(seeds: Tensor, group_size: int, steps: int) -> Tensor:
    """Numbers in [0, 1) that depend on (seed of the question, row in its group, position) only; [Q] -> [Q*G, steps].

    A torch.Generator would tie a row's numbers to how many rows and steps are drawn with it. 23 bits, so that
    `u * total` in float32 stays below `total` and a token of probability 0 is never picked.
    """
    golden = -0x61C8864680B583EB
    keys = _mix(seeds[:, None] + golden * torch.arange(1, group_size + 1, device=seeds.device)).view(-1, 1)
    bits = _mix(keys + golden * torch.arange(1, steps + 1, device=seeds.device))
    return ((bits >> 41) & (2**23 - 1)).float() / 2**23


def _draw(logits: Tensor, u: Tensor, temperature: float, top_p: float) -> tuple[Tensor, Tensor]:
    """Inverse CDF: the first token whose cumulated probability exceeds u; [n, V], [n] -> tokens, log-probs [n].

    torch.multinomial would tie a row's draw to the other rows of the batch. Log-probs are those of the whole softmax.
    """
    logp = (logits.float() / temperature).log_softmax(-1)
    probs, order = logp.exp(), None
    if top_p < 1:
        probs, order = probs.sort(-1, descending=True)
    cdf = probs.cumsum(-1)
    total = cdf[:, -1:]
    if top_p < 1:  # the nucleus: the fewest tokens that hold top_p
        total = cdf.gather(1, torch.searchsorted(cdf, top_p * total).clamp(max=cdf.shape[1] - 1))
    token = torch.searchsorted(cdf, u[:, None] * total, right=True)
    token = token if order is None else order.gather(1, token)
    return token[:, 0], logp.gather(1, token)[:, 0]


def _eos_ids(model, tokenizer) -> list[int]:
    """Every token that ends an answer: chat models often list two."""
    ids = model.generation_config.eos_token_id if model.generation_config is not None else None
    return sorted({tokenizer.eos_token_id, *(ids if isinstance(ids, list) else [] if ids is None else [ids])})


def _pad(rows: list[list[int]], value: int, device) -> tuple[Tensor, Tensor]:
    """Tokens and mask [n, P], padded on the left."""
    width = max(map(len, rows))
    tokens = torch.tensor([[value] * (width - len(row)) + row for row in rows], device=device)
    mask = torch.tensor([[False] * (width - len(row)) + [True] * len(row) for row in rows], device=device)
    return tokens, mask


def _questions_at_once(model, prompt_width: int, group_size: int, max_new_tokens: int, cache_gib: float) -> int:
    """How many questions' groups fit the cache at its widest. Raises ValueError when not one does."""
    one = model(input_ids=torch.zeros(1, 1, dtype=torch.long, device=model.device), use_cache=True).past_key_values
    per_token = sum(layer.keys.nbytes + layer.values.nbytes for layer in one.layers)
    per_group = per_token * group_size * (prompt_width + max_new_tokens) / 2**30
    if per_group > cache_gib:
        raise ValueError(
            f"sampling {group_size} answers of up to {prompt_width} + {max_new_tokens} tokens needs {per_group:.1f} "
            f"GiB of cache for each question and {cache_gib:.1f} are free; lower --max-new-tokens or --group-size")
    return int(cache_gib / per_group)


@torch.no_grad()
def _decode(model, prompts: list[list[int]], u: Tensor, tokens: Tensor, logprobs: Tensor, eos: Tensor,
            temperature: float, top_p: float) -> None:  # fmt: skip
    """Fill tokens and logprobs [n, T] of these prompts' groups, in place; what lies behind EOS is left as it is.

    Each prompt is read once and its cache repeated for the group. Rows that have ended leave the batch when an eighth
    of it has: at once would copy the cache too often, never would compute mostly nothing on ragged lengths.
    """
    group_size = len(tokens) // len(prompts)
    prompt, mask = _pad(prompts, 0, tokens.device)
    out = model(input_ids=prompt, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0),
                use_cache=True, logits_to_keep=1)  # fmt: skip
    cache, logits = out.past_key_values, out.logits[:, -1].repeat_interleave(group_size, 0)
    cache.batch_repeat_interleave(group_size)
    rows = torch.arange(len(tokens), device=tokens.device)
    alive = torch.ones_like(rows, dtype=torch.bool)
    position = mask.sum(1).repeat_interleave(group_size)
    mask = torch.cat([mask.repeat_interleave(group_size, 0), mask.new_ones(tokens.shape)], 1)
    for t in range(tokens.shape[1]):
        token, logp = _draw(logits, u[rows, t], temperature, top_p)
        tokens[rows, t], logprobs[rows, t] = token, logp
        alive = alive & ~torch.isin(token, eos)
        left = int(alive.sum())
        if left == 0 or t + 1 == tokens.shape[1]:
            return
        if left <= 7 / 8 * len(rows):
            keep = alive.nonzero()[:, 0]
            cache.batch_select_indices(keep)
            rows, token, mask, position, alive = rows[keep], token[keep], mask[keep], position[keep], alive[keep]
        out = model(input_ids=token[:, None], attention_mask=mask[:, : prompt.shape[1] + t + 1],
                    position_ids=(position + t)[:, None], past_key_values=cache, use_cache=True)  # fmt: skip
        logits = out.logits[:, -1]


@torch.no_grad()
def sample(
    model,
    tokenizer,
    prompts: list[str],
    group_size: int,
    max_new_tokens: int,
    temperature: float,
    seed: int | list[int],
    top_p: float = 1.0,
    cache_gib: float | None = None,
) -> Rollout:
    """group_size answers to each prompt; row q * G + g is answer g to prompt q. Prompts are final texts.

    `seed` is one int, or one per prompt. A row depends on its prompt, its seed and its place in the group only: not on
    the other rows, on how many fit in memory at once (`cache_gib`; default: half of what is free) or on the rank.
    Raises ValueError for an empty prompt, numbers out of range and a group whose cache does not fit.
    """
    if group_size < 1 or max_new_tokens < 1 or temperature <= 0 or not 0 < top_p <= 1 or not prompts:
        raise ValueError(f"sample: needs prompts, group_size {group_size} and max_new_tokens {max_new_tokens} >= 1, "
                         f"temperature {temperature} > 0 and 0 < top_p {top_p} <= 1")  # fmt: skip
    device, was_training = model.device, model.training
    bos = tokenizer.bos_token  # a chat template has written it already, a bare prompt has not
    ids = tokenizer(prompts, add_special_tokens=not (bos and all(p.startswith(bos) for p in prompts)))["input_ids"]
    if not all(ids):
        raise ValueError(f"sample: prompt {ids.index([])} has no tokens")
    seeds = seed if isinstance(seed, list) else [position_seed(seed, q) for q in range(len(prompts))]
    u = uniforms(torch.tensor(seeds, device=device), group_size, max_new_tokens)  # [B, T]
    tokens = torch.full(u.shape, -1, device=device)
    logprobs = torch.zeros_like(u)
    eos = torch.tensor(_eos_ids(model, tokenizer), device=device)
    if cache_gib is None:
        cache_gib = torch.cuda.mem_get_info(device)[0] / 2**31 if device.type == "cuda" else 8.0
    model.eval()
    try:
        at_once = _questions_at_once(model, max(map(len, ids)), group_size, max_new_tokens, cache_gib)
        for first in range(0, len(ids), at_once):
            part = slice(first * group_size, (first + at_once) * group_size)
            _decode(model, ids[first : first + at_once], u[part], tokens[part], logprobs[part], eos, temperature, top_p)
    finally:
        model.train(was_training)
    return _rollout(tokenizer, ids, group_size, tokens, logprobs, eos)


def _rollout(tokenizer, ids: list[list[int]], group_size: int, tokens: Tensor, logprobs: Tensor, eos: Tensor):
    """Cut rows after their first EOS and put the text beside them."""
    ended = torch.isin(tokens, eos)  # [B, T]; -1, where nothing was drawn, is no token
    finished = ended.any(1)
    lengths = torch.where(finished, ended.int().argmax(1) + 1, tokens.shape[1])  # EOS included
    width = int(lengths.max())
    mask = torch.arange(width, device=tokens.device) < lengths[:, None]
    tokens = tokens[:, :width].masked_fill(~mask, tokenizer.pad_token_id)
    answers = [row[:n] for row, n in zip(tokens.tolist(), (lengths - finished.long()).tolist(), strict=True)]
    prompt_tokens, prompt_mask = _pad(ids, tokenizer.pad_token_id, tokens.device)
    return Rollout(prompt_tokens.repeat_interleave(group_size, 0), prompt_mask.repeat_interleave(group_size, 0), tokens,
                   mask, logprobs[:, :width] * mask, tokenizer.batch_decode(answers, skip_special_tokens=True),
                   finished)  # fmt: skip


# ---------------------------------------------------------------------------------------------- scoring
def _wide(x: Tensor) -> Tensor:
    return x.float() if x.element_size() < 4 else x


class _TiledHead(torch.autograd.Function):
    """log p(token) and H of softmax(cap * tanh(h W^T / cap) / temperature), tiles of W at a time.

    Forward: one pass of online log-sum-exp (Milakov & Gimelshein, arXiv 1805.02867) that carries sum e^z (z - max) too,
    so that H = log s - u / s. Backward makes each tile again: keeping them would be the [N, V] that this is here to
    avoid, and cutting over *tokens* under plain autograd adds up a full [V, D] gradient per cut.
    dz_j = g_lp (1[j = token] - p_j) - g_H p_j (log p_j + H).
    """

    @staticmethod
    def logits(hidden: Tensor, tile: Tensor, temperature: float, cap: float | None) -> Tensor:
        z = _wide(hidden @ tile.T)  # bf16 models: rounded as their own logits are, then float32
        return z.div_(temperature) if cap is None else z.div_(cap).tanh_().mul_(cap / temperature)

    @staticmethod
    def forward(ctx, hidden, weight, tokens, temperature, cap, with_entropy):
        n = len(hidden)
        top = torch.full((n, 1), -1e30, device=hidden.device, dtype=_wide(hidden[:0]).dtype)
        s, u, chosen = torch.zeros_like(top), torch.zeros_like(top), torch.zeros_like(top)
        for start in range(0, len(weight), TILE):
            z = _TiledHead.logits(hidden, weight[start : start + TILE], temperature, cap)  # [N, tile]
            here = (tokens[:, None] - start).clamp(0, z.shape[1] - 1)
            inside = (tokens[:, None] >= start) & (tokens[:, None] < start + TILE)
            chosen = torch.where(inside, z.gather(1, here), chosen)
            new = torch.maximum(top, z.amax(1, keepdim=True))
            shrink = (top - new).exp()
            z.sub_(new)
            e = z.exp()
            if with_entropy:
                u = shrink * (u + s * (top - new)) + z.mul_(e).sum(1, keepdim=True)
            s = shrink * s + e.sum(1, keepdim=True)
            top = new
        lse = top + s.log()
        entropy = s.log() - u / s
        ctx.save_for_backward(hidden, weight, tokens, lse, entropy)
        ctx.constants = temperature, cap, with_entropy
        return (chosen - lse)[:, 0], entropy[:, 0] if with_entropy else None

    @staticmethod
    @once_differentiable
    def backward(ctx, g_logp, g_entropy):
        hidden, weight, tokens, lse, entropy = ctx.saved_tensors
        temperature, cap, with_entropy = ctx.constants
        g_hidden = torch.zeros_like(hidden, dtype=lse.dtype)
        g_weight = torch.empty_like(weight) if ctx.needs_input_grad[1] else None
        for start in range(0, len(weight), TILE):
            tile = weight[start : start + TILE]
            z = _TiledHead.logits(hidden, tile, temperature, cap)
            slope = None if cap is None else 1 - (z * (temperature / cap)) ** 2
            logp = z.sub_(lse)
            g = logp.exp()  # p
            if with_entropy:
                g.mul_(logp.add_(entropy).mul_(-g_entropy[:, None]).sub_(g_logp[:, None]))
            else:
                g.mul_(-g_logp[:, None])
            inside = ((tokens >= start) & (tokens < start + TILE)).nonzero()[:, 0]
            g[inside, tokens[inside] - start] += g_logp[inside]
            g = g.div_(temperature) if slope is None else g.mul_(slope).div_(temperature)
            g = g.to(hidden.dtype)
            g_hidden += g @ tile
            if g_weight is not None:
                g_weight[start : start + TILE] = g.T @ hidden
        return g_hidden.to(hidden.dtype), g_weight, None, None, None, None


def _head(model, hidden: Tensor, tokens: Tensor, temperature: float, with_entropy: bool):
    """The model's own head, tiled; [N, D], [N] -> log-probs [N], entropy [N]."""
    head, config = model.get_output_embeddings(), model.config.get_text_config()
    weight = head.weight
    if getattr(head, "bias", None) is not None:
        hidden = torch.cat([hidden, hidden.new_ones(len(hidden), 1)], 1)
        weight = torch.cat([weight, head.bias[:, None]], 1)
    # names under which configs multiply (Cohere, Falcon-H1) or divide (Granite) their logits
    scale = (getattr(config, "logit_scale", None) or 1.0) * (getattr(config, "lm_head_multiplier", None) or 1.0)
    scale /= getattr(config, "logits_scaling", None) or 1.0
    cap = getattr(config, "final_logit_softcapping", None)
    if cap is not None:
        return _TiledHead.apply(hidden * scale, weight, tokens, temperature, cap, with_entropy)
    return _TiledHead.apply(hidden, weight, tokens, temperature / scale, None, with_entropy)


def _score_rows(model, rollout: Rollout, temperature: float, with_entropy: bool) -> tuple[Tensor, Tensor | None]:
    """Log-probs and entropy of all response tokens in one forward pass, in the order of rollout.mask; [N], [N].

    Rows are shifted to begin at column 0. Then padding is on the right only, where causal attention never looks: no
    attention mask, no position ids, the fast kernels.
    """
    prompt, whole = rollout.prompt_mask.sum(1, keepdim=True), torch.cat([rollout.prompt_tokens, rollout.tokens], 1)
    width = max(rollout.lengths)
    columns = torch.arange(width, device=whole.device) + rollout.prompt_tokens.shape[1] - prompt
    tokens = whole.gather(1, columns.clamp(max=whole.shape[1] - 1))  # [B, width]
    # THE causal shift: what is at position i is predicted from the hidden state at i - 1
    before = prompt + torch.arange(rollout.mask.shape[1], device=whole.device) - 1  # [B, T]
    before = (before + width * torch.arange(len(whole), device=whole.device)[:, None])[rollout.mask]  # [N]

    def forward(input_ids):
        hidden = model.base_model(input_ids=input_ids, use_cache=False).last_hidden_state
        return _head(model, hidden.flatten(0, 1)[before], rollout.tokens[rollout.mask], temperature, with_entropy)

    # Under FSDP2 the head's weight is whole only inside the root's own forward, and hooks run on model(...) only.
    model.forward = forward
    try:
        return model(input_ids=tokens)
    finally:
        del model.forward


def score(
    model, rollout: Rollout, temperature: float, with_entropy: bool = True, tokens_per_micro_batch: int | None = None
) -> tuple[Tensor, Tensor | None]:
    """log pi(o_t) and H_t at the sampling temperature, both [B, T] float32, 0 outside the mask.

    Without with_entropy the second is None. Differentiable when gradients are enabled. [B, T, V] never exists.
    With a token budget the rows are cut, longest with longest, into micro-batches: for use without gradient, as all
    graphs would be kept. Under FSDP each rank runs as many forwards as the busiest: sharded layers are gathered by
    all ranks or by none.
    """
    pieces = [list(range(len(rollout.mask)))]
    if tokens_per_micro_batch is not None:
        pieces = micro_batches(rollout.lengths, tokens_per_micro_batch)
        if isinstance(model, FSDPModule):
            most = int(gather(torch.tensor([len(pieces)], device=model.device)).max())
            pieces += [pieces[-1]] * (most - len(pieces))
    logprobs = torch.zeros(rollout.mask.shape, device=rollout.mask.device)
    entropy = torch.zeros_like(logprobs) if with_entropy else None
    for piece in pieces:
        part = rollout if tokens_per_micro_batch is None else rollout.rows(piece)  # rows() also sorts
        values = _score_rows(model, part, temperature, with_entropy)
        row, column = part.mask.nonzero(as_tuple=True)
        row = torch.tensor(piece, device=row.device)[row]
        logprobs = logprobs.index_put((row, column), values[0].float())
        entropy = entropy.index_put((row, column), values[1].float()) if with_entropy else None
    return logprobs, entropy


def micro_batches(lengths: list[int], tokens_per_micro_batch: int) -> list[list[int]]:
    """Rows cut into pieces, longest first, each at most this many tokens *with padding* (or a single row).

    >>> micro_batches([3, 9, 4, 5], 10)
    [[1], [3, 2], [0]]
    """
    pieces: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if pieces and (len(pieces[-1]) + 1) * lengths[pieces[-1][0]] <= tokens_per_micro_batch:
            pieces[-1].append(i)
        else:
            pieces.append([i])
    return pieces


@torch.no_grad()
def check_head(model) -> None:
    """Raises ValueError unless score()'s head gives the log-probs of the model's own logits, on a tiny input."""
    tokens = torch.arange(1, 7, device=model.device).view(1, 6)
    prompt, response = tokens[:, :2], tokens[:, 2:]
    rollout = Rollout(prompt, prompt > 0, response, response > 0, response.float(), [""], response[:, 0] > 0)
    ours, _ = score(model, rollout, 1.0)
    logits = model(input_ids=tokens).logits[:, 1:-1].float()
    gap = (ours - logits.log_softmax(-1).gather(-1, response[..., None])[..., 0]).abs().max().item()
    if not gap < (1e-3 if model.dtype == torch.float32 else 0.2):
        raise ValueError(f"{type(model).__name__} does something to its logits that score() does not know (log-probs "
                         f"differ by {gap:.2g} nats); add it to rollout._head")  # fmt: skip


# ---------------------------------------------------------------------------------------------- several processes
def distributed(device: str | None = None) -> tuple[int, int, torch.device]:
    """(rank, world, device) of this process; under torchrun it joins the others first.

    A rank that dies closes its sockets, and torchrun ends the rest at once. The time-out is for a rank that hangs
    alive; it has to outlast the wait for the slowest rank's answers, so it is long.
    """
    kind = device or ("cuda" if torch.cuda.is_available() else "cpu")
    where = torch.device(kind, int(os.environ.get("LOCAL_RANK", 0))) if kind == "cuda" else torch.device(kind)
    if kind == "cuda":
        torch.cuda.set_device(where)
    if "WORLD_SIZE" not in os.environ:
        return 0, 1, where
    if not dist.is_initialized():
        dist.init_process_group("cpu:gloo,cuda:nccl" if kind == "cuda" else "gloo", timeout=timedelta(minutes=30))
        atexit.register(dist.destroy_process_group)
    return dist.get_rank(), dist.get_world_size(), where


def barrier() -> None:
    """Wait for all ranks; nothing to do in one process."""
    if dist.is_initialized():
        dist.barrier()


def gather(local: Tensor) -> Tensor:
    """The tensors of all ranks, one below the other: [b, ..., t] -> [world * b, ..., widest t], padded with zeros.

    b is the same on every rank. Not differentiable.
    """
    if not dist.is_initialized():
        return local
    if local.ndim > 1:
        width = torch.tensor(local.shape[-1], device=local.device)
        dist.all_reduce(width, dist.ReduceOp.MAX)
        local = nn.functional.pad(local, (0, int(width) - local.shape[-1]))
    parts = [torch.empty_like(local) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, local.contiguous())
    return torch.cat(parts)


def shard(model):
    """FSDP2 over all ranks: masters and optimizer state cut in `world` parts, on CUDA bf16 compute, fp32 reduction.

    One process on CPU keeps the plain model. One GPU shards over itself: that is where bf16 compute with fp32 masters
    comes from, the same way as on eight.
    """
    on_gpu = model.device.type == "cuda"
    if not dist.is_initialized():
        if not on_gpu:
            return model
        dist.init_process_group("cpu:gloo,cuda:nccl", rank=0, world_size=1, store=dist.HashStore())
        atexit.register(dist.destroy_process_group)
    policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32) if on_gpu else MixedPrecisionPolicy()
    layers = {name for name in model._no_split_modules or ()}  # the decoder layer's class, as each architecture says
    for module in model.modules():
        if type(module).__name__ in layers:
            fully_shard(module, mp_policy=policy)
    return fully_shard(model, mp_policy=policy, reshard_after_forward=False)


@contextmanager
def gathered(model) -> Iterator[None]:
    """Inside, every rank has all weights and calls the model without talking to the others: to sample, on its own."""
    shards = [m for m in model.modules() if isinstance(m, FSDPModule)]
    for module in shards:
        module.set_reshard_after_forward(False, recurse=False)
        module.unshard()
    try:
        yield
    finally:
        for module in shards:
            module.reshard()
            module.set_reshard_after_forward(module is not model, recurse=False)
