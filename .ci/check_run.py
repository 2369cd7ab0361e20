"""What a finished run folder must hold: `python .ci/check_run.py runs/x STEPS`, for .ci/run."""

import json
import math
import sys
from pathlib import Path

folder, steps = Path(sys.argv[1]), int(sys.argv[2])
metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
assert [m["step"] for m in metrics] == list(range(steps)), [m["step"] for m in metrics]
for m in metrics:
    assert 0 <= m["reward"] <= 1 and m["entropy"] > 0 and m["grad_norm"] > 0, m
    assert all(math.isfinite(v) for v in m.values() if isinstance(v, (int, float))), m
    assert m["logprob_gap"] < 1e-3, m["logprob_gap"]
for name in ("config.json", "curriculum.jsonl", "samples.jsonl", "evaluation.json", "model/config.json", "checkpoints"):
    assert (folder / name).exists(), f"{folder / name} is missing"
pictures = list((folder / "figures").glob("*.png"))
assert pictures and all(p.stat().st_size > 5000 for p in pictures), pictures
print(f"{folder}: {steps} steps, {len(pictures)} pictures, reward {metrics[-1]['reward']:.2f}")
