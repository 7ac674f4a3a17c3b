"""The documents agree with the code: links, names of files and functions, and settings."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tasks.settings import ENVIRONMENT_PREFIX, Settings

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "tests/benchmarks").glob("*.md")]
)
DOCUMENTS_THAT_NAME_CODE = [path for path in DOCUMENTS if "docs" in path.parts]
MAX_README_LINES = 200
LINK = re.compile(r"\]\((?!https?://|mailto:)([^)\s]+)\)")
CODE_SPAN = re.compile(r"`([^`\n]+)`")
FILE_REFERENCE = re.compile(
    r"(?P<path>(?:flows|tasks|ml|sql|tests|docs|\.github)/[\w./-]*)(?::(?P<symbol>[\w.]+))?"
)
FILE_IN_CODE_BLOCK = re.compile(r"\b(?:flows|tasks|ml|sql|tests|docs)/[\w./-]+\.(?:py|sql|md)\b")
SETTINGS_ROW = re.compile(r"^\| `(METERWATCH_\w+)` \| (.+?) \| .+ \|$", re.MULTILINE)


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def without_code_blocks(text: str) -> str:
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def heading_anchors(path: Path) -> set[str]:
    """Return the anchors that GitHub gives a document's headings."""
    text = without_code_blocks(path.read_text(encoding="utf-8"))
    headings = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return {
        re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings
    }


def code_references(document: Path) -> Iterator[tuple[Path, str | None]]:
    """Yield the files that code spans of a document name, each with a symbol or without."""
    for span in CODE_SPAN.findall(without_code_blocks(document.read_text(encoding="utf-8"))):
        if (found := FILE_REFERENCE.fullmatch(span)) is not None:
            yield ROOT / found["path"], found["symbol"]


def defined_names(module: Path) -> set[str]:
    """Return the names that a module defines at its top level, methods as `Class.method`."""
    names = set[str]()
    for node in ast.parse(module.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            members = (each for each in node.body if isinstance(each, ast.FunctionDef))
            names |= {f"{node.name}.{member.name}" for member in members}
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.add(node.target.id)
        if isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return names


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) < MAX_README_LINES


@pytest.mark.parametrize("document", DOCUMENTS, ids=relative)
def test_relative_links_resolve(document: Path) -> None:
    broken = []
    for link in LINK.findall(without_code_blocks(document.read_text(encoding="utf-8"))):
        target, _, anchor = link.partition("#")
        path = (document.parent / target) if target else document
        if not path.exists() or (anchor and anchor not in heading_anchors(path)):
            broken.append(link)
    assert not broken


@pytest.mark.parametrize("document", DOCUMENTS_THAT_NAME_CODE, ids=relative)
def test_named_files_and_functions_exist(document: Path) -> None:
    missing = []
    for path, symbol in code_references(document):
        if not path.exists():
            missing.append(relative(path))
        elif symbol is not None and symbol not in defined_names(path):
            missing.append(f"{relative(path)}:{symbol}")
    assert not missing


@pytest.mark.parametrize("document", DOCUMENTS, ids=relative)
def test_files_named_in_code_blocks_exist(document: Path) -> None:
    blocks = re.findall(r"^ *```.*?^ *```$", document.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    named = {path for block in blocks for path in FILE_IN_CODE_BLOCK.findall(block)}
    assert [path for path in sorted(named) if not (ROOT / path).exists()] == []


def test_every_document_in_docs_is_linked() -> None:
    linked = {
        (document.parent / link.partition("#")[0]).resolve()
        for document in DOCUMENTS
        for link in LINK.findall(document.read_text(encoding="utf-8"))
    }
    assert {path for path in DOCUMENTS_THAT_NAME_CODE if path.resolve() not in linked} == set()


def test_readme_lists_every_setting_with_its_default() -> None:
    table = dict(SETTINGS_ROW.findall((ROOT / "README.md").read_text(encoding="utf-8")))
    fields = {
        f"{ENVIRONMENT_PREFIX}{name.upper()}": field.default
        for name, field in Settings.model_fields.items()
    }
    assert list(table) == list(fields)
    # A setting without a value of its own has its default described in words.
    valued = {name: f"`{default}`" for name, default in fields.items() if default is not None}
    assert {name: table[name] for name in valued} == valued


def test_readme_lists_every_named_query() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    listed = readme.partition("They are: ")[2].partition(". Views")[0]
    files = {path.stem for path in (ROOT / "sql/macros").glob("*.sql")}
    assert set(CODE_SPAN.findall(listed)) == files
