"""Ask the home in SQL: DuckDB over its Parquet files, by the views and macros of `sql/`.

The database is in memory and made anew for each use. A user's SQL is one SELECT, and DuckDB itself
can open nothing outside the home, so nothing can be written and nothing else be read.
"""

import json
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from glob import escape
from importlib.resources import files
from pathlib import Path
from typing import Final

import duckdb
import polars as pl

from ml.errors import UserError
from tasks import paths, task
from tasks.settings import Settings, get_settings

STATUS_QUERIES: Final[dict[str, tuple[str, dict[str, str]]]] = {
    "Lake": ("lake_coverage", {}),
    "Last nights": ("coverage_by_night", {"n": "7"}),
    "Last runs": ("recent_runs", {"n": "5"}),
}
"""Titles of `status` with their query and its parameters. A week of nights; 5 runs are chosen."""

PARAMETER_ALIASES: Final = {
    "household_id": "of_household",
    "night": "of_night",
    "first_night": "from_night",
    "last_night": "to_night",
    "limit": "n",
}
"""Names that `--param` also takes, by column, and the macros' parameters that they stand for.

A macro's parameter must not be named as a column: DuckDB 2.0 puts it in the column's place, also
inside the views that the macro reads. LIMIT is a reserved word.
"""

SQL_TYPES_WITHOUT_POLARS_TYPE: Final = re.compile(r"INTERVAL|UNION")
"""`relation.pl()` raises or panics on these (DuckDB 2.0, Polars 2.1), also inside lists."""

NAME_PATTERN: Final = re.compile(r"[\w.-]*")
"""What can only be the name of a query: one word is never a SELECT."""


@dataclass(frozen=True)
class QueryParameter:
    """A parameter of a named query."""

    name: str
    sql_type: str


@dataclass(frozen=True)
class NamedQuery:
    """A table macro of `sql/macros`, as DuckDB's catalogue describes it."""

    name: str
    description: str
    parameters: tuple[QueryParameter, ...]


@dataclass(frozen=True)
class Check:
    """A SELECT of the rows that break a rule, in `sql/checks`, described by its first line."""

    name: str
    description: str
    sql: str

    @property
    def takes_since(self) -> bool:
        """Return whether the check can be restricted to the nights from `$since` on."""
        return "$since" in self.sql


def list_queries() -> dict[str, NamedQuery]:
    """Return the named queries by name, in alphabetical order."""
    with open_database() as connection:
        return _read_catalogue(connection)


def list_checks() -> dict[str, Check]:
    """Return the checks by name, in alphabetical order."""
    return {
        name: Check(name, _read_description(sql), sql)
        for name, sql in _read_sql_directory("checks").items()
    }


def run_query(name_or_sql: str, parameter_values: Mapping[str, str] | None = None) -> pl.DataFrame:
    """Answer a named query, or one SELECT over views and macros with `$name` for each parameter.

    Raises:
        UserError: no such query, a parameter it does not take or that has a bad value, bad SQL.
    """
    values = dict(parameter_values or {})
    with open_database() as connection:
        named_queries = _read_catalogue(connection)
        if name_or_sql in named_queries:
            return _answer_named_query(connection, named_queries[name_or_sql], values)
        _require_one_select(connection, name_or_sql, list(named_queries))
        return _execute_select(connection, name_or_sql, values)


def run_checks(since: date | None = None) -> dict[str, pl.DataFrame]:
    """Return the rows that break each check, by its name; none where it passes.

    With `since`, checks that can be restricted look at the nights from then on only.
    """
    first_night = {"since": since or date.min}
    with open_database() as connection:
        return {
            name: _execute_select(connection, check.sql, first_night if check.takes_since else {})
            for name, check in list_checks().items()
        }


@task(name="check tables")
def count_offending_rows(since: date) -> dict[str, int]:
    """Count the rows that break each check, of the nights from `since` on, as a step of a flow."""
    return {name: rows.height for name, rows in run_checks(since).items()}


def collect_status() -> dict[str, pl.DataFrame]:
    """Return what the lake covers, the champion, the last nights and the last runs, by title."""
    with open_database() as connection:
        named_queries = _read_catalogue(connection)
        answers = {
            title: _answer_named_query(connection, named_queries[name], values)
            for title, (name, values) in STATUS_QUERIES.items()
        }
    return {"Champion": _load_champion(), **answers}


