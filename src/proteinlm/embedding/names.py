"""Names for keys and files: as close to the id as the format allows, and never the same name twice.

In: ids and headers as they stand. Out: names; the second and later holders of a name get `name__2`, `name__3` and so
on. What is taken is kept on disk, so that memory does not grow with the number of proteins.
"""

import re
import sqlite3
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType

LONGEST_FILE_NAME = 200
"""Bytes of a file name before its suffix; file systems take 255."""

LONGEST_MEMBER_NAME = 60_000
"""Bytes of a name inside a .npz archive before its suffix; zip takes 65,535."""

_BREAKS_A_PATH = re.compile(r"[/\\:\x00-\x1f\x7f]")


def key_of(identifier: str) -> str:
    """An id as the name of a dataset or array: `/` would make a group of it, and a lone `.` is the group itself.

    >>> key_of("sp|P12345|A/B"), key_of(".")
    ('sp|P12345|A_B', '_')
    """
    return "_" if identifier == "." else identifier.replace("/", "_")


def file_name_of(header: str) -> str:
    """A header as a file name that stays in its folder on every system and is not hidden.

    >>> file_name_of("a/b: c"), file_name_of("../x")
    ('a_b_ c', '_._x')
    """
    name = _BREAKS_A_PATH.sub("_", header).strip()
    name = shortened(name, LONGEST_FILE_NAME).rstrip()
    return re.sub(r"^[.-]", "_", name) or "_"


def shortened(name: str, most: int) -> str:
    """The beginning of a name, whole letters of at most `most` bytes in UTF-8.

    >>> shortened("caf\u00e9", 4), shortened("caf\u00e9", 5)
    ('caf', 'café')
    """
    return name.encode("utf-8")[:most].decode("utf-8", "ignore")


class UniqueNames(AbstractContextManager["UniqueNames"]):
    """Hands out names, each once.

    Args:
        path: where to keep what is taken; removed at the end.
        fold_case: names that differ in case only count as the same, as some file systems have it.

    Attributes:
        renamed: how many did not get the name they asked for.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder, UniqueNames(Path(folder, "names")) as names:
    ...     [names.claim("a"), names.claim("b"), names.claim("a"), names.claim("a__2"), names.renamed]
    ['a', 'b', 'a__2', 'a__2__2', 2]
    """

    def __init__(self, path: Path, fold_case: bool = False) -> None:
        self.renamed = 0
        self._path = path
        self._fold_case = fold_case
        path.unlink(missing_ok=True)
        # Nothing here outlives the process or is seen by another one, so nothing need be safe against either; network
        # file systems may have no locks.
        self._table = sqlite3.connect(f"{path.absolute().as_uri()}?nolock=1", uri=True, isolation_level=None)
        self._table.execute("PRAGMA journal_mode = OFF")
        self._table.execute("PRAGMA synchronous = OFF")
        self._table.execute("CREATE TABLE taken (name TEXT PRIMARY KEY, next INTEGER) WITHOUT ROWID")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._table.close()
        self._path.unlink(missing_ok=True)

    def claim(self, name: str) -> str:
        """`name`, or the first of `name__2`, `name__3` ... that nobody has."""
        if self._take(name):
            return name
        self.renamed += 1
        number = self._table.execute("SELECT next FROM taken WHERE name = ?", (self._key(name),)).fetchone()[0]
        while not self._take(f"{name}__{number}"):
            number += 1
        self._table.execute("UPDATE taken SET next = ? WHERE name = ?", (number + 1, self._key(name)))
        return f"{name}__{number}"

    def _take(self, name: str) -> bool:
        added = self._table.execute("INSERT OR IGNORE INTO taken VALUES (?, 2)", (self._key(name),))
        return added.rowcount == 1

    def _key(self, name: str) -> str:
        return name.casefold() if self._fold_case else name
