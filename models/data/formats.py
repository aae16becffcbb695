"""Tables in text files, as the field writes them, turned into columns that remember their line.

    MovieLens   u.data (tab, no header), ratings.dat (`::`, no header)
    LibRec      ratings.txt (spaces, no header)
    RecBole     name.inter: a header of `name:type` fields, tab
    Steam-200k  user, "game", purchase or play, hours, 0 (comma, no header)
    any other   CSV, TSV and the like with or without a header, quoted or not

Nothing is guessed silently: what cannot be read is a `DataError` with file and line. `models.data.files` reads what
is not a table.
"""

from __future__ import annotations

import bisect
import csv
import re
import zlib
from typing import TYPE_CHECKING, Literal, NamedTuple, NoReturn

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    Column1D = Sequence | np.ndarray

Column = str | int | None
OptionalColumn = str | int | Literal[False] | None

SEPARATORS = {"::": "'::'", "\t": "tab", ",": "comma", ";": "semicolon", "|": "'|'", " ": "space"}
_STEAM = frozenset(("purchase", "play"))
_TYPED = re.compile(r"[^:]+:(token|float|token_seq|float_seq)")
_NAMES = {
    "user": "user user_id userid uid reviewerid reviewer_id customer_id member_id session session_id",
    "item": "item item_id itemid iid sid movie movie_id movieid asin product product_id business_id game game_id "
    "artist_id artistid book_id isbn song_id track_id venue_id poi poi_id location_id",
    "rating": "rating ratings score stars overall",
    "time": "timestamp time ts unixreviewtime datetime position order",
    "split": "split",
}
KNOWN = {role: frozenset(names.split()) for role, names in _NAMES.items()}


class DataError(ValueError):
    """Data that cannot be read: where (`path`, `line`, counted from 1), what is wrong and what to do."""

    def __init__(self, path: str, line: int, message: str, unit: str = "line") -> None:
        super().__init__(f"{path}, {unit} {line}: {message}")
        self.path = path
        self.line = line


class Raw(NamedTuple):
    """Columns as they were written; `fail` turns a row number into an error that names file and line.

    Args:
        user, item, rating, time, split: one value an event, None where the source has no such column.
        path, lines, unit: where the events stand, for errors.
        begins: (first row, path) of each file when the rows come from several.
        sizes: (users, items) of a matrix, whose ids are its rows and columns: those without an event count too.
    """

    user: Column1D
    item: Column1D
    rating: Column1D | None
    time: Column1D | None
    split: Column1D | None
    path: str
    lines: Sequence[int] | np.ndarray
    unit: str = "line"
    begins: tuple[tuple[int, str], ...] = ()
    sizes: tuple[int, int] | None = None

    def path_of(self, row: int) -> str:
        """The file that holds a row."""
        at = bisect.bisect_right(self.begins, row, key=lambda begin: begin[0])
        return self.begins[at - 1][1] if at else self.path

    def fail(self, row: int, message: str) -> NoReturn:
        raise DataError(self.path_of(row), int(self.lines[row]), message, self.unit)


class Roles(NamedTuple):
    """Which column is what: a name, a position from 0, None to detect, False (rating, time, split) to leave out."""

    user: Column = None
    item: Column = None
    rating: OptionalColumn = None
    time: OptionalColumn = None
    split: OptionalColumn = None


def named_roles(roles: Roles) -> list[str]:
    """The roles a column was given for, by name or position (position 0 too); leaving out is not naming."""
    return [role for role, column in zip(Roles._fields, roles) if column is not None and column is not False]


def read(text: str, path: str, roles: Roles, *, sep: str | None = None, header: bool | None = None) -> Raw:
    """Columns of a table in `text`; `path` only names it in errors.

    Raises:
        DataError: empty file, wrong separator, missing column, uneven rows.
    """
    if header is False and any(isinstance(column, str) for column in roles):
        raise ValueError("header=False, but columns are given by name; give positions (user=0, item=1, ...)")
    lines, numbers = lines_of(text, path)
    first = lines[numbers[0] - 1]
    sep = sniff([lines[n - 1] for n in numbers[:20]], path) if sep is None else sep
    quoted = sep in (",", ";") and '"' in text
    if quoted:
        columns, numbers = _split_quoted(lines, sep, path)
    else:
        columns = split(lines, numbers, sep, path)
    names = _header([column[0] for column in columns], roles, header, path, numbers[0])
    if names is not None:
        line, columns, numbers = numbers[0], [column[1:] for column in columns], numbers[1:]
        if not numbers:
            raise DataError(path, len(lines), "only a header; expected one event a line after it")
        where = by_name(names, roles, path, line)
    else:
        where = _by_position(columns, roles, path, numbers[0], first)
    if not quoted:  # quotes mean that the spaces belong to the name
        for at in where[:2]:
            assert at is not None
            columns[at] = [field.strip() for field in columns[at]]
    return Raw(*[None if at is None else columns[at] for at in where], path, numbers)  # type: ignore[arg-type]


