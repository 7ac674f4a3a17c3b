"""Find the delivered tables that a call names, and the reference tables beside them.

A table is recognised by its columns. They are recognised again where its rows are read: a file in
the landing directory may have been replaced meanwhile.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from ml.errors import UserError
from ml.ingest.formats import HOUSEHOLD_ID_COLUMNS, TableKind, recognise_format
from tasks import paths
from tasks.ingest.delivered_files import (
    DELIVERED_SUFFIXES,
    DeliveredTable,
    list_tables,
    name_file_in_errors,
    read_column_names,
)

REFERENCE_KINDS: Final[tuple[TableKind, ...]] = ("households", "weather", "holidays", "tariffs")


@dataclass
class DiscoveredTables:
    """The tables that a call delivers, ordered by file name, never by the order of arguments."""

    reading_tables: list[DeliveredTable] = field(default_factory=list)
    reference_tables: list[tuple[TableKind, DeliveredTable]] = field(default_factory=list)
    ignored_files: list[str] = field(default_factory=list)
    """A line each on files of a directory that are of no known format."""
    failures: list[str] = field(default_factory=list)
    """A line each on what could not be read or is not what it was named for."""


@dataclass(frozen=True)
class _CandidateFile:
    """A file that a call may deliver; one named by itself must be a table of readings or beside."""

    path: Path
    file: str
    is_named: bool


def discover_tables(
    sources: list[str], reference_paths: Mapping[TableKind, str | None]
) -> DiscoveredTables:
    """Find the tables of files, directories and globs, and the reference tables beside them.

    A path in `reference_paths` takes the place of all reference tables of its kind. Whatever is
    wrong is a line in `failures`; nothing is raised.
    """
    discovered = DiscoveredTables()
    candidates = list(_list_candidates(sources, discovered))
    for candidate in _deduplicate_candidates(candidates):
        _classify_file(candidate, discovered)
    for path in _list_neighbouring_files(candidates):
        _add_neighbouring_references(path, discovered)
    for kind, reference_path in reference_paths.items():
        if reference_path is not None:
            discovered.reference_tables = [
                each for each in discovered.reference_tables if each[0] != kind
            ]
            _add_named_reference(kind, Path(reference_path), discovered)
    if not (discovered.reading_tables or discovered.failures):
        discovered.failures = [f"{source}: holds no delivered readings" for source in sources]
    return discovered


def _list_candidates(sources: list[str], discovered: DiscoveredTables) -> Iterator[_CandidateFile]:
    for source in sources:
        path = Path(source)
        if path.is_dir():
            yield from _list_directory_files(path)
        elif path.exists():
            yield _CandidateFile(path.resolve(), path.name, is_named=True)
        elif matches := _expand_glob(path):
            yield from _list_candidates([str(match) for match in matches], discovered)
        else:
            discovered.failures.append(f"{source}: no such file or directory")


def _expand_glob(pattern: Path) -> list[Path]:
    """Return the paths that a glob names, sorted."""
    # Path.glob takes no absolute pattern, so its root is split off.
    return sorted(Path(pattern.anchor).glob(str(pattern.relative_to(pattern.anchor))))


def _list_directory_files(directory: Path) -> Iterator[_CandidateFile]:
    """Yield the table files below a directory, without hidden ones and without our own state.

    A directory inside the home, such as the landing directory, is not our own state.
    """
    root, home = directory.resolve(), paths.home_dir().resolve()
    for path in sorted(root.rglob("*")):
        below = path.relative_to(root)
        is_own = path.is_relative_to(home) and not root.is_relative_to(home)
        is_hidden = any(part.startswith(".") for part in below.parts)
        if _is_table_file(path) and not is_own and not is_hidden:
            yield _CandidateFile(path, below.as_posix(), is_named=False)


def _is_table_file(path: Path) -> bool:
    return path.name.lower().endswith(DELIVERED_SUFFIXES) and path.is_file()


def _deduplicate_candidates(candidates: list[_CandidateFile]) -> list[_CandidateFile]:
    """Return each file once, by file name; named by itself counts more than in a directory."""
    # The last one of a path stays in the dictionary.
    best_last = sorted(candidates, key=_candidate_priority)
    unique = {each.path: each for each in best_last}.values()
    return sorted(unique, key=lambda each: (each.path.name, str(each.path)))


def _candidate_priority(candidate: _CandidateFile) -> tuple[bool, str]:
    return candidate.is_named, candidate.file


def _classify_file(candidate: _CandidateFile, discovered: DiscoveredTables) -> None:
    """Add the tables of one file to what was discovered, each by its kind."""
    try:
        tables = list_tables(candidate.path, candidate.file)
    except UserError as error:
        discovered.failures.append(str(error))
        return
    for table in tables:
        try:
            _classify_table(table, read_column_names(table), candidate.is_named, discovered)
        except UserError as error:
            discovered.failures.append(str(error))


def _classify_table(
    table: DeliveredTable, column_names: list[str], is_named: bool, discovered: DiscoveredTables
) -> None:
    """Add one table by its kind.

    An unknown format is a failure where a person named the file, or where it has a column of
    household ids and so was meant for us; another file of a directory is ignored.
    """
    try:
        table_format = recognise_format(column_names)
    except UserError as error:
        message = f"{table.file}: {error}"
        is_failure = is_named or HOUSEHOLD_ID_COLUMNS & {*column_names}
        (discovered.failures if is_failure else discovered.ignored_files).append(message)
        return
    if table_format.kind == "readings":
        discovered.reading_tables.append(table)
    elif table_format.kind in REFERENCE_KINDS:
        discovered.reference_tables.append((table_format.kind, table))
    elif is_named:
        discovered.failures.append(f"{table.file}: holds {table_format.title}, not readings")


def _list_neighbouring_files(candidates: list[_CandidateFile]) -> list[Path]:
    """Return the table files in the directory of a named file and in the one above it, sorted.

    The London data has its reference tables one directory above the readings.
    """
    named = {each.path for each in candidates if each.is_named}
    directories = {directory for path in named for directory in path.parents[:2]}
    neighbours = {
        path for directory in directories for path in directory.glob("*") if _is_table_file(path)
    }
    return sorted(neighbours - {each.path for each in candidates})


def _add_neighbouring_references(path: Path, discovered: DiscoveredTables) -> None:
    """Add the reference tables of a file; any other file was not asked for, so nothing is said."""
    try:
        for table in list_tables(path, path.name):
            kind = recognise_format(read_column_names(table)).kind
            if kind in REFERENCE_KINDS:
                discovered.reference_tables.append((kind, table))
    except UserError:
        return


def _add_named_reference(kind: TableKind, path: Path, discovered: DiscoveredTables) -> None:
    """Add the reference table that an option names; one of another kind is a failure."""
    try:
        if not path.exists():
            raise UserError(f"{path}: no such file")
        for table in list_tables(path, path.name):
            column_names = read_column_names(table)
            with name_file_in_errors(table.file):
                table_format = recognise_format(column_names)
            if table_format.kind != kind:
                raise UserError(f"{table.file}: holds {table_format.title}, not {kind}")
            discovered.reference_tables.append((kind, table))
    except UserError as error:
        discovered.failures.append(str(error))
