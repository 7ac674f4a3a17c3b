"""The home asked in SQL: DuckDB over its Parquet files, by the views of `sql/views.sql`.

The database is in memory and made anew for each use. A person's SQL is one SELECT, and DuckDB
itself can open nothing outside the home, so nothing can be written and nothing else be read.
"""

import json
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import date
from glob import escape
from pathlib import Path
from typing import Final

import duckdb
import polars as pl

from ml.errors import UserError
from tasks import paths
from tasks.questions import Parameter, Question, questions, text
from tasks.settings import get_settings

FOREIGN: Final = re.compile(r"INTERVAL|UNION|UUID|JSON")
STATUS: Final = {
    "Lake": ("lake_coverage", {}),
    "Last nights": ("coverage_by_night", {"limit": "7"}),
    "Last runs": ("runs_recent", {"limit": "5"}),
}


def queries() -> dict[str, Question]:
    """The named queries."""
    return questions("queries")


def checks() -> dict[str, Question]:
    """The checks: each returns the rows that break it."""
    return questions("checks")


def query(name_or_sql: str, parameters: Mapping[str, str] | None = None) -> pl.DataFrame:
    """Answer a named query, or one SELECT over the views with `$name` for each parameter.

    Raises:
        UserError: no such query, a parameter it does not take or that has a bad value, bad SQL.
    """
    given = dict(parameters or {})
    with connect() as connection:
        question = queries().get(name_or_sql)
        if question:
            return _answer(connection, question, given)
        return _select(connection, _one_select(connection, name_or_sql), given)


def check(since: date | None = None) -> dict[str, pl.DataFrame]:
    """The rows that break each check, none where it passes; of the nights from `since` on."""
    given = {} if since is None else {"since": str(since)}
    with connect() as connection:
        return {
            name: _answer(connection, question, given if question.parameters else {})
            for name, question in checks().items()
        }


def status() -> dict[str, pl.DataFrame]:
    """What the lake covers, the champion, the last nights and the last runs, by title."""
    with connect() as connection:
        asked = {
            title: _answer(connection, queries()[name], given)
            for title, (name, given) in STATUS.items()
        }
    return {"Champion": _champion(), **asked}


def _champion() -> pl.DataFrame:
    """The last known champion, as the home's copy says it."""
    file = paths.champion_file()
    rows = [json.loads(file.read_bytes())] if file.exists() else []
    return pl.DataFrame(rows, schema={"version": pl.String, "run_id": pl.String})


@contextmanager
def connect() -> Iterator[duckdb.DuckDBPyConnection]:
    """A database in memory with the views of the home, which can open nothing else."""
    with (
        tempfile.TemporaryDirectory(prefix="meterwatch-") as scratch,
        duckdb.connect() as connection,
    ):
        home = paths.home_dir().absolute()
        connection.execute("SET TimeZone = 'UTC'")
        connection.execute("SET temp_directory = $scratch", {"scratch": scratch})
        for name, value in _variables(home, Path(scratch)).items():
            connection.execute(f"SET VARIABLE {name} = $value", {"value": value})
        allowed = [str(home), escape(str(home)), scratch]
        connection.execute("SET allowed_directories = $allowed", {"allowed": allowed})
        connection.execute("SET enable_external_access = false")
        connection.execute("SET lock_configuration = true")
        _look(connection)
        yield connection


def _look(connection: duckdb.DuckDBPyConnection) -> None:
    try:
        connection.execute(text("views.sql"))
    except duckdb.Error as error:
        raise UserError(_first_line(error)) from None


def _variables(home: Path, scratch: Path) -> dict[str, str | float]:
    """The globs of the tables and what the checks need of the settings."""
    limits = get_settings().model_dump(include={"supply_limit_kwh"})
    globs = {name: _glob(home, name, scratch) for name in paths.TABLE_GLOBS}
    return {"results": f"{escape(str(home))}/tables/**", **globs, **limits}


def _glob(home: Path, name: str, scratch: Path) -> str:
    """The glob of a table's files; an absent table is an empty file in `scratch`."""
    if any(home.glob(paths.TABLE_GLOBS[name])):
        return f"{escape(str(home))}/{paths.TABLE_GLOBS[name]}"
    from tasks import lake  # its schemas take a second to import

    path = scratch / name / "night=2000-01-01" / "empty.parquet"
    path.parent.mkdir(parents=True)
    lake.TABLE_SCHEMAS[name].create_empty().write_parquet(path)
    return str(path)


def _answer(
    connection: duckdb.DuckDBPyConnection, question: Question, given: Mapping[str, str]
) -> pl.DataFrame:
    known = [parameter.name for parameter in question.parameters]
    for name in given:
        if name not in known:
            takes = ", ".join(known) or "none"
            raise UserError(f"{question.name} has no parameter {name!r}; it takes: {takes}")
    values = {
        parameter.name: _value(connection, question, parameter, given)
        for parameter in question.parameters
    }
    return _select(connection, question.sql, values)


def _value(
    connection: duckdb.DuckDBPyConnection,
    question: Question,
    parameter: Parameter,
    given: Mapping[str, str],
) -> object:
    """The value of a parameter, given or by default, in its type."""
    name, kind = parameter.name, parameter.kind
    if name in given:
        try:
            sql = f"SELECT CAST($value AS {kind})"
            rows = connection.execute(sql, {"value": given[name]}).fetchall()
        except duckdb.ConversionException:
            raise UserError(
                f"{question.name}: {name} is {given[name]!r}, expected {kind}"
            ) from None
    elif parameter.default is None:
        raise UserError(f"{question.name} needs --param {name}=...")
    else:
        rows = connection.execute(f"SELECT CAST({parameter.default} AS {kind})").fetchall()
    return rows[0][0]


def _one_select(connection: duckdb.DuckDBPyConnection, sql: str) -> str:
    """The SQL, if it is one SELECT."""
    if re.fullmatch(r"[\w.-]*", sql.strip()):
        raise UserError(f"no query named {sql.strip()!r}; there are: {', '.join(queries())}")
    try:
        statements = connection.extract_statements(sql)
    except duckdb.Error as error:
        raise UserError(_first_line(error)) from None
    if [statement.type for statement in statements] != [duckdb.StatementType.SELECT]:
        raise UserError("a query is one SELECT over the views")
    return sql


def _select(
    connection: duckdb.DuckDBPyConnection, sql: str, values: Mapping[str, object]
) -> pl.DataFrame:
    """The answer, handed over as Parquet: `.pl()` would import pyarrow and NumPy for 0.6 s."""
    scratch = connection.execute("SELECT current_setting('temp_directory')").fetchall()[0][0]
    answer = Path(scratch) / "answer.parquet"
    try:
        _plain(connection.sql(sql, params=dict(values))).write_parquet(str(answer))
    except duckdb.Error as error:
        raise UserError(_first_line(error)) from None
    return pl.read_parquet(answer, memory_map=False)


def _plain(relation: duckdb.DuckDBPyRelation) -> duckdb.DuckDBPyRelation:
    """The same answer without the types that Parquet or Polars lacks."""
    casts = []
    for name, kind in zip(relation.columns, map(str, relation.types), strict=True):
        plain = "BIGINT" if kind == "HUGEINT" else "VARCHAR" if FOREIGN.search(kind) else None
        if plain:
            quoted = name.replace('"', '""')
            casts.append(f'"{quoted}"::{plain} AS "{quoted}"')
    if not casts:
        return relation
    return relation.select(duckdb.SQLExpression(f"* REPLACE ({', '.join(casts)})"))


def _first_line(error: duckdb.Error) -> str:
    return str(error).partition("\n")[0]
