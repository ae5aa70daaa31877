"""Which cluster a sequence is in, whatever says so; and whose place a merged copy takes."""

import gzip
import itertools
import random
import stat
from pathlib import Path

import pytest
from corpus_tools import built, clusters, fasta, sequences
from hypothesis import given, settings
from hypothesis import strategies as st

from proteinlm.corpora import buckets
from proteinlm.corpora.build import BuildOptions, build
from proteinlm.corpora.linclust import ClusterOptions, cluster
from proteinlm.corpora.statistics import fates
from proteinlm.errors import InputError

HEADER = BuildOptions(clusters="header")
WORDS = ["".join(letters) for letters in itertools.product("MKTAY", repeat=3)]


def with_table(path: Path, *rows: str) -> BuildOptions:
    """Options for a table of these rows, `representative member`."""
    path.write_text("".join(row.replace(" ", "\t") + "\n" for row in rows))
    return BuildOptions(clusters=str(path))


def expected_clusters(records: list[tuple[str, str, str]]) -> list[list[str]]:
    """The plain way to what a build does: (id, cluster, sequence) to clusters, representative first.

    A copy hands its place as representative on, if it is in the same cluster.
    """
    first: dict[str, tuple[str, str]] = {}
    leads: dict[str, bool] = {}
    for name, group, sequence in records:
        kept, own = first.setdefault(sequence, (name, group))
        leads[kept] = leads.get(kept, False) or (group == own and name == group)
    found: dict[str, list[str]] = {}
    for name, group in first.values():
        found.setdefault(group, []).append(name)
    return [sorted(members, key=lambda name: not leads[name]) for members in found.values()]


@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 5), st.sampled_from(WORDS[:12])), min_size=1, max_size=40),
    st.sampled_from([1, 3, 1 << 20]),
)
def test_against_the_plain_way(
    tmp_path_factory: pytest.TempPathFactory, drawn: list[tuple[int, str]], range_rows: int
) -> None:
    """Any duplicates in any clusters, and ranges so short that there are many of them."""
    folder = tmp_path_factory.mktemp("clusters")
    records = [(f"p{number}", f"p{group}", sequence) for number, (group, sequence) in enumerate(drawn)]
    with pytest.MonkeyPatch.context() as patch:
        for module in ("buckets", "grouping"):
            patch.setattr(f"proteinlm.corpora.{module}.RANGE_ROWS", range_rows)
        patch.setattr(buckets, "BUFFER_ROWS", 5)
        patch.setattr("proteinlm.corpora.build.BLOCK_RESIDUES", 12)
        patch.setattr("proteinlm.corpora.columns.BLOCK_ROWS", 4)
        by_header = built(folder / "h", HEADER, *((f"{name} {group}", text) for name, group, text in records))
        table = with_table(folder / "t.tsv", *(f"{group} {name}" for name, group, _ in records))
        by_table = built(folder / "t", table, *((name, text) for name, _, text in records))
    expected = expected_clusters(records)
    assert clusters(by_header) == expected
    assert clusters(by_table) == expected
    copies = len(drawn) - len({text for _, text in drawn})
    for store in (by_header, by_table):
        assert store.manifest.merged == copies and len(store) == len(drawn) - copies
        assert sum(fates(store.manifest).values()) == len(drawn)
        assert store.manifest.clusters == len(expected)


def test_copies_are_merged_over_many_buckets(tmp_path: Path) -> None:
    generator = random.Random(1)
    texts = ["".join(generator.choices("ACDEFGHIKLMNPQRSTVWY", k=20)) for _ in range(3000)]
    doubled = texts + generator.sample(texts, 1000)
    store = built(tmp_path / "store", None, *((f"p{number}", text) for number, text in enumerate(doubled)))
    assert store.manifest.merged == 1000 and list(sequences(store).values()) == texts
    merged = [line.split("\t") for line in (store.path / "merged.tsv").read_text().splitlines()]
    assert len(merged) == 1000
    assert all(doubled[int(copy[1:])] == doubled[int(kept[1:])] and int(kept[1:]) < 3000 for copy, kept in merged)


def test_uniref_headers(tmp_path: Path) -> None:
    store = built(
        tmp_path / "store",
        HEADER,
        ("UniRef50_P1 Some protein n=2 Tax=Homo sapiens TaxID=9606 RepID=P1_HUMAN", "MKT"),
        ("UniRef90_P2 UniRef50_P3", "MKV"),
        ("UniRef90_P3 UniRef50_P3", "MKL"),
    )
    assert clusters(store) == [["UniRef50_P1"], ["UniRef90_P3", "UniRef90_P2"]]
    assert store.manifest.without_representative == 0


def test_descriptions_are_not_clusters(tmp_path: Path) -> None:
    records = [("sp|P1|A_HUMAN Some protein", "MKT"), ("b", "MKV"), ("c c", "MKL")]
    store = built(tmp_path / "store", HEADER, *records)
    assert clusters(store) == [["c"]] and store.manifest.unclustered == 2
    refused = (store.path / "refused.tsv").read_text().splitlines()
    assert [line.split("\t")[0] for line in refused] == ["sp|P1|A_HUMAN", "b"]
    with pytest.raises(InputError, match=r"none of 2 records has a cluster in 'header'; headers are to read"):
        build(fasta(*records[:2]), tmp_path / "none", HEADER)