def lines_of(text: str, path: str) -> tuple[list[str], list[int]]:
    """All lines, and the numbers (from 1) of those that are not blank.

    Raises:
        DataError: all are blank.
    """
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    numbers = [n for n, line in enumerate(lines, 1) if line.strip(" ")]
    if not numbers:
        raise DataError(path, 1, "the file is empty; expected one event a line")
    return lines, numbers


def decode(data: bytes, path: str) -> str:
    """Text of a file's bytes, unpacked when they are gzip; an error names the first unreadable line."""
    if data[:2] == b"\x1f\x8b":
        data = _gunzip(data, path)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise DataError(path, line, f"not UTF-8 text (byte {data[error.start]:#04x})") from error
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        raise DataError(path, line, "a zero byte: this is a binary file, or UTF-16; save it as UTF-8 text")
    return text


def _gunzip(data: bytes, path: str) -> bytes:
    """Unpack in pieces, so that an error can say which line could still be read."""
    out, unpacker = [], zlib.decompressobj(wbits=31)  # 31: gzip with its checksum
    pieces = [data[at : at + 4096] for at in range(0, len(data), 4096)]
    try:
        for piece in pieces:
            left = piece
            while left:
                if unpacker.eof:  # several gzip members may follow each other
                    unpacker = zlib.decompressobj(wbits=31)
                out.append(unpacker.decompress(left))
                left = unpacker.unused_data
    except zlib.error as error:
        line = b"".join(out).count(b"\n") + 1
        raise DataError(path, line, f"damaged gzip ({error}); fetch the file again") from error
    text = b"".join(out)
    if not unpacker.eof:
        raise DataError(path, text.count(b"\n") + 1, "truncated gzip: the file ends early; fetch it again")
    return text


def sniff(lines: list[str], path: str) -> str:
    """The separator that gives the most columns, the same number on every line.

    >>> sniff(["1::10::5", "2::20::3"], "ratings.dat")
    '::'
    """
    counts = {sep: [len(_cut(line, sep)) for line in lines] for sep in SEPARATORS}
    found = {sep: n[0] for sep, n in counts.items() if n[0] > 1}
    even = {sep: n for sep, n in found.items() if len(set(counts[sep])) == 1}
    # A space may belong to a name or a date, so it separates only where nothing else does.
    for group in (even, found):
        if best := max((s for s in group if s != " "), key=group.__getitem__, default=None) or (
            " " if " " in group else None
        ):
            return best
    raise DataError(path, 1, f"one column, {show(lines[0])}: no known separator; pass sep=")


def split(lines: list[str], numbers: list[int], sep: str, path: str) -> list[list[str]]:
    """Columns of the given lines (numbered from 1); every line must have as many fields as the first."""
    if sep == "" or "\n" in sep:
        raise ValueError(f"sep={sep!r}: expected a separator such as '\\t', ',' or '::'")
    kept = [lines[n - 1] for n in numbers]
    if sep == " ":
        kept = [" ".join(line.split()) for line in kept]
    counts = [line.count(sep) + 1 for line in kept]
    _check_widths(counts, numbers, lines, sep, path)
    # One flat list: a list for each of a million lines would cost three times as much.
    flat = "\n".join(kept).replace(sep, "\n").split("\n")
    return [flat[at :: counts[0]] for at in range(counts[0])]


def _split_quoted(lines: list[str], sep: str, path: str) -> tuple[list[list[str]], list[int]]:
    reader = csv.reader((line + "\n" for line in lines), delimiter=sep, strict=True, skipinitialspace=True)
    rows, numbers = [], []
    begin = 1  # a quoted field may hold line breaks: a row is reported where it begins
    try:
        for row in reader:
            if len(row) > 1 or (row and row[0].strip(" ")):
                rows.append(row)
                numbers.append(begin)
            begin = reader.line_num + 1
    except csv.Error as error:
        raise DataError(path, begin, f"bad quoting ({error})") from error
    if not rows:
        raise DataError(path, 1, "the file is empty; expected one event a line")
    _check_widths([len(row) for row in rows], numbers, lines, sep, path)
    return [list(column) for column in zip(*rows, strict=True)], numbers


