"""`plm corpus`: sequences to train on, from a file or from UniProt, clustered, split without leaks, counted.

In: options. Out: stores, tables and files that were asked for; what became of every record on standard output.
"""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from itertools import islice
from pathlib import Path

import click

FETCHED = ("swissprot", "uniref50", "uniref90", "uniref100")
SHARD_RESIDUES = 1 << 30
SHOWN_LEAKS = 20
BAR_CELLS = 40

A_PATH = click.Path(path_type=Path)
OUTPUT = click.option("-o", "--output", "out", required=True, type=A_PATH, help="Where to write.")
SHARD = click.option(
    "--shard-residues",
    type=click.IntRange(min=1),
    default=SHARD_RESIDUES,
    show_default=True,
    help="Most residues in one file of letters.",
)


@click.group()
def corpus() -> None:
    """Make, split and describe the store that a model is trained on."""


@corpus.command()
@click.argument("fasta", metavar="IN")
@OUTPUT
@click.option(
    "--clusters",
    metavar="FILE|header",
    help="A table of two columns, representative and member (MMseqs2), or `header`: named in the headers.",
)
@click.option("--min-length", type=click.IntRange(min=1), default=1, show_default=True, help="Leave shorter ones out.")
@click.option("--max-length", type=click.IntRange(min=1), help="Leave longer ones out (else they are cropped later).")
@SHARD
@click.pass_context
def build(
    context: click.Context,
    fasta: str,
    out: Path,
    clusters: str | None,
    min_length: int,
    max_length: int | None,
    shard_residues: int,
) -> None:
    """Build a store from a FASTA file, plain or compressed.

    Exact duplicates are merged, the first one stays. Every record is accounted for; refused.tsv and merged.tsv in the
    store list those that are not in it.
    """
    from proteinlm.corpora.build import BuildOptions
    from proteinlm.corpora.build import build as build_store
    from proteinlm.corpora.statistics import fates

    with _bar(" residues", None) as advance:
        options = BuildOptions(clusters, min_length, max_length, shard_residues, advance)
        manifest = build_store(fasta, out, options)
    kept = ", ".join(f"{count:,} {what}" for what, count in fates(manifest).items() if count)
    click.echo(f"{out}: {manifest.records:,} records: {kept}")
    click.echo(f"{manifest.residues:,} residues; lengths {manifest.shortest} to {manifest.longest}")
    if manifest.clusters:
        click.echo(f"{manifest.clusters:,} clusters; {manifest.without_representative:,} without their representative")
    if manifest.cluster_rows_unused:
        click.echo(f"{manifest.cluster_rows_unused:,} of {manifest.cluster_rows:,} rows of the table name no record")
    if manifest.merged_across:
        click.echo(f"{manifest.merged_across:,} sequences had copies in other clusters; they stay in the first")
    context.exit(1 if manifest.refused or manifest.unclustered else 0)


@corpus.command()
@click.argument("store", metavar="STORE", type=A_PATH)
@OUTPUT
@click.option("--fraction", type=float, default=0.1, show_default=True, help="Of the clusters, to be held out.")
@click.option("--seed", type=int, default=0, show_default=True, help="Another seed, other clusters.")
@SHARD
def split(store: Path, out: Path, fraction: float, seed: int, shard_residues: int) -> None:
    """Split a store by whole clusters: into OUT/train and OUT/heldout.

    A sequence that is, letter by letter, part of one on the other side is left out; refused.tsv lists them.
    """
    from proteinlm.corpora.split import SIDES, SplitOptions
    from proteinlm.corpora.split import split as split_store

    manifests = split_store(store, out, SplitOptions(fraction, seed, shard_residues))
    for side, manifest in zip(SIDES, manifests, strict=True):
        click.echo(
            f"{out / side}: {manifest.sequences:,} sequences, {manifest.residues:,} residues, {manifest.clusters:,} "
            f"clusters; {manifest.left_out:,} left out, because they are part of a sequence on the other side"
        )


@corpus.command()
@click.argument("store", metavar="STORE", type=A_PATH)
@click.argument("heldout", type=A_PATH)
@OUTPUT
@SHARD
def exclude(store: Path, heldout: Path, out: Path, shard_residues: int) -> None:
    """Leave out of a store whatever would give away a sequence of a held-out store: what `plm corpus leaks` finds."""
    from proteinlm.corpora.split import exclude as exclude_store

    manifest = exclude_store(store, heldout, out, shard_residues)
    click.echo(f"{out}: {manifest.sequences:,} of {manifest.records:,} sequences; {manifest.left_out:,} left out")


