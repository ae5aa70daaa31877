"""UniProt's own files, fetched from UniProt's own addresses: resumed where they broke off, checked by digest.

In: `swissprot`, `uniref50` ... Out: the FASTA file as UniProt has it, once its size and MD5 are those of the release's
`RELEASE.metalink`. Until then it is called `NAME.part`, with the digest that it is to have in `NAME.part.md5`: when
UniProt releases anew in between, the old beginning is thrown away instead of being joined to the new end.
"""

import hashlib
import http.client
import os
import time
import urllib.error
import urllib.request
import xml.etree.ElementTree
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from proteinlm import __version__
from proteinlm.errors import InputError

BASE = "https://ftp.uniprot.org/pub/databases/uniprot"
"""Mirrors with the same folders: https://ftp.ebi.ac.uk/pub/databases/uniprot and
https://ftp.expasy.org/databases/uniprot."""

FILES = {
    "swissprot": "current_release/knowledgebase/complete/uniprot_sprot.fasta.gz",
    "uniref50": "uniref/uniref50/uniref50.fasta.gz",
    "uniref90": "uniref/uniref90/uniref90.fasta.gz",
    "uniref100": "uniref/uniref100/uniref100.fasta.gz",
}
"""What can be fetched."""

METALINK = "RELEASE.metalink"
METALINK_BYTES = 1 << 24
BLOCK = 1 << 20
TRIES = 8
"""Attempts without a single new byte before we give up."""

_INTERRUPTIONS = (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError)
_PASSING = {408, 429, 500, 502, 503, 504}


@dataclass(frozen=True)
class Remote:
    """A file of a release.

    Attributes:
        url: where it is. size: bytes. md5: hexadecimal. release: such as `2025_01`; empty where it is not stated.
    """

    url: str
    size: int
    md5: str
    release: str


@dataclass(frozen=True)
class FetchOptions:
    """How to fetch.

    Args:
        base: another address with UniProt's folders (a mirror). timeout: seconds without an answer.
        pause: seconds before the second attempt; doubled each time.
        advance: told how many bytes have come since the last call. say: told lines.
    """

    base: str = BASE
    timeout: float = 60.0
    pause: float = 1.0
    advance: Callable[[int], None] | None = None
    say: Callable[[str], None] | None = None


def describe(name: str, options: FetchOptions | None = None) -> Remote:
    """What the current release says of a file.

    Raises:
        InputError: the name is unknown, the server cannot be reached, or its answer is not understood.
    """
    options = options or FetchOptions()
    if name not in FILES:
        raise InputError(f"{name!r} is not among what can be fetched: {', '.join(FILES)}")
    if not options.base.startswith(("https://", "http://")):
        raise InputError(f"{options.base!r} is not an address; it must begin with https://")
    url = f"{options.base.rstrip('/')}/{FILES[name]}"
    address = f"{url.rpartition('/')[0]}/{METALINK}"
    try:
        with urllib.request.urlopen(_request(address), timeout=options.timeout) as answer:
            text = answer.read(METALINK_BYTES)
    except _INTERRUPTIONS as error:
        raise InputError(f"cannot read {address}: {error}; check the connection, or give a mirror as --base") from error
    return _remote(url, address, text)


def _remote(url: str, address: str, text: bytes) -> Remote:
    """The entry of a metalink for the file at `url`."""
    file = url.rpartition("/")[2]
    try:
        root = xml.etree.ElementTree.fromstring(text)
    except xml.etree.ElementTree.ParseError as error:
        raise InputError(f"{address} is not a metalink ({error}); try again later, or another mirror") from error
    # The format has had two namespaces; the names in it stayed.
    for entry in root.iterfind(".//{*}file"):
        size = entry.findtext("{*}size", "").strip()
        hashes = {item.get("type"): (item.text or "").strip().lower() for item in entry.iterfind(".//{*}hash")}
        if entry.get("name") == file and size.isdecimal() and "md5" in hashes:
            return Remote(url, int(size), hashes["md5"], root.findtext(".//{*}version", "").strip())
    raise InputError(f"{address} does not state size and MD5 of {file}; try again later, or another mirror")