def test_table(tmp_path: Path) -> None:
    options = with_table(tmp_path / "t.tsv", "a a", "a b", "P9 P9", "P9 c", "x x", "x y")
    records = [("c", "MKL"), ("a", "MKT"), ("sp|P9|A_HUMAN", "MKV"), ("lost", "MKW"), ("b", "MKY")]
    store = built(tmp_path / "store", options, *records)
    assert clusters(store) == [["sp|P9|A_HUMAN", "c"], ["a", "b"]]
    manifest = store.manifest
    assert (manifest.records, manifest.sequences, manifest.unclustered) == (5, 4, 1)
    assert (manifest.cluster_rows, manifest.cluster_rows_unused) == (6, 2)
    assert manifest.cluster_source == "t.tsv" and manifest.cluster_sha256
    assert (store.path / "refused.tsv").read_text() == "lost\tit has no cluster: not in the table or header\n"


def test_table_without_the_representative(tmp_path: Path) -> None:
    options = with_table(tmp_path / "t.tsv", "gone a", "gone b", "c c")
    store = built(tmp_path / "store", options, ("b", "MKT"), ("a", "MKV"), ("c", "MKL"))
    assert clusters(store) == [["b", "a"], ["c"]] and store.manifest.without_representative == 1


def test_a_copy_lends_its_cluster(tmp_path: Path) -> None:
    """The table knows the second copy only; the first one, which is kept, gets its cluster."""
    options = with_table(tmp_path / "t.tsv", "a a", "a copy")
    store = built(tmp_path / "store", options, ("first", "MKT"), ("a", "MKV"), ("copy", "MKT"))
    assert clusters(store) == [["a", "first"]] and store.manifest.unclustered == 0


def test_compressed_table(tmp_path: Path) -> None:
    (tmp_path / "t.tsv.gz").write_bytes(gzip.compress(b"a\ta\r\na\tb\r\n"))
    store = built(tmp_path / "store", BuildOptions(clusters=str(tmp_path / "t.tsv.gz")), ("a", "MKT"), ("b", "MKV"))
    assert clusters(store) == [["a", "b"]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a a\n", "line 1: 'a a' is not `representative TAB member`"),
        ("a\ta\n\na\tb\n", "line 2: ''"),
        ("a\ta\tb\n", "line 1"),
        ("a\tb\nc\tc\nc\tb\n", "lines 1 and 3 put one member into two clusters"),
        ("", "is empty"),
    ],
)
def test_bad_tables(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "t.tsv").write_text(text)
    with pytest.raises(InputError, match=message):
        built(tmp_path / "store", BuildOptions(clusters=str(tmp_path / "t.tsv")), ("a", "MKT"), ("b", "MKV"))
    assert [item.name for item in tmp_path.iterdir()] == ["t.tsv"]


def test_missing_table(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no cluster table"):
        built(tmp_path / "store", BuildOptions(clusters=str(tmp_path / "t.tsv")), ("a", "MKT"))


FAKE = """#!/bin/sh
# Stands in for MMseqs2: everything is in the cluster of the first record.
echo "$@" > "{log}"
[ "$1" = easy-linclust ] || exit 3
lead=$(head -1 "$2" | tr -d '>')
grep '>' "$2" | tr -d '>' | while read -r name; do printf '%s\\t%s\\n' "$lead" "$name"; done > "$3"_cluster.tsv
"""


def program(path: Path, text: str) -> str:
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def test_linclust(tmp_path: Path) -> None:
    log = tmp_path / "log"
    options = ClusterOptions(identity=0.3, threads=2, program=program(tmp_path / "mmseqs", FAKE.format(log=log)))
    records = [("a first", "MKT"), ("b", "M1"), ("c", "MKV")]
    assert cluster(fasta(*records), tmp_path / "t.tsv", options) == (2, 1)
    arguments = log.read_text().split()
    assert arguments[0] == "easy-linclust"
    assert arguments[4:] == ["--min-seq-id", "0.3", "-c", "0.8", "--cov-mode", "0", "--threads", "2"]
    store = built(tmp_path / "store", BuildOptions(clusters=str(tmp_path / "t.tsv")), *records)
    assert clusters(store) == [["a", "c"]]
    assert sorted(item.name for item in tmp_path.iterdir()) == ["log", "mmseqs", "store", "t.tsv"]
    with pytest.raises(InputError, match="exists"):
        cluster(fasta(*records), tmp_path / "t.tsv", options)


def test_linclust_absent_or_failing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="conda install -c bioconda mmseqs2"):
        cluster(fasta(("a", "MKT")), tmp_path / "t.tsv", ClusterOptions(program="mmseqs-that-is-not-there"))
    broken = ClusterOptions(program=program(tmp_path / "mmseqs", "#!/bin/sh\necho out of luck >&2\nexit 7\n"))
    with pytest.raises(InputError, match="ended with code 7: out of luck"):
        cluster(fasta(("a", "MKT")), tmp_path / "t.tsv", broken)
    with pytest.raises(InputError, match="the identity is 50"):
        ClusterOptions(identity=50)
    assert [item.name for item in tmp_path.iterdir()] == ["mmseqs"]
