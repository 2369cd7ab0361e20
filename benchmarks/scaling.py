"""How cost grows: a step over answer length T and rows B, the curriculum over questions N; memory as counted.

    python benchmarks/scaling.py                    CPU, one thread, about 3 minutes; prints Markdown

T and B: a small Qwen2 with random weights, all rows equally long. A step is sample, score, forward, loss, backward.
The exponent is the slope of a least-squares line through log cost over log size: 1 is linear. Attention is quadratic in
T, all else is linear. Memory is the process's peak above what it was before.
N: curriculum.semantic_order on the embedded task. Memory: the README's formula against bytes counted on tensors.
"""

import argparse
import json
import math
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(Path(__file__).resolve().parent)]
SWEEPS = {"T": [(4, t) for t in (256, 512, 1024, 2048, 4096)], "B": [(b, 128) for b in (8, 16, 32, 64, 128)]}
QWEN = dict(vocab_size=512, hidden_size=192, intermediate_size=1120, num_attention_heads=12, num_key_value_heads=2,
            tie_word_embeddings=True)  # Qwen2.5-1.5B's layer, an eighth as wide  # fmt: skip


def exponent(sizes: list[float], costs: list[float]) -> float:
    """Slope of log cost over log size.

    >>> round(exponent([1, 2, 4], [3, 12, 48]), 6)
    2.0
    """
    x, y = [math.log(s) for s in sizes], [math.log(c) for c in costs]
    mx, my = sum(x) / len(x), sum(y) / len(y)
    return sum((a - mx) * (b - my) for a, b in zip(x, y, strict=True)) / sum((a - mx) ** 2 for a in x)


