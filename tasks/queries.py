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
from tasks.named_queries import NamedQuery, QueryParameter, load_named_queries, read_sql_file
from tasks.settings import get_settings

UNSUPPORTED_SQL_TYPES: Final = re.compile(r"INTERVAL|UNION|UUID|JSON")
STATUS_QUERIES: Final = {
    "Lake": ("lake_coverage", {}),
    "Last nights": ("coverage_by_night", {"limit": "7"}),
    "Last runs": ("recent_runs", {"limit": "5"}),
}


def list_queries() -> dict[str, NamedQuery]:
    """The named queries."""
    return load_named_queries("queries")


def list_checks() -> dict[str, NamedQuery]:
    """The checks: each returns the rows that break it."""
    return load_named_queries("checks")


def run_query(name_or_sql: str, parameter_values: Mapping[str, str] | None = None) -> pl.DataFrame:
    """Answer a named query, or one SELECT over the views with `$name` for each parameter.

    Raises:
        UserError: no such query, a parameter it does not take or that has a bad value, bad SQL.
    """
    given = dict(parameter_values or {})
    with open_database() as connection:
        question = list_queries().get(name_or_sql)
        if question:
            return _answer_named_query(connection, question, given)
        return _execute_select(connection, _require_one_select(connection, name_or_sql), given)


def run_checks(since: date | None = None) -> dict[str, pl.DataFrame]:
    """The rows that break each check, none where it passes; of the nights from `since` on."""
    given = {} if since is None else {"since": str(since)}
    with open_database() as connection:
        return {
            name: _answer_named_query(connection, question, given if question.parameters else {})
            for name, question in list_checks().items()
        }


def collect_status() -> dict[str, pl.DataFrame]:
    """What the lake covers, the champion, the last nights and the last runs, by title."""
    with open_database() as connection:
        asked = {
            title: _answer_named_query(connection, list_queries()[name], given)
            for title, (name, given) in STATUS_QUERIES.items()
        }
    return {"Champion": _load_champion(), **asked}


def _load_champion() -> pl.DataFrame:
    """The last known champion, as the home's copy says it."""
    file = paths.champion_file()
    rows = [json.loads(file.read_bytes())] if file.exists() else []
    return pl.DataFrame(rows, schema={"version": pl.String, "run_id": pl.String})


@contextmanager
def open_database() -> Iterator[duckdb.DuckDBPyConnection]:
    """A database in memory with the views of the home, which can open nothing else."""
    with (
        tempfile.TemporaryDirectory(prefix="meterwatch-") as scratch,
        duckdb.connect() as connection,
    ):
        home = paths.home_dir().absolute()
        connection.execute("SET TimeZone = 'UTC'")
        connection.execute("SET temp_directory = $scratch", {"scratch": scratch})
        for name, value in _build_sql_variables(home, Path(scratch)).items():
            connection.execute(f"SET VARIABLE {name} = $value", {"value": value})
        allowed = [str(home), escape(str(home)), scratch]
        connection.execute("SET allowed_directories = $allowed", {"allowed": allowed})
        connection.execute("SET enable_external_access = false")
        connection.execute("SET lock_configuration = true")
        _create_views(connection)
        yield connection


def _create_views(connection: duckdb.DuckDBPyConnection) -> None:
    try:
        connection.execute(read_sql_file("views.sql"))
    except duckdb.Error as error:
        raise UserError(_summarize_error(error)) from None


def _build_sql_variables(home: Path, scratch_dir: Path) -> dict[str, str | float]:
    """The globs of the tables and what the checks need of the settings."""
    limits = get_settings().model_dump(include={"supply_limit_kwh"})
    globs = {name: _find_table_glob(home, name, scratch_dir) for name in paths.TABLE_GLOBS}
    return {"results": f"{escape(str(home))}/tables/**", **globs, **limits}


