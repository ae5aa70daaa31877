"""Columns copied without what is not kept; and the lists of what that is.

In: columns, and the fate of each row. Out: new columns, and lines for `refused.tsv` and `merged.tsv`.
"""

from pathlib import Path
from typing import Any

import numpy as np

from proteinlm.corpora.columns import HashedFile, NameReader, Writer, read_blocks
from proteinlm.corpora.grouping import CONTAINED, KEPT, MERGED, UNCLUSTERED, Fates
from proteinlm.corpora.store import POSITION


def refusal(identifier: str, reason: str) -> bytes:
    """A line of `refused.tsv`.

    >>> refusal("a", "too\\nshort")
    b'a\\ttoo short\\n'
    """
    one_line = " ".join(reason.split())
    return f"{identifier}\t{one_line}\n".encode("utf-8", "backslashreplace")


def copy_kept(
    source: Path, fates: Fates, writer: Writer, refused: HashedFile, partners: Path, consume: bool = False
) -> dict[str, dict[str, Any]]:
    """Copy what is kept, list what is not, and close the files.

    Args:
        source: a folder with columns. fates: of its rows.
        writer: takes the rows that are kept. refused: takes a line for each that is lost.
        partners: the folder with the columns to which the partners in `fates` belong.
        consume: remove the letters of `source` as they are copied.

    Returns:
        Entries of the two lists for the manifest.
    """
    merged = HashedFile(writer.folder / "merged.tsv")
    names = NameReader(partners)
    with (
        (fates.folder / "fates.bin").open("rb") as fate_file,
        (fates.folder / "partners.bin").open("rb") as partner_file,
    ):
        for block in read_blocks(source, consume):
            fate = np.fromfile(fate_file, np.uint8, len(block))
            writer.append(block.select(fate == KEPT))
            lost = np.flatnonzero((fate == MERGED) | (fate == UNCLUSTERED) | (fate == CONTAINED))
            if not len(lost):
                continue
            identifiers = block.identifiers()
            others = iter(np.fromfile(partner_file, POSITION, int((fate[lost] != UNCLUSTERED).sum())).tolist())
            for row in lost.tolist():
                name = identifiers[row]
                if fate[row] == MERGED:
                    merged.write(f"{name}\t{names[next(others)]}\n".encode())
                elif fate[row] == CONTAINED:
                    refused.write(
                        refusal(name, f"it would leak {names[next(others)]}: same name, or one is part of the other")
                    )
                else:
                    refused.write(refusal(name, "it has no cluster: not in the table or header"))
    names.close()
    writer.close()
    return {file.name: file.close() for file in (merged, refused)}