def _check_widths(counts: list[int], numbers: list[int], lines: list[str], sep: str, path: str) -> None:
    if counts[0] < 2:
        shown = lines[numbers[0] - 1]
        other = [name for s, name in SEPARATORS.items() if s != sep and len(_cut(shown, s)) > 1]
        hint = f"; it looks separated by {other[0]}" if other else ""
        raise DataError(path, numbers[0], f"one column with sep={sep!r}: {show(shown)}{hint}")
    if any(count != counts[0] for count in counts):
        bad = next(n for n, count in enumerate(counts) if count != counts[0])
        raise DataError(
            path,
            numbers[bad],
            f"{counts[bad]} columns, line {numbers[0]} has {counts[0]} "
            f"(separator {SEPARATORS.get(sep, sep)}): {show(lines[numbers[bad] - 1])}",
        )


def _header(row: list[str], roles: Roles, header: bool | None, path: str, line: int) -> list[str] | None:
    """Column names when the first row holds them, else None."""
    names = [field.strip().strip('"') for field in row]
    named = any(isinstance(column, str) for column in roles)
    if header is False:
        return None
    typed = [bool(_TYPED.fullmatch(name)) for name in names]
    if any(typed):
        if not all(typed):
            bad = names[typed.index(False)]
            raise DataError(
                path, line, f"RecBole header: field {bad!r} has no type such as ':token' or ':float'"
            )
        return [name.rsplit(":", 1)[0] for name in names]
    plain = {name.lower() for name in names}
    if header or named or all(plain & KNOWN[role] for role in ("user", "item")):
        return names
    return None


def by_name(names: Sequence[str], roles: Roles, path: str, line: int = 1) -> list[int | None]:
    """Position of each role among named columns."""
    lower = [name.lower() for name in names]
    where: list[int | None] = []
    for role, wanted in zip(Roles._fields, roles):
        if wanted is None:
            found = [n for n, name in enumerate(lower) if name in KNOWN[role]]
            if not found and role in ("user", "item"):
                raise DataError(
                    path, line, f"no {role} column among {', '.join(names)}; name it with {role}=..."
                )
            where.append(found[0] if found else None)
        elif wanted is False:
            where.append(None)
        elif isinstance(wanted, str):
            if wanted not in names:
                raise DataError(
                    path, line, f"no column {wanted!r} for {role}; the columns are {', '.join(names)}"
                )
            where.append(list(names).index(wanted))
        else:
            where.append(_position(role, wanted, len(names), path, line))
    return where


def _by_position(
    columns: list[list[str]], roles: Roles, path: str, line: int, first: str
) -> list[int | None]:
    """Position of each role without a header: user, item, rating, time unless said otherwise."""
    width = len(columns)
    steam = width == 5 and _STEAM.issuperset(
        columns[2]
    )  # its hours are no rating and its last column is no time
    if width > 4 and (roles.user is None or roles.item is None) and not steam:
        raise DataError(
            path,
            line,
            f"{width} columns and no header that names user and item: {show(first)}; "
            "say which, as in user=0, item=1, rating=2 (or layout='adjacency' for lines of a user and its items)",
        )
    # When the caller placed user and item elsewhere, the other columns are taken only where asked for.
    usual = roles.user in (None, 0) and roles.item in (None, 1) and width <= 4
    default = (0, 1, *(n if usual and width > n else None for n in (2, 3)), None)
    where: list[int | None] = []
    for role, wanted, otherwise in zip(Roles._fields, roles, default):
        if wanted is None or wanted is False:
            where.append(None if wanted is False else otherwise)
        else:
            assert isinstance(wanted, int)  # names without a header were refused before
            where.append(_position(role, wanted, width, path, line))
    return where


def _position(role: str, at: int, width: int, path: str, line: int) -> int:
    if not 0 <= at < width:
        raise DataError(path, line, f"{role}={at}: there are {width} columns, counted from 0")
    return at


def _cut(line: str, sep: str) -> list[str]:
    return line.split() if sep == " " else line.split(sep)


def show(line: str) -> str:
    """A line as an error quotes it, cut short."""
    return repr(line if len(line) <= 60 else line[:57] + "...")
