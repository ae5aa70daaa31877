"""The plan: every record is in one block, no block is too large, and the same file gives the same plan."""

from dataclasses import replace
from pathlib import Path

import pytest
from embedding_tools import LAYERS, WIDTH, made_up, tiny_model, write_fasta

from proteinlm.embedding import plan as planning
from proteinlm.embedding.plan import BlockSize, Plan, block_size, make_plan, read_blocks
from proteinlm.embedding.settings import EmbedSettings
from proteinlm.errors import InputError
from proteinlm.sequences.alphabet import ESM1B


@pytest.fixture
def fasta(tmp_path: Path) -> Path:
    """50 records, two of which are refused."""
    proteins = made_up(50)
    proteins[7] = ("bad letter", "MK7")
    proteins[20] = ("nothing", "")
    return Path(write_fasta(tmp_path / "in.fasta", proteins))


@pytest.mark.parametrize("size", [BlockSize(records=1), BlockSize(records=7), BlockSize(residues=60), BlockSize()])
def test_every_record_is_in_one_block(fasta: Path, size: BlockSize) -> None:
    plan = make_plan(fasta, ESM1B, size)
    assert (plan.records, plan.refused) == (50, 2)
    assert [block.number for block in plan.blocks] == list(range(len(plan.blocks)))
    covered = [index for block in plan.blocks for index in range(block.first, block.first + block.count)]
    assert covered == list(range(50))
    assert sum(block.refused for block in plan.blocks) == 2
    assert all(block.count <= size.records for block in plan.blocks)
    assert all(block.residues <= size.residues or block.count == 1 for block in plan.blocks)
    assert plan.first_refused is not None and "'bad'" in plan.first_refused and "position 3" in plan.first_refused


def test_a_plan_is_a_function_of_file_and_size(fasta: Path, tmp_path: Path) -> None:
    copied = tmp_path / "copy.fasta"
    copied.write_bytes(fasta.read_bytes())
    plan = make_plan(fasta, ESM1B, BlockSize(records=9))
    assert make_plan(copied, ESM1B, BlockSize(records=9)) == plan
    assert Plan.from_described(plan.described()) == plan


def test_blocks_are_cut_by_bytes_of_output(fasta: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "BLOCK_BYTES", 1000)
    size = BlockSize(pair_bytes=4)
    plan = make_plan(fasta, ESM1B, size)
    assert len(plan.blocks) > 5
    for _, records, _ in read_blocks(fasta, ESM1B, plan, {block.number for block in plan.blocks}):
        total = sum(size.bytes_of(len(record.residues)) for record in records)
        assert total <= 1000 or len(records) == 1


def test_blocks_are_smaller_where_a_residue_has_more_output() -> None:
    model = tiny_model()
    pooled = block_size(model, EmbedSettings(layers=(0, 2), pooling="mean"))
    assert (pooled.protein_bytes, pooled.residue_bytes, pooled.pair_bytes) == (4 * 2 * WIDTH, 0, 0)
    everything = EmbedSettings((LAYERS,), "none", ("embeddings", "logits", "contacts"), "fp16")
    size = block_size(model, everything)
    assert (size.protein_bytes, size.residue_bytes, size.pair_bytes) == (0, 2 * (WIDTH + len(ESM1B)), 2)
    assert planning.LEAST_RESIDUES <= size.residues <= planning.MOST_RESIDUES


def test_blocks_are_read_alone_as_together(fasta: Path) -> None:
    plan = make_plan(fasta, ESM1B, BlockSize(records=8))
    numbers = {block.number for block in plan.blocks}
    together = list(read_blocks(fasta, ESM1B, plan, numbers))
    assert [block for block, _, _ in together] == list(plan.blocks)
    for number in numbers:
        assert list(read_blocks(fasta, ESM1B, plan, {number})) == [together[number]]
    indices = [item.index for _, records, refused in together for item in (*records, *refused)]
    assert sorted(indices) == list(range(50))


def test_a_file_that_changes_after_the_scan_is_noticed(fasta: Path) -> None:
    plan = make_plan(fasta, ESM1B, BlockSize(records=8))
    fasta.write_text(fasta.read_text().replace("protein 12\n", "protein 12\nAAA"))
    with pytest.raises(InputError, match="changed while it was being read"):
        list(read_blocks(fasta, ESM1B, plan, {0, 1, 2}))


def test_settings_name_the_layer_that_is_wrong() -> None:
    assert EmbedSettings(layers=(-1, 0, -2)).resolved(6).layers == (6, 0, 5)
    with pytest.raises(InputError, match=r"layer 7 is outside 0\.\.6"):
        EmbedSettings(layers=(7,)).resolved(6)
    with pytest.raises(InputError, match="layer -8 is outside"):
        EmbedSettings(layers=(-8,)).resolved(6)
    with pytest.raises(InputError, match="one layer twice"):
        EmbedSettings(layers=(-1, 6)).resolved(6)
    for wrong in ({"pooling": "sum"}, {"storage": "fp8"}, {"include": ("embedings",)}, {"include": ()}):
        with pytest.raises(InputError, match=next(iter(wrong))):
            replace(EmbedSettings(), **wrong)
