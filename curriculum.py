"""Questions in, ordered questions out: sample, cluster by meaning, semantic entropy, sort from easy to hard.

    python curriculum.py                                                       the embedded task: a minute or two
    torchrun --nproc_per_node=8 curriculum.py --model Qwen/Qwen2.5-Math-1.5B \\
        --questions BytedTsinghua-SIA/DAPO-Math-17k --out dapo.jsonl           then: train.py --curriculum dapo.jsonl

Each question gets M answers from the starting policy. Answers that mean the same are one cluster; an answer that was
cut off, or has no final answer, is a cluster of its own (a question that nobody finishes is hard, not certain). The
entropy over clusters says how unsure the policy is. Kill it at any time: the same command goes on where it was.
The file: {"settings": ...}, then a line per question from low to high semantic entropy.
"""

from __future__ import annotations

import argparse
import csv
import fcntl
import glob
import hashlib
import json
import math
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import NoReturn

from entropy import semantic_entropy
from verify import cluster_answers, extract_answer, grade

ESTIMATORS = ("frequency", "likelihood", "length_normalised")
QUESTION_FIELDS = ("problem", "question", "prompt")
ANSWER_FIELDS = ("answer", "final_answer", "ground_truth", "reward_model.ground_truth", "solution")
INSTRUCTION = "Reason step by step and put the final answer in \\boxed{}."
MAX_LINE = 2**24  # bytes; a longer line is no question, and 1 GB of it would take the machine down
MAX_HOLES = 0.01  # share of rows without a gold that is a flaw of the data; more is a wrong field


@dataclass(frozen=True)
class Question:
    """`gold` is a text, or a list of texts any of which is right (Minerva lists rewrites of its answers)."""

    id: str
    prompt: str  # before any chat template
    gold: str | list[str]
    instructed: bool = False  # came as chat messages (DAPO), which say themselves how to answer


def say(text: str) -> None:
    """A line to stderr, from one process only."""
    if os.environ.get("RANK", "0") == "0":
        print(text, file=sys.stderr)


# ---------------------------------------------------------------------------------------------- questions in
def load_questions(source: str | Path, question_field: str | None = None, answer_field: str | None = None,
                   split: str | None = None, config: str | None = None) -> list[Question]:  # fmt: skip
    """Questions of a .jsonl/.json/.csv/.parquet file, a folder of them, a hub name, or `arithmetic`, the embedded task.

    Fields go by their usual names (QUESTION_FIELDS, ANSWER_FIELDS; a.b is b inside a). The gold is what follows GSM8K's
    ####, else the last box, else the whole answer; a `solution` needs one of the two. Every gold is graded against
    itself, once, here: one that is not right even then could never be earned, so its question is dropped, and named.
    Exact duplicates (same text, same gold) are dropped and counted: the public DAPO file repeats each about 100 times.

    Raises ValueError (file, row, field, remedy) for unreadable or empty files, missing fields, wrong types, one id on
    two different questions, and more than 1 % of rows without a gold.
    """
    questions, places, seen, total, holes, mute, as_text = [], {}, set(), 0, [], [], 0
    for where, name, prompt, instructed, gold in _rows(str(source), question_field, answer_field, split, config):
        total += 1
        if gold is None:
            holes.append(f"{name} ({where})")
        elif (prompt, str(gold)) not in seen:
            seen.add((prompt, str(gold)))
            if name in places:
                raise ValueError(f"{where}: id {name!r} is another question's too ({places[name]}); make ids unique")
            places[name] = where
            golds = [gold] if isinstance(gold, str) else gold
            status = next((s for r, _, s in (grade(f"\\boxed{{{g}}}", g) for g in golds) if r == 1.0), None)
            as_text += status not in ("ok", None)
            if status is None:
                mute.append(name)
            else:
                questions.append(Question(name, prompt, gold, instructed))
    if len(holes) > MAX_HOLES * total:
        raise ValueError(f"{source}: {len(holes)} of {total} rows have no gold answer, first {holes[0]}; "
                         "--answer-field names another field, or drop these rows")  # fmt: skip
    if not questions:
        raise ValueError(f"{source}: {f'no gold can be read, e.g. of id {mute[0]}' if mute else 'no questions in it'}; "
                         "check the file, and --answer-field")  # fmt: skip
    notes = {"exact duplicates dropped": total - len(holes) - len(seen), "golds compared as text only": as_text}
    for what, names in (("dropped for want of a gold", holes), ("dropped because their gold cannot be read", mute)):
        notes[what + ": " + ", ".join(names[:20]) + ", ..." * (len(names) > 20)] = len(names)
    say("; ".join([f"{source}: {len(questions)} questions", *(f"{n} {what}" for what, n in notes.items() if n)]))
    return questions


