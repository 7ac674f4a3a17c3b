"""Which delivered files a call names, what each holds, and what lies beside them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from ml.errors import UserError
from ml.ingest.formats import HOUSEHOLD_ID_COLUMNS, TableFormat, TableKind, recognise_format
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
    """What a call delivers, in the order of file names; nothing in it depends on argument order."""

    reading_tables: list[DeliveredTable] = field(default_factory=list)
    reference_tables: list[tuple[TableKind, DeliveredTable]] = field(default_factory=list)
    ignored_files: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _CandidateFile:
    path: Path
    file: str
    is_named: bool


def discover_tables(
    sources: list[str], reference_paths: Mapping[TableKind, str | None]
) -> DiscoveredTables:
    """Find the delivered tables of files, directories and globs, and their companions."""
    found = DiscoveredTables()
    named = list(_list_candidates(sources, found))
    for candidate in sorted(
        _deduplicate_candidates(named), key=lambda each: (each.path.name, str(each.path))
    ):
        _classify_file(candidate, found)
    for path in _list_neighbouring_files(named):
        _add_neighbouring_references(path, found)
    for kind, option in reference_paths.items():
        if option is not None:
            found.reference_tables = [each for each in found.reference_tables if each[0] != kind]
            _add_named_reference(kind, Path(option), found)
    if not (found.reading_tables or found.failures):
        found.failures = [f"{source}: holds no delivered readings" for source in sources]
    return found


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
    """The paths that a glob names."""
    return sorted(Path(pattern.anchor).glob(str(pattern.relative_to(pattern.anchor))))


def _list_directory_files(directory: Path) -> Iterator[_CandidateFile]:
    """The tables below a directory, without hidden files and without this home's own state."""
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
    """Each file once; named by itself counts more than found in a directory."""
    return list({each.path: each for each in sorted(candidates, key=_candidate_priority)}.values())


def _candidate_priority(candidate: _CandidateFile) -> tuple[bool, str]:
    return candidate.is_named, candidate.file


def _classify_file(candidate: _CandidateFile, discovered: DiscoveredTables) -> None:
    """Sort the tables of one file by what they hold."""
    try:
        held = list_tables(candidate.path, candidate.file)
    except UserError as error:
        discovered.failures.append(str(error))
        return
    for table in held:
        try:
            _classify_table(table, read_column_names(table), candidate.is_named, discovered)
        except UserError as error:
            discovered.failures.append(str(error))


def _classify_table(
    table: DeliveredTable, column_names: list[str], is_named: bool, discovered: DiscoveredTables
) -> None:
    try:
        shape = recognise_format(column_names)
    except UserError as error:
        message = f"{table.file}: {error}"
        is_failure = is_named or HOUSEHOLD_ID_COLUMNS & {*column_names}
        (discovered.failures if is_failure else discovered.ignored_files).append(message)
        return
    if shape.kind == "readings":
        discovered.reading_tables.append(table)
    elif shape.kind in REFERENCE_KINDS:
        discovered.reference_tables.append((shape.kind, table))
    elif is_named:
        discovered.failures.append(f"{table.file}: holds {shape.title}, not readings")


def _list_neighbouring_files(candidates: list[_CandidateFile]) -> list[Path]:
    """Files in the directory of a named file and in the one above it."""
    named = {each.path for each in candidates if each.is_named}
    directories = {directory for path in named for directory in path.parents[:2]}
    beside = {
        path for directory in directories for path in directory.glob("*") if _is_table_file(path)
    }
    return sorted(beside - {each.path for each in candidates})


def _add_neighbouring_references(path: Path, discovered: DiscoveredTables) -> None:
    """Take a file beside the named ones where it is a companion; another is nobody's fault."""
    try:
        for table in list_tables(path, path.name):
            shape = recognise_format(read_column_names(table))
            if shape.kind in REFERENCE_KINDS:
                discovered.reference_tables.append((shape.kind, table))
    except UserError:
        return


def _add_named_reference(kind: TableKind, path: Path, discovered: DiscoveredTables) -> None:
    """Take the companion that an option names."""
    try:
        if not path.exists():
            raise UserError(f"{path}: no such file")
        for table in list_tables(path, path.name):
            if _recognise_table(table).kind != kind:
                raise UserError(f"{table.file}: holds {_recognise_table(table).title}, not {kind}")
            discovered.reference_tables.append((kind, table))
    except UserError as error:
        discovered.failures.append(str(error))


def _recognise_table(table: DeliveredTable) -> TableFormat:
    names = read_column_names(table)
    with name_file_in_errors(table.file):
        return recognise_format(names)
