"""Output formats: what goes in comes out, under the right id, with its provenance, whatever the ids are."""

import argparse
import hashlib
import importlib.util
import json
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from embedding_tools import (
    ALONE_TOLERANCE,
    LAYERS,
    LONGEST,
    WIDTH,
    a_job,
    made_up,
    reference,
    run,
    save_model,
    tiny_model,
    write_fasta,
)
from safetensors import safe_open

from proteinlm import __version__, checkpoints, read_embeddings
from proteinlm.embedding.formats import FORMATS, choose_format
from proteinlm.embedding.formats import safetensors as shards
from proteinlm.errors import InputError

IDS = [
    "sp|P1|A_B",
    "a/b",
    "a_b",
    "x:1",
    "d.o.t",
    "twice",
    "twice",
    "twice",
    "twice__2",
    ".",
    "__metadata__",
    "é",
    "A",
    "a",
]
"""Ids that collide once `/` became `_`, or with names made for duplicates, or with what a format reserves."""

OUTPUTS = [("out.h5", None), ("out.hdf5", None), ("out.parquet", None), ("out.safetensors", None), ("out", "esm-pt")]

needs_pyarrow = pytest.mark.skipif(importlib.util.find_spec("pyarrow") is None, reason="pyarrow is not installed")
OUTPUTS = [pytest.param(*row, marks=needs_pyarrow) if "parquet" in row[0] else row for row in OUTPUTS]


@pytest.fixture
def proteins() -> list[tuple[str, str]]:
    """One protein for each awkward id, in several blocks; the header goes on after the id."""
    return [
        (f"{name} the header of {n}", residues)
        for n, (name, (_, residues)) in enumerate(zip(IDS, made_up(14), strict=True))
    ]


def expected(proteins: list[tuple[str, str]], pooled: bool) -> list[np.ndarray]:
    model = tiny_model()
    alone = [reference(model, residues, LAYERS)[1:-1] for _, residues in proteins]
    return [(x_LD.mean(0) if pooled else x_LD).numpy() for x_LD in alone]


@pytest.mark.parametrize(("name", "format_name"), OUTPUTS)
@pytest.mark.parametrize("pooling", ["mean", "none"])
def test_round_trip(
    name: str, format_name: str | None, pooling: str, proteins: list[tuple[str, str]], tmp_path: Path
) -> None:
    if "parquet" in name and pooling == "none":
        pytest.skip("Parquet holds one vector per protein; refusing more is tested below")
    source, out = write_fasta(tmp_path / "in.fasta", proteins), tmp_path / name
    job = a_job(source, out, save_model(tmp_path), pooling=pooling)
    summary = run(job, format=format_name)
    assert (summary.records, summary.embedded, summary.refused) == (14, 14, 0)
    found = list(read_embeddings(out))
    assert len(found) == 14
    values = expected(proteins, pooled=pooling == "mean")
    if format_name == "esm-pt":  # one file per protein, in the order of file names
        by_label = {header: array for (header, _), array in zip(proteins, values, strict=True)}
        assert {label for label, _ in found} == by_label.keys()
        pairs = [(array, by_label[label]) for label, array in found]
    else:
        assert [identifier for identifier, _ in found] == IDS
        pairs = [(array, value) for (_, array), value in zip(found, values, strict=True)]
    for array, value in pairs:
        np.testing.assert_allclose(array, value, **ALONE_TOLERANCE)


@pytest.mark.parametrize("name", ["out.h5", pytest.param("out.parquet", marks=needs_pyarrow), "out.safetensors", "out"])
def test_layers_come_back_in_their_order(name: str, proteins: list[tuple[str, str]], tmp_path: Path) -> None:
    source, model = write_fasta(tmp_path / "in.fasta", proteins), save_model(tmp_path)
    format_name = None if "." in name else "esm-pt"
    run(a_job(source, tmp_path / name, model, layers=(2, 0)), format=format_name)
    found = dict(read_embeddings(tmp_path / name))
    for position, layer in enumerate((2, 0)):
        alone = tmp_path / f"layer-{layer}.h5"
        run(a_job(source, alone, model, layers=(layer,)))
        with h5py.File(alone) as file:
            for dataset in file.values():
                key = dataset.attrs["header" if format_name else "original_id"]
                if key.split()[0] != "twice":
                    np.testing.assert_array_equal(found[key][position], dataset[()])