def step(model, rows: int, new: int) -> dict[str, float]:
    """CPU seconds of sampling, of scoring without gradient, and of forward and backward, in pieces of 2,048 tokens."""
    import sampling
    import torch

    from entropy import grpo, policy_loss
    from rollout import micro_batches, sample, score

    clock = [time.process_time()]
    r = sample(model, sampling.Numbers(True), ["40 41 42 43"] * (rows // 4), 4, new, 1.0, 0)
    clock.append(time.process_time())
    with torch.no_grad():
        old, _ = score(model, r, 1.0, tokens_per_micro_batch=2048)
    clock.append(time.process_time())
    treatment = grpo(None, None, r.mask.float(), r.mask)
    for piece in micro_batches(r.lengths, 2048):
        part = r.rows(piece)
        logprobs, _ = score(model, part, 1.0, with_entropy=False)
        loss, _ = policy_loss(logprobs, old[piece], None, treatment.rows(torch.tensor(piece)), part.mask)
        loss.sum().backward()
    clock.append(time.process_time())
    model.zero_grad()
    return {"sample": clock[1] - clock[0], "score": clock[2] - clock[1], "update": clock[3] - clock[2]}


def sweep(sizes: list[tuple[int, int]]) -> list[dict[str, float]]:
    """A step at each size, smallest first, so that the process's peak is that of the last one."""
    import torch
    import transformers

    def peak() -> float:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)

    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(transformers.Qwen2Config(
        vocab_size=64, hidden_size=64, intermediate_size=192, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=8192, eos_token_id=None, pad_token_id=0))  # fmt: skip
    step(model, 4, 8)
    rows, before = [], peak()
    for b, t in sizes:
        rows.append(step(model, b, t) | {"gib": peak() - before})
    return rows


def over_questions(counts: tuple[int, ...] = (64, 128, 256, 512)) -> list[float]:
    """CPU seconds of the semantic order of so many questions, 8 answers each."""
    import torch

    import curriculum
    from arithmetic import ensure

    torch.set_num_threads(1)
    folder, questions, _ = ensure()
    model, tokenizer = curriculum.open_model(str(folder), "cpu", None)
    asked = curriculum.load_questions(questions)
    prompts, _ = curriculum.render(asked, tokenizer)
    seconds = []
    for n in (16, *counts):  # the first is a warm-up
        settings = curriculum.describe(str(folder), str(questions), asked[:n], prompts[:n], M=8, temperature=1.0,
                                       max_new_tokens=64, seed=0, estimator="frequency")  # fmt: skip
        with tempfile.TemporaryDirectory() as out:
            began = time.process_time()
            curriculum.semantic_order(model, tokenizer, asked[:n], prompts[:n], Path(out) / "order.jsonl", settings)
            seconds.append(time.process_time() - began)
    return seconds[1:]


def layer_bytes(layers: int, tokens: int, checkpointing: bool) -> tuple[int, int, int]:
    """(saved for the backward, weights + gradients + moments, parameters) in bytes, of a bf16 Qwen2."""
    import torch
    import transformers

    config = transformers.Qwen2Config(**QWEN, num_hidden_layers=layers)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    if checkpointing:
        model.gradient_checkpointing_enable()
        model.train()
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    saved: dict[int, int] = {}

    def keep(x):
        if x.untyped_storage().data_ptr() not in own:
            saved[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        hidden = model.base_model(input_ids=torch.arange(tokens)[None], use_cache=False).last_hidden_state
    del hidden  # only what it kept is of interest
    model.float()
    optimizer = torch.optim.AdamW(model.parameters())
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    state = [x for s in optimizer.state.values() for x in s.values()] + [p.grad for p in model.parameters()]
    return (sum(saved.values()), sum(x.nbytes for x in [*model.parameters(), *state]),
            sum(p.numel() for p in model.parameters()))  # fmt: skip


def on_paper() -> None:
    """The formula's parts, each against a count."""
    import torch
    import transformers

    from rollout import _cache_name

    tokens, hidden = 128, QWEN["hidden_size"]
    one, two = layer_bytes(1, tokens, False), layer_bytes(2, tokens, False)
    slim = [layer_bytes(n, tokens, True)[0] for n in (1, 2)]
    print("\n| memory | on paper | counted |\n|---|---|---|")
    print(f"| weights, gradients, moments, bytes a parameter | 16 | {one[1] / one[2]:.2f} |")
    per = {"without": two[0] - one[0], "with": slim[1] - slim[0]}
    inner, kv = QWEN["intermediate_size"], hidden // QWEN["num_attention_heads"] * QWEN["num_key_value_heads"]
    print(f"| activations, bytes a token and layer, bf16 | 20 · hidden + 8 · intermediate + 4 · kv = "
          f"{20 * hidden + 8 * inner + 4 * kv} | {per['without'] / tokens:.0f} |")  # fmt: skip
    print(f"| the same with --gradient-checkpointing | 2 · hidden = {2 * hidden} | {per['with'] / tokens:.0f} |")
    config = transformers.Qwen2Config(**QWEN, num_hidden_layers=2)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    with torch.no_grad():
        cache = model(input_ids=torch.zeros(1, 8, dtype=torch.long), use_cache=True)[_cache_name(model)]
    counted = sum(x.nbytes for layer in cache.layers for x in (layer.keys, layer.values)) / 8 / 2
    print(f"| cache, bytes a token and layer, bf16 | 4 · kv = {4 * kv} | {counted:.0f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sweep", choices=SWEEPS, help="only this, in this process, as JSON")
    parser.add_argument("--memory", action="store_true", help="only the memory on paper")
    o = parser.parse_args()
    if o.memory:
        on_paper()
        return
    if o.sweep:
        print(json.dumps(sweep(SWEEPS[o.sweep])))
        return
    for name, sizes in SWEEPS.items():
        done = subprocess.run([sys.executable, __file__, "--sweep", name], stdout=subprocess.PIPE, check=True)
        rows, axis = json.loads(done.stdout.splitlines()[-1]), [size["BT".index(name)] for size in sizes]
        print(f"\n| {name} | sample s | score s | update s | step s | peak GiB |\n|---|---|---|---|---|---|")
        for r in rows:
            r["step"] = r["sample"] + r["score"] + r["update"]
        columns = {c: [r[c] for r in rows] for c in ("sample", "score", "update", "step", "gib")}
        for i, n in enumerate(axis):
            print(f"| {n} | " + " | ".join(f"{values[i]:.2f}" for values in columns.values()) + " |")
        print("| exponent | " + " | ".join(f"{exponent(axis, values):.2f}" for values in columns.values()) + " |",
              flush=True)  # fmt: skip
    counts = (64, 128, 256, 512)
    seconds = over_questions(counts)
    print("\n| N | curriculum s |\n|---|---|")
    for n, s in zip(counts, seconds, strict=True):
        print(f"| {n} | {s:.2f} |")
    print(f"| exponent | {exponent(counts, seconds):.2f} |", flush=True)
    on_paper()


if __name__ == "__main__":
    main()
