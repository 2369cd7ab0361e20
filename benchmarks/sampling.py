"""Sampling: rollout.sample against model.generate and transformers' continuous batching. Prints Markdown.

    python benchmarks/sampling.py                     a 1 M-parameter Qwen2 on CPU, the Qwen2.5-1.5B config on a GPU
    python benchmarks/sampling.py --equal             no row ends early: the worst case for what we do
    python benchmarks/sampling.py --cache-gib 4       questions wait for places in the cache
    python benchmarks/sampling.py --only ours static  only these, the second a candidate for GPUs (static.py)

Weights are random. A share of the vocabulary counts as EOS, so lengths are geometric: most rows end early, a few run
to the limit, as real ones do. All samplers draw from the whole softmax at temperature 1 and stop at the same tokens; a
row of the table counts tokens up to EOS. Seconds are of the processor on CPU, of the clock on a GPU. There, the limit
is what memory allows: weights and living rows' cache, read once a step at the measured copy bandwidth.
"""

import argparse
import json
import random
import statistics
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
SIZES = {
    "1M": dict(vocab_size=64, hidden_size=128, intermediate_size=384, num_hidden_layers=5, num_attention_heads=4,
               num_key_value_heads=4, tie_word_embeddings=True),
    "1.5B": dict(vocab_size=151_936, hidden_size=1536, intermediate_size=8960, num_hidden_layers=28,
                 num_attention_heads=12, num_key_value_heads=2, tie_word_embeddings=True),
}  # fmt: skip


def make_model(o: argparse.Namespace):
    """Qwen2 of this size with random weights, small enough that its softmax is nearly flat; EOS as often as asked."""
    import torch
    import transformers

    ends = [1] if o.equal else list(range(1, 1 + max(1, round(SIZES[o.size]["vocab_size"] / o.mean_length))))
    config = transformers.Qwen2Config(**SIZES[o.size], max_position_embeddings=8192, bos_token_id=None, pad_token_id=0,
                                      eos_token_id=ends)  # fmt: skip
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16 if o.device == "cuda" else torch.float32)
    with torch.device(o.device):
        model = transformers.AutoModelForCausalLM.from_config(config).eval()
    torch.set_default_dtype(torch.float32)
    model.generation_config = transformers.GenerationConfig(
        do_sample=True, temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=o.max_new_tokens, pad_token_id=0,
        eos_token_id=None if o.equal else ends)  # fmt: skip
    return model


class Numbers:
    """As much of a tokenizer as sample() asks for: a prompt is its token ids."""

    bos_token, pad_token_id = None, 0

    def __init__(self, equal: bool):
        self.eos_token_id = -7 if equal else 1

    def __call__(self, prompts: list[str], add_special_tokens: bool) -> dict[str, list[list[int]]]:
        return {"input_ids": [[int(x) for x in prompt.split()] for prompt in prompts]}

    def batch_decode(self, rows: list[list[int]], skip_special_tokens: bool) -> list[str]:
        return [""] * len(rows)


def ours(model, prompts, o) -> list[int]:
    from rollout import sample

    r = sample(model, Numbers(o.equal), prompts, o.group_size, o.max_new_tokens, 1.0, 0, cache_gib=o.cache_gib)
    return r.mask.sum(1).tolist()


def generate(model, prompts, o) -> list[int]:
    import torch

    ids = [[int(x) for x in prompt.split()] for prompt in prompts for _ in range(o.group_size)]
    width = max(map(len, ids))
    tokens = torch.tensor([[0] * (width - len(row)) + row for row in ids], device=model.device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in ids], device=model.device)
    new = model.generate(input_ids=tokens, attention_mask=mask, max_new_tokens=o.max_new_tokens)[:, width:]
    ended = torch.isin(new, torch.tensor(model.generation_config.eos_token_id or [-7], device=new.device))
    return torch.where(ended.any(1), ended.int().argmax(1) + 1, new.shape[1]).tolist()


def continuous(model, prompts, o) -> list[int]:
    from transformers.generation import ContinuousBatchingConfig

    ids = [[int(x) for x in prompt.split()] for prompt in prompts for _ in range(o.group_size)]
    settings = ContinuousBatchingConfig(return_logprobs=True, seed=0)
    if o.device == "cpu":  # left alone it takes most of the machine's memory
        settings.num_blocks, settings.page_size, settings.max_batch_tokens = 4 * len(ids), 64, 4096
    model.generation_config.max_new_tokens = o.max_new_tokens
    out = model.generate_batch(ids, model.generation_config, settings)
    return [len(request.generated_tokens) for request in out.values()]


def ours_grouped(model, prompts, o) -> list[int]:
    """Ours, with the attention of static.py."""
    from static import grouped_attention

    with grouped_attention(model):
        return ours(model, prompts, o)


def static(model, prompts, o) -> list[int]:
    import static as candidate

    r = candidate.sample(model, Numbers(o.equal), prompts, o.group_size, o.max_new_tokens, 1.0, 0)
    return r.mask.sum(1).tolist()


