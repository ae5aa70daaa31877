"""`plm data`, `plm split` and `plm leakage`: what is in a data folder, folds without relatives on both sides, and how
near a test set is to a training set.

In: a folder, a table or FASTA files. Out: a table, and lines that say what is in it.
"""

from pathlib import Path

import click

from proteinlm.cli.common import say
from proteinlm.errors import InputError


@click.command()
@click.option("--data", "folder", metavar="FOLDER", help="The data folder; else PROTEINLM_DATA.")
@click.option("--check", is_flag=True, help="Read every set from end to end and count.")
def data(folder: str | None, check: bool) -> None:
    """List the labelled sets: which are here, and how to get the others.

    Exits with 1 if --check finds a file that cannot be used.
    """
    from proteinlm.datasets.check import CHECKS
    from proteinlm.datasets.sources import SOURCES, data_folder, missing

    absent = missing(data_folder(folder))
    unusable = 0
    for key, source in SOURCES.items():
        line = f"{source.holds}; {source.licence}"
        if key in absent:
            line = absent[key]
        elif check:
            try:
                line = CHECKS[key](folder)
            except InputError as error:
                line, unusable = f"cannot be used: {error}", unusable + 1
        click.echo(f"{key:<18}  {line}")
    if unusable:
        raise click.exceptions.Exit(1)


@click.command()
@click.argument("table", metavar="IN.tsv", type=click.Path(path_type=Path))
@click.option("-o", "--output", "out", required=True, type=click.Path(path_type=Path), help="Table to write.")
@click.option(
    "--by",
    "columns",
    required=True,
    multiple=True,
    metavar="COLUMN",
    help="Cluster or classification; may be repeated.",
)
@click.option("--level", metavar="LEVEL", help="family, superfamily or fold, if COLUMN holds SCOP or CATH codes.")
@click.option("--folds", type=click.IntRange(min=2), default=5, show_default=True, help="How many folds.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the order of equal groups.")
def split(table: Path, out: Path, columns: tuple[str, ...], level: str | None, folds: int, seed: int) -> None:
    """Divide the rows of a table into folds that share no relatives.

    Rows with the same value in COLUMN (a cluster, a family) come into one fold; with several columns, rows that share a
    value in any of them. An empty value is related to nothing. The output is the table with a column `fold`, from 0.
    """
    from proteinlm.datasets.splits import level_key, split_folds
    from proteinlm.datasets.tables import read_rows, write_lines

    rows = list(read_rows(table, columns))
    if not rows:
        raise InputError(f"{table.name} has no rows; there is nothing to split")
    if "fold" in rows[0].values:
        raise InputError(f"{table.name} has a column 'fold' already; remove or rename it")
    keys = []
    for row in rows:
        values = [(column, row.values[column]) for column in columns if row.values[column]]
        try:
            keys.append([f"{column} {level_key(value, level) if level else value}" for column, value in values])
        except InputError as error:
            raise row.fail(str(error)) from error
    made = split_folds(keys, folds, seed)
    lines = ["\t".join((*rows[0].values, "fold"))]
    lines += ["\t".join((*row.values.values(), str(fold))) for row, fold in zip(rows, made.of_record, strict=True)]
    write_lines(out, lines)
    sizes = ", ".join(map(str, made.sizes()))
    say(f"{out}: {len(rows):,} rows, {int(made.groups.max()) + 1:,} groups of relatives, folds of {sizes} rows")


@click.command()
@click.argument("train", metavar="TRAIN.fasta", type=click.Path(path_type=Path))
@click.argument("test", metavar="TEST.fasta", type=click.Path(path_type=Path))
@click.option("-o", "--output", "out", required=True, type=click.Path(path_type=Path), help="Table to write.")
@click.option(
    "--method",
    type=click.Choice(["auto", "mmseqs", "exact", "words"]),
    default="auto",
    show_default=True,
    help="MMseqs2, all pairs aligned, or those that share words; auto: MMseqs2 if installed, else by size.",
)
@click.option("--e-value", type=float, default=1e-3, show_default=True, help="Largest E-value of a relative.")
@click.option("--threads", type=int, default=1, show_default=True, help="Threads.")
def leakage(train: Path, test: Path, out: Path, method: str, e_value: float, threads: int) -> None:
    """How near each test protein is to the training set.

    For every protein of TEST.fasta the training protein with the best alignment: identity, coverage of the test
    protein, E-value. Proteins without a significant alignment have empty fields.
    """
    from tqdm import tqdm

    from proteinlm.datasets.leakage import LeakageOptions, nearest_training, read_proteins, write_report

    options = LeakageOptions(method=method, e_value=e_value, threads=threads)
    training, tested = read_proteins(train), read_proteins(test)
    with tqdm(total=len(tested), unit=" proteins", disable=None) as bar:
        report = nearest_training(training, tested, options, bar.update)
    write_report(out, report)
    say(f"{out}: {len(tested):,} test proteins against {len(training):,} training proteins; {report.method}")
    for identity in (0.9, 0.5, 0.3):
        say(f"  {report.above(identity):,} with a relative of {identity:.0%} identity or more over half of the protein")
    say(f"  {sum(row.nearest is None for row in report.rows):,} without a relative of E-value {e_value:g} or less")
