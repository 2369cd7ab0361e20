"""A whole GRPO step: train.py's against TRL's GRPOTrainer. Prints Markdown. Needs `pip install trl`.

    python benchmarks/step.py                                the embedded task, 16 questions x 16 answers, one thread
    python benchmarks/step.py --model random --size 1M --max-new-tokens 128      random weights, geometric lengths
    python benchmarks/step.py --only ours                    one of the two, with its peak memory

Both sides: the same model, questions in the same order, group size, minibatches, learning rate, temperature 1, no
reference model, answers graded by verify.grade. A step is sampling, grading, scoring and all updates of one rollout. In
one process, a step of one, then a step of the other: what the machine does meanwhile hits both; ratios are of medians.
Seconds are of the processor on CPU (one thread), of the clock on a GPU. TRL runs with its default sampling,
model.generate, and --trl-rows rows at a time in its updates (its fastest here, found by trying).
"""

import argparse
import json
import random
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(Path(__file__).resolve().parent)]
import sampling  # noqa: E402


# ---------------------------------------------------------------------------------------------- model and questions
def random_folder(folder: Path, o: argparse.Namespace) -> tuple[Path, Path]:
    """A Qwen2 with random weights, a byte tokenizer and prompts for all steps: (model, questions).

    A share of the vocabulary ends an answer: lengths are geometric, see sampling.py. The answers mean nothing, so every
    reward is 0; what a step costs does not depend on it.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    end = "<|endoftext|>"
    vocabulary = {end: 0} | {c: i + 1 for i, c in enumerate(alphabet)}
    if len(vocabulary) > sampling.SIZES[o.size]["vocab_size"]:  # the 1M model: as many letters as it has rows
        vocabulary = {end: 0} | {c: i + 1 for i, c in enumerate("abcdefghijklmnopqrstuvwxyz")}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    model = sampling.make_model(o)
    model.generation_config.update(eos_token_id=sorted({0, *model.generation_config.eos_token_id}))
    model.save_pretrained(folder / "model")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=end, pad_token=end).save_pretrained(folder / "model")
    rng = random.Random(0)
    with (folder / "questions.jsonl").open("w") as file:
        for i in range(o.questions * (1 + o.untimed + o.steps)):
            text = "".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(o.prompt // 2, o.prompt)))
            file.write(json.dumps({"id": str(i), "question": text, "answer": "1"}) + "\n")
    return folder / "model", folder / "questions.jsonl"


def start_ours(o: argparse.Namespace, model: Path, questions: Path, out: Path):
    """train.py's own run, set up from its flags."""
    import train

    values = {"method": "grpo", "stages": 1, "eval-samples": 0, "eval-every": 0, "model": model, "lr": 1e-6,
              "questions": questions, "questions-per-step": o.questions, "group-size": o.group_size, "device": o.device,
              "max-new-tokens": o.max_new_tokens, "minibatches": o.minibatches, "out": out}  # fmt: skip
    flags = [x for name, value in values.items() for x in (f"--{name}", str(value))]
    config, _ = train.parse([*flags, "--no-log-kl", "--no-figures"])
    run = train.setup(config)
    out.mkdir()
    train.begin(run, config, False)
    return run


# ---------------------------------------------------------------------------------------------- the clock
class Stopwatch:
    """Seconds inside the functions that it was put around."""

    def __init__(self, device: str):
        self.gpu, self.seconds = device == "cuda", 0.0

    def now(self) -> float:
        if not self.gpu:
            return time.process_time()
        import torch

        torch.cuda.synchronize()
        return time.perf_counter()

    def around(self, function: Callable) -> Callable:
        def timed(*arguments, **options):
            began = self.now()
            try:
                return function(*arguments, **options)
            finally:
                self.seconds += self.now() - began

        return timed


