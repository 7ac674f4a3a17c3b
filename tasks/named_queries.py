"""The SQL files: named queries and checks, each described by its first line."""

import re
from dataclasses import dataclass
from importlib.resources import files
from typing import Final, Literal

PARAMETER_LINE: Final = re.compile(
    r"-- :(?P<name>\w+) (?P<sql_type>\w+)(?: = (?P<default_sql>.+))?"
)


@dataclass(frozen=True)
class QueryParameter:
    """What a named query asks for; the default is an SQL expression, none if it is required."""

    name: str
    sql_type: str
    default_sql: str | None


@dataclass(frozen=True)
class NamedQuery:
    """A file of `sql/queries` or `sql/checks`."""

    name: str
    description: str
    parameters: tuple[QueryParameter, ...]
    sql: str


def read_sql_file(*path_parts: str) -> str:
    """A file of `sql/`."""
    return files("sql").joinpath(*path_parts).read_text(encoding="utf-8")


def load_named_queries(folder: Literal["queries", "checks"]) -> dict[str, NamedQuery]:
    """The files of a folder, by name."""
    names = sorted(path.name for path in files("sql").joinpath(folder).iterdir())
    stems = [name.removesuffix(".sql") for name in names if name.endswith(".sql")]
    return {stem: _parse_named_query(stem, read_sql_file(folder, f"{stem}.sql")) for stem in stems}


def _parse_named_query(name: str, sql: str) -> NamedQuery:
    """Read a file: its first line describes it, lines `-- :name TYPE = default` are parameters."""
    description = sql.partition("\n")[0].removeprefix("-- ")
    found = (PARAMETER_LINE.fullmatch(line) for line in sql.splitlines())
    parameters = (QueryParameter(**match.groupdict()) for match in found if match)
    return NamedQuery(name, description, tuple(parameters), sql)
