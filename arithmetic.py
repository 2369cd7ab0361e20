r"""The embedded default: a small arithmetic task and a base model that is unsure how to do it.

    python arithmetic.py    builds both on first use (some minutes), prints where they are and a few questions

What comes out is an ordinary Hugging Face model folder and two ordinary questions files; no other script knows that
they are special. A question is a sum of 2 to 7 digits, sometimes divided by 2 or 4:

    (6+5+3+4)/4=?    gold 9/2

The base has been taught, by plain supervised learning on generated solutions, two habits in a mix that does *not*
depend on the question:

    at once    \boxed{14/4}                         reads the first three digits only: short, right on easy questions
    working    6+5=11+3=14+4=18 \boxed{4.5}         a step for each digit: long, often slips, sometimes stops early

Each computed value is a slip with some probability, so on easy questions working pays *less* than answering at once
until RL has removed the slips; on hard questions nothing else pays at all. A worked answer is written unreduced, in
lowest terms or as a decimal: one meaning, three strings. So the base's uncertainty sits in a few shared choices whose
places are known (forks.json), and a policy that commits to what pays early cannot solve what comes late.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path

END, PAD, UNKNOWN, BOX = "<eos>", "<pad>", "<unk>", "\\boxed{"
VOCABULARY = [PAD, END, UNKNOWN, BOX, *"0123456789+/()=?.} "]
FORMS = ("unreduced", "lowest", "decimal")
FORK_AFTER = ["?", " " + BOX]  # to work it out or not; how to write a worked answer


@dataclass(frozen=True)
class Settings:
    """Everything the built files depend on, together with this file's own text: another value, another cache folder."""

    seed: int = 0
    train_questions: int = 3000
    heldout_questions: int = 384
    levels: tuple[float, ...] = (2, 3, 1.5, 1.5, 1, 1)  # weights of 2, 3, ... digits
    largest_digit: int = 6  # fewer facts to learn, so that the warm-up reaches the same place from any seed
    at_once: float = 0.5  # share of solutions that answer at once; the others work it out
    stop: float = 0.08  # probability, at each step of the working, to stop too early
    slip: float = 0.2  # probability that a computed value of the working is off by one or two
    slip_at_once: float = 0.05  # the same of an answer given at once
    warm_levels: tuple[float, ...] = (3, 3, 2, 2, 2, 2)  # in supervised learning: short sums teach most per second
    hidden: int = 72
    layers: int = 3
    heads: int = 4
    steps: int = 2400  # of supervised learning
    batch: int = 32
    lr: float = 3e-3


# ---------------------------------------------------------------------------------------------- questions
def make_question(weights: tuple[float, ...], settings: Settings, rng: random.Random) -> tuple[list[int], int]:
    """2, 3, ... digits with these weights, from 1 to settings.largest_digit, and a divisor."""
    length = rng.choices(range(2, 2 + len(weights)), weights)[0]
    return [rng.randint(1, settings.largest_digit) for _ in range(length)], rng.choice((1, 2, 4))


def question_text(digits: list[int], divisor: int) -> str:
    """What the model is asked.

    >>> question_text([7, 5, 3], 4)
    '(7+5+3)/4=?'
    """
    expression = "+".join(map(str, digits))
    return f"{expression}=?" if divisor == 1 else f"({expression})/{divisor}=?"


def make_questions(settings: Settings) -> list[tuple[list[int], int]]:
    """Distinct questions, training ones first, then held-out ones; levels in the proportions of `settings.levels`."""
    rng = random.Random(settings.seed)
    seen: dict[str, tuple[list[int], int]] = {}
    while len(seen) < settings.train_questions + settings.heldout_questions:
        digits, divisor = make_question(settings.levels, settings, rng)
        seen.setdefault(question_text(digits, divisor), (digits, divisor))
    questions = list(seen.values())
    rng.shuffle(questions)  # short questions repeat and are dropped ever more often: unshuffled, held-out were harder
    return questions


def write_questions(questions: list[tuple[list[int], int]], path: Path, name: str) -> None:
    """One JSON object a line: id, question, answer (the gold, in lowest terms), level (how many digits)."""
    with path.open("w") as file:
        for i, (digits, divisor) in enumerate(questions):
            row = {"id": f"{name}-{i:04d}", "question": question_text(digits, divisor),
                   "answer": write_answer(sum(digits), divisor, "lowest"), "level": len(digits)}  # fmt: skip
            file.write(json.dumps(row) + "\n")


