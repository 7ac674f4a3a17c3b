"""Which delivered files a call names, what each holds, and what lies beside them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from ml.errors import UserError
from ml.ingest.delivered import HOUSEHOLD_ID_COLUMNS, TableFormat, TableKind, recognise_format
from tasks import lake
from tasks.delivered import (
    DELIVERED_SUFFIXES,
    DeliveredTable,
    list_tables,
    name_file_in_errors,
    read_column_names,
)

COMPANIONS: Final[tuple[TableKind, ...]] = ("households", "weather", "holidays", "tariffs")


@dataclass
class Found:
    """What a call delivers, in the order of file names; nothing in it depends on argument order."""

    readings: list[DeliveredTable] = field(default_factory=list)
    companions: list[tuple[TableKind, DeliveredTable]] = field(default_factory=list)
    left_aside: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Candidate:
    path: Path
    file: str
    is_named: bool


def discover(sources: list[str], options: Mapping[TableKind, str | None]) -> Found:
    """Find the delivered tables of files, directories and globs, and their companions."""
    found = Found()
    named = list(_candidates(sources, found))
    for candidate in sorted(_once(named), key=lambda each: (each.path.name, str(each.path))):
        _examine(candidate, found)
    for path in _beside(named):
        _adopt(path, found)
    for kind, option in options.items():
        if option is not None:
            found.companions = [each for each in found.companions if each[0] != kind]
            _take(kind, Path(option), found)
    if not (found.readings or found.failures):
        found.failures = [f"{source}: holds no delivered readings" for source in sources]
    return found


def _candidates(sources: list[str], found: Found) -> Iterator[_Candidate]:
    for source in sources:
        path = Path(source)
        if path.is_dir():
            yield from _inside(path)
        elif path.exists():
            yield _Candidate(path.resolve(), path.name, is_named=True)
        elif matches := _matches(path):
            yield from _candidates([str(match) for match in matches], found)
        else:
            found.failures.append(f"{source}: no such file or directory")


def _matches(pattern: Path) -> list[Path]:
    """The paths that a glob names."""
    return sorted(Path(pattern.anchor).glob(str(pattern.relative_to(pattern.anchor))))


def _inside(directory: Path) -> Iterator[_Candidate]:
    """The tables below a directory, without hidden files and without this home's own state."""
    root, home = directory.resolve(), lake.home().resolve()
    for path in sorted(root.rglob("*")):
        below = path.relative_to(root)
        is_own = path.is_relative_to(home) and not root.is_relative_to(home)
        is_hidden = any(part.startswith(".") for part in below.parts)
        if _is_table(path) and not is_own and not is_hidden:
            yield _Candidate(path, below.as_posix(), is_named=False)


def _is_table(path: Path) -> bool:
    return path.name.lower().endswith(DELIVERED_SUFFIXES) and path.is_file()


def _once(candidates: list[_Candidate]) -> list[_Candidate]:
    """Each file once; named by itself counts more than found in a directory."""
    return list({each.path: each for each in sorted(candidates, key=_naming)}.values())


def _naming(candidate: _Candidate) -> tuple[bool, str]:
    return candidate.is_named, candidate.file


def _examine(candidate: _Candidate, found: Found) -> None:
    """Sort the tables of one file by what they hold."""
    try:
        held = list_tables(candidate.path, candidate.file)
    except UserError as error:
        found.failures.append(str(error))
        return
    for table in held:
        try:
            _sort_in(table, read_column_names(table), candidate.is_named, found)
        except UserError as error:
            found.failures.append(str(error))


def _sort_in(table: DeliveredTable, names: list[str], is_named: bool, found: Found) -> None:
    try:
        shape = recognise_format(names)
    except UserError as error:
        message = f"{table.file}: {error}"
        is_failure = is_named or HOUSEHOLD_ID_COLUMNS & {*names}
        (found.failures if is_failure else found.left_aside).append(message)
        return
    if shape.kind == "readings":
        found.readings.append(table)
    elif shape.kind in COMPANIONS:
        found.companions.append((shape.kind, table))
    elif is_named:
        found.failures.append(f"{table.file}: holds {shape.title}, not readings")


def _beside(candidates: list[_Candidate]) -> list[Path]:
    """Files in the directory of a named file and in the one above it."""
    named = {each.path for each in candidates if each.is_named}
    directories = {directory for path in named for directory in path.parents[:2]}
    beside = {path for directory in directories for path in directory.glob("*") if _is_table(path)}
    return sorted(beside - {each.path for each in candidates})


def _adopt(path: Path, found: Found) -> None:
    """Take a file beside the named ones where it is a companion; another is nobody's fault."""
    try:
        for table in list_tables(path, path.name):
            shape = recognise_format(read_column_names(table))
            if shape.kind in COMPANIONS:
                found.companions.append((shape.kind, table))
    except UserError:
        return


def _take(kind: TableKind, path: Path, found: Found) -> None:
    """Take the companion that an option names."""
    try:
        if not path.exists():
            raise UserError(f"{path}: no such file")
        for table in list_tables(path, path.name):
            if _shape(table).kind != kind:
                raise UserError(f"{table.file}: holds {_shape(table).title}, not {kind}")
            found.companions.append((kind, table))
    except UserError as error:
        found.failures.append(str(error))


def _shape(table: DeliveredTable) -> TableFormat:
    names = read_column_names(table)
    with name_file_in_errors(table.file):
        return recognise_format(names)