def _rows(source: str, question_field: str | None, answer_field: str | None, split: str | None,
          config: str | None) -> Iterator[tuple[str, str, str, bool, str | list[str] | None]]:  # fmt: skip
    """(where, id, prompt, instructed, gold) of each row; each file's first row decides which fields are meant."""
    for table, rows in _tables(source, split, config):
        asked, answered = (question_field,) if question_field else QUESTION_FIELDS, None
        for number, (where, row) in enumerate(rows):
            if not isinstance(row, dict):
                raise ValueError(f"{where}: a question is an object with fields, not {type(row).__name__}")
            answered = answered or ((answer_field,) if answer_field else ANSWER_FIELDS)
            (q, prompt), (a, gold) = _field(row, asked, where, "question"), _field(row, answered, where, "answer")
            asked, answered = (q,), (a,)
            name = next((str(row[f]) for f in ("id", "unique_id") if row.get(f) is not None), f"{table}:{number}")
            yield where, name, *_prompt(prompt, f"{where}, field {q}"), _gold(gold, f"{where}, field {a}", a)


def _field(row: dict, names: tuple[str, ...], where: str, kind: str) -> tuple[str, object]:
    """The first of these fields that a row has, and what is in it."""
    for name in names:
        value = row
        for key in name.split("."):
            value = value.get(key, ...) if isinstance(value, dict) else ...
        if value is not ...:
            return name, value
    raise ValueError(f"{where}: no field {' or '.join(names)}; --{kind}-field names it, of {', '.join(map(str, row))}")


def _prompt(value: object, where: str) -> tuple[str, bool]:
    """The question's text; of chat messages, the last one of the user."""
    instructed = isinstance(value, list)
    if instructed:
        users = [m.get("content") for m in value if isinstance(m, dict) and m.get("role") == "user"]
        value = users[-1] if users else None
    if not isinstance(value, str) or not value.strip() or re.search("[\ud800-\udfff]", value):
        raise ValueError(f"{where}: a question is a text that is not empty, or chat messages with a user's text; "
                         "drop the row or name another field with --question-field")  # fmt: skip
    return value, instructed


def _gold(value: object, where: str, field: str) -> str | list[str] | None:
    """A gold as text, or a list of them; None where there is none (null, NaN, empty)."""
    if isinstance(value, list):
        return [g for g in (_gold(v, where, field) for v in value) if g] or None
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return None
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise ValueError(f"{where}: a gold answer is a text or a number, not {type(value).__name__}; "
                         "--answer-field names another field")  # fmt: skip
    text = str(value).strip()
    if "####" in text or "\\boxed" in text:
        return extract_answer(text)
    return None if field.endswith("solution") or text.lower() in ("", "nan", "null") else text


# ---------------------------------------------------------------------------------------------- files and the hub
def located(name: str, which: int) -> str:
    """`arithmetic` -> the embedded task's model (0), questions (1) or held-out questions (2); another name as it is."""
    if name != "arithmetic":
        return name
    from arithmetic import ensure

    return str(ensure()[which])


