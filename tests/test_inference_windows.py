"""Proteins longer than the model's positions: windows against a naive loop over them, crops, refusals, titin."""

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from embedding_tools import ALONE_TOLERANCE, LONGEST, RESIDUES, plm, save_model, tiny_model, write_fasta

from proteinlm import checkpoints, read_embeddings
from proteinlm.inference import OVERLAP, Answer, Failure, Query, Runner, RunOptions, cut, forward_all
from proteinlm.models import PRESETS, on_meta
from proteinlm.models.base import Want
from proteinlm.models.esm import Esm2, Esm2Config
from proteinlm.sequences.batch import PackedBatch

WANT = Want(layers=(0, 2), logits=True, contacts=True)
LENGTHS = [LONGEST - 1, LONGEST, LONGEST + 1, 70, 71, 100, 129]


def protein(length: int, seed: int = 0) -> str:
    return "".join(np.random.default_rng([seed, length]).choice(list(RESIDUES), size=length))


def runner(long: str = "window", tokens: int = 100) -> Runner:
    return Runner(tiny_model(), RunOptions(precision="fp32", device="cpu", long=long, tokens_per_batch=tokens))


def answers(run: Runner, proteins: list[str], want: Want = WANT) -> list[Answer | Failure]:
    """In the order of the proteins; each is there once."""
    found = {answer.row: answer for answer in forward_all(run, [Query(n, p) for n, p in enumerate(proteins)], want)}
    assert sorted(found) == list(range(len(proteins)))
    return [found[row] for row in range(len(proteins))]