SAMPLERS = {"ours": ours, "ours, grouped attention": ours_grouped, "static": static, "generate": generate,
            "continuous": continuous}  # fmt: skip


def limit(model, lengths: list[int], prompt: int) -> float:
    """Tokens per second if each step did no more than read the weights and the living rows' cache once."""
    import torch

    block = torch.empty(2**30, dtype=torch.uint8, device=model.device)
    other = torch.empty_like(block)
    other.copy_(block)
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(10):
        other.copy_(block)
    torch.cuda.synchronize()
    bandwidth = 10 * 2 * 2**30 / (time.perf_counter() - began)  # a copy reads and writes
    del block, other
    config = model.config
    head = config.hidden_size // config.num_attention_heads
    per_token = 2 * config.num_hidden_layers * config.num_key_value_heads * head * model.dtype.itemsize
    weights = sum(p.nbytes for p in model.parameters())
    read = sum(weights + per_token * sum(prompt + t for n in lengths if n > t) for t in range(max(lengths)))
    return sum(lengths) / (read / bandwidth)


def measure(name: str, model, prompts: list[str], o: argparse.Namespace) -> dict[str, float | None]:
    """Tokens, seconds, peak GiB and, on a GPU, the limit in tokens per second, of one sampler."""
    import torch

    gpu = o.device == "cuda"
    clock = time.perf_counter if gpu else time.process_time
    SAMPLERS[name](model, prompts[:2], argparse.Namespace(**vars(o) | {"max_new_tokens": 8}))  # compiles and allocates
    if gpu:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    began = clock()
    lengths = SAMPLERS[name](model, prompts, o)
    seconds = clock() - began
    peak = torch.cuda.max_memory_allocated() / 2**30 if gpu else None
    torch.cuda.empty_cache()
    return {"tokens": sum(lengths), "seconds": seconds, "peak": peak,
            "limit": limit(model, lengths, o.prompt) if gpu else None}  # fmt: skip


def parse() -> argparse.Namespace:
    """The command line, with what depends on the device filled in."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"))
    parser.add_argument("--size", choices=SIZES)
    parser.add_argument("--questions", type=int)
    parser.add_argument("--group-size", type=int, default=8)
    parser.add_argument("--prompt", type=int, help="longest prompt, in tokens; the shortest has half")
    parser.add_argument("--max-new-tokens", type=int)
    parser.add_argument("--mean-length", type=float, help="of the geometric lengths before the limit cuts them")
    parser.add_argument("--equal", action="store_true", help="no EOS: every row runs to the limit")
    parser.add_argument("--cache-gib", type=float)
    parser.add_argument("--only", nargs="*", default=["ours", "generate", "continuous"], choices=SAMPLERS)
    parser.add_argument("--repeats", type=int, default=1, help="each sampler in turn, that often; medians are shown")
    parser.add_argument("--json", action="store_true", help="print the last measurement instead of the table")
    o = parser.parse_args()
    import torch

    o.device = o.device or ("cuda" if torch.cuda.is_available() else "cpu")
    gpu = o.device == "cuda"
    o.size = o.size or ("1.5B" if gpu else "1M")
    o.questions, o.prompt = o.questions or (64 if gpu else 32), o.prompt or (128 if gpu else 32)
    o.max_new_tokens = o.max_new_tokens or (1024 if gpu else 128)
    o.mean_length = o.mean_length or o.max_new_tokens / 4
    return o


def main() -> None:
    o = parse()
    import torch

    torch.set_num_threads(1)
    model, rng = make_model(o), random.Random(0)
    first = SIZES[o.size]["vocab_size"] // 2  # no prompt holds an EOS
    prompts = [" ".join(str(rng.randrange(first, 2 * first)) for _ in range(rng.randint(o.prompt // 2, o.prompt)))
               for _ in range(o.questions)]  # fmt: skip
    rows = {name: [] for name in o.only}
    for name in [name for _ in range(o.repeats) for name in o.only]:
        rows[name].append(measure(name, model, prompts, o))
    if o.json:
        print(json.dumps(rows[o.only[-1]][-1]))
        return
    print(f"Qwen2 {o.size}, {o.device}, {model.dtype}, {o.questions} x {o.group_size} rows, prompts up to {o.prompt}, "
          f"up to {o.max_new_tokens} new tokens, {'all equally long' if o.equal else 'ragged'}, torch "
          f"{torch.__version__}\n\n| | tokens | s | tokens/s | times generate | of the limit | peak GiB |\n"
          "|---|---|---|---|---|---|---|")  # fmt: skip
    speeds = {name: statistics.median(r["tokens"] / r["seconds"] for r in found) for name, found in rows.items()}
    for name, found in rows.items():
        r, speed = found[-1], speeds[name]
        against = f"{speed / speeds['generate']:.2f}" if "generate" in speeds else ""
        print(f"| {name} | {r['tokens']} | {r['tokens'] / speed:.1f} | {speed:.0f} | {against} | "
              + (f"{speed / r['limit']:.0%} | {r['peak']:.1f} |" if r["limit"] else " | |"))


if __name__ == "__main__":
    main()