@pytest.mark.parametrize(("storage", "dtype"), [("fp16", np.float16), ("fp32", np.float32)])
def test_storage(storage: str, dtype: type, proteins: list[tuple[str, str]], tmp_path: Path) -> None:
    source, model = write_fasta(tmp_path / "in.fasta", proteins), save_model(tmp_path)
    names = ["out.h5", "out.safetensors", *(["out.parquet"] if importlib.util.find_spec("pyarrow") else [])]
    for name in names:
        run(a_job(source, tmp_path / name, model, storage=storage))
        found = [array for _, array in read_embeddings(tmp_path / name)]
        assert len(found) == 14 and {array.dtype for array in found} == {np.dtype(dtype)}
        for array, value in zip(found, expected(proteins, pooled=True), strict=True):
            np.testing.assert_allclose(array, value, rtol=1e-3, atol=1e-3)  # fp16 keeps 11 bits


def test_bf16_is_stored_where_there_is_bf16(proteins: list[tuple[str, str]], tmp_path: Path) -> None:
    source, model = write_fasta(tmp_path / "in.fasta", proteins), save_model(tmp_path)
    run(a_job(source, tmp_path / "out.safetensors", model, storage="bf16"))
    with safe_open(tmp_path / "out-00001-of-00001.safetensors", "pt") as file:
        assert {file.get_tensor(key).dtype for key in file.keys()} == {torch.bfloat16}  # noqa: SIM118
    for (_, array), value in zip(
        read_embeddings(tmp_path / "out.safetensors"), expected(proteins, pooled=True), strict=True
    ):
        np.testing.assert_allclose(array, value, rtol=2**-8, atol=1e-3)  # bf16 keeps 8 bits


