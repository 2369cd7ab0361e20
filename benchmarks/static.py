"""A candidate for sampling on CUDA: a cache of fixed size, so that a whole decoding step is one captured CUDA graph.

Not part of the project yet: benchmarks/gpu.py measures it against rollout.sample and transformers' continuous
batching, and the better one moves into rollout.py. On a CPU it runs too, without graphs, and draws the same tokens as
rollout.sample (tests/test_rollout.py). What it does differently:

  * one step, from drawing a token to the next logits, is captured once for each (rows, width) that comes up and then
    replayed: no launch costs. Rows and widths are rounded up to a few sizes, so some 20 graphs serve a whole rollout;
  * nothing is read back from the GPU but, every 16 steps, which rows have ended;
  * query heads that share a key are put side by side as if they were queries at several positions: transformers' sdpa
    repeats keys and values for each of them when there is a mask, six times the cache's traffic for Qwen2.5-1.5B.
"""

from __future__ import annotations

from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.cache_utils import DynamicCache, DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

import rollout


def grouped(module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, scaling=None, **more):
    """Attention of one new token [n, heads, 1, d] on a cache [n, kv_heads, w, d], without repeating the cache."""
    n, heads, length, size = query.shape
    if length > 1 or attention_mask is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **more)
    side_by_side = query.reshape(n, key.shape[1], -1, size)
    out = nn.functional.scaled_dot_product_attention(side_by_side, key, value, attn_mask=attention_mask, scale=scaling)
    return out.reshape(n, 1, heads, size), None


AttentionInterface.register("grouped", grouped)
AttentionMaskInterface.register("grouped", sdpa_mask)


@contextmanager
def grouped_attention(model):
    """Inside, the model attends with `grouped`."""
    before = model.config._attn_implementation
    model.set_attn_implementation("grouped")
    try:
        yield
    finally:
        model.set_attn_implementation(before)


class FixedLayer(DynamicLayer):
    """Keys and values [n, kv_heads, w, d] in place; a token goes to `column`, a tensor, so that a graph moves on."""

    def __init__(self, keys: Tensor, values: Tensor, column: Tensor):
        super().__init__()
        self.keys, self.values, self.column, self.is_initialized = keys, values, column, True

    def update(self, keys: Tensor, values: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        self.keys.index_copy_(2, self.column, keys)
        self.values.index_copy_(2, self.column, values)
        return self.keys, self.values


class Decoder:
    """All rows of a rollout at once; see the head of the file."""

    def __init__(self, model, prompts: list[list[int]], group_size: int, max_new_tokens: int, seeds: list[int],
                 eos: list[int], temperature: float):  # fmt: skip
        read = rollout._read(model, prompts, 1, 0)
        device, n = model.device, len(prompts) * group_size
        self.model, self.temperature, self.name = model, temperature, rollout._cache_name(model)
        self.prompt, self.steps = read.cache.get_seq_length(), max_new_tokens
        self.width = -(-(self.prompt + max_new_tokens) // 128) * 128
        self.buffers = []
        for layer in read.cache.layers:
            pair = []
            for x in (layer.keys, layer.values):
                room = x.new_zeros(n, x.shape[1], self.width, x.shape[3])
                room[:, :, : self.prompt] = x.repeat_interleave(group_size, 0)
                pair.append(room)
            self.buffers.append(pair)
        self.logits = read.logits.repeat_interleave(group_size, 0)
        self.start = self.prompt - read.length.repeat_interleave(group_size, 0)  # [n] the first real column
        self.place = torch.arange(n, device=device)  # [n] rows of the rollout
        self.done = torch.zeros(n, dtype=torch.bool, device=device)
        self.column = torch.full((1,), self.prompt, device=device)
        self.u = rollout.uniforms(torch.tensor(seeds, device=device), group_size, max_new_tokens)  # [n, T]
        self.tokens = torch.full(self.u.shape, -1, device=device)
        self.logprobs = torch.zeros_like(self.u)
        self.ends = torch.zeros(self.logits.shape[1], dtype=torch.bool, device=device)
        self.ends[[x for x in eos if x >= 0]] = True  # a table: torch.isin of many waits for the GPU
        self.graphs: dict[tuple[int, int], torch.cuda.CUDAGraph] = {}
        self.pool = None

    def step(self, rows: int, width: int) -> None:
        """Draw a token for the first `rows` rows, write it down, and get the logits of the next."""
        place, at = self.place[:rows], self.column - self.prompt
        u = self.u.index_select(1, at)[:, 0][place]
        token, logp = rollout._draw(self.logits[:rows], u, self.temperature, 1.0)
        self.tokens.index_put_((place, at.expand(rows)), token)
        self.logprobs.index_put_((place, at.expand(rows)), logp)
        self.done[:rows] |= self.ends[token]
        columns, start = torch.arange(width, device=token.device), self.start[:rows, None]
        mask = (columns >= start) & (columns <= self.column)
        cache = DynamicCache()
        cache.layers = [FixedLayer(k[:rows, :, :width], v[:rows, :, :width], self.column) for k, v in self.buffers]
        out = self.model(input_ids=token[:, None], attention_mask=mask[:, None, None], use_cache=True,
                         position_ids=self.column - start, **{self.name: cache})  # fmt: skip
        self.logits[:rows] = out.logits[:, -1]
        self.column += 1

    def run(self, rows: int, width: int) -> None:
        """step(), the first time as it is, then as a graph."""
        if self.logits.device.type != "cuda":
            self.step(rows, width)
        elif (rows, width) in self.graphs:
            self.graphs[rows, width].replay()
        else:
            self.step(rows, width)
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self.pool):
                self.step(rows, width)
            self.pool = graph.pool()
            self.graphs[rows, width] = graph

    def pack(self, before: int, rows: int) -> None:
        """Of the first `before` rows those that go on to the front; rows that have ended fill up the size."""
        index = self.done[:before].int().argsort(stable=True)[:rows]
        for name in ("logits", "start", "place", "done"):
            x = getattr(self, name)
            x[:rows] = x[index]
        for pair in self.buffers:
            for x in pair:
                x[:rows] = x[index]

    def decode(self) -> None:
        """Until the last row has ended."""
        rows = len(self.place)
        sizes = sorted({-(-int(rows * 0.7**k) // 8) * 8 for k in range(20)} - {0})
        for t in range(self.steps):
            self.run(rows, min(self.width, -(-(self.prompt + t + 1) // 128) * 128))
            if t % 16 == 15:
                alive = rows - int(self.done[:rows].sum())
                if alive == 0:
                    break
                fits = next(size for size in sizes if size >= alive)
                if fits < rows:
                    self.pack(rows, fits)
                    rows = fits


@torch.no_grad()
def sample(model, tokenizer, prompts: list[str], group_size: int, max_new_tokens: int, temperature: float,
           seed: int) -> rollout.Rollout:  # fmt: skip
    """As rollout.sample, for rows that all fit at once."""
    ids = tokenizer(prompts, add_special_tokens=False)["input_ids"]
    seeds = [rollout.position_seed(seed, q) for q in range(len(prompts))]
    eos = rollout._eos_ids(model, tokenizer)
    with grouped_attention(model):
        decoder = Decoder(model, ids, group_size, max_new_tokens, seeds, eos, temperature)
        decoder.decode()
    return rollout._rollout(tokenizer, ids, group_size, decoder.tokens, decoder.logprobs,
                            torch.tensor(eos, device=model.device))  # fmt: skip
