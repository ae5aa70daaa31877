"""When memory runs out, batches are halved and nothing is dropped; one protein too large for the machine is refused."""

import csv
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from embedding_tools import ALONE_TOLERANCE, LONGEST, made_up, plm, save_model, threads, tiny_model, write_fasta

from proteinlm import read_embeddings
from proteinlm.inference import Answer, Failure, Query, Runner, RunOptions, forward_all, plan
from proteinlm.models.base import Output, Want
from proteinlm.sequences.batch import PackedBatch

PROTEINS = [residues for _, residues in made_up(40)]
QUERIES = [Query(row, residues) for row, residues in enumerate(PROTEINS)]
WANT = Want(layers=(2,))

CPU_MESSAGE = (
    "[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate "
    "1125899906842624 bytes. Error code 12 (Cannot allocate memory)"
)
"""What PyTorch's CPU allocator says, as a RuntimeError."""

ERRORS = {
    "cuda": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    "cpu": RuntimeError(CPU_MESSAGE),
    "python": MemoryError(),
}


class Small:
    """Stands in for `Runner.forward` on a machine with room for so many tokens."""

    def __init__(self, room: int, error: Exception) -> None:
        self.room, self.error = room, error
        self.tokens: list[int] = []

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        forward = Runner.forward

        def forward_if_it_fits(runner: Runner, batch: PackedBatch, want: Want) -> Output:
            self.tokens.append(len(batch.tokens_T))
            if len(batch.tokens_T) > self.room:
                raise self.error
            return forward(runner, batch, want)

        monkeypatch.setattr(Runner, "forward", forward_if_it_fits)


def a_runner(tokens: int = 256) -> Runner:
    return Runner(tiny_model(), RunOptions(precision="fp32", device="cpu", tokens_per_batch=tokens))


def answers(runner: Runner) -> dict[int, Answer | Failure]:
    items = list(forward_all(runner, QUERIES, WANT))
    assert sorted(item.row for item in items) == list(range(len(QUERIES))), "each once"
    return {item.row: item for item in items}