def _find_table_glob(home: Path, table: str, scratch_dir: Path) -> str:
    """The glob of a table's files; an absent table is an empty file in `scratch`."""
    if any(home.glob(paths.TABLE_GLOBS[table])):
        return f"{escape(str(home))}/{paths.TABLE_GLOBS[table]}"
    from tasks import storage  # its schemas take a second to import

    path = scratch_dir / table / "night=2000-01-01" / "empty.parquet"
    path.parent.mkdir(parents=True)
    storage.TABLE_SCHEMAS[table].create_empty().write_parquet(path)
    return str(path)


def _answer_named_query(
    connection: duckdb.DuckDBPyConnection,
    named_query: NamedQuery,
    parameter_values: Mapping[str, str],
) -> pl.DataFrame:
    known = [parameter.name for parameter in named_query.parameters]
    for name in parameter_values:
        if name not in known:
            takes = ", ".join(known) or "none"
            raise UserError(f"{named_query.name} has no parameter {name!r}; it takes: {takes}")
    values = {
        parameter.name: _convert_parameter(connection, named_query, parameter, parameter_values)
        for parameter in named_query.parameters
    }
    return _execute_select(connection, named_query.sql, values)


def _convert_parameter(
    connection: duckdb.DuckDBPyConnection,
    named_query: NamedQuery,
    parameter: QueryParameter,
    parameter_values: Mapping[str, str],
) -> object:
    """The value of a parameter, given or by default, in its type."""
    name, kind = parameter.name, parameter.sql_type
    if name in parameter_values:
        try:
            sql = f"SELECT CAST($value AS {kind})"
            rows = connection.execute(sql, {"value": parameter_values[name]}).fetchall()
        except duckdb.ConversionException:
            raise UserError(
                f"{named_query.name}: {name} is {parameter_values[name]!r}, expected {kind}"
            ) from None
    elif parameter.default_sql is None:
        raise UserError(f"{named_query.name} needs --param {name}=...")
    else:
        rows = connection.execute(f"SELECT CAST({parameter.default_sql} AS {kind})").fetchall()
    return rows[0][0]


def _require_one_select(connection: duckdb.DuckDBPyConnection, sql: str) -> str:
    """The SQL, if it is one SELECT."""
    if re.fullmatch(r"[\w.-]*", sql.strip()):
        raise UserError(f"no query named {sql.strip()!r}; there are: {', '.join(list_queries())}")
    try:
        statements = connection.extract_statements(sql)
    except duckdb.Error as error:
        raise UserError(_summarize_error(error)) from None
    if [statement.type for statement in statements] != [duckdb.StatementType.SELECT]:
        raise UserError("a query is one SELECT over the views")
    return sql


def _execute_select(
    connection: duckdb.DuckDBPyConnection, sql: str, parameter_values: Mapping[str, object]
) -> pl.DataFrame:
    """The answer, handed over as Parquet: `.pl()` would import pyarrow and NumPy for 0.6 s."""
    scratch = connection.execute("SELECT current_setting('temp_directory')").fetchall()[0][0]
    answer = Path(scratch) / "answer.parquet"
    try:
        _cast_unsupported_types(connection.sql(sql, params=dict(parameter_values))).write_parquet(
            str(answer)
        )
    except duckdb.Error as error:
        raise UserError(_summarize_error(error)) from None
    return pl.read_parquet(answer, memory_map=False)


def _cast_unsupported_types(relation: duckdb.DuckDBPyRelation) -> duckdb.DuckDBPyRelation:
    """The same answer without the types that Parquet or Polars lacks."""
    casts = []
    for name, kind in zip(relation.columns, map(str, relation.types), strict=True):
        plain = (
            "BIGINT"
            if kind == "HUGEINT"
            else "VARCHAR"
            if UNSUPPORTED_SQL_TYPES.search(kind)
            else None
        )
        if plain:
            quoted = name.replace('"', '""')
            casts.append(f'"{quoted}"::{plain} AS "{quoted}"')
    if not casts:
        return relation
    return relation.select(duckdb.SQLExpression(f"* REPLACE ({', '.join(casts)})"))


def _summarize_error(error: duckdb.Error) -> str:
    return str(error).partition("\n")[0]
