"""Files are fetched whole or not at all, from a server on this machine that breaks off, changes its mind or lies."""

import hashlib
import random
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from proteinlm.corpora import fetch as fetching
from proteinlm.corpora.fetch import FILES, FetchOptions, describe, fetch
from proteinlm.errors import InputError

CONTENT = random.Random(5).randbytes(300_000)
METALINK = """<?xml version="1.0" encoding="utf-8"?>
<metalink version="3.0" xmlns="http://www.metalinker.org/">
  <version>2031_01</version>
  <files>
    <file name="LICENSE"><size>3</size><verification><hash type="md5">0</hash></verification></file>
    <file name="{name}">
      <size>{size}</size>
      <verification><hash type="sha1">00</hash><hash type="md5">{md5}</hash></verification>
    </file>
  </files>
</metalink>
"""


@dataclass
class Mirror:
    """A server with one file, and how it misbehaves.

    Attributes:
        content: the file. ranges: whether it goes on in the middle. break_after: bytes of an answer, then it hangs up.
        error: status of the next answers, one each. requests: the Range header of each request for the file.
    """

    base: str = ""
    content: bytes = CONTENT
    md5: str = hashlib.md5(CONTENT).hexdigest()
    ranges: bool = True
    break_after: int | None = None
    metalink: str = METALINK
    error: list[int] = field(default_factory=list)
    requests: list[str | None] = field(default_factory=list)


def handler(mirror: Mirror) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *arguments: object) -> None:
            pass

        def do_GET(self) -> None:
            folder = self.path.rpartition("/")[0].lstrip("/")
            name = next(path.rpartition("/")[2] for path in FILES.values() if path.rpartition("/")[0] == folder)
            if self.path.endswith("RELEASE.metalink"):
                text = mirror.metalink.format(name=name, size=len(mirror.content), md5=mirror.md5).encode()
                self.answer(200, text, {})
                return
            mirror.requests.append(self.headers.get("Range"))
            if mirror.error:
                self.answer(mirror.error.pop(0), b"", {})
                return
            start = int((self.headers.get("Range") or "bytes=0-")[6:-1]) if mirror.ranges else 0
            size = len(mirror.content)
            headers = {"Content-Range": f"bytes {start}-{size - 1}/{size}"} if start else {}
            self.answer(206 if start else 200, mirror.content[start:], headers, mirror.break_after)

        def answer(self, status: int, body: bytes, headers: dict[str, str], limit: int | None = None) -> None:
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body[:limit])
            self.close_connection = True

    return Handler


@pytest.fixture
def mirror(monkeypatch: pytest.MonkeyPatch) -> Iterator[Mirror]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    found = Mirror()
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler(found))
    found.base = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield found
    server.shutdown()
    thread.join()
    server.server_close()


def options(mirror: Mirror) -> FetchOptions:
    return FetchOptions(base=mirror.base, timeout=10, pause=0.001)


@pytest.mark.parametrize("name", sorted(FILES))
def test_fetch(mirror: Mirror, tmp_path: Path, name: str) -> None:
    out = tmp_path / "it.fasta.gz"
    remote = fetch(name, out, options(mirror))
    assert out.read_bytes() == CONTENT
    assert (remote.size, remote.release, remote.url) == (300_000, "2031_01", f"{mirror.base}/{FILES[name]}")
    assert mirror.requests == [None] and [item.name for item in tmp_path.iterdir()] == ["it.fasta.gz"]
    fetch(name, out, options(mirror))
    assert mirror.requests == [None], "what is there is not fetched again"


def test_broken_connections_are_taken_up(mirror: Mirror, tmp_path: Path) -> None:
    mirror.break_after = 70_000
    came: list[int] = []
    said: list[str] = []
    fetch("swissprot", tmp_path / "it", FetchOptions(mirror.base, 10, 0.001, came.append, said.append))
    assert (tmp_path / "it").read_bytes() == CONTENT
    assert mirror.requests == [None, *(f"bytes={start}-" for start in (70_000, 140_000, 210_000, 280_000))]
    assert sum(came) == 300_000 and len(said) == 4 and "at 70,000 of 300,000 bytes" in said[0]


def test_a_killed_run_is_taken_up(mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mirror.break_after = 100_000

    def killed(seconds: float) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(fetching.time, "sleep", killed)
        with pytest.raises(KeyboardInterrupt):
            fetch("uniref50", tmp_path / "it", options(mirror))
    assert not (tmp_path / "it").exists() and (tmp_path / "it.part").stat().st_size == 100_000
    mirror.break_after = None
    fetch("uniref50", tmp_path / "it", options(mirror))
    assert (tmp_path / "it").read_bytes() == CONTENT and mirror.requests == [None, "bytes=100000-"]


def test_a_new_release_begins_anew(mirror: Mirror, tmp_path: Path) -> None:
    (tmp_path / "it.part").write_bytes(b"old" * 1000)
    (tmp_path / "it.part.md5").write_text("0" * 32)
    fetch("uniref90", tmp_path / "it", options(mirror))
    assert (tmp_path / "it").read_bytes() == CONTENT and mirror.requests == [None]


def test_a_server_that_cannot_go_on(mirror: Mirror, tmp_path: Path) -> None:
    mirror.ranges = False
    (tmp_path / "it.part").write_bytes(CONTENT[:1000])
    (tmp_path / "it.part.md5").write_text(mirror.md5)
    fetch("swissprot", tmp_path / "it", options(mirror))
    assert (tmp_path / "it").read_bytes() == CONTENT and mirror.requests == ["bytes=1000-"]


def test_passing_errors_are_waited_out(mirror: Mirror, tmp_path: Path) -> None:
    mirror.error = [503, 429, 500]
    fetch("swissprot", tmp_path / "it", options(mirror))
    assert (tmp_path / "it").read_bytes() == CONTENT and len(mirror.requests) == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"error": [404]}, "answers 404"),
        ({"error": [503] * 20}, "broke off at 0 of 300,000 bytes 8 times"),
        ({"md5": "0" * 32}, "came with MD5"),
        ({"metalink": "<html>"}, "is not a metalink"),
        ({"metalink": "<metalink/>"}, "does not state size and MD5"),
    ],
)
def test_what_is_not_delivered(mirror: Mirror, tmp_path: Path, change: dict, message: str) -> None:
    for name, value in change.items():
        setattr(mirror, name, value)
    with pytest.raises(InputError, match=message):
        fetch("swissprot", tmp_path / "it", options(mirror))
    assert not (tmp_path / "it").exists() and not (tmp_path / "it.part").exists()


def test_another_file_is_not_overwritten(mirror: Mirror, tmp_path: Path) -> None:
    (tmp_path / "it").write_text("mine")
    with pytest.raises(InputError, match="exists and is not swissprot of this release"):
        fetch("swissprot", tmp_path / "it", options(mirror))
    assert (tmp_path / "it").read_text() == "mine"


def test_what_cannot_be_asked_for(mirror: Mirror, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="swissprot, uniref50"):
        describe("trembl", options(mirror))
    with pytest.raises(InputError, match="must begin with https"):
        describe("swissprot", FetchOptions(base="ftp://x"))
    with pytest.raises(InputError, match="no folder"):
        fetch("swissprot", tmp_path / "absent" / "it", options(mirror))
    with pytest.raises(InputError, match="cannot read"):
        describe("swissprot", FetchOptions(base="http://127.0.0.1:9", timeout=5))