@corpus.command()
@click.argument("train", type=A_PATH)
@click.argument("heldout", type=A_PATH)
@click.pass_context
def leaks(context: click.Context, train: Path, heldout: Path) -> None:
    """Check that a held-out store is not in a training store: no identifier, no whole sequence within another.

    Exits with 1 if there is a leak.
    """
    from proteinlm.corpora.leaks import leaks_between
    from proteinlm.corpora.store import Store

    found = leaks_between(Store.open(train), Store.open(heldout))
    count = 0
    for leak in islice(found, SHOWN_LEAKS):
        click.echo(f"{leak.heldout}\t{leak.train}\t{leak.how}")
        count += 1
    more = sum(1 for _ in found)
    click.echo(f"{count + more:,} leaks" + (f", {count} shown" if more else ""))
    context.exit(1 if count else 0)


@corpus.command()
@click.argument("store", metavar="STORE", type=A_PATH)
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@click.option("--verify", is_flag=True, help="Read every byte and compare with the digests first.")
def stats(store: Path, as_json: bool, verify: bool) -> None:
    """Say what is in a store: counts, composition, lengths, cluster sizes."""
    from proteinlm.corpora.statistics import statistics
    from proteinlm.corpora.store import Store

    opened = Store.open(store)
    if verify:
        click.echo(f"{opened.verify()} files are what was written", err=True)
    found = statistics(opened)
    if as_json:
        click.echo(json.dumps({**asdict(found), "content_sha256": opened.manifest.content_sha256}, indent=1))
        return
    content = opened.manifest.content_sha256[:12]
    click.echo(f"{found.sequences:,} sequences, {found.residues:,} residues, content {content}")
    click.echo(f"lengths {found.shortest} to {found.longest}, mean {found.mean_length:.1f}")
    fates = ", ".join(f"{count:,} {what}" for what, count in found.fates.items() if count)
    click.echo(f"{opened.manifest.records:,} records: {fates}")
    shares = " ".join(f"{letter} {100 * share:.2f}" for letter, share in found.composition.items())
    click.echo(f"composition, %: {shares}")
    _draw("length", found.length_histogram)
    if found.clusters:
        click.echo(f"{found.clusters:,} clusters, the largest of {found.largest_cluster:,}")
        _draw("cluster size", found.cluster_sizes)


@corpus.command()
@click.argument("fasta", metavar="IN")
@click.option("-o", "--output", "table", required=True, type=A_PATH, help="The table to write.")
@click.option("--identity", type=float, default=0.5, show_default=True, help="Least share of identical residues.")
@click.option("--coverage", type=float, default=0.8, show_default=True, help="Least aligned share of both sequences.")
@click.option("--threads", type=click.IntRange(min=1), help="Else all.")
@click.option("--program", default="mmseqs", show_default=True, help="Name or path of MMseqs2.")
@click.option("--scratch", type=A_PATH, help="Folder for its files, several times the input; else beside the table.")
def cluster(
    fasta: str,
    table: Path,
    identity: float,
    coverage: float,
    threads: int | None,
    program: str,
    scratch: Path | None,
) -> None:
    """Cluster a FASTA file with MMseqs2 (linclust); give the table to `plm corpus build --clusters`."""
    from proteinlm.corpora.linclust import ClusterOptions
    from proteinlm.corpora.linclust import cluster as run_linclust

    used, unused = run_linclust(fasta, table, ClusterOptions(identity, coverage, threads, program, scratch))
    click.echo(f"{table}: {used:,} records clustered, {unused:,} cannot be used (`plm corpus build` lists them)")


@corpus.command()
@click.argument("name", type=click.Choice(FETCHED))
@click.option("-o", "--output", "out", type=A_PATH, help="Where to write; else here, under UniProt's name.")
@click.option("--base", metavar="URL", help="A mirror with UniProt's folders, such as EBI's.")
def fetch(name: str, out: Path | None, base: str | None) -> None:
    """Fetch a database of the current UniProt release; run it again to go on after an interruption.

    UniProt's data are under CC BY 4.0: name UniProt where you use them.
    """
    from proteinlm.corpora.fetch import BASE, FILES, FetchOptions, describe
    from proteinlm.corpora.fetch import fetch as fetch_file

    base = base or BASE
    out = out or Path(Path(FILES[name]).name)
    size = describe(name, FetchOptions(base)).size
    with _bar("B", size) as advance:
        remote = fetch_file(name, out, FetchOptions(base, advance=advance, say=lambda line: click.echo(line, err=True)))
    release = f" of release {remote.release}" if remote.release else ""
    click.echo(f"{out}: {remote.size:,} bytes{release}, MD5 {remote.md5} as published")


@contextmanager
def _bar(unit: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """A bar on standard error, if that is a terminal; what moves it."""
    from tqdm import tqdm

    with tqdm(total=total, unit=unit, unit_scale=True, disable=None, file=sys.stderr) as bar:
        yield lambda count: bar.update(count)


def _draw(title: str, counts: dict[str, int]) -> None:
    """A histogram of lines."""
    most, width = max(counts.values()), max(map(len, [title, *counts]))
    click.echo(title)
    for name, count in counts.items():
        click.echo(f"  {name:>{width}}  {'#' * round(BAR_CELLS * count / most):<{BAR_CELLS}}  {count:,}")