def _load_champion() -> pl.DataFrame:
    """Return the last known champion from the home's copy, which needs no MLflow; none: no row."""
    file = paths.champion_file()
    rows = [json.loads(file.read_bytes())] if file.exists() else []
    return pl.DataFrame(rows, schema={"version": pl.String, "run_id": pl.String})


@contextmanager
def open_database() -> Iterator[duckdb.DuckDBPyConnection]:
    """Open a database in memory with views and macros over the home, which can open nothing else.

    Raises:
        UserError: a file of the home cannot be read.
    """
    settings = get_settings()
    with (
        tempfile.TemporaryDirectory(prefix="meterwatch-") as scratch,
        duckdb.connect() as connection,
    ):
        home = settings.home.absolute()
        connection.execute("SET TimeZone = 'UTC'")
        connection.execute("SET temp_directory = $scratch", {"scratch": scratch})
        empty_file = _write_empty_file(connection, Path(scratch))
        for name, value in _build_sql_variables(settings, home, empty_file).items():
            connection.execute(f"SET VARIABLE {name} = $value", {"value": value})
        allowed = [str(home), escape(str(home)), scratch]
        connection.execute("SET allowed_directories = $allowed", {"allowed": allowed})
        connection.execute("SET enable_external_access = false")
        connection.execute("SET lock_configuration = true")
        _create_views_and_macros(connection)
        yield connection


def _write_empty_file(connection: duckdb.DuckDBPyConnection, scratch_dir: Path) -> Path:
    """Write a Parquet file without rows, which stands for the files of an absent table.

    read_parquet refuses a glob without files. `days` is read with the columns of its files, so they
    are those of this one; `sql/tables.sql` states the columns of all others. The directory is one
    that `night_of_file` can parse.
    """
    path = scratch_dir / "night=2000-01-01" / "empty.parquet"
    path.parent.mkdir()
    connection.sql(
        "SELECT NULL::DATE AS night, NULL::VARCHAR AS household_id, NULL::SMALLINT AS n_readings, "
        "NULL::FLOAT[] AS kwh WHERE false"
    ).write_parquet(str(path))
    return path


def _build_sql_variables(
    settings: Settings, home: Path, empty_file: Path
) -> dict[str, str | float | date | None]:
    """Return what the SQL reads by getvariable(): globs of files, the last night, settings."""
    globs = {
        table: f"{escape(str(home))}/{pattern}" if any(home.glob(pattern)) else str(empty_file)
        for table, pattern in paths.TABLE_GLOBS.items()
    }
    # By the directories, not by max(night): DuckDB prunes files by constants, not by subqueries,
    # so a macro whose default night is a subquery would read the scores of all nights.
    scored_nights = [
        path.parent.name.removeprefix("night=") for path in paths.list_table_files("scores")
    ]
    return {
        **globs,
        "results": f"{escape(str(home))}/tables/**",
        "last_scored_night": date.fromisoformat(scored_nights[-1]) if scored_nights else None,
        "supply_limit_kwh": settings.supply_limit_kwh,
    }


def _create_views_and_macros(connection: duckdb.DuckDBPyConnection) -> None:
    try:
        for file in ("tables.sql", "views.sql"):
            connection.execute(files("sql").joinpath(file).read_text(encoding="utf-8"))
        for name, sql in _read_sql_directory("macros").items():
            connection.execute(sql)
            description = _read_description(sql).replace("'", "''")
            connection.execute(f"COMMENT ON MACRO TABLE {name} IS '{description}'")
    except duckdb.Error as error:
        raise UserError(_summarize_error(error)) from None


def _read_sql_directory(directory: str) -> dict[str, str]:
    """Return the text of each SQL file of a directory of `sql/` by its stem, sorted."""
    found = [
        path for path in files("sql").joinpath(directory).iterdir() if path.name[-4:] == ".sql"
    ]
    return {
        path.name.removesuffix(".sql"): path.read_text(encoding="utf-8")
        for path in sorted(found, key=lambda path: path.name)
    }


def _read_description(sql: str) -> str:
    return sql.partition("\n")[0].removeprefix("-- ")


