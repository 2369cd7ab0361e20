"""Model in, tokens out: sample() draws answers, score() gives the log-probs and entropies of answers already drawn.

The one causal shift of the project is in score(); everything it and sample() return is [B, T] over response positions,
EOS included. Both apply the temperature, neither top-k nor (unless asked) top-p: the scored policy is the sampled one.

Shapes: Q prompts, G answers each, B = Q * G rows, P prompt width, T response width, N response tokens, V vocabulary,
D hidden size. Log-probabilities and entropies are float32, in nats.
"""

from __future__ import annotations

import atexit
import hashlib
import inspect
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from transformers.cache_utils import DynamicLayer

from entropy import wide

TILE = 4096  # vocabulary entries that the head holds at a time


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
def brief(error: BaseException) -> str:
    """The first line of what an exception says, or its name."""
    return str(error).partition("\n")[0] or type(error).__name__


def load_tokenizer(path: str | Path):
    """The tokenizer of a local folder or of a hub name; without a pad token, EOS is its pad.

    Raises ValueError for a folder that is missing or has no tokenizer, and for a tokenizer without EOS.
    """
    from transformers import AutoTokenizer

    text, parent = str(path), Path(path).parent
    # the hub is not asked for what must be a path: ./sent, /models/sent, a/b/c, or runs/sent where runs/ is a folder
    if not Path(path).is_dir() and (
        text.startswith((".", "/", "~")) or text.count("/") > 1 or (parent != Path(".") and parent.is_dir())
    ):
        raise ValueError(f"{path}: no such model folder; give a folder or a hub name such as Qwen/Qwen2.5-0.5B")
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, padding_side="left")
    except (OSError, ValueError, ImportError) as error:
        raise ValueError(f"{path}: no tokenizer could be loaded ({brief(error)}); a folder holds its own") from error
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
    from huggingface_hub.utils import enable_progress_bars
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()  # bars for reading and writing weights, which take seconds ...
    enable_progress_bars()  # ... but not those of downloads
    tokenizer = load_tokenizer(path)
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            path, dtype=dtype, attn_implementation=attention, use_safetensors=True, output_loading_info=True)
    except (OSError, ValueError, ImportError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"{path}: no model could be loaded: {brief(error)}") from error
    if missing := info["missing_keys"]:  # transformers would draw them at random, with a warning
        raise ValueError(f"{path}: {len(missing)} weights of the config's model are not there, e.g. {min(missing)}")
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
    # weights that overflowed have no probabilities: the last token, whose log-prob then is no number either
    token = torch.searchsorted(cdf, u[:, None] * total, right=True).clamp(max=cdf.shape[1] - 1)
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


def _cache_name(model) -> str:
    """What forward takes and returns the cache as: transformers 5.24 renamed it and warns at the old name."""
    return "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"


def _questions_at_once(model, prompt_width: int, group_size: int, max_new_tokens: int, cache_gib: float) -> int:
    """How many questions' groups fit the cache at its widest. Raises ValueError when not one does."""
    one = model(input_ids=torch.zeros(1, 1, dtype=torch.long, device=model.device), use_cache=True)[_cache_name(model)]
    attending = [layer for layer in one.layers if getattr(layer, "keys", None) is not None]  # recurrent layers: none
    per_token = sum(layer.keys.nbytes + layer.values.nbytes for layer in attending)
    per_group = per_token * group_size * (prompt_width + max_new_tokens) / 2**30
    if per_group > cache_gib:
        raise ValueError(
            f"sampling {group_size} answers of up to {prompt_width} + {max_new_tokens} tokens needs {per_group:.1f} "
            f"GiB of cache for each question and {cache_gib:.1f} are free; lower --max-new-tokens or --group-size")
    return int(cache_gib / per_group)