def _tables(source: str, split: str | None, config: str | None) -> Iterator[tuple[str, Iterable[tuple[str, object]]]]:
    """(name, (where, row)s) of each file behind a source."""
    source = located(source, 1)
    path, known = Path(source), " ".join(READERS)
    if path.exists() and (config or (split and path.is_file())):
        raise ValueError(f"{source} is on disk and has no {'subset' if config else 'split'} to choose; drop that flag")
    if path.is_dir():
        files = sorted(f for f in path.rglob("*") if f.suffix in READERS and f.name.startswith(split or ""))
        if not files:
            raise ValueError(f"{source}: no {known} file of that split in this folder; check the path and --split")
    elif path.is_file() or path.suffix in READERS or not re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", source) or (
            "/" in source and path.parent.is_dir()):  # fmt: skip
        files = [path]
        if not path.is_file() or path.suffix not in READERS:
            raise ValueError(f"{source}: no readable file; give {known}, a folder of those, or a name on the hub")
    else:
        return (yield source, _hub(source, split, config))
    yield from ((f.stem, READERS[f.suffix](f)) for f in files)


def _hub(source: str, split: str | None, config: str | None) -> Iterator[tuple[str, object]]:
    import datasets

    try:
        table = datasets.load_dataset(source, config, split=split or "train")
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise ValueError(f"{source}: no such file, and the hub does not give it: {_brief(error)} "
                         "(--split and --subset choose a part)") from None  # fmt: skip
    # whole batches from Arrow: row by row DAPO's 1.8 million take minutes, and a column of images would be decoded
    rows = (row for batch in table.with_format("arrow").iter(4096) for row in batch.to_pylist())
    return ((f"{source}, row {i}", row) for i, row in enumerate(rows, 1))


def _brief(error: Exception) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    with path.open("rb") as file:
        for number, line in enumerate(iter(lambda: file.readline(MAX_LINE + 1), b""), 1):
            if len(line) > MAX_LINE:
                raise ValueError(f"{path}, line {number}: longer than {MAX_LINE >> 20} MB; put one question on a line")
            try:
                yield f"{path}, line {number}", line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise ValueError(f"{path}, line {number}: not UTF-8 ({error.reason}); convert the file") from None


def _parse(text: str | bytes, where: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # ValueError: not JSON, not UTF-8, or a number of 5,000 digits
        raise ValueError(f"{where}: not JSON ({_brief(error)}); repair or drop it") from None


def _jsonl(path: Path) -> Iterator[tuple[str, object]]:
    return ((where, _parse(line, where)) for where, line in _lines(path) if line.strip())


def _json(path: Path) -> Iterator[tuple[str, object]]:
    rows = _parse(path.read_bytes(), str(path))
    if not isinstance(rows, list):
        raise ValueError(f"{path}: not a list of questions; a file with one object per line is called .jsonl")
    return ((f"{path}, row {i}", row) for i, row in enumerate(rows, 1))


def _csv(path: Path) -> Iterator[tuple[str, object]]:
    reader = csv.DictReader(line for _, line in _lines(path))
    try:
        yield from ((f"{path}, line {reader.line_num}", row) for row in reader)
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num}: not CSV ({error}); repair or drop it") from None


def _parquet(path: Path) -> Iterator[tuple[str, object]]:
    import pyarrow.parquet  # not through datasets, which would keep a second copy in its cache

    try:
        batches = pyarrow.parquet.ParquetFile(path).iter_batches(4096)
        rows = (row for batch in batches for row in batch.to_pylist())
        yield from ((f"{path}, row {i}", row) for i, row in enumerate(rows, 1))
    except pyarrow.ArrowException as error:
        raise ValueError(f"{path}: not a parquet file ({_brief(error)}); download it again") from None


READERS = {".jsonl": _jsonl, ".json": _json, ".csv": _csv, ".parquet": _parquet}


