"""`ml` computes: no file, clock, environment, process state or listing of folders.

The import contract forbids modules; this test forbids the calls that its names cannot.
"""

import ast
from pathlib import Path

import pytest

import ml

MODULES = sorted(Path(ml.__path__[0]).rglob("*.py"))
FORBIDDEN_CALLS = {
    "open": "a file",
    "torch.load": "a file",
    "torch.save": "a file",
    "logging.disable": "process state",
    "datetime.now": "the clock",
    "date.today": "the clock",
    "time.time": "the clock",
    "pkgutil.iter_modules": "a listing of folders",
    "iter_modules": "a listing of folders",
    "pl.read_parquet": "a file",
    "pl.scan_parquet": "a file",
}


def find_calls(source: str) -> set[str]:
    """The dotted names of everything that a module calls."""
    calls = (node.func for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call))
    return {ast.unparse(call) for call in calls}


@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(ml.__path__[0])))
def test_module_of_ml_asks_nothing_of_its_surroundings(module: Path) -> None:
    found = find_calls(module.read_text(encoding="utf-8")) & set(FORBIDDEN_CALLS)
    assert not found, {name: FORBIDDEN_CALLS[name] for name in found}


def test_forbidden_call_is_found() -> None:
    assert "torch.load" in find_calls("import torch\nstate = torch.load(path)\n")