# ---------------------------------------------------------------------------------------------- solutions
def write_answer(total: int, divisor: int, form: str) -> str:
    """The same value `unreduced` (14/4), in `lowest` terms (7/2) or as a `decimal` (3.5).

    >>> [write_answer(14, 4, form) for form in FORMS]
    ['14/4', '7/2', '3.5']
    """
    if divisor == 1:
        return str(total)
    if form == "unreduced":
        return f"{total}/{divisor}"
    value = Fraction(total, divisor)
    return str(value) if form == "lowest" or value.denominator == 1 else f"{float(value):g}"


def solve(digits: list[int], divisor: int, at_once: bool, settings: Settings, rng: random.Random) -> str:
    r"""One solution with its slips: what the base is taught to imitate. `at_once` is blind beyond the third digit.

    >>> solve([7, 5, 3, 8], 4, True, Settings(slip_at_once=0.0), random.Random(0))
    '\\boxed{15/4}'
    >>> solve([7, 5, 3, 8], 1, False, Settings(slip=0.0, stop=0.0), random.Random(0))
    '7+5=12+3=15+8=23 \\boxed{23}'
    """

    def computed(value: int, slip: float) -> int:
        return max(0, value + rng.choice((-2, -1, 1, 2))) if rng.random() < slip else value

    if at_once:
        return f"{BOX}{write_answer(computed(sum(digits[:3]), settings.slip_at_once), divisor, 'unreduced')}}}"
    total = digits[0]
    text = str(total)
    for i, digit in enumerate(digits[1:]):
        if i and rng.random() < settings.stop:
            break
        total = computed(total + digit, settings.slip)
        text += f"+{digit}={total}"
    return f"{text} {BOX}{write_answer(total, divisor, rng.choice(FORMS))}}}"


def make_solution(digits: list[int], divisor: int, settings: Settings, rng: random.Random) -> str:
    """A solution by a habit drawn *without looking at the question*: the choice that RL has to make depend on it."""
    return solve(digits, divisor, rng.random() < settings.at_once, settings, rng)


# ---------------------------------------------------------------------------------------------- the base model
def make_tokenizer():
    r"""Characters, and `\boxed{` as one token: seven characters that never vary would only make every step slower."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(VOCABULARY)}, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"\\boxed\{|[\s\S]"), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, pad_token=PAD, unk_token=UNKNOWN,
                                   padding_side="left", clean_up_tokenization_spaces=False)  # fmt: skip


def make_model(settings: Settings):
    """A Llama with random weights, the plainest architecture there is.

    Not Qwen2: AutoTokenizer gives every folder whose model type is qwen2 a Qwen2Tokenizer, whatever the folder itself
    says, and that byte-level class would drop the spaces and split the box of ours without a word.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(VOCABULARY), hidden_size=settings.hidden, intermediate_size=3 * settings.hidden,
        num_hidden_layers=settings.layers, num_attention_heads=settings.heads, num_key_value_heads=settings.heads,
        max_position_embeddings=256, tie_word_embeddings=True, bos_token_id=None,
        eos_token_id=VOCABULARY.index(END), pad_token_id=VOCABULARY.index(PAD), initializer_range=0.05,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def solution_batches(settings: Settings, tokenizer, heldout: set[str]) -> Iterator[tuple]:
    """Endless (tokens, labels, count) of fresh questions and solutions, none of them held out; [B, T] int64, float.

    Sorted by length in groups of 16 batches: ragged batches would be half padding. Only the response has labels.
    `count` is what to divide a batch's summed loss by, the same for all batches of a group: its own token count would
    weigh the tokens of short solutions more, and the base would answer at once far more often than it was taught.
    """
    import torch

    rng = random.Random(settings.seed + 1)
    while True:
        pairs = []
        while len(pairs) < 16 * settings.batch:
            digits, divisor = make_question(settings.warm_levels, settings, rng)
            if (question := question_text(digits, divisor)) not in heldout:
                pairs.append((question, make_solution(digits, divisor, settings, rng) + END))
        prompts = tokenizer([question for question, _ in pairs])["input_ids"]
        answers = tokenizer([answer for _, answer in pairs])["input_ids"]
        rows = sorted(zip(prompts, answers, strict=True), key=lambda row: len(row[0]) + len(row[1]))
        parts = [rows[start : start + settings.batch] for start in range(0, len(rows), settings.batch)]
        rng.shuffle(parts)
        count = sum(len(answer) for answer in answers) / len(parts)
        for part in parts:
            width = max(len(prompt) + len(answer) for prompt, answer in part)
            tokens = torch.full((len(part), width), tokenizer.pad_token_id)
            labels = torch.full((len(part), width), -100)
            for i, (prompt, answer) in enumerate(part):
                end = len(prompt) + len(answer)
                tokens[i, :end] = torch.tensor(prompt + answer)
                labels[i, len(prompt) : end] = tokens[i, len(prompt) : end]
            yield tokens, labels, count