def starts_of(length: int) -> list[int]:
    """As few windows of full size as share a quarter with their neighbours, evenly spread."""
    if length <= LONGEST:
        return [0]
    count = 1
    while LONGEST + (count - 1) * (LONGEST - LONGEST // OVERLAP) < length:
        count += 1
    return [k * (length - LONGEST) // (count - 1) for k in range(count)]


def naive(residues: str) -> dict[str, torch.Tensor]:
    """Window by window through the bare model; every residue and pair from the window in which it stands deepest."""
    model, length = tiny_model().eval(), len(residues)
    windows = []
    for start in starts_of(length):
        piece = residues[start : start + LONGEST]
        batch = PackedBatch.pack([model.alphabet.encode(piece)], prefix=1, suffix=1)
        with torch.inference_mode():
            windows.append((start, len(piece), model(batch, WANT)))

    def home(twice: int) -> int:
        """The window in which a position (given twice) stands farthest from the nearer cut; the ends are none."""
        depths = []
        for start, size, _ in windows:
            left = twice - 2 * start if start else 10**9
            right = 2 * (start + size - 1) - twice if start + size < length else 10**9
            depths.append(min(left, right))
        # Of two in which it stands equally deep: a residue's is the later one, that of a point between two the earlier.
        return max(range(len(windows)), key=lambda k: (depths[k], k if twice % 2 == 0 else -k))

    contacts_LL = torch.full((length, length), float("nan"))
    for i in range(length):
        for j in range(length):
            start, size, output = windows[home(i + j)]
            if all(start <= x < start + size for x in (i, j)):
                contacts_LL[i, j] = output.contacts[0][i - start, j - start]
    rows = [(windows[home(2 * i)], i) for i in range(length)]
    return {
        "layer 0": torch.stack([output.hidden[0][1 + i - start] for (start, _, output), i in rows]),
        "layer 2": torch.stack([output.hidden[2][1 + i - start] for (start, _, output), i in rows]),
        "logits": torch.stack([output.logits_TV[1 + i - start] for (start, _, output), i in rows]),
        "first": torch.stack([output.hidden[2][0] for _, _, output in windows]).mean(0),
        "contacts": contacts_LL,
    }


def test_windows_equal_a_naive_loop_over_them() -> None:
    proteins = [protein(length) for length in LENGTHS]
    several = 0
    for answer, residues in zip(answers(runner(), proteins), proteins, strict=True):
        expected = naive(residues)
        assert isinstance(answer, Answer)
        ours = {
            "layer 0": answer.hidden[0],
            "layer 2": answer.hidden[2],
            "logits": answer.logits,
            "first": answer.first[2],
            "contacts": answer.contacts,
        }
        for name, tensor in expected.items():
            torch.testing.assert_close(ours[name], tensor, equal_nan=True, **ALONE_TOLERANCE)
        assert answer.windows == len(starts_of(len(residues))) and answer.cropped == 0
        several += answer.windows > 2
    assert several == 3


@pytest.mark.parametrize("length", range(1, 400, 7))
def test_every_residue_has_one_window_and_stands_deep_in_it(length: int) -> None:
    pieces = cut(Query(0, "A" * length), LONGEST)
    owned = [residue for piece in pieces for residue in range(*piece.owned)]
    assert owned == list(range(length))
    for piece in pieces:
        assert len(piece.residues) == min(length, LONGEST), "every window is full"
        for residue in range(*piece.owned):
            left = residue - piece.start if piece.start else LONGEST
            right = piece.start + LONGEST - 1 - residue if piece.start + LONGEST < length else LONGEST
            assert min(left, right) >= LONGEST // OVERLAP // 2 - 1, "an eighth of a window from any cut"


def test_pairs_near_each_other_have_a_contact_and_distant_ones_none() -> None:
    (answer,) = answers(runner(), [protein(200)])
    assert isinstance(answer, Answer) and answer.contacts is not None
    index = torch.arange(200)
    apart = (index[:, None] - index).abs()
    assert answer.contacts[apart < LONGEST // OVERLAP].isfinite().all()
    assert answer.contacts[apart >= LONGEST].isnan().all()
    torch.testing.assert_close(answer.contacts, answer.contacts.T, equal_nan=True, **ALONE_TOLERANCE)


def test_a_crop_is_the_beginning_and_is_told() -> None:
    residues = protein(LONGEST + 25)
    (cropped,), (beginning,) = answers(runner("crop"), [residues]), answers(runner(), [residues[:LONGEST]])
    assert isinstance(cropped, Answer) and isinstance(beginning, Answer)
    assert (cropped.cropped, cropped.windows, beginning.cropped) == (25, 1, 0)
    assert torch.equal(cropped.hidden[2], beginning.hidden[2]) and torch.equal(cropped.logits, beginning.logits)


def test_an_error_names_length_limit_and_remedy() -> None:
    short, long = answers(runner("error"), [protein(LONGEST), protein(LONGEST + 1)])
    assert isinstance(short, Answer) and isinstance(long, Failure)
    assert long.reason == "41 residues exceed the 40 of this model; use --long window or crop"


@pytest.mark.parametrize("name", [name for name in PRESETS if name.startswith("esm")])
def test_published_transformers_read_1022_residues(name: str) -> None:
    assert on_meta(PRESETS[name].architecture, PRESETS[name].config).max_residues == 1022


def test_models_without_a_limit_are_not_cut() -> None:
    assert on_meta("unirep", PRESETS["unirep-64"].config).max_residues is None
    assert len(cut(Query(0, "A" * 35_000), None)) == 1


@pytest.fixture
def titin(tmp_path: Path) -> tuple[str, str]:
    """A protein of titin's length between two short ones, and a tiny model with the positions of a published one."""
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(0)
        checkpoints.save(Esm2(Esm2Config(num_layers=1, width=8, num_heads=1, inner=16)), tmp_path / "m.safetensors")
    residues = protein(35_000)
    wrapped = "\n".join(residues[start : start + 60] for start in range(0, 35_000, 60))
    source = write_fasta(tmp_path / "in.fasta", [("a", "MKT"), ("titin", wrapped), ("b", "MVL")])
    return source, str(tmp_path / "m.safetensors")


def test_titin(
    titin: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    source, model = titin
    command = ("embed", source, "--model", model, "--device", "cpu", "--precision", "fp32")
    assert plm(monkeypatch, *command, "-o", tmp_path / "w.h5", "--pooling", "none", "--storage", "fp16") == 0
    told = capsys.readouterr()
    assert told.out == "3 in, 3 embedded, 0 refused\n"
    assert "the model takes 1022 residues, the longest record has 35000; --long window" in told.err
    assert "records: 1 longer than the model's positions, run in windows" in told.err
    with h5py.File(tmp_path / "w.h5") as file:
        assert [file[name].shape for name in file] == [(3, 8), (35_000, 8), (3, 8)]
        # Neighbours share 255 of 1,022 residues, so that 46 windows are needed for the rest.
        assert file["titin"].attrs["windows"] == 1 + -(-(35_000 - 1022) // (1022 - 255)) == 46
        assert json.loads(file.attrs["provenance"])["counts"]["windowed"] == 1
    assert plm(monkeypatch, *command, "-o", tmp_path / "e.h5", "--long", "error") == 1
    assert "titin" in (tmp_path / "e.h5.refused.tsv").read_text() and "3 in, 2 embedded" in capsys.readouterr().out
    assert plm(monkeypatch, *command, "-o", tmp_path / "c.h5", "--long", "crop") == 0
    assert "records: 1 longer than the model's positions, cropped" in capsys.readouterr().err
    with h5py.File(tmp_path / "c.h5") as file:
        assert file["titin"].attrs["cropped"] == 35_000 - 1022
    assert [len(list(read_embeddings(tmp_path / f"{name}.h5"))) for name in "wec"] == [3, 2, 3]


def test_windows_do_not_depend_on_the_batches(tmp_path: Path) -> None:
    proteins = [protein(length) for length in (333, 5, 100, 41, 80)]
    together = answers(runner(tokens=4096), proteins)
    for tokens in (1, 64, 150):
        for one, other in zip(answers(runner(tokens=tokens), proteins), together, strict=True):
            assert isinstance(one, Answer) and isinstance(other, Answer) and one.windows == other.windows
            torch.testing.assert_close(one.hidden[2], other.hidden[2], **ALONE_TOLERANCE)
    assert save_model(tmp_path)