def fetch(name: str, out: Path, options: FetchOptions | None = None) -> Remote:
    """Fetch a file of the current release.

    Args:
        name: a key of `FILES`. out: where to write; a file that is there already is checked and left alone.

    Returns:
        What was fetched.

    Raises:
        InputError: it cannot be had, or is not what the release says; what came stays, for the next attempt.
    """
    options = options or FetchOptions()
    if not out.absolute().parent.is_dir():
        raise InputError(f"cannot write {str(out)!r}: there is no folder {str(out.parent)!r}; create it first")
    remote = describe(name, options)
    if out.exists():
        if _md5(out) != remote.md5:
            raise InputError(f"{str(out)!r} exists and is not {name} of this release; remove it or choose another name")
        return remote
    part, note = out.with_name(out.name + ".part"), out.with_name(out.name + ".part.md5")
    if part.exists() and (not note.exists() or note.read_text().strip() != remote.md5):
        _say(options, f"{part}: of another release; it is fetched anew")
        part.unlink()
    note.write_text(remote.md5 + "\n")
    _complete(remote, part, options)
    found = _md5(part)
    if found != remote.md5:
        part.unlink()
        raise InputError(f"{remote.url} came with MD5 {found}, not {remote.md5}; it was removed: run the command again")
    os.replace(part, out)
    note.unlink()
    return remote


def _complete(remote: Remote, part: Path, options: FetchOptions) -> None:
    """Append to `part` until it is whole; a broken connection is opened again."""
    failures, pause = 0, options.pause
    while (have := part.stat().st_size if part.exists() else 0) < remote.size:
        try:
            _append(remote, part, have, options)
            problem = "the connection closed early"
        except urllib.error.HTTPError as error:
            if error.code not in _PASSING:
                raise InputError(
                    f"{remote.url}: the server answers {error.code} {error.reason}; try a mirror"
                ) from error
            problem = f"the server answers {error.code}"
        except _INTERRUPTIONS as error:
            problem = str(error) or type(error).__name__
        now = part.stat().st_size if part.exists() else 0
        if now == remote.size:
            break
        if now > have:
            failures, pause = 0, options.pause
        else:
            failures += 1
        if failures == TRIES:
            raise InputError(
                f"{remote.url} broke off at {now:,} of {remote.size:,} bytes {TRIES} times ({problem}); "
                "run the command again to go on from there"
            )
        _say(options, f"{part.name}: {problem} at {now:,} of {remote.size:,} bytes; going on")
        time.sleep(pause)
        pause = min(2 * pause, 60.0)
    if part.stat().st_size > remote.size:
        part.unlink()
        raise InputError(f"{remote.url} is longer than the release says; it was removed: run the command again")


def _append(remote: Remote, part: Path, have: int, options: FetchOptions) -> None:
    """One request for what is missing."""
    request = _request(remote.url)
    if have:
        request.add_header("Range", f"bytes={have}-")
    with urllib.request.urlopen(request, timeout=options.timeout) as answer:
        resumed = answer.status == 206 and answer.headers.get("Content-Range", "").startswith(f"bytes {have}-")
        if have and not resumed:
            _say(options, f"{part.name}: the server cannot go on in the middle; from the beginning")
        with part.open("ab" if resumed else "wb") as file:
            _pour(answer, file, options)


def _pour(answer: http.client.HTTPResponse, file: BinaryIO, options: FetchOptions) -> None:
    while block := answer.read(BLOCK):
        file.write(block)
        if options.advance is not None:
            options.advance(len(block))


def _request(url: str) -> urllib.request.Request:
    return urllib.request.Request(url, headers={"User-Agent": f"proteinlm/{__version__}"})


def _md5(path: Path) -> str:
    """MD5 is what UniProt publishes; it guards against damage, not against malice."""
    hasher = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            hasher.update(block)
    return hasher.hexdigest()


def _say(options: FetchOptions, line: str) -> None:
    if options.say is not None:
        options.say(line)
