"""`plm embed` as a user meets it: exit codes, closing line, the list of refused records, every way to name an input."""

import bz2
import csv
import gzip
import io
import json
import lzma
import re
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from embedding_tools import LONGEST, digests, made_up, plm, save_model, write_fasta

from proteinlm import read_embeddings
from proteinlm.cli import COMMANDS, cli
from proteinlm.cli.common import CONTENTS, STORAGES, Bar
from proteinlm.cli.embedding import FORMATS as NAMED_FORMATS
from proteinlm.cli.models import LAYOUTS
from proteinlm.embedding import settings
from proteinlm.embedding.formats import FORMATS

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

MIXED = ">good one\nMKTAYIAK\n>bad\nMKT7YI\n>none here\n\n>good\nmkt-ay*\n>stop\nMK*T\n>last\nACDEFGHIKL\n"


class User:
    """Types `plm` commands and reads what they print."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
        self.folder, self.monkeypatch, self.capsys = folder, monkeypatch, capsys
        self.model = save_model(folder)

    def types(self, *arguments: object) -> tuple[int, str, str]:
        """Exit code, standard output, standard error."""
        code = plm(self.monkeypatch, *arguments)
        told = self.capsys.readouterr()
        return code, told.out, told.err

    def embeds(self, source: object, name: str, *options: object) -> tuple[int, str, str]:
        return self.types("embed", source, "-o", self.folder / name, "--model", self.model, "--device", "cpu", *options)


@pytest.fixture
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> User:
    return User(tmp_path, monkeypatch, capsys)


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    path = tmp_path / "mixed.fasta"
    path.write_text(MIXED)
    return path


def test_all_is_well(user: User, tmp_path: Path) -> None:
    source = write_fasta(tmp_path / "in.fasta", made_up(5))
    code, out, err = user.embeds(source, "out.h5")
    assert (code, out) == (0, "5 in, 5 embedded, 0 refused\n")
    assert not list(tmp_path.glob("*.refused.tsv")) and not list(tmp_path.glob("*.parts"))
    heads = [line.split()[0] for line in err.splitlines()]
    assert heads == ["model", "running", "keeping", "long", "letters", "input"]
    assert "X B U Z O: own token; J: read as X" in err and f"the model takes {LONGEST} residues" in err
    code, out, err = user.embeds(source, "out.h5")
    assert (code, out) == (0, "5 in, 5 embedded, 0 refused\n") and "is complete already; nothing was done" in err


def test_refused_records_are_counted_and_listed(user: User, mixed: Path, tmp_path: Path) -> None:
    code, out, err = user.embeds(mixed, "out.h5")
    listed = tmp_path / "out.h5.refused.tsv"
    assert (code, out) == (1, f"6 in, 3 embedded, 3 refused (listed in {listed})\n")
    with open(listed, encoding="utf-8", newline="") as file:
        head, *rows = csv.reader(file, delimiter="\t")
    assert head == ["index", "id", "position", "letter", "reason"]
    assert [row[:4] for row in rows] == [["1", "bad", "4", "7"], ["2", "none", "", ""], ["4", "stop", "3", "*"]]
    assert rows[0][4] == "letter '7' at position 4 is not a residue of alphabet ESM-1b; remove or replace it"
    assert "empty" in rows[1][4] and "a stop codon inside" in rows[2][4]
    assert [identifier for identifier, _ in read_embeddings(tmp_path / "out.h5")] == ["good", "good", "last"]
    assert "records: 1 final stop normalised; 1 gaps normalised; 1 lower case normalised; 1 ids stored under" in err
    assert user.embeds(mixed, "out.h5")[:2] == (1, out), "still so when there is nothing left to do"


def test_strict_stops_at_the_first(user: User, mixed: Path, tmp_path: Path) -> None:
    code, out, err = user.embeds(mixed, "out.h5", "--strict")
    assert (code, out) == (2, "")
    assert err.startswith("plm: error: record 2 ('bad'): letter '7' at position 4") and err.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mixed.fasta", "tiny-0.safetensors"]


def test_strict_stops_at_a_protein_that_is_too_long(user: User, tmp_path: Path) -> None:
    source = write_fasta(tmp_path / "in.fasta", [("a", "MKT"), ("long", "M" * (LONGEST + 1))])
    code, out, err = user.embeds(source, "out.h5", "--long", "error", "--strict")
    assert (code, out) == (2, "") and not (tmp_path / "out.h5").exists()
    last = err.splitlines()[-1]
    assert last.startswith("plm: error: record 2 ('long'): 41 residues exceed the 40 of this model")
    code, out, _ = user.embeds(source, "out.h5", "--long", "error")
    assert code == 1 and out.startswith("2 in, 1 embedded, 1 refused (listed in ")


BAD_COMMANDS = {
    "no such file": (("{folder}/absent.fasta", "-o", "{folder}/o.h5"), "cannot open '{folder}/absent.fasta'"),
    "a folder": (("{folder}", "-o", "{folder}/o.h5"), "cannot open"),
    "empty file": (("{folder}/empty.fasta", "-o", "{folder}/o.h5"), "is empty; give a FASTA file"),
    "blank file": (("{folder}/blank.fasta", "-o", "{folder}/o.h5"), "holds no records"),
    "no format": (("{fasta}", "-o", "{folder}/o.txt"), "says no format; end it in .h5, .hdf5, .parquet"),
    "no name": (("{fasta}", "-o", ".", "--format", "esm-pt"), "'.' is no name for an output"),
    "no model": (("{fasta}", "-o", "{folder}/o.h5", "--model", "esm2-8n"), "did you mean 'esm2-8m'?"),
    "no layer": (("{fasta}", "-o", "{folder}/o.h5", "--layers", "3"), "layer 3 is outside 0..2"),
    "no content": (("{fasta}", "-o", "{folder}/o.h5", "--include", "logit"), "include 'logit' is unknown"),
    "no device": (("{fasta}", "-o", "{folder}/o.h5", "--device", "tpu"), "device 'tpu' is unknown; use auto, cpu"),
    "no such gpu": (("{fasta}", "-o", "{folder}/o.h5", "--device", "cuda:99"), "device cuda:99 is not there"),
    "meta": (("{fasta}", "-o", "{folder}/o.h5", "--device", "meta"), "device 'meta' is unknown"),
    "no shard": (("{fasta}", "-o", "{folder}/o.h5", "--shard", "3/2"), "shard '3/2' is not one of 1/2 to 2/2"),
    "half a shard": (("{fasta}", "-o", "{folder}/o.h5", "--shard", "3"), "is not of the form i/n"),
    "no worker": (("{fasta}", "-o", "{folder}/o.h5", "--workers", "0"), "0 workers cannot do anything"),
    "shard and workers": (
        ("{fasta}", "-o", "{folder}/o.h5", "--shard", "1/2", "--workers", "2"),
        "--shard and --workers exclude each other",
    ),
    "no kernel": (("{fasta}", "-o", "{folder}/o.h5", "--attention", "fast"), "attention kernel 'fast' is unknown"),
    "gpu kernel": (("{fasta}", "-o", "{folder}/o.h5", "--attention", "varlen"), "'varlen' runs on cuda in bf16 only"),
    "npz": (("{fasta}", "-o", "{folder}/o.npz"), ".npz holds contact maps (`plm contacts`)"),
}


@pytest.mark.parametrize("name", BAD_COMMANDS)
def test_what_cannot_be_used_is_one_line_and_exit_code_2(name: str, user: User, tmp_path: Path) -> None:
    arguments, message = BAD_COMMANDS[name]
    fasta = write_fasta(tmp_path / "in.fasta", made_up(3))
    (tmp_path / "empty.fasta").touch()
    (tmp_path / "blank.fasta").write_text("\n\n")
    before = digests(tmp_path)
    source, *rest = (argument.format(folder=tmp_path, fasta=fasta) for argument in arguments)
    model = () if "--model" in rest else ("--model", user.model)
    code, out, err = user.types("embed", source, "--precision", "fp32", *model, *rest)
    assert (code, out) == (2, "")
    *_, last = err.splitlines()
    assert last.startswith("plm: error: ") and message.format(folder=tmp_path) in last and "Traceback" not in err
    assert digests(tmp_path) == before and not list(tmp_path.glob("*.parts"))


@pytest.mark.parametrize("arguments", [("embed",), ("embed", "x", "--nonsense"), ("nonsense",), ("embed", "x", "-o")])
def test_a_misspelt_command_is_exit_code_2(arguments: tuple[str, ...], user: User) -> None:
    code, out, err = user.types(*arguments)
    assert code == 2 and "Error: " in err and "Traceback" not in err and not out


@pytest.mark.parametrize("kind", ["gz", "zst", "bz2", "xz"])
def test_compressed_input_by_content(kind: str, user: User, mixed: Path, tmp_path: Path) -> None:
    compress = {"gz": gzip.compress, "zst": zstd.compress, "bz2": bz2.compress, "xz": lzma.compress}[kind]
    # The name says nothing on purpose.
    (tmp_path / "packed.fasta").write_bytes(compress(mixed.read_bytes()))
    assert user.embeds(mixed, "plain.h5")[0] == user.embeds(tmp_path / "packed.fasta", "packed.h5")[0] == 1
    plain, packed = (list(read_embeddings(tmp_path / name)) for name in ("plain.h5", "packed.h5"))
    assert len(plain) == 3
    for (ours, vector), (theirs, other) in zip(plain, packed, strict=True):
        assert ours == theirs
        np.testing.assert_array_equal(vector, other)


@pytest.mark.parametrize("compress", [bytes, gzip.compress], ids=["plain", "gzip"])
def test_standard_input_is_a_file_like_another(compress: type, user: User, mixed: Path, tmp_path: Path) -> None:
    stored = compress(mixed.read_bytes())
    mixed.write_bytes(stored)

    def pipe() -> io.TextIOWrapper:
        return io.TextIOWrapper(io.BytesIO(stored))

    for name in ("file", "pipe"):
        (tmp_path / name).mkdir()
    file = user.embeds(mixed, "file/out.h5")
    user.monkeypatch.setattr(sys, "stdin", pipe())
    piped = user.embeds("-", "pipe/out.h5")
    assert (piped[0], piped[1].replace("pipe/", "file/")) == file[:2] and file[0] == 1
    assert digests(tmp_path / "pipe") == digests(tmp_path / "file")
    user.monkeypatch.setattr(sys, "stdin", pipe())
    assert "nothing was done" in user.embeds("-", "pipe/out.h5")[2]
    assert sorted(path.name for path in (tmp_path / "pipe").iterdir()) == ["out.h5", "out.h5.refused.tsv"]
    user.monkeypatch.setattr(sys, "stdin", pipe())
    code, _, err = user.embeds("-", "third.h5", "--shard", "1/2")
    assert code == 2 and "standard input cannot be sharded" in err


def test_ids_of_every_kind(user: User, tmp_path: Path) -> None:
    ids = ["sp|P1|A/B", "sp|P1|A_B", "x:y", "a.b.c", ".", "..", "../up", "a b", "a b", "é", "-rf", "\x27quoted\x22"]
    source = write_fasta(tmp_path / "in.fasta", [(name, "MKT" + "A" * n) for n, name in enumerate(ids)])
    kept = [name.split()[0] for name in ids]
    for name, options in (("out.h5", ()), ("out.safetensors", ()), ("pt", ("--format", "esm-pt"))):
        code, out, _ = user.embeds(source, name, *options)
        assert (code, out) == (0, "12 in, 12 embedded, 0 refused\n")
        found = [identifier for identifier, _ in read_embeddings(tmp_path / name)]
        assert sorted(found) == sorted(ids if options else kept)
    assert len(list((tmp_path / "pt").glob("*.pt"))) == 12, "every file is in its folder"
    with h5py.File(tmp_path / "out.h5") as file:
        assert {"sp|P1|A_B", "sp|P1|A_B__2", "x:y", "a.b.c", "a", "a__2"} <= set(file)


def test_options_that_take_lists(user: User, tmp_path: Path) -> None:
    source = write_fasta(tmp_path / "in.fasta", made_up(3))
    ways = [("--layers", "-1,0"), ("--layers", "-1", "0"), ("--layers", "-1", "--layers", "0"), ("--layers=-1,0",)]
    for n, way in enumerate(ways):
        (tmp_path / str(n)).mkdir()
        extra = ("--include", "logits", "embeddings") if n % 2 else ("--include", "embeddings,logits")
        assert user.embeds(source, f"{n}/out.h5", *way, *extra)[0] == 0
    assert len(digests(tmp_path / "0")) == 2
    assert len({tuple(digests(tmp_path / str(n)).items()) for n in range(len(ways))}) == 1
    # An input whose name looks like a value stays the input.
    (tmp_path / "logits").write_text(">a\nMK\n")
    user.monkeypatch.chdir(tmp_path)
    code, _, _ = user.types("embed", "logits", "-o", "x.h5", "--include", "contacts", "--model", user.model)
    assert code == 0 and (tmp_path / "x.h5").exists()


def test_an_attention_kernel_by_name_is_the_one_that_runs(user: User, tmp_path: Path) -> None:
    source = write_fasta(tmp_path / "in.fasta", made_up(9))
    arrays, told = {}, {}
    for kernel in ("loop", "sdpa", "matmul"):
        code, _, err = user.embeds(source, f"{kernel}.h5", "--attention", kernel, "--precision", "bf16")
        assert code == 0 and f"attention {kernel}\n" in err
        arrays[kernel] = np.stack([array for _, array in read_embeddings(tmp_path / f"{kernel}.h5")])
        with h5py.File(tmp_path / f"{kernel}.h5") as file:
            told[kernel] = json.loads(file.attrs["provenance"])["attention"]
    assert told == {kernel: kernel for kernel in arrays}
    scale = abs(arrays["loop"]).max()
    for one, other in (("loop", "sdpa"), ("loop", "matmul"), ("sdpa", "matmul")):
        difference = abs(arrays[one] - arrays[other]).max()
        # Kernels round in their own places, so that no two are equal; 2^-6: a few roundings of bf16.
        assert 0 < difference <= 2**-6 * scale, (one, other)


def test_bf16_is_stated_and_refused_where_it_would_add_up(user: User, tmp_path: Path) -> None:
    source = write_fasta(tmp_path / "in.fasta", made_up(3))
    code, _, err = user.embeds(source, "exact.h5", "--precision", "fp32")
    assert code == 0 and "running  on cpu in fp32 (as asked)" in err
    capabilities = torch.cpu.get_capabilities()
    user.monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {**capabilities, "avx512_bf16": True})
    code, _, err = user.embeds(source, "auto.h5")
    assert code == 0 and "running  on cpu in bf16 (this CPU multiplies in bf16; --precision fp32 is exact)" in err
    with h5py.File(tmp_path / "auto.h5") as file:
        assert json.loads(file.attrs["provenance"])["precision"] == "bf16"


class Terminal(io.StringIO):
    """Standard error of somebody who looks on."""

    def isatty(self) -> bool:
        return True


def test_a_terminal_sees_residues_per_second_and_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", screen := Terminal())
    bar = Bar()
    bar.begin(2000)
    bar.advance(500)
    bar.end()
    last = screen.getvalue().split("\r")[-1]
    assert "500/2.00k" in last and "residues/s" in last and re.search(r"\d\d:\d\d<\d\d:\d\d", last)


def test_the_choices_of_the_command_line_are_those_of_the_package() -> None:
    """They are written down twice, so that `plm --help` imports nothing heavy."""
    assert CONTENTS == settings.CONTENTS and tuple(settings.STORAGES) == STORAGES
    assert set(NAMED_FORMATS) == set(FORMATS) - {"npz", "npz-folder"}, "those are chosen by `plm contacts`"
    assert set(cli.commands) == {command.name for command in COMMANDS} and len(LAYOUTS) == 5


def test_help_of_every_command_imports_nothing_heavy() -> None:
    code = (
        "import contextlib, io, sys\n"
        "from proteinlm.cli import cli\n"
        "pages = []\n"
        "for words in [[], *([name] for name in cli.commands)]:\n"
        "    with contextlib.redirect_stdout(io.StringIO()) as page, contextlib.suppress(SystemExit):\n"
        "        cli.main([*words, '--help'], prog_name='plm')\n"
        "    pages.append(page.getvalue())\n"
        "assert all(page.startswith('Usage: plm') for page in pages), pages\n"
        "heavy = {'torch', 'numpy', 'h5py', 'pyarrow', 'matplotlib', 'huggingface_hub', 'safetensors', 'tqdm'}\n"
        "print(len(pages), sorted(heavy & set(sys.modules)))\n"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split(" ", 1)
    assert int(told[0]) == len(COMMANDS) + 1 >= 7 and told[1] == "[]\n"


def test_a_real_process_ends_with_these_codes(tmp_path: Path) -> None:
    """Through the interpreter and the file system: exit code 1, the closing line alone on standard output."""
    (tmp_path / "in.fasta").write_text(MIXED)
    command = [sys.executable, "-c", "from proteinlm.cli import main; main()", "embed", "-", "-o", "out.h5"]
    with open(tmp_path / "in.fasta", "rb") as stdin:
        ended = subprocess.run(
            [*command, "--model", save_model(tmp_path)], stdin=stdin, cwd=tmp_path, capture_output=True, text=True
        )
    assert ended.returncode == 1, ended.stderr
    assert ended.stdout == "6 in, 3 embedded, 3 refused (listed in out.h5.refused.tsv)\n"
    assert "residues" not in ended.stderr.splitlines()[-1], "no bar where there is no terminal"