class _RoomyLayer(DynamicLayer):
    """A DynamicLayer that leaves room for 64 more tokens at a time.

    The original appends with torch.cat: a copy of the whole cache for each token, half of the time of a large batch.
    """

    def __init__(self, layer: DynamicLayer):
        super().__init__()
        vars(self).update(vars(layer), room=None)

    def update(self, keys: Tensor, values: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        old, new = self.keys.shape[2], self.keys.shape[2] + keys.shape[2]
        moved = self.room is None or self.room[0].data_ptr() != self.keys.data_ptr()  # rows were selected or added
        if moved or new > self.room[0].shape[2]:
            self.room = [nn.functional.pad(x, (0, 0, 0, 64)) for x in (self.keys, self.values)]
        for room, x in zip(self.room, (keys, values), strict=True):
            room[:, :, old:new] = x
        self.keys, self.values = (room[:, :, :new] for room in self.room)
        return self.keys, self.values


@dataclass
class _Batch:
    """Rows being decoded. All of them end in the cache's last column; what shorter ones have on the left is masked."""

    cache: Any
    logits: Tensor  # [n, V] of the next token
    rows: Tensor  # [n] places in the rollout
    length: Tensor  # [n] tokens in the cache, prompt included
    step: Tensor  # [n] place in the answer; the scrap column for rows that have ended

    def resize(self, by: int) -> None:
        """Add columns on the left of the cache, or remove them (by < 0)."""
        for layer in self.cache.layers:
            if getattr(layer, "keys", None) is not None:
                add = by
                if layer.is_sliding:
                    layer.cumulative_length += by
                    add = min(layer.cumulative_length, layer.sliding_window - 1) - layer.keys.shape[2]
                for name in ("keys", "values"):
                    x = getattr(layer, name)
                    setattr(layer, name, nn.functional.pad(x, (0, 0, add, 0)) if add > 0 else x[:, :, -add:])

    def keep(self, index: Tensor) -> None:
        """These rows only, in no more columns than they need."""
        self.cache.reorder_cache(index)
        for name in ("logits", "rows", "length", "step"):
            setattr(self, name, getattr(self, name)[index])
        self.resize(int(self.length.max()) - self.cache.get_seq_length())

    def join(self, other: _Batch) -> None:
        """Take in the rows of another batch."""
        by = self.cache.get_seq_length() - other.cache.get_seq_length()
        (other if by > 0 else self).resize(abs(by))
        for mine, theirs in zip(self.cache.layers, other.cache.layers, strict=True):
            for name in ("keys", "values"):
                if getattr(mine, name, None) is not None:
                    setattr(mine, name, torch.cat([getattr(mine, name), getattr(theirs, name)]))
            for name in ("conv_states", "recurrent_states"):
                states, more = getattr(mine, name, {}), getattr(theirs, name, {})
                states.update({i: torch.cat([x, more[i]]) for i, x in states.items() if x is not None})
        for name in ("logits", "rows", "length", "step"):
            setattr(self, name, torch.cat([getattr(self, name), getattr(other, name)]))


def _read(model, prompts: list[list[int]], group_size: int, first_row: int) -> _Batch:
    """Read each prompt once and repeat its cache for the group."""
    tokens, mask = _pad(prompts, 0, model.device)
    out = model(input_ids=tokens, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0), use_cache=True,
                logits_to_keep=1)  # fmt: skip
    cache = out[_cache_name(model)]
    cache.layers = [_RoomyLayer(layer) if type(layer) is DynamicLayer else layer for layer in cache.layers]
    batch = _Batch(cache, out.logits[:, -1], torch.arange(len(prompts), device=model.device), mask.sum(1),
                   torch.zeros_like(mask[:, 0], dtype=torch.long))  # fmt: skip
    batch.keep(batch.rows.repeat_interleave(group_size))
    batch.rows = first_row + torch.arange(len(batch.rows), device=model.device)
    return batch