# ---------------------------------------------------------------------------------------------- prompts, answers
def render(questions: Sequence[Question], tokenizer, instruction: str | None = None,
           max_prompt_tokens: int = 1024) -> tuple[list[str], list[int]]:  # fmt: skip
    """(final prompt texts, indices of the questions they belong to); longer prompts are dropped, and counted.

    With a chat template: a user message, then `instruction` (default: INSTRUCTION, unless the question came with its
    own). Without one the text is given as it is, `instruction` behind it only if there is one: a base model continues.
    Raises ValueError when no prompt is short enough.
    """
    prompts = []
    for question in questions:
        default = INSTRUCTION if tokenizer.chat_template and not question.instructed else None
        text = "\n".join(filter(None, (question.prompt, default if instruction is None else instruction)))
        if tokenizer.chat_template:
            message = [{"role": "user", "content": text}]
            text = tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
        prompts.append(text)
    lengths = [len(ids) for ids in tokenizer(prompts)["input_ids"]] if prompts else []
    kept = [i for i, n in enumerate(lengths) if n <= max_prompt_tokens]
    if prompts and not kept:
        raise ValueError(f"every prompt is longer than {max_prompt_tokens} tokens (the shortest has {min(lengths)}); "
                         "raise --max-prompt-tokens, as far as the model's context goes")  # fmt: skip
    if len(kept) < len(prompts):
        say(f"{len(prompts) - len(kept)} of {len(prompts)} prompts dropped: longer than {max_prompt_tokens} tokens")
    return [prompts[i] for i in kept], kept


def answer_limit(model, tokenizer, prompts: list[str], wanted: int | None) -> int:
    """Tokens an answer may have: as wanted, else the model's own limit, else 2048 or what its context leaves.

    Raises ValueError when the longest prompt and such an answer do not fit the context.
    """
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None) or 10**9
    room = context - max(len(ids) for ids in tokenizer(prompts)["input_ids"])
    limit = wanted or model.generation_config.max_new_tokens or min(2048, room)
    if not 1 <= limit <= room:
        raise ValueError(f"--max-new-tokens {limit}: the longest prompt leaves room for {room} in the model's context "
                         f"of {context}; lower it, or --max-prompt-tokens")  # fmt: skip
    return limit


def respond(model, tokenizer, questions: Sequence[Question], prompts: list[str], indices: list[int], samples: int,
            max_new_tokens: int, temperature: float, seed: int, top_p: float = 1.0) -> list[dict]:  # fmt: skip
    """Sample and grade `samples` answers to questions[i], i in indices; one dict of lists [samples] per question.

    What question i gets depends on (seed, i) only. A response that was cut off has no answer and reward 0, even with
    a box in it: the training reward says the same. `logprobs` are sums over the response, EOS included, nats.
    """
    from rollout import position_seed, sample

    rollout = sample(model, tokenizer, [prompts[i] for i in indices], samples, max_new_tokens, temperature,
                     [position_seed(seed, i) for i in indices], top_p=top_p)  # fmt: skip
    columns = {"lengths": rollout.mask.sum(1).tolist(), "logprobs": rollout.logprobs.double().sum(1).tolist(),
               "finished": rollout.finished.tolist(), "texts": rollout.texts}  # fmt: skip
    rows = []
    for n, i in enumerate(indices):
        row = {"id": questions[i].id, "index": i}
        row |= {name: values[n * samples : (n + 1) * samples] for name, values in columns.items()}
        if bad := [logprob for logprob in row["logprobs"] if not math.isfinite(logprob)]:
            raise ValueError(f"question {row['id']}: an answer has log-prob {bad[0]}; are the weights broken?")
        graded = [grade(text, questions[i].gold)[:2] if done else (0.0, None)
                  for text, done in zip(row["texts"], row["finished"], strict=True)]  # fmt: skip
        row["rewards"], row["answers"] = map(list, zip(*graded, strict=True))
        rows.append(row)
    return rows


# ---------------------------------------------------------------------------------------------- a file that survives
def read_rows(path: Path) -> tuple[dict, list[dict], int]:
    """(header, rows, bytes that are whole lines) of a .jsonl that begins with a header; a torn last line is left out.

    Raises ValueError for any other broken line: that was no interrupted write.
    """
    rows, whole = [], 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                break
            rows.append(_parse(line, f"{path}, line {number}"))
            if not isinstance(rows[-1], dict) or ("settings" in rows[-1]) != (number == 1):
                raise ValueError(f"{path}, line {number}: not what this program writes there; delete the file")
            whole += len(line)
    return (rows[0] if rows else {}), rows[1:], whole


