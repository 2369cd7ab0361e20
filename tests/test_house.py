"""Rules of the house that a script can check."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FLOOR = {"verify": 0, "entropy": 0, "rollout": 1, "arithmetic": 1, "curriculum": 2, "evaluate": 3, "figures": 3,
         "train": 4}  # fmt: skip


def imported(path: Path) -> set[str]:
    """Top-level names of all modules that a file imports, also inside functions."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add((node.module or "").split(".")[0])
    return names


def test_every_script_has_a_floor():
    assert {p.stem for p in ROOT.glob("*.py")} == set(FLOOR)


@pytest.mark.parametrize("name", FLOOR)
def test_imports_only_go_down(name):
    for other in imported(ROOT / f"{name}.py") & set(FLOOR):
        assert FLOOR[other] < FLOOR[name], f"{name}.py imports {other}.py, which is not below it"


@pytest.mark.parametrize("name", FLOOR)
def test_nothing_is_evaluated_as_code(name):
    for node in ast.walk(ast.parse((ROOT / f"{name}.py").read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in ("eval", "exec", "compile", "__import__"), f"{name}.py:{node.lineno}"
        if isinstance(node, ast.keyword):
            assert node.arg != "trust_remote_code", f"{name}.py:{node.value.lineno}"
