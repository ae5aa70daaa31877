"""A store gives back what went in, and a folder that is not a whole store does not open."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from corpus_tools import built, clusters, fasta, sequences
from hypothesis import given, settings
from hypothesis import strategies as st

from proteinlm.corpora import columns
from proteinlm.corpora.build import BuildOptions, build
from proteinlm.corpora.columns import Block, Writer
from proteinlm.corpora.manifest import MANIFEST, Manifest
from proteinlm.corpora.store import Store
from proteinlm.errors import InputError

LETTERS = "ACDEFGHIKLMNPQRSTVWYXBUZOJ"
RECORDS = [("a x", "MKT"), ("b x", "MKV"), ("c c", "GGGG"), ("x x", "MKTAYI")]


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.text(LETTERS, min_size=1, max_size=40), min_size=1, max_size=30, unique=True),
    st.integers(min_value=1, max_value=50),
)
def test_round_trip(tmp_path_factory: pytest.TempPathFactory, texts: list[str], shard: int) -> None:
    path = tmp_path_factory.mktemp("store") / "store"
    records = [(f"protein-{number}é", text) for number, text in enumerate(texts)]
    store = built(path, BuildOptions(shard_residues=shard), *records)
    assert len(store) == len(texts) and list(sequences(store).items()) == records
    assert store.lengths.tolist() == [len(text) for text in texts]
    sizes = [store.manifest.files[name]["bytes"] for name in store.manifest.shards()]
    assert sum(sizes) == store.manifest.residues == sum(map(len, texts))
    # A file is larger than the limit only where one sequence is.
    assert all(size <= shard or size in map(len, texts) for size in sizes)
    assert store.verify() == len(store.manifest.files)


def test_raw_letters_go_as_they_are_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a build copies, the disk holds little more than one store."""
    left: list[int] = []
    append = Writer.append

    def watched(writer: Writer, block: Block) -> None:
        if writer.folder.name != "raw":
            left.append(len(list((writer.folder / "work" / "raw").glob("letters-*.bin"))))
        append(writer, block)

    monkeypatch.setattr(Writer, "append", watched)
    monkeypatch.setattr(columns, "BLOCK_RESIDUES", 10)
    records = [(f"p{number}", "MKTAYIAKQ" + letter) for number, letter in enumerate("ACDEFGHI")]
    built(tmp_path / "store", BuildOptions(shard_residues=10), *records)
    assert left == [8, 7, 6, 5, 4, 3, 2, 1]


def test_crops_are_views(tmp_path: Path) -> None:
    store = built(tmp_path / "store", None, ("a", "MKTAYIAKQR"), ("b", "GGSG"))
    assert store.letters(0, 2, 5).tobytes() == b"TAY"
    assert store.letters(0, 8, 99).tobytes() == b"QR"
    assert store.letters(1).dtype == np.uint8 and not store.letters(1).flags.owndata
    assert not store.letters(1).flags.writeable
    for index in (-1, 2):
        with pytest.raises(IndexError, match="store of 2"):
            store.letters(index)


def test_manifest_accounts_for_everything(tmp_path: Path) -> None:
    manifest = build(
        fasta(("a", "MKTAY"), ("b", "MK1"), ("c", "MKtay*"), ("d", "M"), ("e", "M" * 9), ("f", "GGGXU")),
        tmp_path / "store",
        BuildOptions(min_length=2, max_length=8),
    )
    parts = (manifest.sequences, manifest.refused, manifest.too_short, manifest.too_long, manifest.merged)
    assert (manifest.records, parts) == (6, (2, 1, 1, 1, 1))
    assert manifest.composition == {"A": 1, "G": 3, "K": 1, "M": 1, "T": 1, "U": 1, "X": 1, "Y": 1}
    assert manifest.letters == "AGKMTUXY" and manifest.residues == 10
    assert manifest.length_histogram == {"1-32": 2} and manifest.normalised == {"lower case": 1, "final stop": 1}
    refused = (tmp_path / "store" / "refused.tsv").read_text().splitlines()
    assert [line.split("\t")[0] for line in refused] == ["b", "d", "e"]
    assert "letter '1' at position 3" in refused[0] and "the most is 8" in refused[2]
    assert (tmp_path / "store" / "merged.tsv").read_text() == "c\ta\n"