def differences(found: dict, wanted: dict) -> str:
    """What two settings disagree on; the names of model and questions do not count, their fingerprints do."""
    names = sorted((found.keys() | wanted.keys()) - {"model", "questions"})
    return "; ".join(f"{name}: {found.get(name)!r} there, {wanted.get(name)!r} here"
                     for name in names if found.get(name) != wanted.get(name))  # fmt: skip


def stream_rows(path: Path, settings: dict, total: int, work: Callable[[list[int]], list[dict]], chunk: int,
                order: Callable[[dict], object] = lambda row: row["index"]) -> list[dict]:  # fmt: skip
    """Rows 0 .. total - 1, made by work(indices), written to `path` as they come: a kill loses one chunk at most.

    Every rank appends to its own `path`.part<rank>; what any of them holds is not made again, in whatever number of
    processes the work goes on. Chunks are fixed by position and always made whole, so a resumed file is bit for bit
    the one of an uninterrupted run. At the end rank 0 sorts all rows by `order` and renames the file into place.
    Ranks share one file system. Raises ValueError if a file there was made with other settings, or is being written.
    """
    from tqdm import tqdm

    from rollout import barrier

    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    done, sizes, own = {}, {}, Path(f"{path}.part{rank}")
    for file in [path] if path.exists() else _parts(path):
        header, rows, sizes[file] = read_rows(file)
        if header and (differs := differences(header["settings"], settings)):
            raise ValueError(f"{file} was made with other settings ({differs}); give another --out, or delete it")
        if sizes[file] < file.stat().st_size:
            say(f"{file}: its last line was cut off while it was written, and is made again")
        done |= {row["index"]: row for row in rows}
    if path.exists() and len(done) < total:
        raise ValueError(f"{path}: {len(done)} rows of {total}, it was cut short; delete it, or give another --out")
    barrier()  # all ranks have read before one of them writes
    if not path.exists():
        make_folder(path.parent)
        chunks = [list(range(first, min(first + chunk, total))) for first in range(0, total, chunk)]
        mine = [indices for indices in chunks if not done.keys() >= set(indices)][rank::world]
        bar = tqdm(total=sum(map(len, mine)), desc=path.name, unit="question", disable=rank > 0)
        with hold(own) as file, bar:
            if path.exists():  # somebody finished it between our look and our lock
                raise ValueError(f"{path} has just been made by another process; the same command reads it")
            file.truncate(sizes.get(own, 0))
            if not sizes.get(own):
                append_rows(file, [{"settings": settings}])
            for indices in mine:
                append_rows(file, [row for row in work(indices) if row["index"] not in done])
                bar.update(len(indices))
            barrier()
            if rank == 0:
                _merge(path, settings, order)
            barrier()
    return read_rows(path)[1]


def _parts(path: Path) -> list[Path]:
    return sorted(Path(part) for part in glob.glob(glob.escape(str(path)) + ".part*"))


def make_folder(path: Path) -> None:
    """With all above it. Raises ValueError that names it."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"--out: {path} cannot be made ({error.strerror}); give a place that can be written") from None


def hold(path: Path) -> FileIO:
    """Open a file to append to it, unbuffered, and lock it; the kernel unlocks it however the process ends (kill -9).

    Raises ValueError when another process holds it.
    """
    file = path.open("ab", buffering=0)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise ValueError(f"{path}: another process is writing here; wait for its end, or give another --out") from None
    except OSError as error:  # some file systems of clusters have no locks
        say(f"warning: {path} cannot be locked ({error.strerror}); see to it that nothing else writes here")
    return file


def append_rows(file: FileIO, rows: list[dict]) -> None:
    """Lines of JSON to an unbuffered file. Half a line, left by a full disk or a kill, is dropped when it is read."""
    _write(file, "".join(json.dumps(row) + "\n" for row in rows).encode())


def _write(file: FileIO, data: bytes) -> None:
    """Raises OSError that names the file: a full disk's own error does not."""
    try:
        while data:
            data = data[file.write(data) :]
    except OSError as error:
        raise OSError(f"{file.name}: {error.strerror}; make room: what was written before is kept") from None


