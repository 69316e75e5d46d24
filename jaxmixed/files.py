"""Data sets from files: text with any usual delimiter, Parquet, Feather, Stata, Excel.

Nothing is guessed beyond the delimiter, the decimal mark of semicolon-separated text and the encoding that a
byte-order mark declares. Every failure ends in one sentence.
"""

from __future__ import annotations

import csv
import difflib
import gzip
import io
import re
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from jaxmixed import datasets
from jaxmixed.errors import DataError, JaxMixedError

_DELIMITERS = (",", ";", "\t", "|")
_MARKS = ((b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"), (b"\xef\xbb\xbf", "utf-8-sig"))
_SNIFFED_LINES = 50
_DECIMAL_COMMA = re.compile(r"(?<![\w.])-?\d+,\d+(?![\w.])")
_DECIMAL_POINT = re.compile(r"(?<![\w,])-?\d+\.\d+(?![\w,])")


def load_data(source: str) -> pd.DataFrame:
    """Data frame of a bundled data set or of a file.

    Parameters
    ----------
    source : str
        Name of a bundled data set, or path of a file; a file of the same name as a data set is reached as
        ``./name``.

    Returns
    -------
    pandas.DataFrame

    Raises
    ------
    DataError
        If there is no such data, or the file cannot be read as a table.

    Examples
    --------
    >>> load_data("sleepstudy").shape
    (180, 3)
    """
    if source in datasets.names():
        return datasets.load(source)
    path = Path(source)
    _require_file(path, source)
    reader = _READERS.get(_suffix(path))
    if reader is None:
        raise DataError(
            f"{source!r} has no known ending; readable are {', '.join(sorted(set(_READERS) - {''}))}, and the"
            " text files also with .gz"
        )
    try:
        data = reader(path)
    except JaxMixedError:
        raise
    except ImportError:
        raise DataError(
            f"reading {path.suffix} files needs another package: pip install 'jaxmixed[io]'"
        ) from None
    except (OSError, EOFError) as problem:
        raise DataError(f"{source!r} cannot be read: {problem}") from None
    except Exception as problem:  # each reader has its own exceptions for a damaged file
        raise DataError(f"{source!r} is not a valid {path.suffix} file: {_first_line(problem)}") from None
    return _checked(data, source)


def _require_file(path: Path, source: str) -> None:
    try:
        exists, folder = path.exists(), path.is_dir()
    except (OSError, ValueError):
        raise DataError(f"{source!r} is not a usable file name") from None
    if folder:
        raise DataError(f"{source!r} is a directory; give a file")
    if not exists:
        close = difflib.get_close_matches(source.lower(), datasets.names(), n=2)
        hint = f" (did you mean {' or '.join(close)}?)" if close else ""
        raise DataError(
            f"there is no file {source!r}, and no bundled data set of that name{hint}; see: jaxmixed datasets"
        )
    if path.is_file() and path.stat().st_size == 0:
        raise DataError(f"{source!r} is empty")


def _suffix(path: Path) -> str:
    name = path.name.lower().removesuffix(".gz")
    return Path(name).suffix


def _first_line(problem: Exception) -> str:
    return (str(problem).strip().splitlines() or [type(problem).__name__])[0]


def _checked(data: pd.DataFrame, source: str) -> pd.DataFrame:
    if len(data.columns) == 0 or len(data) == 0:
        raise DataError(f"{source!r} has {len(data.columns)} columns and {len(data)} rows: there are no data")
    data.columns = [str(name).strip() for name in data.columns]
    twice = data.columns[data.columns.duplicated()]
    if len(twice):
        raise DataError(f"{source!r} has two columns named {twice[0]!r}; rename one of them")
    return data


def _read_text(path: Path) -> pd.DataFrame:
    raw = path.read_bytes()
    if raw[:2] == b"\x1f\x8b":
        raw = gzip.decompress(raw)
    encoding = next((name for mark, name in _MARKS if raw.startswith(mark)), "utf-8")
    try:
        text = raw.decode(encoding)
    except UnicodeDecodeError as problem:
        raise DataError(
            f"{str(path)!r} is not UTF-8 text (byte {problem.start + 1}); save it as 'CSV UTF-8', or"
            " convert it"
        ) from None
    if "\0" in text:
        raise DataError(f"{str(path)!r} holds binary data, not text; its ending does not tell what it is")
    if not text.strip():
        raise DataError(f"{str(path)!r} is empty")
    delimiter = _delimiter(text)
    _check_header(text, delimiter, str(path))
    decimal = "," if delimiter == ";" and _has_decimal_comma(text) else "."
    return pd.read_csv(
        io.StringIO(text), sep=delimiter, decimal=decimal, skipinitialspace=True, low_memory=False
    )


def _check_header(text: str, delimiter: str, source: str) -> None:
    """Refuse what pandas would silently rename or shift."""
    rows = csv.reader(io.StringIO(text.lstrip("\r\n")), delimiter=delimiter)
    names = [name.strip() for name in next(rows)]
    for name in names:
        if name and names.count(name) > 1:
            raise DataError(f"{source!r} has two columns named {name!r}; rename one of them")
    # A surplus first field is taken for row names: right for R's write.table, wrong for a delimiter at the
    # end of lines.
    first = next(rows, [])
    if len(first) > len(names) and not first[-1].strip():
        raise DataError(f"the rows of {source!r} have more fields than its first line has names")


def _delimiter(text: str) -> str:
    """The delimiter that splits the first lines into the most columns, equally many in each."""
    lines = "\n".join(text.lstrip("\r\n").splitlines()[:_SNIFFED_LINES])
    best, most = ",", 1
    for delimiter in _DELIMITERS:
        rows = [row for row in csv.reader(io.StringIO(lines), delimiter=delimiter) if row]
        widths = {len(row) for row in rows}
        if len(widths) == 1 and (width := widths.pop()) > most:
            best, most = delimiter, width
    if most > 1:
        return best
    # Ragged rows: go by the header, and let the reader say which row is wrong.
    first = lines.split("\n", 1)[0]
    return max(_DELIMITERS, key=first.count)


def _has_decimal_comma(text: str) -> bool:
    body = "\n".join(text.splitlines()[1:_SNIFFED_LINES])
    return bool(_DECIMAL_COMMA.search(body)) and not _DECIMAL_POINT.search(body)


def _read_stata(path: Path) -> pd.DataFrame:
    try:
        return pd.read_stata(path)
    except ValueError:
        # Two codes with one label cannot become categories; the codes themselves are still data.
        return pd.read_stata(path, convert_categoricals=False)


_READERS: dict[str, Callable[[Path], pd.DataFrame]] = {
    ".csv": _read_text,
    ".tsv": _read_text,
    ".tab": _read_text,
    ".txt": _read_text,
    ".dta": _read_stata,
    ".parquet": pd.read_parquet,
    ".feather": pd.read_feather,
    ".arrow": pd.read_feather,
    ".xlsx": pd.read_excel,
}
