"""The SQL files: named queries and checks, each described by its first line."""

import re
from dataclasses import dataclass
from importlib.resources import files
from typing import Final, Literal

PARAMETER: Final = re.compile(r"-- :(?P<name>\w+) (?P<kind>\w+)(?: = (?P<default>.+))?")


@dataclass(frozen=True)
class Parameter:
    """What a named query asks for; the default is an SQL expression, none if it is required."""

    name: str
    kind: str
    default: str | None


@dataclass(frozen=True)
class Question:
    """A file of `sql/queries` or `sql/checks`."""

    name: str
    description: str
    parameters: tuple[Parameter, ...]
    sql: str


def text(*path: str) -> str:
    """A file of `sql/`."""
    return files("sql").joinpath(*path).read_text(encoding="utf-8")


def questions(folder: Literal["queries", "checks"]) -> dict[str, Question]:
    """The files of a folder, by name."""
    names = sorted(path.name for path in files("sql").joinpath(folder).iterdir())
    stems = [name.removesuffix(".sql") for name in names if name.endswith(".sql")]
    return {stem: _question(stem, text(folder, f"{stem}.sql")) for stem in stems}


def _question(name: str, sql: str) -> Question:
    """Read a file: its first line describes it, lines `-- :name TYPE = default` are parameters."""
    description = sql.partition("\n")[0].removeprefix("-- ")
    found = (PARAMETER.fullmatch(line) for line in sql.splitlines())
    parameters = (Parameter(**match.groupdict()) for match in found if match)
    return Question(name, description, tuple(parameters), sql)