def test_same_input_same_content(tmp_path: Path) -> None:
    stores = [built(tmp_path / name, BuildOptions(clusters="header"), *RECORDS) for name in "pq"]
    assert stores[0].manifest == stores[1].manifest
    other = built(tmp_path / "r", BuildOptions(clusters="header"), *RECORDS[:-1])
    assert other.manifest.content_sha256 != stores[0].manifest.content_sha256


def test_clusters_from_headers(tmp_path: Path) -> None:
    store = built(tmp_path / "store", BuildOptions(clusters="header"), *RECORDS)
    assert clusters(store) == [["x", "a", "b"], ["c"]]
    assert store.num_clusters == store.manifest.clusters == 2 and store.manifest.without_representative == 0


def test_store_without_clusters(tmp_path: Path) -> None:
    store = built(tmp_path / "store", None, *RECORDS)
    assert store.num_clusters == 0 and len(store.members) == len(store.cluster_starts) == 0


def damaged(path: Path, name: str, change: str) -> None:
    """Change one file of a store."""
    file = path / name
    if change == "removed":
        file.unlink()
    elif change == "truncated":
        os.truncate(file, file.stat().st_size - 1)
    elif change == "not json":
        file.write_text("{")
    else:
        values = json.loads(file.read_text())
        values["sequences"] = 5
        file.write_text(json.dumps(values))


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (MANIFEST, "removed", "not a corpus store"),
        (MANIFEST, "truncated", None),
        (MANIFEST, "not json", "damaged"),
        (MANIFEST, "edited", "was changed"),
        ("letters-00000.bin", "truncated", "has 15 bytes, not 16"),
        ("members.bin", "removed", "is missing"),
        ("starts.bin", "truncated", "truncated or changed"),
    ],
)
def test_what_does_not_open(tmp_path: Path, name: str, change: str, message: str | None) -> None:
    path = tmp_path / "store"
    built(path, BuildOptions(clusters="header"), *RECORDS)
    if name == MANIFEST and change == "truncated":
        os.truncate(path / name, 40)
        message = "damaged"
    else:
        damaged(path, name, change)
    with pytest.raises(InputError, match=message):
        Store.open(path)


def test_other_layout_is_refused(tmp_path: Path) -> None:
    store = built(tmp_path / "store", None, *RECORDS)
    values = {**vars(store.manifest), "format": 99}
    Manifest(**values).write(tmp_path / "store")
    with pytest.raises(InputError, match="layout 99"):
        Store.open(tmp_path / "store")


def test_verify_finds_a_changed_letter(tmp_path: Path) -> None:
    store = built(tmp_path / "store", None, *RECORDS)
    with (tmp_path / "store" / "letters-00000.bin").open("r+b") as file:
        file.write(b"W")
    assert len(Store.open(tmp_path / "store")) == 4, "sizes alone do not tell"
    with pytest.raises(InputError, match=r"letters-00000\.bin"):
        store.verify()


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    built(tmp_path / "store", None, *RECORDS)
    with pytest.raises(InputError, match="exists"):
        build(fasta(*RECORDS), tmp_path / "store")
    with pytest.raises(InputError, match="no folder"):
        build(fasta(*RECORDS), tmp_path / "absent" / "store")


def test_failed_build_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nothing is left to build from: of 2 records 1 were refused, 1 are too short"):
        build(fasta(("a", "M1"), ("b", "M")), tmp_path / "store", BuildOptions(min_length=3))
    assert list(tmp_path.iterdir()) == []


def test_killed_build_leaves_nothing_that_opens(tmp_path: Path) -> None:
    """A build that waits for more input is killed; the next one cleans up after it."""
    code = (
        "import sys; from proteinlm.corpora.build import build; "
        "sys.stderr.write('ready'); sys.stderr.flush(); build('-', sys.argv[1])"
    )
    path = tmp_path / "store"
    run = subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ
    )
    assert run.stdin is not None and run.stderr is not None and run.stderr.read(5) == b"ready"
    run.stdin.write(b">a\n" + b"MKTAY" * 1000)
    run.stdin.flush()
    deadline = time.monotonic() + 20
    while not (tmp_path / ".store.building").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    with pytest.raises(InputError, match="another process"):
        build(fasta(*RECORDS), path)
    run.send_signal(signal.SIGKILL)
    run.wait()
    assert not path.exists() and (tmp_path / ".store.building").exists()
    for folder in (path, tmp_path / ".store.building"):
        with pytest.raises(InputError, match="not a corpus store"):
            Store.open(folder)
    assert len(built(path, None, *RECORDS)) == 4
    assert [item.name for item in tmp_path.iterdir()] == ["store"]