def _read_catalogue(connection: duckdb.DuckDBPyConnection) -> dict[str, NamedQuery]:
    rows = connection.execute(
        "SELECT function_name, comment, parameters, parameter_types FROM duckdb_functions() "
        "WHERE function_type = 'table_macro' AND NOT internal ORDER BY function_name"
    ).fetchall()
    return {
        name: NamedQuery(name, description, tuple(map(QueryParameter, parameter_names, sql_types)))
        for name, description, parameter_names, sql_types in rows
    }


def _answer_named_query(
    connection: duckdb.DuckDBPyConnection,
    named_query: NamedQuery,
    parameter_values: Mapping[str, str],
) -> pl.DataFrame:
    sql_types = {parameter.name: parameter.sql_type for parameter in named_query.parameters}
    values = {}
    for given_name, value in parameter_values.items():
        name = PARAMETER_ALIASES.get(given_name, given_name)
        if name not in sql_types:
            accepted = ", ".join(sql_types) or "none"
            raise UserError(
                f"{named_query.name} has no parameter {given_name!r}; it takes: {accepted}"
            )
        _refuse_bad_value(connection, named_query.name, name, value, sql_types[name])
        values[name] = value
    for name in sql_types:
        if name not in values and not _has_default(connection, named_query, name):
            raise UserError(f"{named_query.name} needs --param {name}=...")
    arguments = (f"{name} := CAST(${name} AS {sql_types[name]})" for name in values)
    return _execute_select(
        connection, f"SELECT * FROM {named_query.name}({', '.join(arguments)})", values
    )


def _refuse_bad_value(
    connection: duckdb.DuckDBPyConnection, query_name: str, name: str, value: str, sql_type: str
) -> None:
    try:
        connection.execute(f"SELECT CAST($value AS {sql_type})", {"value": value}).fetchall()
    except duckdb.ConversionException:
        raise UserError(f"{query_name}: {name} is {value!r}, expected {sql_type}") from None


def _has_default(connection: duckdb.DuckDBPyConnection, named_query: NamedQuery, name: str) -> bool:
    """Return whether a parameter may be left out, by planning the query with all others given.

    The catalogue names parameters and types, but not which of them have a default (DuckDB 2.0).
    """
    others = (
        f"{other.name} := NULL::{other.sql_type}"
        for other in named_query.parameters
        if other.name != name
    )
    try:
        connection.sql(f"FROM {named_query.name}({', '.join(others)})")
    except duckdb.BinderException:
        return False
    return True


def _require_one_select(
    connection: duckdb.DuckDBPyConnection, sql: str, query_names: list[str]
) -> None:
    """Refuse what is neither the name of a query nor one SELECT."""
    if NAME_PATTERN.fullmatch(sql.strip()):
        raise UserError(f"no query named {sql.strip()!r}; there are: {', '.join(query_names)}")
    try:
        statements = connection.extract_statements(sql)
    except duckdb.Error as error:
        raise UserError(_summarize_error(error)) from None
    if [statement.type for statement in statements] != [duckdb.StatementType.SELECT]:
        raise UserError("a query is one SELECT over the views")


def _execute_select(
    connection: duckdb.DuckDBPyConnection, sql: str, parameter_values: Mapping[str, object]
) -> pl.DataFrame:
    try:
        relation = connection.sql(sql, params=dict(parameter_values))
        return _cast_for_polars(relation).pl()
    except duckdb.Error as error:
        raise UserError(_summarize_error(error)) from None


def _cast_for_polars(relation: duckdb.DuckDBPyRelation) -> duckdb.DuckDBPyRelation:
    """Return the same rows without types that Polars lacks: as text, and sums of integers as Int64.

    DuckDB sums integers to HUGEINT, which would become a decimal, and a string in JSON.
    """
    casts = []
    for name, sql_type in zip(relation.columns, map(str, relation.types), strict=True):
        if sql_type == "HUGEINT":
            target_type = "BIGINT"
        elif SQL_TYPES_WITHOUT_POLARS_TYPE.search(sql_type):
            target_type = "VARCHAR"
        else:
            continue
        quoted_name = name.replace('"', '""')
        casts.append(f'"{quoted_name}"::{target_type} AS "{quoted_name}"')
    if not casts:
        return relation
    return relation.select(duckdb.SQLExpression(f"* REPLACE ({', '.join(casts)})"))


def _summarize_error(error: duckdb.Error) -> str:
    return str(error).partition("\n")[0]