def our_step(run, step: int, watch: Stopwatch) -> dict[str, float]:
    """One step of train.py; step 0 is never asked for: it also writes samples.jsonl's rows."""
    import train

    lengths, update = [], train.update
    train.update = lambda run, batch, step: lengths.extend(batch.rollout.lengths) or update(run, batch, step)
    watch.seconds, began = 0.0, watch.now()
    metrics, _ = train.one_step(run, step)
    row = {"seconds": watch.now() - began, "sampling": watch.seconds, "tokens": metrics["tokens"],
           "gap": metrics["logprob_gap"], "update": metrics["seconds_update"]}  # fmt: skip
    train.update = update
    # there and back: 6 FLOP for each weight and token, 12 for each attended pair of tokens, layer and hidden unit
    weights, config = sum(p.numel() for p in run.model.parameters()), run.model.config
    pairs = sum(n * n / 2 for n in lengths) * config.num_hidden_layers * config.hidden_size
    return row | {"update_tokens": sum(lengths), "update_flops": 6 * weights * sum(lengths) + 12 * pairs}


def trl_steps(o: argparse.Namespace, model: Path, prompts: list[str], golds: list, between: Callable) -> list[dict]:
    """TRL's trainer over these prompts, o.questions a step; `between` runs after each step, off its clock."""
    import torch
    from datasets import Dataset
    from transformers import TrainerCallback, logging
    from trl import GRPOConfig, GRPOTrainer

    from rollout import load_tokenizer
    from verify import grade

    logging.disable_progress_bar()
    watch, rows, tokens = Stopwatch(o.device), [], []

    def reward(completions, gold, completion_ids, **_):
        tokens.append(sum(map(len, completion_ids)))
        return [grade(text, golds[g])[0] for text, g in zip(completions, gold, strict=True)]

    class Step(TrainerCallback):
        began = 0.0

        def start(self):
            watch.seconds, self.began = 0.0, watch.now()

        def on_train_begin(self, *_, **__):
            self.start()

        def on_step_end(self, args, state, control, **_):
            if state.global_step % o.minibatches == 0:
                rows.append({"seconds": watch.now() - self.began, "sampling": watch.seconds, "tokens": tokens[-1]})
                between(len(rows))
                self.start()

    micro = min(o.trl_rows, o.questions * o.group_size // o.minibatches)
    accumulation = o.questions * o.group_size // o.minibatches // micro
    config = GRPOConfig(
        output_dir=tempfile.mkdtemp(), per_device_train_batch_size=micro, gradient_accumulation_steps=accumulation,
        steps_per_generation=accumulation * o.minibatches, num_generations=o.group_size, shuffle_dataset=False,
        max_completion_length=o.max_new_tokens, max_steps=len(prompts) // o.questions * o.minibatches, beta=0.0,
        loss_type="grpo", learning_rate=1e-6, lr_scheduler_type="constant", adam_beta2=0.95, top_k=0,
        bf16=o.device == "cuda", use_cpu=o.device == "cpu", gradient_checkpointing=False, logging_strategy="no",
        save_strategy="no", report_to="none", disable_tqdm=True,
        model_init_kwargs={"dtype": torch.float32})  # fmt: skip
    data = Dataset.from_list([{"prompt": p, "gold": i} for i, p in enumerate(prompts)])
    trainer = GRPOTrainer(str(model), reward_funcs=reward, args=config, train_dataset=data,
                          processing_class=load_tokenizer(model), callbacks=[Step()])  # fmt: skip
    trainer.model.generate = watch.around(trainer.model.generate)
    trainer.train()
    return rows


# ---------------------------------------------------------------------------------------------- both
def measure(o: argparse.Namespace, folder: Path) -> dict[str, list[dict]]:
    """Steps of each side, without the first o.untimed: {"ours": [...], "TRL": [...]}."""
    import rollout
    import train

    if o.model == "random":
        model, questions = random_folder(folder, o)
    else:
        from arithmetic import ensure

        model, questions, _ = ensure()
    run = start_ours(o, model, questions, folder / "run")
    watch, ours, steps = Stopwatch(o.device), [], range(1, 1 + o.untimed + o.steps)
    rollout.sample = watch.around(rollout.sample)
    if o.only == "ours":
        return {"ours": [our_step(run, step, watch) for step in steps][o.untimed :]}
    asked = [q for step in steps for q in train.batch_at(step, run.config.steps, run.stages, o.questions, 0)]
    prompts, golds = [run.prompts[q] for q in asked], [run.questions[q].gold for q in asked]
    if o.only == "trl":
        del run
        return {"TRL": trl_steps(o, model, prompts, golds, lambda _: None)[o.untimed :]}
    theirs = trl_steps(o, model, prompts, golds, lambda step: ours.append(our_step(run, step, watch)))
    return {"ours": ours[o.untimed :], "TRL": theirs[o.untimed :]}


def table(results: dict[str, list[dict]]) -> str:
    """Markdown: medians of each side, and how many times TRL's ours is."""
    lines = ["| a step | s | sampling s | the rest s | tokens | spread of s |", "|---|---|---|---|---|---|"]
    medians = {}
    for name, rows in results.items():
        m = {k: statistics.median(r[k] for r in rows) for k in ("seconds", "sampling", "tokens")}
        m["rest"] = statistics.median(r["seconds"] - r["sampling"] for r in rows)
        medians[name] = m
        spread = f"{min(r['seconds'] for r in rows):.2f} to {max(r['seconds'] for r in rows):.2f}"
        lines.append(f"| {name} | {m['seconds']:.2f} | {m['sampling']:.2f} | {m['rest']:.2f} | {m['tokens']:.0f} | "
                     f"{spread} |")  # fmt: skip
    if len(medians) == 2:
        ratios = [medians["TRL"][k] / medians["ours"][k] for k in ("seconds", "sampling", "rest", "tokens")]
        lines.append("| TRL / ours | " + " | ".join(f"**{r:.2f}**" for r in ratios) + " | |")
    return "\n".join(lines)


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"))
    parser.add_argument("--model", choices=("embedded", "random"), help="default: embedded on CPU, random on a GPU")
    parser.add_argument("--size", choices=sampling.SIZES, default="1M", help="of --model random")
    parser.add_argument("--questions", type=int, default=16)
    parser.add_argument("--group-size", type=int, default=16)
    parser.add_argument("--minibatches", type=int, default=2)
    parser.add_argument("--prompt", type=int, default=32, help="longest prompt, in tokens; the shortest has half")
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--steps", type=int, default=5, help="timed ones")
    parser.add_argument("--untimed", type=int, default=1, help="steps before them")
    parser.add_argument("--trl-rows", type=int, default=128, help="rows that TRL's update holds at a time")
    parser.add_argument("--only", choices=("ours", "trl"))
    parser.add_argument("--json", action="store_true", help="print the steps instead of the table")
    return parser


def main() -> None:
    o = make_parser().parse_args()
    import torch
    import transformers

    torch.set_num_threads(1)
    o.device = o.device or ("cuda" if torch.cuda.is_available() else "cpu")
    o.model = o.model or ("random" if o.device == "cuda" else "embedded")
    o.mean_length, o.equal = o.max_new_tokens / 4, False
    with tempfile.TemporaryDirectory() as folder:
        results = measure(o, Path(folder))
    if o.device == "cuda":
        peak = torch.cuda.max_memory_allocated() / 2**30
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    if o.json:
        print(json.dumps({"results": results, "peak": peak}))
        return
    what = "embedded task" if o.model == "embedded" else f"Qwen2 {o.size}, random weights, prompts up to {o.prompt}"
    print(f"{what}, {o.device}, {o.questions} questions x {o.group_size}, up to {o.max_new_tokens} new tokens, "
          f"{o.minibatches} minibatches, {o.steps} steps each, torch {torch.__version__}, transformers "
          f"{transformers.__version__}\n\n{table(results)}")  # fmt: skip
    if o.only:
        print(f"\npeak memory of the process: {peak:.2f} GiB")


if __name__ == "__main__":
    main()