def warm_up(settings: Settings, tokenizer, heldout: set[str], quiet: bool):
    """Supervised learning on the mixed solutions, loss on the response only. Returns the model."""
    import torch
    from tqdm import tqdm

    with torch.random.fork_rng(devices=[]):  # the caller's random numbers stay the caller's
        torch.manual_seed(settings.seed)
        model = make_model(settings)
    # not torch.optim.Muon, which needs a quarter fewer steps: it computes in bf16, and on a CPU without bf16
    # instructions (most laptops) its step takes twice as long as the rest of the work together
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.lr, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1, (step + 1) / 50) * (1 - step / settings.steps))
    batches = solution_batches(settings, tokenizer, heldout)
    with tqdm(range(settings.steps), desc="embedded base model", disable=quiet) as bar:
        for step in bar:
            tokens, labels, count = next(batches)
            loss = model(input_ids=tokens, labels=labels, num_items_in_batch=count).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            if step % 20 == 0:
                bar.set_postfix(loss=f"{loss.item():.3f}")
    return model


# ---------------------------------------------------------------------------------------------- the cache
def default_cache() -> Path:
    """$NANOSENT_CACHE, else $XDG_CACHE_HOME/nanosent, else ~/.cache/nanosent."""
    if os.environ.get("NANOSENT_CACHE"):
        return Path(os.environ["NANOSENT_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nanosent"


def build(folder: Path, settings: Settings, quiet: bool) -> None:
    """Fill `folder` with model/, train.jsonl and heldout.jsonl."""
    questions = make_questions(settings)
    train, heldout = questions[: settings.train_questions], questions[settings.train_questions :]
    write_questions(train, folder / "train.jsonl", "train")
    write_questions(heldout, folder / "heldout.jsonl", "heldout")
    tokenizer = make_tokenizer()
    model = warm_up(settings, tokenizer, {question_text(*q) for q in heldout}, quiet)
    model.generation_config.update(do_sample=True, temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=64)
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    (folder / "model" / "forks.json").write_text(json.dumps({"after": FORK_AFTER}) + "\n")


def ensure(
    cache_dir: str | Path | None = None,
    quiet: bool = False,
    settings: Settings = Settings(),  # noqa: B008 (frozen)
) -> tuple[Path, Path, Path]:
    """(model folder, training questions, held-out questions), built on first use under `cache_dir`.

    The folder's name is a hash of the settings and of this file, so that a changed task never meets an old base. It
    is built beside and renamed into place: it is whole or it is not there, also when two processes race.
    """
    key = hashlib.sha256(json.dumps(asdict(settings)).encode() + Path(__file__).read_bytes()).hexdigest()[:12]
    root = Path(cache_dir) if cache_dir is not None else default_cache()
    folder = root / f"arithmetic-{key}"
    if not folder.is_dir():
        root.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=root))
        try:
            build(beside, settings, quiet)
            try:
                beside.rename(folder)
            except OSError:
                if not folder.is_dir():  # otherwise another process was first, with the same content
                    raise
        finally:
            shutil.rmtree(beside, ignore_errors=True)
    return folder / "model", folder / "train.jsonl", folder / "heldout.jsonl"


def main() -> None:
    """Build, and say what was built."""
    model, train, heldout = ensure()
    print(f"model     {model}\ntraining  {train}\nheld-out  {heldout}")
    rows = [json.loads(line) for line in train.read_text().splitlines()]
    for level in sorted({row["level"] for row in rows}):
        some = [row for row in rows if row["level"] == level]
        print(f"level {level}: {len(some):4d} questions, such as {some[0]['question']:23s} {some[0]['answer']}")


if __name__ == "__main__":
    main()