@pytest.mark.parametrize("name", ERRORS)
@pytest.mark.parametrize("count", [1, 2])
def test_batches_are_halved_and_nothing_is_dropped(name: str, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = answers(a_runner())
    small = Small(room=60, error=ERRORS[name])
    small.install(monkeypatch)
    runner = a_runner()
    with threads(count):
        found = answers(runner)
    refused = [tokens for tokens in small.tokens if tokens > 60]
    assert runner.halvings == len(refused) >= 3 and max(refused) > 200
    assert sum(tokens for tokens in small.tokens if tokens <= 60) == sum(len(residues) + 2 for residues in PROTEINS)
    for row, answer in found.items():
        other = expected[row]
        assert isinstance(answer, Answer) and isinstance(other, Answer)
        torch.testing.assert_close(answer.hidden[2], other.hidden[2], **ALONE_TOLERANCE)


def test_a_protein_that_never_fits_is_refused_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    small = Small(room=25, error=ERRORS["cpu"])
    small.install(monkeypatch)
    for row, answer in answers(a_runner()).items():
        length = len(PROTEINS[row])
        if length + 2 > 25:
            assert isinstance(answer, Failure)
            assert answer.reason == f"out of memory on its {length} residues alone; use a smaller model"
        else:
            assert isinstance(answer, Answer) and answer.hidden[2].shape[0] == length
    assert 5 < sum(len(residues) > 23 for residues in PROTEINS) < 35


def test_other_errors_are_not_mistaken_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    Small(room=0, error=RuntimeError("mat1 and mat2 shapes cannot be multiplied")).install(monkeypatch)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        answers(a_runner())


def test_a_window_that_never_fits_refuses_its_protein_once(monkeypatch: pytest.MonkeyPatch) -> None:
    Small(room=30, error=ERRORS["cuda"]).install(monkeypatch)
    queries = [Query(0, "MKTV" * LONGEST), Query(1, "MKTV")]
    long, short = sorted(forward_all(a_runner(), queries, WANT), key=lambda item: item.row)
    assert isinstance(long, Failure) and isinstance(short, Answer)
    assert long.reason.startswith(f"out of memory on its {4 * LONGEST} residues alone")


def test_a_contact_map_that_does_not_fit_refuses_its_protein(monkeypatch: pytest.MonkeyPatch) -> None:
    """The windows of a giant may fit where its whole map does not."""
    full = torch.full

    def full_if_it_fits(size: tuple[int, ...], *arguments: object) -> torch.Tensor:
        if size[0] > 100:
            raise ERRORS["cpu"]
        return full(size, *arguments)

    monkeypatch.setattr(torch, "full", full_if_it_fits)
    queries = [Query(0, "MKTV" * 26), Query(1, "MKTV" * 20), Query(2, "MKTV")]
    items = sorted(forward_all(a_runner(), queries, Want(contacts=True)), key=lambda item: item.row)
    assert [type(item) for item in items] == [Failure, Answer, Answer]
    assert items[1].windows > 1


def test_on_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    Small(room=38, error=ERRORS["cpu"]).install(monkeypatch)
    proteins = [*made_up(20), ("too-large", "M" * 39)]
    source, out = write_fasta(tmp_path / "in.fasta", proteins), tmp_path / "out.h5"
    command = ("embed", source, "-o", out, "--model", save_model(tmp_path), "--device", "cpu", "--precision", "fp32")
    assert plm(monkeypatch, *command) == 1
    told = capsys.readouterr()
    assert told.out == f"21 in, 20 embedded, 1 refused (listed in {out}.refused.tsv)\n"
    assert "batches were halved; a smaller --tokens-per-batch avoids that" in told.err
    with open(f"{out}.refused.tsv", encoding="utf-8", newline="") as file:
        _, row = csv.reader(file, delimiter="\t")
    assert row == ["20", "too-large", "", "", "out of memory on its 39 residues alone; use a smaller model"]
    assert [name for name, _ in read_embeddings(out)] == [header.split()[0] for header, _ in proteins[:-1]]


@pytest.mark.parametrize("lanes", [1, 2, 4])
def test_batches_are_equal_shares_of_what_there_is(lanes: int) -> None:
    """No batch exceeds the budget, every protein is in one, and every lane gets a batch of nearly the same size."""
    run = a_runner(tokens=400)
    around = len(run.model.alphabet.prefix) + len(run.model.alphabet.suffix)
    with threads(lanes):
        batches, failures, _ = plan(QUERIES, run)
    sizes = [sum(len(piece.residues) + around for piece in batch) for batch in batches]
    rows = [piece.query.row for batch in batches for piece in batch]
    assert not failures and sorted(rows) == list(range(len(QUERIES)))
    assert max(sizes) <= 400 and sum(sizes) == sum(len(residues) + around for residues in PROTEINS)
    assert len(batches) % lanes == 0 or len(batches) > 2 * lanes
    assert max(sizes) - min(sizes) <= 2 * (LONGEST + around)


KEPT_AND_RETURNED = """
import torch
from proteinlm.inference import keep_freed_memory, return_freed_memory

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096 / 2**20

keep_freed_memory()
before = resident()
blocks = [torch.ones(1000 * (100 + number)) for number in range(400)]
full = resident()
del blocks
kept = resident()
return_freed_memory()
print(full - before, kept - before, resident() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="how freed memory is kept is glibc's affair")
def test_freed_memory_is_kept_until_it_is_given_back() -> None:
    done = subprocess.run([sys.executable, "-c", KEPT_AND_RETURNED], capture_output=True, text=True, check=True)
    full, kept, after = map(float, done.stdout.split())
    assert full > 400 and kept > 0.9 * full and after < 0.2 * full, done.stdout