def replace_file(path: Path, text: str) -> None:
    """Write beside and rename: whoever looks sees the old file or the new one, never half of one."""
    beside = Path(f"{path}.tmp")
    with beside.open("wb", buffering=0) as file:
        _write(file, text.encode())
        os.fsync(file.fileno())
    os.replace(beside, path)


def _merge(path: Path, settings: dict, order: Callable[[dict], object]) -> None:
    """All parts into one file, whole or not at all."""
    parts = _parts(path)
    rows = sorted((row for part in parts for row in read_rows(part)[1]), key=order)
    replace_file(path, "".join(json.dumps(row) + "\n" for row in [{"settings": settings}, *rows]))
    for part in parts:
        part.unlink()


def fingerprint(model: str | Path) -> str:
    """A name for a model's weights: a hash of its config and of up to 256 pieces of 4 KB of each safetensors file.

    Enough to tell a checkpoint from the next one without reading 15 GB: a training step touches weights everywhere.
    """
    folder = Path(model)
    if not folder.is_dir():
        from transformers.utils import cached_file

        folder = Path(cached_file(str(model), "config.json")).parent
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    for path in sorted(folder.glob("*.safetensors")):
        size = path.stat().st_size
        with path.open("rb") as file:
            for place in range(0, size, max(4096, size // 256)):
                file.seek(place)
                digest.update(file.read(4096))
        digest.update(f"{path.name} {size}".encode())
    return digest.hexdigest()[:16]


def describe(model_path: str, source: str, questions: Sequence[Question], prompts: list[str], **sampling) -> dict:
    """The header of a file of samples: all that they depend on, memory knobs left out."""
    content = json.dumps([[q.id, prompt, q.gold] for q, prompt in zip(questions, prompts, strict=True)])
    return {"model": str(model_path), "fingerprint": fingerprint(model_path), "questions": str(source),
            "content": hashlib.sha256(content.encode()).hexdigest()[:16], "Q": len(questions), **sampling}  # fmt: skip


# ---------------------------------------------------------------------------------------------- the curriculum
def semantic_order(model, tokenizer, questions: Sequence[Question], prompts: list[str], path: str | Path,
                   settings: dict, chunk: int = 64) -> list[dict]:  # fmt: skip
    """Write the curriculum of these questions and prompts to `path`, or go on with it; its rows, easy to hard.

    `settings`: describe() with M, temperature, max_new_tokens, seed and estimator; `chunk` questions are sampled at a
    time. Rows are sorted by semantic entropy, then high accuracy first, then index. Raises ValueError if `path` holds a
    curriculum with other settings, or M < 2.
    """
    if settings["M"] < 2:
        raise ValueError(f"{settings['M']} answer per question has no entropy; take --samples 8")

    def work(indices: list[int]) -> list[dict]:
        rows = respond(model, tokenizer, questions, prompts, indices, settings["M"], settings["max_new_tokens"],
                       settings["temperature"], settings["seed"])  # fmt: skip
        return [_entropy_row(row, settings["estimator"]) for row in rows]

    return stream_rows(Path(path), settings, len(questions), work, chunk, easy_to_hard)


def _entropy_row(row: dict, estimator: str) -> dict:
    clusters = cluster_answers(row["answers"])
    se = semantic_entropy(clusters, row["logprobs"], row["lengths"], estimator)
    return {"id": row["id"], "index": row["index"], "se": se, "accuracy": sum(row["rewards"]) / len(clusters),
            "clusters": clusters, **{k: row[k] for k in ("answers", "lengths", "logprobs", "finished")}}  # fmt: skip


def easy_to_hard(row: dict) -> tuple[float, float, int]:
    """The order of a curriculum: semantic entropy, then high accuracy first, then place in the file."""
    return row["se"], -row["accuracy"], row["index"]


def stages(order: Sequence[int], n: int) -> list[list[int]]:
    """An order cut by rank into n stages, as equal as possible, each question in exactly one.

    >>> stages([4, 2, 0, 1, 3], 2)
    [[4, 2], [0, 1, 3]]
    """
    if not 1 <= n <= len(order):
        raise ValueError(f"--stages {n}: {len(order)} questions can be cut into 1 to {len(order)} stages")
    cuts = [len(order) * i // n for i in range(n + 1)]
    return [list(order[a:b]) for a, b in zip(cuts, cuts[1:], strict=False)]


def load_curriculum(path: str | Path, questions: Sequence[Question], settings: dict | None = None
                    ) -> tuple[list[dict], list[str]]:  # fmt: skip
    """(rows from easy to hard, warnings); each row's `index` is its question's place in `questions`, found by id.

    A curriculum of another model or with other settings is still an order: that is a warning, to be said loudly.
    Raises ValueError for a file cut short, or made from questions that are not these.
    """
    header, rows, whole = read_rows(Path(path))
    place = {question.id: i for i, question in enumerate(questions)}
    for line, row in enumerate(rows, 2):
        if row.get("id") not in place:
            raise ValueError(f"{path}, line {line}: no question has the id {row.get('id')!r}; "
                             "give --questions the file that the curriculum was made from")  # fmt: skip
        if not isinstance(row.get("se"), (int, float)):
            raise ValueError(f"{path}, line {line}: no semantic entropy; make it again with python curriculum.py")
        row["index"] = place[row["id"]]
    settings_there = header.get("settings", {})
    asked, found = settings_there.get("Q"), len({row["index"] for row in rows})
    if found != asked or found < len(rows) or whole < Path(path).stat().st_size:
        raise ValueError(f"{path}: {found} of {asked} questions are in it, {len(rows) - found} of them twice; not a "
                         "whole curriculum: make it again with python curriculum.py")  # fmt: skip
    warnings = []
    if settings and (differs := differences(settings_there, settings)):
        warnings.append(f"{path} was made with model {settings_there.get('model')} and other settings ({differs}); "
                        "its order is used as it is")  # fmt: skip
    if len(rows) < len(place):
        warnings.append(f"{path} holds {len(rows)} of {len(place)} questions; the others are never asked")
    return rows, warnings


def summary(rows: list[dict], n_stages: int = 4) -> str:
    """In words and bars: semantic entropies, accuracy per stage, certain questions, responses without an answer."""
    top = math.log(len(rows[0]["clusters"]))
    bins = [0] * 10
    for row in rows:
        bins[min(9, int(10 * row["se"] / top))] += 1
    lines = [f"semantic entropy of {len(rows)} questions, nats (log M = {top:.2f})"]
    for i, n in enumerate(bins):
        lines.append(f"  {top * i / 10:4.2f} to {top * (i + 1) / 10:4.2f} {n:6d} {'#' * round(50 * n / max(bins))}")
    for i, stage in enumerate(stages(range(len(rows)), min(n_stages, len(rows))), 1):
        part = [rows[r] for r in stage]
        lines.append(f"stage {i}: {len(part)} questions, entropy {part[0]['se']:.2f} to {part[-1]['se']:.2f}, "
                     f"accuracy {sum(r['accuracy'] for r in part) / len(part):.3f}")  # fmt: skip
    certain = [r["accuracy"] for r in rows if len(set(r["clusters"])) == 1]
    right, wrong = (sum(a == value for a in certain) / len(rows) for value in (1, 0))
    lines.append(f"one meaning only: always right {right:.1%}, always wrong alike {wrong:.1%} of the questions")
    answers = [a for row in rows for a in row["answers"]]
    cut = sum(not done for row in rows for done in row["finished"]) / len(answers)
    lines.append(f"responses without an answer: {answers.count(None) / len(answers):.1%}, cut off: {cut:.1%} of all")
    return "\n".join(lines)


# ---------------------------------------------------------------------------------------------- command line
class Parser(argparse.ArgumentParser):
    """argparse whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (--help lists the flags)\n")


def number(kind: type, low: float, high: float = math.inf) -> Callable[[str], float]:
    """An argparse type: a number between two bounds, both allowed, infinity not."""

    def parse(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high or math.isinf(value):
            bounds = f"at least {low:g}" + f" and at most {high:g}" * (high < math.inf)
            raise argparse.ArgumentTypeError(f"{text!r} should be a{' whole' * (kind is int)} number, {bounds}")
        return value

    return parse


def add_sampling_flags(parser: argparse.ArgumentParser) -> None:
    """The flags that curriculum.py and evaluate.py share."""
    add = parser.add_argument
    add("--max-new-tokens", type=number(int, 1), help="longer answers are cut off [the model's own limit, else 2048]")
    add("--temperature", type=number(float, 1e-6), default=1.0, help="of sampling [1]")
    add("--seed", type=number(int, 0), default=0, help="what a question gets depends on (seed, question) only [0]")
    add("--instruction", help="appended to each question [with a chat template: reason, then box the answer]")
    add("--max-prompt-tokens", type=number(int, 1), default=1024, help="longer prompts are dropped, and counted [1024]")
    add("--chunk", type=number(int, 1), default=64, help="questions sampled at a time: memory, nothing else [64]")
    add("--question-field", help="where the question is, a.b is b inside a [" + ", ".join(QUESTION_FIELDS) + "]")
    add("--answer-field", help="where its answer is [" + ", ".join(ANSWER_FIELDS) + "]")
    add("--device", choices=("cpu", "cuda"), help="[cuda when there is one]")
    add("--attention", help="attention implementation of transformers [its default]")


def open_model(path: str, device: str | None, attention: str | None) -> tuple:
    """(model, tokenizer) of a folder or hub name, in the precision that its device is good at."""
    import torch

    from rollout import distributed, load_model, load_tokenizer

    where = distributed(device)[2]
    tokenizer = load_tokenizer(path)  # first: it is quick to refuse
    return load_model(path, where, torch.bfloat16 if where.type == "cuda" else torch.float32, attention), tokenizer


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    add = parser.add_argument
    add("--model", default="arithmetic", help="a Hugging Face folder or hub name [arithmetic: the embedded base]")
    add("--questions", default="arithmetic", help=".jsonl .json .csv .parquet, a folder, a hub name [arithmetic]")
    add("--out", type=Path, default=Path("runs/curriculum.jsonl"), help="the file to write [runs/curriculum.jsonl]")
    add("--samples", type=number(int, 2), default=8, help="M, answers per question [8]")
    add("--estimator", choices=ESTIMATORS, default="frequency", help="of semantic entropy [frequency]")
    add("--split", help="of a hub dataset [train], or how a folder's files begin [all of them]")
    add("--subset", help="configuration of a hub dataset, such as gsm8k's main")
    add_sampling_flags(parser)
    return parser.parse_args(argv)


def make(args: argparse.Namespace) -> list[dict]:
    """Load, sample, order: the file that `args` describe."""
    questions = load_questions(args.questions, args.question_field, args.answer_field, args.split, args.subset)
    args.model = located(args.model, 0)
    model, tokenizer = open_model(args.model, args.device, args.attention)
    prompts, kept = render(questions, tokenizer, args.instruction, args.max_prompt_tokens)
    questions = [questions[i] for i in kept]
    limit = answer_limit(model, tokenizer, prompts, args.max_new_tokens)
    settings = describe(args.model, args.questions, questions, prompts, M=args.samples, temperature=args.temperature,
                        max_new_tokens=limit, seed=args.seed, estimator=args.estimator)  # fmt: skip
    return semantic_order(model, tokenizer, questions, prompts, args.out, settings, args.chunk)


def main(argv: list[str] | None = None) -> int:
    """Exit code: 0 done, 2 bad input, 130 interrupted."""
    args = parse(argv)
    try:
        rows = make(args)
    except (ValueError, OSError) as error:
        print(f"curriculum.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        say("curriculum.py: interrupted; the same command goes on from here")
        return 130
    if os.environ.get("RANK", "0") == "0":
        print(f"{summary(rows)}\nwrote {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