@pytest.mark.parametrize("name", ["out.h5", "out.parquet"])
def test_bf16_is_refused_where_there_is_none(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no bfloat16 numbers; use --storage fp16 or fp32"):
        run(a_job(write_fasta(tmp_path / "in.fasta", made_up(2)), tmp_path / name, "none", storage="bf16"))
    assert [path.name for path in tmp_path.iterdir()] == ["in.fasta"]


@pytest.mark.parametrize("settings", [{"pooling": "none"}, {"include": ("logits",)}, {"include": ("contacts",)}])
def test_parquet_holds_one_vector_per_protein(settings: dict, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"one vector per protein.*use an \.h5 output"):
        run(a_job(write_fasta(tmp_path / "in.fasta", made_up(2)), tmp_path / "out.parquet", "none", **settings))


def test_parquet_says_what_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(InputError, match=r"pip install 'proteinlm\[parquet\]'"):
        run(a_job(write_fasta(tmp_path / "in.fasta", made_up(2)), tmp_path / "out.parquet", "none"))


def test_hdf5_is_flat_and_keeps_ids_and_headers(proteins: list[tuple[str, str]], tmp_path: Path) -> None:
    source, out = write_fasta(tmp_path / "in.fasta", proteins), tmp_path / "out.h5"
    summary = run(a_job(source, out, save_model(tmp_path), layers=(0, 2), pooling="none"))
    assert summary.renamed == 4  # a_b after a/b, the second and third twice, and twice__2 after these
    with h5py.File(out) as file:
        assert all(isinstance(item, h5py.Dataset) for item in file.values())
        assert list(file) == [
            *("sp|P1|A_B", "a_b", "a_b__2", "x:1", "d.o.t", "twice", "twice__2", "twice__3", "twice__2__2"),
            *("_", "__metadata__", "é", "A", "a"),
        ]
        assert [item.attrs["original_id"] for item in file.values()] == IDS
        assert [item.attrs["header"] for item in file.values()] == [header for header, _ in proteins]
        assert [item.shape for item in file.values()] == [(2, len(residues), WIDTH) for _, residues in proteins]
        assert file.attrs["axes"] == "layers L D" and list(file.attrs["layers"]) == [0, 2]
        assert not {"windows", "cropped"} & {name for item in file.values() for name in item.attrs}


def test_logits_and_contacts_have_their_own_flat_files(proteins: list[tuple[str, str]], tmp_path: Path) -> None:
    source, model = write_fasta(tmp_path / "in.fasta", proteins), save_model(tmp_path)
    run(a_job(source, tmp_path / "out.h5", model, include=("contacts", "embeddings", "logits")))
    run(a_job(source, tmp_path / "out.safetensors", model, include=("embeddings", "logits", "contacts")))
    for ending in ("h5", "safetensors"):
        for content, shape in (("logits", lambda length: (length, 33)), ("contacts", lambda length: (length, length))):
            found = list(read_embeddings(tmp_path / f"out.{content}.{ending}"))
            assert [identifier for identifier, _ in found] == IDS
            assert [array.shape for _, array in found] == [shape(len(residues)) for _, residues in proteins]
        assert [array.shape for _, array in read_embeddings(tmp_path / f"out.{ending}")] == [(WIDTH,)] * 14


def test_what_is_asked_for_alone_is_in_the_file_that_was_named(tmp_path: Path) -> None:
    source, model = write_fasta(tmp_path / "in.fasta", made_up(3)), save_model(tmp_path)
    run(a_job(source, tmp_path / "out.h5", model, include=("logits",)))
    with h5py.File(tmp_path / "out.h5") as file:
        assert file.attrs["content"] == "logits" and len(file) == 3
    assert not (tmp_path / "out.logits.h5").exists()


def test_windows_and_crops_are_stated(tmp_path: Path) -> None:
    source = write_fasta(tmp_path / "in.fasta", [("short", "MK"), ("long", "MKTV" * LONGEST)])
    model = save_model(tmp_path)
    job = a_job(source, tmp_path / "windows.h5", model, pooling="none")
    assert run(job).windowed == 1
    with h5py.File(tmp_path / "windows.h5") as file:
        assert "windows" not in file["short"].attrs and file["long"].attrs["windows"] >= 5
        assert file["long"].shape == (4 * LONGEST, WIDTH)
    options = job.options.__class__(precision="fp32", device="cpu", long="crop")
    assert run(job, out=tmp_path / "cropped.h5", options=options).cropped == 1
    with h5py.File(tmp_path / "cropped.h5") as file:
        assert file["long"].attrs["cropped"] == 3 * LONGEST and file["long"].shape == (LONGEST, WIDTH)


def test_parquet_columns(proteins: list[tuple[str, str]], tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", exc_type=ImportError)
    proteins[3] = (proteins[3][0], "MK7")
    source, out = write_fasta(tmp_path / "in.fasta", proteins), tmp_path / "out.parquet"
    run(a_job(source, out, save_model(tmp_path)))
    table = parquet.read_table(out)
    assert table.column_names == ["index", "id", "header", "length", "windows", "cropped", "embedding"]
    assert table["index"].to_pylist() == [n for n in range(14) if n != 3]
    assert table["length"].to_pylist() == [len(residues) for n, (_, residues) in enumerate(proteins) if n != 3]
    assert str(table.schema.field("embedding").type) == f"fixed_size_list<element: float>[{WIDTH}]"


def test_safetensors_shards_and_index(
    proteins: list[tuple[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "SHARD_BYTES", 4 * WIDTH * 5)
    source, out = write_fasta(tmp_path / "in.fasta", proteins), tmp_path / "out.safetensors"
    run(a_job(source, out, save_model(tmp_path)))
    index = json.loads((tmp_path / "out.safetensors.index.json").read_text())
    names = [f"out-0000{n}-of-00003.safetensors" for n in (1, 2, 3)]
    assert sorted(set(index["weight_map"].values())) == names
    assert index["metadata"]["total_size"] == 14 * WIDTH * 4
    held = {}
    for name in names:
        with safe_open(tmp_path / name, "np") as file:
            held.update({key: (name, file.get_tensor(key).shape) for key in file.keys()})  # noqa: SIM118
    assert held == {key: (name, (WIDTH,)) for key, name in index["weight_map"].items()}
    assert [identifier for identifier, _ in read_embeddings(out)] == IDS


@pytest.mark.parametrize(("name", "format_name"), OUTPUTS)
def test_every_output_says_how_it_came_to_be(name: str, format_name: str | None, tmp_path: Path) -> None:
    source, model = write_fasta(tmp_path / "in.fasta", [*made_up(6), ("bad", "MK7")]), save_model(tmp_path)
    job = a_job(source, tmp_path / name, model)
    run(job, format=format_name)
    output = choose_format(tmp_path / name, format_name)
    (path,) = output.files(tmp_path / name, job.settings)
    provenance = output.provenance(path)
    assert provenance is not None
    stored = hashlib.sha256(Path(source).read_bytes()).hexdigest()
    assert provenance["input_digest"] == stored
    assert provenance["model_digest"] == checkpoints.load(model).digest
    told = {
        "model": "tiny-0",
        "layers": [2],
        "pooling": "mean",
        "storage": "fp32",
        "precision": "fp32",
        "long": "window",
    }
    assert {name: provenance[name] for name in told} == told
    assert (provenance["proteinlm"], provenance["torch"]) == (__version__, torch.__version__)
    assert provenance["counts"]["records"] == 7 and provenance["counts"]["refused"] == 1


def test_hdf5_files_of_other_tools_are_read(tmp_path: Path) -> None:
    """The four key styles: ids, ids with `_` for `/` and `.`, md5 of the sequence, sha256 of the sequence."""
    sequence, vector = "MKTV", np.arange(3, dtype=np.float32)
    styles = {
        "uniprot": ("P12345", None, "P12345"),
        "prottrans": ("d1a_b_2", None, "d1a_b_2"),
        "bio_embeddings": (hashlib.md5(sequence.encode()).hexdigest(), "sp|P1|X", "sp|P1|X"),
        "biotrainer": (hashlib.sha256(sequence.encode()).hexdigest(), "Seq1", "Seq1"),
    }
    for style, (key, original, identifier) in styles.items():
        with h5py.File(tmp_path / f"{style}.h5", "w") as file:
            dataset = file.create_dataset(key, data=vector)
            if original is not None:
                dataset.attrs["original_id"] = original
        ((found, array),) = read_embeddings(tmp_path / f"{style}.h5")
        assert found == identifier
        np.testing.assert_array_equal(array, vector)


def test_ids_that_became_groups_elsewhere_are_put_together_again(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["d1/2.3/A"] = np.zeros(2)
    assert [identifier for identifier, _ in read_embeddings(tmp_path / "x.h5")] == ["d1/2.3/A"]


def test_esm_pt_equals_what_esm_extract_writes(tmp_path: Path) -> None:
    """fair-esm runs its own extraction on our export of the same weights; the dictionaries are compared whole."""
    esm = pytest.importorskip("esm")
    proteins = made_up(7)
    source, model = write_fasta(tmp_path / "in.fasta", proteins), save_model(tmp_path)
    theirs = tmp_path / "esm2_tiny.pt"
    checkpoints.export(checkpoints.load(model).model, theirs, "fair-esm")
    with torch.serialization.safe_globals([argparse.Namespace]):
        loaded, alphabet = esm.pretrained.load_model_and_alphabet_local(theirs)
    data = esm.data.FastaBatchedDataset.from_file(source)
    labels, strings, tokens = alphabet.get_batch_converter()(
        list(zip(data.sequence_labels, data.sequence_strs, strict=True))
    )
    with torch.no_grad():
        out = loaded.eval()(tokens, repr_layers=[1, 2], return_contacts=True)
    kinds = {"none": "representations", "mean": "mean_representations", "cls": "bos_representations"}
    for pooling, key in kinds.items():
        job = a_job(
            source, tmp_path / pooling, model, layers=(1, 2), pooling=pooling, include=("embeddings", "contacts")
        )
        run(job, format="esm-pt")
        for n, (label, residues) in enumerate(zip(labels, strings, strict=True)):
            values = torch.load(tmp_path / pooling / f"{label}.pt", weights_only=True)
            length = len(residues)
            assert values.keys() == {"label", key, "contacts"} and values["label"] == label
            assert list(values[key]) == [1, 2]
            for layer in (1, 2):
                inner = out["representations"][layer][n, 1 : length + 1]
                whole = {"none": inner, "mean": inner.mean(0), "cls": out["representations"][layer][n, 0]}[pooling]
                torch.testing.assert_close(values[key][layer], whole, **ALONE_TOLERANCE)
            torch.testing.assert_close(values["contacts"], out["contacts"][n, :length, :length], **ALONE_TOLERANCE)


def test_esm_pt_knows_no_maximum(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no place for --pooling max"):
        run(
            a_job(write_fasta(tmp_path / "in.fasta", made_up(2)), tmp_path / "o", "none", pooling="max"),
            format="esm-pt",
        )


def test_contact_maps_in_one_archive_and_in_a_folder(tmp_path: Path) -> None:
    proteins = made_up(5)
    source, model = write_fasta(tmp_path / "in.fasta", proteins), save_model(tmp_path)
    pytest.importorskip("matplotlib")
    run(a_job(source, tmp_path / "maps.npz", model, include=("contacts",)))
    run(a_job(source, tmp_path / "maps", model, include=("contacts",)), format="npz-folder", pictures=True)
    with np.load(tmp_path / "maps.npz") as archive:
        assert list(archive) == [header.split()[0] for header, _ in proteins]
        for header, residues in proteins:
            identifier = header.split()[0]
            assert archive[identifier].shape == (len(residues), len(residues))
            with np.load(tmp_path / "maps" / f"{header}.npz") as alone:
                np.testing.assert_array_equal(alone[identifier], archive[identifier])
            picture = (tmp_path / "maps" / f"{header}.png").read_bytes()
            assert picture.startswith(b"\x89PNG")


@pytest.mark.parametrize(("name", "format_name"), [*OUTPUTS, ("out.npz", None), ("out", "npz-folder")])
def test_ids_longer_than_a_format_may_like(name: str, format_name: str | None, tmp_path: Path) -> None:
    """NCBI's nr has headers of 100 kB and more."""
    long = "x" * 70_000
    source = write_fasta(tmp_path / "in.fasta", [(long, "MKT"), (long, "MVL"), (f"short {long}", "MAA")])
    include = ("contacts",) if "npz" in f"{name}{format_name}" else ("embeddings",)
    run(a_job(source, tmp_path / name, save_model(tmp_path), include=include), format=format_name)
    assert len(list(read_embeddings(tmp_path / name))) == 3


def test_the_ending_or_the_format_must_be_known() -> None:
    assert {name: output.name for name, output in FORMATS.items()} == {name: name for name in FORMATS}
    with pytest.raises(InputError, match="says no format"):
        choose_format(Path("out.txt"))
    with pytest.raises(InputError, match="format 'csv' is unknown"):
        choose_format(Path("out.h5"), "csv")


@pytest.mark.parametrize("name", ["x.h5", "x.parquet", "x.npz", "x.safetensors.index.json"])
def test_a_damaged_output_is_one_line(name: str, tmp_path: Path) -> None:
    if "parquet" in name:
        pytest.importorskip("pyarrow", exc_type=ImportError)
    (tmp_path / name).write_bytes(b"not what it says")
    with pytest.raises(InputError, match="cannot be read"):
        list(read_embeddings(tmp_path / name))
    with pytest.raises(InputError, match=r"is not there|cannot be read"):
        list(read_embeddings(tmp_path / f"missing-{name}"))


def test_an_input_without_good_records_gives_an_empty_output(tmp_path: Path) -> None:
    source, model = write_fasta(tmp_path / "in.fasta", [("a", "7"), ("b", "")]), save_model(tmp_path)
    for name, format_name in (("o.h5", None), ("o.safetensors", None), ("o", "esm-pt"), ("o.npz", None)):
        include = ("contacts",) if name == "o.npz" else ("embeddings",)
        summary = run(a_job(source, tmp_path / name, model, include=include), format=format_name)
        assert (summary.records, summary.embedded, summary.refused) == (2, 0, 2)
        assert list(read_embeddings(tmp_path / name)) == []
    if importlib.util.find_spec("pyarrow") is not None:
        run(a_job(source, tmp_path / "o.parquet", model))
        assert list(read_embeddings(tmp_path / "o.parquet")) == []