def _decode(model, prompts: list[list[int]], u: Tensor, tokens: Tensor, logprobs: Tensor, eos: Tensor,
            temperature: float, top_p: float, at_once: int) -> None:  # fmt: skip
    """Fill tokens and logprobs [B, T + 1] in place; the last column takes what ended rows go on to draw, and is scrap.

    Rows that have ended leave the batch when they are an eighth of it: at once would copy the cache too often, never
    would compute mostly nothing on ragged lengths. Questions that wait come in when a quarter of the places is free.
    """
    group_size, last = len(tokens) // len(prompts), tokens.shape[1] - 1
    widest, name = max(map(len, prompts)) + last, _cache_name(model)
    batch, waiting = None, 0
    while batch is not None or waiting < len(prompts):
        free = at_once - (0 if batch is None else -(-len(batch.rows) // group_size))
        if waiting < len(prompts) and free >= at_once / 4:
            more = _read(model, prompts[waiting : waiting + free], group_size, waiting * group_size)
            waiting += free
            batch = more if batch is None else batch.join(more) or batch
        at = batch.rows, batch.step
        token, logp = _draw(batch.logits, u[at], temperature, top_p)
        tokens[at], logprobs[at] = token, logp
        batch.step = torch.where(torch.isin(token, eos), last, (batch.step + 1).clamp(max=last))
        alive = (batch.step < last).nonzero()[:, 0]
        if len(alive) == 0:
            batch = None
            continue
        if len(alive) <= 7 / 8 * len(token) or batch.cache.get_seq_length() + 1 >= widest:
            batch.keep(alive)
            token = token[alive]
        batch.length += 1
        width = batch.cache.get_seq_length() + 1
        mask = torch.arange(width, device=token.device) >= width - batch.length[:, None]
        batch.logits = model(input_ids=token[:, None], attention_mask=mask, position_ids=batch.length[:, None] - 1,
                             use_cache=True, **{name: batch.cache}).logits[:, -1]  # fmt: skip


@torch.no_grad()
def sample(model, tokenizer, prompts: list[str], group_size: int, max_new_tokens: int, temperature: float,
           seed: int | list[int], top_p: float = 1.0, cache_gib: float | None = None) -> Rollout:  # fmt: skip
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
    u = uniforms(torch.tensor(seeds, device=device), group_size, max_new_tokens + 1)  # [B, T + 1]
    tokens = torch.full(u.shape, -1, device=device)
    logprobs = torch.zeros_like(u)
    eos = torch.tensor(_eos_ids(model, tokenizer), device=device)
    if cache_gib is None:
        cache_gib = 8.0
        if device.type == "cuda":  # half of what is free; what torch holds but does not use is free too
            unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
            cache_gib = (torch.cuda.mem_get_info(device)[0] + unused) / 2**31
    model.eval()
    try:
        at_once = _questions_at_once(model, max(map(len, ids)), group_size, max_new_tokens, cache_gib)
        _decode(model, ids, u, tokens, logprobs, eos, temperature, top_p, at_once)
    finally:
        model.train(was_training)
    return _rollout(tokenizer, ids, group_size, tokens[:, :-1], logprobs[:, :-1], eos)


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
class _TiledHead(torch.autograd.Function):
    """log p(token) and H of softmax(cap * tanh(h W^T / cap) / temperature), tiles of W at a time.

    Forward: one pass of online log-sum-exp (Milakov & Gimelshein, arXiv 1805.02867) that carries sum e^z (z - max) too,
    so that H = log s - u / s. Backward makes each tile again: keeping them would be the [N, V] that this is here to
    avoid, and cutting over *tokens* under plain autograd adds up a full [V, D] gradient per cut.
    dz_j = g_lp (1[j = token] - p_j) - g_H p_j (log p_j + H).
    """

    @staticmethod
    def logits(hidden: Tensor, tile: Tensor, temperature: float, cap: float | None) -> Tensor:
        z = wide(hidden @ tile.T)  # bf16 models: rounded as their own logits are, then float32
        if cap is not None:
            z.div_(cap).tanh_().mul_(cap)
        return z if temperature == 1 else z.div_(temperature)

    @staticmethod
    def forward(ctx, hidden, weight, tokens, temperature, cap, with_entropy):
        top = torch.full(tokens.shape, -1e30, device=hidden.device, dtype=wide(hidden[:0]).dtype)  # [N]
        s, u, chosen = torch.zeros_like(top), torch.zeros_like(top), torch.zeros_like(top)
        for start in range(0, len(weight), TILE):
            z = _TiledHead.logits(hidden, weight[start : start + TILE], temperature, cap)  # [N, tile]
            inside = ((tokens >= start) & (tokens < start + TILE)).nonzero()[:, 0]
            chosen[inside] = z[inside, tokens[inside] - start]
            new = torch.maximum(top, z.amax(1))
            z -= new[:, None]
            e = z.exp()
            shrink = (top - new).exp()
            if with_entropy:
                u = shrink * (u + s * (top - new)) + z.mul_(e).sum(1)
            s = shrink * s + e.sum(1)
            top = new
        lse, entropy = top + s.log(), s.log() - u / s
        ctx.save_for_backward(hidden, weight, tokens, lse, entropy)
        ctx.constants = temperature, cap
        ctx.set_materialize_grads(False)  # None, not zeros, where no gradient comes: a pass less
        return chosen - lse, entropy if with_entropy else None

    @staticmethod
    @once_differentiable
    def backward(ctx, g_logp, g_entropy):
        hidden, weight, tokens, lse, entropy = ctx.saved_tensors
        temperature, cap = ctx.constants
        # what the raw logits get is 1 / temperature of what the scaled ones do
        g_logp = torch.zeros_like(lse) if g_logp is None else g_logp / temperature
        g_entropy = None if g_entropy is None else g_entropy / temperature
        g_hidden = torch.zeros_like(hidden, dtype=lse.dtype)
        g_weight = torch.empty_like(weight) if ctx.needs_input_grad[1] else None
        for start in range(0, len(weight), TILE):
            tile = weight[start : start + TILE]
            z = _TiledHead.logits(hidden, tile, temperature, cap)
            slope = None if cap is None else 1 - (z * (temperature / cap)) ** 2
            z -= lse[:, None]  # log p
            if g_entropy is None:
                g = z.exp_().mul_(-g_logp[:, None])
            else:
                g = z.exp().mul_(z.add_(entropy[:, None]).mul_(-g_entropy[:, None]).sub_(g_logp[:, None]))
            inside = ((tokens >= start) & (tokens < start + TILE)).nonzero()[:, 0]
            g[inside, tokens[inside] - start] += g_logp[inside]
            g = (g if slope is None else g.mul_(slope)).to(hidden.dtype)
            g_hidden += g @ tile
            if g_weight is not None:
                torch.mm(g.T, hidden, out=g_weight[start : start + TILE])
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
        logprobs[row, column] = values[0]
        if with_entropy:
            entropy[row, column] = values[1]
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
def _leave() -> None:
    """Leave the process group before the interpreter shuts down, after a pause in which no one holds the GIL.

    A gloo thread may be about to free the last collective of a backward, which owns a Python object. To free it the
    thread needs the GIL, and asking an interpreter that is shutting down for it aborts the process (1 run in 4 of a
    short script). Neither destroy_process_group nor dropping every reference joins that thread.
    """
    time.sleep(0.1)
    if dist.is_initialized():
        dist.destroy_process_group()


def distributed(device: str | None = None) -> tuple[int, int, torch.device]:
    """(rank, world, device) of this process; under torchrun it joins the others first.

    A rank that dies closes its sockets, and torchrun ends the rest at once. The time-out is for a rank that hangs
    alive; it has to outlast the wait for the slowest rank's answers, so it is long. Raises ValueError for cuda without
    a GPU, and when the port on which rank 0 listens for the others is taken.
    """
    kind = device or ("cuda" if torch.cuda.is_available() else "cpu")
    where = torch.device(kind, int(os.environ.get("LOCAL_RANK", 0))) if kind == "cuda" else torch.device(kind)
    if kind == "cuda":
        if not torch.cuda.is_available():
            raise ValueError("--device cuda: torch finds no GPU here; leave the flag out to compute on the CPU")
        torch.cuda.set_device(where)
    if "WORLD_SIZE" not in os.environ:
        return 0, 1, where
    if not dist.is_initialized():
        try:
            dist.init_process_group("cpu:gloo,cuda:nccl" if kind == "cuda" else "gloo", timeout=timedelta(minutes=30))
        except dist.DistNetworkError as error:
            raise ValueError(f"MASTER_PORT {os.environ.get('MASTER_PORT')}: processes cannot meet there ({error}); "
                             "give another, or torchrun --standalone, which finds a free one") from None  # fmt: skip
        atexit.register(_leave)
    return dist.get_rank(), dist.get_world_size(), where


def peer_is_gone(error: RuntimeError) -> bool:
    """Whether a collective says that another process has died; gloo has no exception of its own for it."""
    return isinstance(error, dist.DistError) or any(f"{how} by peer" in str(error) for how in ("closed", "reset"))


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
        atexit.register(_leave)
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
