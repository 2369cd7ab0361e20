"""Log-prob and entropy of N tokens over a large vocabulary: time and peak memory, there and back. Prints Markdown.

    python benchmarks/logprobs.py                   4,096 tokens x 151,936, hidden 896 (Qwen2.5-0.5B), on the GPU if any
    python benchmarks/logprobs.py --tokens 1024     for a small machine
    python benchmarks/logprobs.py --dtype bfloat16 --hidden 1536

Each row is a process of its own, with the same hidden states, head and tokens; the backward goes through the log-probs
to hidden states and head, as training does. Peak memory is what comes on top of hidden states, head and the head's
gradient, which no method can do without. The floor is the three matrix products of a forward and a backward that hold
everything; tiles have to make the first one twice, so 1.33 of it is the least they can take.
"""

import argparse
import json
import math
import resource
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))


def floor(hidden, head, tokens):
    """Only the products, no softmax; needs the logits whole."""
    import torch

    with torch.no_grad():
        logits = hidden @ head.T
        hidden.grad, head.grad = logits @ head, logits.T @ hidden


def naive(hidden, head, tokens):
    """The textbook."""
    logp = (hidden @ head.T).float().log_softmax(-1)
    entropy = -(logp.exp() * logp).sum(-1).detach()
    logp.gather(1, tokens[:, None]).sum().backward()
    return entropy


def trl(hidden, head, tokens):
    """What TRL's GRPOTrainer calls on the model's logits (chunks over tokens; entropy without gradient)."""
    import torch
    from trl.trainer.utils import entropy_from_logits, selective_log_softmax

    shape = (8, -1) if len(tokens) % 8 == 0 else (1, -1)  # rows: it loops over them to save memory
    logits = (hidden @ head.T).view(*shape, len(head)) / 1.0  # by the temperature, as it does
    logp = selective_log_softmax(logits, tokens.view(shape))
    with torch.no_grad():
        entropy_from_logits(logits)
    logp.sum().backward()


def tiled(hidden, head, tokens):
    """rollout.py's."""
    import rollout

    rollout._TiledHead.apply(hidden, head, tokens, 1.0, None, True)[0].sum().backward()


def tiled_bonus(hidden, head, tokens):
    """rollout.py's, with a gradient through the entropy as well."""
    import rollout

    logp, entropy = rollout._TiledHead.apply(hidden, head, tokens, 1.0, None, True)
    (logp.sum() + entropy.sum()).backward()


VARIANTS = {"three matrix products": floor, "naive log_softmax": naive, "TRL": trl, "tiles": tiled,
            "tiles, entropy bonus": tiled_bonus}  # fmt: skip


def measure(name: str, o: argparse.Namespace) -> dict[str, float]:
    """Seconds of one forward and backward here, and its peak GiB on top of inputs and the head's gradient."""
    import torch

    device, dtype = torch.device(o.device), getattr(torch, o.dtype)
    torch.manual_seed(0)
    hidden = torch.randn(o.tokens, o.hidden, device=device, dtype=dtype)
    head = torch.randn(o.vocabulary, o.hidden, device=device, dtype=dtype).mul_(o.hidden**-0.5)
    tokens = torch.randint(0, o.vocabulary, (o.tokens,), device=device)
    hidden.requires_grad_(), head.requires_grad_()
    VARIANTS[name](hidden[:64].detach().requires_grad_(), head[:4096].detach().requires_grad_(), tokens[:64] % 4096)
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    else:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    began, cpu = time.perf_counter(), time.process_time()
    VARIANTS[name](hidden, head, tokens)
    if cuda:
        torch.cuda.synchronize()
        peak = torch.cuda.max_memory_allocated()
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    # processor time where there is no GPU: other programs on the machine do not count
    seconds = time.perf_counter() - began if cuda else time.process_time() - cpu
    return {"seconds": seconds, "gib": (peak - before - head.numel() * head.element_size()) / 2**30}


def row(name: str, arguments: list[str]) -> dict | str:
    """Its measurement in a new process, or why there is none."""
    done = subprocess.run([sys.executable, __file__, "--variant", name, *arguments], capture_output=True, text=True)
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1])
    last = (done.stderr.strip().splitlines() or ["killed: not enough memory?"])[-1]
    return "not installed" if "No module named 'trl'" in last else last[:60]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--vocabulary", type=int, default=151_936)
    parser.add_argument("--hidden", type=int, default=896)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="default: bfloat16 on CUDA, else float32")
    parser.add_argument("--device", choices=("cpu", "cuda"))
    parser.add_argument("--variant", choices=VARIANTS, help="measure this one in this process and print JSON")
    parser.add_argument("--skip", nargs="*", default=[], choices=list(VARIANTS)[1:], help="not these")
    o = parser.parse_args()
    import torch

    o.device = o.device or ("cuda" if torch.cuda.is_available() else "cpu")
    o.dtype = o.dtype or ("bfloat16" if o.device == "cuda" else "float32")
    if o.variant:
        print(json.dumps(measure(o.variant, o)))
        return
    arguments = [x for name in ("tokens", "vocabulary", "hidden", "dtype", "device")
                 for x in (f"--{name}", str(getattr(o, name)))]  # fmt: skip
    rows = {name: row(name, arguments) for name in VARIANTS if name not in o.skip}
    base = rows["three matrix products"]["seconds"]
    theirs = rows["TRL"]["gib"] if isinstance(rows.get("TRL"), dict) else math.nan
    threads = "" if o.device == "cuda" else f", {torch.get_num_threads()} thread(s)"
    print(f"{o.tokens:,} tokens x {o.vocabulary:,}, hidden {o.hidden}, {o.dtype}, {o.device}{threads}, "
          f"torch {torch.__version__}\n\n| | s | times the floor | peak GiB | smaller than TRL's by |\n"
          "|---|---|---|---|---|")  # fmt: skip
    for name, r in rows.items():
        if isinstance(r, str):
            print(f"| {name} | {r} | | | |")
        else:
            print(f"| {name} | {r['seconds']:.2f} | {r['seconds'] / base:.2f} | {r['gib']:.2f} | "
                  f"{theirs / max(r['gib'], 1e-3):.1f} |")  # fmt: skip


if __name__ == "__main__":
    main()
