"""Checkpoints: every layout in and out bit for bit, read by content, written whole; bad files get one clear line."""

import argparse
import json
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from esm_reference import (
    FAMILIES,
    LAYERS,
    SEQUENCES,
    WIDTH,
    make_judge,
    masked_tokens,
    packed,
    padded,
    write_published,
)
from safetensors.torch import load_file, save_file
from tiny_models import TINY, tiny
from torch import Tensor

from proteinlm import checkpoints
from proteinlm.checkpoints import names
from proteinlm.checkpoints.contents import architecture_of
from proteinlm.checkpoints.fair_esm import DTYPE_MARKER, MASK_ROW
from proteinlm.checkpoints.files import read_metadata, read_torch
from proteinlm.errors import InputError
from proteinlm.models.base import ProteinModel, Want
from proteinlm.models.esm import Esm1b, Esm2

HF_ESM = ("esm1b", "esm1v", "esm1b-body", "esm2", "esm2-body")
HF_BERT = ("albert", "albert-body", "bert", "bert-body", "electra", "electra-discriminator", "electra-generator")

FITS = {
    "native": tuple(TINY),
    "hf": (*HF_ESM, *HF_BERT, "t5", "t5-encoder", "transformer-xl", "transformer-xl-bare", "xlnet"),
    "fair-esm": ("esm1", "esm1-bias", "esm1b", "esm1v", "esm2"),
    "unirep-npz": ("unirep",),
    "unirep-npy": ("unirep",),
}
"""What each layout can hold."""

IN_TWO = ("hf", "electra")
"""Written as two folders, each of which is a model of its own (`tests/test_parity_bert.py`)."""


def target(folder: Path, layout: str, name: str) -> Path:
    """A path that suits a layout; fair-esm knows ESM-2 by its file name."""
    stem = f"esm2_{name}" if name.startswith("esm2") else f"weights_{name}"
    return folder / (stem + {"native": ".safetensors", "fair-esm": ".pt", "unirep-npz": ".npz"}.get(layout, ""))


def assert_same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> int:
    """Same names, number formats and bits; how many tensors that were."""
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert tensor.dtype == theirs[name].dtype and torch.equal(tensor, theirs[name]), name
    return len(ours)


@pytest.mark.parametrize(
    ("layout", "name"),
    [(layout, name) for layout, names in FITS.items() for name in names if (layout, name) != IN_TWO],
)
def test_round_trip(layout: str, name: str, tmp_path: Path) -> None:
    model = tiny(name)
    path = target(tmp_path, layout, name)
    checkpoints.export(model, path, layout)
    found = checkpoints.load(path)
    assert architecture_of(found.model) == architecture_of(model) and not found.model.training
    assert assert_same(found.model.state_dict(), model.state_dict()) >= 10
    assert found.digest == checkpoints.digest_of(model) and found.stored == "fp32" and found.source == str(path)
    again = target(tmp_path / "again", layout, name)
    again.parent.mkdir()
    checkpoints.export(found.model, again, layout)
    assert contents_of(again, layout) == contents_of(path, layout)
    assert not [file for file in tmp_path.rglob("*") if file.name.startswith(".")], "temporary files are left"


def contents_of(path: Path, layout: str) -> list[object]:
    """Everything in a file or folder, comparable."""
    files = sorted(path.iterdir()) if path.is_dir() else sorted(path.parent.glob(f"{path.stem}*"))
    assert files
    if layout == "fair-esm":
        return [_plain(read_torch(file)) for file in files if file.is_file()]
    if layout == "unirep-npz":
        with np.load(path) as arrays:
            return [(name, arrays[name].tobytes()) for name in arrays.files]
    return [file.read_bytes() for file in files if file.is_file()]


def _plain(content: object) -> object:
    if isinstance(content, argparse.Namespace):
        return _plain(vars(content))
    if isinstance(content, dict):
        return {name: _plain(value) for name, value in content.items()}
    return content.numpy().tobytes() if isinstance(content, Tensor) else content


def test_what_a_layout_cannot_hold_is_refused(tmp_path: Path) -> None:
    refused = 0
    for layout, fitting in FITS.items():
        for name in TINY:
            if name in fitting:
                continue
            with pytest.raises(InputError):
                checkpoints.export(tiny(name), target(tmp_path, layout, name), layout)
            refused += 1
    assert refused == len(FITS) * len(TINY) - sum(map(len, FITS.values())) and not list(tmp_path.iterdir())


def test_the_digest_is_of_the_content_alone(tmp_path: Path) -> None:
    model = tiny("esm1b")
    digests = set()
    for layout in ("native", "hf", "fair-esm"):
        (tmp_path / layout).mkdir()
        checkpoints.export(model, target(tmp_path / layout, layout, "esm1b"), layout)
        digests.add(checkpoints.load(target(tmp_path / layout, layout, "esm1b")).digest)
    assert digests == {checkpoints.digest_of(model)}
    with torch.no_grad():
        model.layers[1].attention.qkv.bias[3] += 1e-6
    assert checkpoints.digest_of(model) not in digests


@pytest.mark.parametrize("layout", ["native", "hf", "fair-esm"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_widened_and_remembered(layout: str, dtype: torch.dtype, tmp_path: Path) -> None:
    path = target(tmp_path, layout, "esm2")
    checkpoints.export(tiny("esm2"), path, layout, dtype)
    found = checkpoints.load(path)
    assert found.stored == {torch.float16: "fp16", torch.bfloat16: "bf16"}[dtype]
    assert {tensor.dtype for tensor in found.model.state_dict().values()} == {torch.float32}
    again = tmp_path / "again" / path.name
    again.parent.mkdir()
    checkpoints.export(found.model, again, layout, dtype)
    if layout == "fair-esm":
        widened = read_torch(path)["model"]
        assert assert_same(read_torch(again)["model"], widened) > 30
    elif layout == "hf":
        assert assert_same(load_file(again / "model.safetensors"), load_file(path / "model.safetensors")) > 30
    else:
        assert assert_same(load_file(again), load_file(path)) > 20
    assert checkpoints.load(again).digest == found.digest


# fair-esm


@pytest.mark.parametrize("family", FAMILIES)
def test_published_files_come_back_bit_for_bit(family: str, tmp_path: Path) -> None:
    judge = make_judge(family)
    model = checkpoints.load(write_published(judge, tmp_path)).model
    path = target(tmp_path / "again", "fair-esm", family)
    path.parent.mkdir()
    checkpoints.export(model, path, "fair-esm")
    ours, theirs = read_torch(path)["model"], read_torch(tmp_path / "weights.pt")["model"]
    for state in (ours, theirs):  # a buffer whose value was never set
        state.pop(f"decoder.{DTYPE_MARKER}", None)
    if family in ("esm1b", "esm1v"):  # fair-esm zeroes this row whenever it loads, and lm_head.weight then replaces it
        row = "encoder.sentence_encoder.embed_tokens.weight"
        assert torch.equal(ours[row][MASK_ROW], theirs["encoder.lm_head.weight"][MASK_ROW])
    assert assert_same(ours, theirs) > 16 * LAYERS
    if judge.regression is not None:
        regression = path.with_name(f"{path.stem}-contact-regression.pt")
        assert assert_same(read_torch(regression)["model"], judge.regression["model"]) == 2


def load_in_fair_esm(path: Path) -> torch.nn.Module:
    """Load a file as fair-esm's users do; its 2.0.0 does not name `Namespace` as safe, which PyTorch 2.6 asks for."""
    esm = pytest.importorskip("esm")
    with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model, _ = esm.pretrained.load_model_and_alphabet_local(str(path))
    return model.eval()


@pytest.mark.parametrize("name", FITS["fair-esm"])
def test_fair_esm_loads_what_we_export(name: str, tmp_path: Path) -> None:
    model = tiny(name)
    stem = {"esm1-bias": "esm1v", "esm1v": "esm1v_x"}.get(
        name, name
    )  # without `esm1v` it looks for a contact regression
    path = tmp_path / f"{stem}.pt"
    checkpoints.export(model, path, "fair-esm")
    compare_logits(model, load_in_fair_esm(path))


def compare_logits(model: ProteinModel, judge: torch.nn.Module) -> None:
    encoded = masked_tokens(model)
    with torch.no_grad():
        ours = model(packed(model, encoded), Want(logits=True)).logits_TV
        theirs = judge(padded(model, encoded))["logits"]
    assert ours is not None
    compared = 0
    for b, ids in enumerate(encoded):
        mine = ours[packed(model, encoded).tokens(b)]
        torch.testing.assert_close(mine, theirs[b, : len(ids)], atol=1e-5, rtol=1e-5)
        compared += mine.numel()
    assert compared == sum(map(len, encoded)) * len(model.alphabet)


@pytest.mark.parametrize("shared", [True, False])
def test_the_mask_row_is_what_fair_esm_makes_of_it(shared: bool, tmp_path: Path) -> None:
    """Where a file stores embedding and output matrix as one, zeroing the mask row reaches the head; else not."""
    judge = make_judge("esm1b")
    state = judge.content["model"]
    if shared:
        state["encoder.lm_head.weight"] = state["encoder.sentence_encoder.embed_tokens.weight"]
    path = write_published(judge, tmp_path)
    model = checkpoints.load(path).model
    assert isinstance(model, Esm1b)
    assert model.embed_tokens.weight[MASK_ROW].eq(0).all().item() is shared
    compare_logits(model, load_in_fair_esm(path))
    again = tmp_path / "again.pt"
    checkpoints.export(model, again, "fair-esm")
    compare_logits(model, load_in_fair_esm(again))


def test_content_decides_and_not_the_name(tmp_path: Path) -> None:
    """A name that says another architecture changes nothing."""
    judge = make_judge("esm1b")
    path = write_published(judge, tmp_path, stem="esm2_t33_650M_UR50D")
    assert isinstance(checkpoints.load(path).model, Esm1b)
    path.rename(tmp_path / "model.safetensors")
    assert isinstance(checkpoints.load(tmp_path / "model.safetensors").model, Esm1b)
    assert isinstance(checkpoints.load(tmp_path).model, Esm1b)


def test_old_pickles_without_a_zip_around_them_are_read(tmp_path: Path) -> None:
    judge = make_judge("esm1")
    path = tmp_path / "old.pt"
    torch.save(judge.content, path, _use_new_zipfile_serialization=False)
    assert not zipfile.is_zipfile(path) and not checkpoints.load(path).model.has_contacts


def test_a_contact_regression_inside_the_file_is_read(tmp_path: Path) -> None:
    judge = make_judge("esm2")
    assert judge.regression is not None
    judge.content["model"].update(judge.regression["model"])
    torch.save(judge.content, tmp_path / "one.pt")
    assert checkpoints.load(tmp_path / "one.pt").model.has_contacts


# Hugging Face


@pytest.mark.parametrize("name", HF_ESM)
def test_transformers_loads_what_we_export(name: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    model = tiny(name)
    checkpoints.export(model, tmp_path / "out", "hf")
    kind = transformers.EsmForMaskedLM if model.has_logits else transformers.EsmModel
    judge, report = kind.from_pretrained(tmp_path / "out", output_loading_info=True, attn_implementation="eager")
    absent = {
        key for key in report["missing_keys"] if not key.startswith(("esm.contact_head", "contact_head", "pooler"))
    }
    assert not absent and not report["unexpected_keys"] and not report["mismatched_keys"]
    encoded = masked_tokens(model)
    tokens = padded(model, encoded)
    want = Want(logits=True) if model.has_logits else Want(layers=(model.num_layers,))
    with torch.no_grad():
        output = model(packed(model, encoded), want)
        theirs = judge(tokens, attention_mask=(tokens != 1).long())[0]
    ours = output.logits_TV if output.logits_TV is not None else output.hidden[model.num_layers]
    for b, ids in enumerate(encoded):
        mine = ours[packed(model, encoded).tokens(b)]
        torch.testing.assert_close(mine, theirs[b, : len(ids)], atol=1e-5, rtol=1e-5)
    if isinstance(model, Esm2):
        body = judge.esm if model.has_logits else judge
        assert torch.equal(body.rotary_embeddings.inv_freq, model.rotary.inverse_frequency)
    tokeniser = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokeniser(SEQUENCES[0])["input_ids"] == model.alphabet.encode(SEQUENCES[0]).tolist()


def hub_state(model: Esm2) -> dict[str, Tensor]:
    """Tensors as the hub's ESM-2 files have them: tied head, position tables and a pooler that are never used."""
    state = dict(names.to_theirs(model, model.state_dict(), names.HUGGING_FACE))
    state = {name if name.startswith("lm_head.") else f"esm.{name}": tensor for name, tensor in state.items()}
    state["lm_head.decoder.weight"] = state["esm.embeddings.word_embeddings.weight"].clone()
    state["esm.embeddings.position_embeddings.weight"] = torch.randn(34, 16)
    state["esm.embeddings.position_ids"] = torch.arange(34)[None]
    state["esm.pooler.dense.weight"] = torch.randn(16, 16)
    state["esm.pooler.dense.bias"] = torch.randn(16)
    return state


def write_folder(folder: Path, model: Esm2, state: dict[str, Tensor], form: str) -> Path:
    """A Hugging Face folder with its weights whole or in two shards, as safetensors or as `.bin`."""
    checkpoints.export(model, folder, "hf")
    (folder / "model.safetensors").unlink()
    half = len(state) // 2
    shards = [dict(list(state.items())[:half]), dict(list(state.items())[half:])] if "shards" in form else [state]
    stem, suffix = ("model", "safetensors") if form.startswith("safetensors") else ("pytorch_model", "bin")
    names = [f"{stem}-0000{i + 1}-of-00002.{suffix}" for i in range(2)] if len(shards) == 2 else [f"{stem}.{suffix}"]
    for name, shard in zip(names, shards, strict=True):
        if suffix == "bin":
            torch.save(shard, folder / name)
        else:
            save_file(shard, folder / name, {"format": "pt"})
    if len(shards) == 2:
        index = {tensor: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
        (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    return folder


@pytest.mark.parametrize("form", ["safetensors", "safetensors shards", "bin", "bin shards"])
def test_every_form_of_folder_is_read(form: str, tmp_path: Path) -> None:
    model = tiny("esm2")
    assert isinstance(model, Esm2)
    folder = write_folder(tmp_path / "hub", model, hub_state(model), form)
    found = checkpoints.load(folder)
    assert assert_same(found.model.state_dict(), model.state_dict()) > 20
    assert found.digest == checkpoints.digest_of(model) and found.name == "hub"
    if "shards" not in form:
        weights = next(file for file in folder.iterdir() if file.suffix in (".safetensors", ".bin"))
        assert checkpoints.load(weights).digest == found.digest, "the weights file stands for its folder"


def test_rotary_frequencies_are_loaded_or_computed_but_never_mixed(tmp_path: Path) -> None:
    model = tiny("esm2")
    assert isinstance(model, Esm2)
    state = hub_state(model)
    copies = [name for name in state if name.endswith("inv_freq")]
    assert len(copies) == model.num_layers
    without = {name: tensor for name, tensor in state.items() if name not in copies}
    computed = checkpoints.load(write_folder(tmp_path / "none", model, without, "bin")).model
    assert isinstance(computed, Esm2)
    assert torch.equal(computed.rotary.inverse_frequency, 1.0 / 10000 ** (torch.arange(0, 8, 2).float() / 8))
    once = {**without, "esm.rotary_embeddings.inv_freq": state[copies[0]]}
    loaded = checkpoints.load(write_folder(tmp_path / "once", model, once, "bin")).model
    assert isinstance(loaded, Esm2) and torch.equal(loaded.rotary.inverse_frequency, model.rotary.inverse_frequency)
    state[copies[1]] = state[copies[1]] * 1.001
    with pytest.raises(InputError, match="copies of the rotary frequencies differ"):
        checkpoints.load(write_folder(tmp_path / "two", model, state, "bin"))


WRONG_CONFIG = {
    "model_type": ("gpt2", "model type 'gpt2' is not supported"),
    "position_embedding_type": ("relative_key", "absolute and rotary are supported"),
    "emb_layer_norm_before": (True, "no ESM model has both"),
    "layer_norm_eps": (1e-12, "layer_norm_eps = 1e-12"),
    "hidden_act": ("relu", "hidden_act = 'relu'"),
    "vocab_size": (34, "vocab_size = 34"),
    "mask_token_id": (31, "mask_token_id = 31"),
    "is_folding_model": (True, "is_folding_model = True"),
    "tie_word_embeddings": (False, "tie_word_embeddings = False"),
    "num_hidden_layers": (3, "the configuration says 3 layers, the tensors say 2"),
    "num_attention_heads": (3, "not a multiple of num_heads 3"),
    "hidden_size": (32, "shape"),
    "intermediate_size": (None, "does not say intermediate_size"),
}


@pytest.mark.parametrize("key", WRONG_CONFIG)
def test_a_configuration_that_cannot_be_followed_is_refused(key: str, tmp_path: Path) -> None:
    checkpoints.export(tiny("esm2"), tmp_path / "out", "hf")
    file = tmp_path / "out" / "config.json"
    value, message = WRONG_CONFIG[key]
    file.write_text(json.dumps({**json.loads(file.read_text()), key: value}))
    assert message in one_line(tmp_path / "out")


def one_line(path: Path | str) -> str:
    """The message with which a path is refused: one line that names it."""
    with pytest.raises(InputError) as raised:
        checkpoints.load(path)
    message = str(raised.value)
    assert "\n" not in message and len(message) < 600, message
    assert Path(path).name in message or Path(path).parent.name in message, message
    return message


# Bad files


class Bomb:
    """What a hostile pickle holds: an order to run a program when it is read."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, ...]:
        import os

        return os.system, (f"touch {self.trace}",)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_malicious_pickle_is_refused_and_not_run(zipped: bool, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    judge = make_judge("esm2")
    path = tmp_path / "evil.pt"
    torch.save({**judge.content, "bomb": Bomb(trace)}, path, _use_new_zipfile_serialization=zipped)
    assert "posix.system" in one_line(path) and not trace.exists()
    assert torch.load(path, weights_only=False) and trace.exists(), "the bomb is a real one"
    trace.unlink()
    folder = tmp_path / "folder"
    checkpoints.export(tiny("esm2"), folder, "hf")
    (folder / "model.safetensors").unlink()
    torch.save({"esm.bomb": Bomb(trace)}, folder / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    assert "posix.system" in one_line(folder) and not trace.exists()
    good = write_published(judge, tmp_path)
    torch.save({"model": Bomb(trace)}, tmp_path / "weights-contact-regression.pt")
    assert "posix.system" in one_line(good) and not trace.exists()


def test_any_other_class_is_named(tmp_path: Path) -> None:
    torch.save({"model": {}, "args": Path("x")}, tmp_path / "path.pt")
    assert "pathlib" in one_line(tmp_path / "path.pt")


OTHER_FILES = {
    "model.gguf": (b"GGUF\x03\x00\x00\x00" + b"\0" * 64, "GGUF"),
    "proteins.fasta": (b">one\nMKTVRQG\n", "FASTA"),
    "notes.txt": (b"these are not weights, whatever the name", "no"),
    "empty.pt": (b"", "empty"),
    "vectors.h5": (b"\x89HDF\r\n\x1a\n" + b"\0" * 64, "HDF5"),
    "cut.pt": (b"PK\x03\x04" + b"\0" * 64, "truncated or damaged"),
    "short.safetensors": ((500).to_bytes(8, "little") + b'{"a":', "truncated or damaged"),
    "pickle.pt": (b"\x80\x02}q\x00.", "truncated or damaged"),
    "array.npy": (b"\x93NUMPY\x01\x00" + b"\0" * 64, "NumPy"),
}


@pytest.mark.parametrize("name", OTHER_FILES)
def test_other_files_are_refused(name: str, tmp_path: Path) -> None:
    content, message = OTHER_FILES[name]
    (tmp_path / name).write_bytes(content)
    assert message in one_line(tmp_path / name)


def test_folders_that_hold_no_model_or_several(tmp_path: Path) -> None:
    assert "holds no model" in one_line(tmp_path)
    checkpoints.save(tiny("esm2"), tmp_path / "a.safetensors")
    assert checkpoints.load(tmp_path).name == "a"
    checkpoints.save(tiny("esm1"), tmp_path / "b.safetensors")
    assert "2 models" in one_line(tmp_path)
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "config.json").write_text('{"model_type": "esm", "layer_norm_eps": 1e-5}')
    assert "no weights" in one_line(tmp_path / "c")
    (tmp_path / "c" / "config.json").write_text("[1]")
    assert "an object is needed" in one_line(tmp_path / "c")
    (tmp_path / "c" / "config.json").write_text("{")
    assert "cannot be read as JSON" in one_line(tmp_path / "c")


def edit(path: Path, tensors: dict[str, Tensor | None], **card: object) -> Path:
    """Change tensors (None drops one) and the card of a native file."""
    state = {name: tensor for name, tensor in {**load_file(path), **tensors}.items() if tensor is not None}
    before = json.loads(read_metadata(path).get("proteinlm", "{}"))
    after = {name: value for name, value in {**before, **card}.items() if value is not None}
    save_file(state, path, {"proteinlm": json.dumps(after)} if after else {"format": "pt"})
    return path


WRONG_NATIVE = {
    "missing": ({"embed_tokens.weight": None}, {}, "tensor 'embed_tokens.weight' is missing"),
    "surplus": ({"extra": torch.zeros(1)}, {}, "tensor 'extra' is no part"),
    "shape": ({"final_norm.bias": torch.zeros(17)}, {}, "has shape (17,), the configuration needs (16,)"),
    "format": ({"final_norm.bias": torch.zeros(16, dtype=torch.int32)}, {}, "is torch.int32"),
    "value": ({"final_norm.bias": torch.zeros(16)}, {}, "does not match its digest"),
    "digest": ({}, {"digest": "0" * 64}, "does not match its digest"),
    "no digest": ({}, {"digest": None}, "key 'digest' is missing"),
    "version": ({}, {"format_version": 2}, "format version 2"),
    "architecture": ({}, {"architecture": "esm3"}, "architecture 'esm3' is unknown; did you mean 'esm"),
    "card key": ({}, {"licens": "CC0"}, "key 'licens' is unknown; did you mean 'licence'?"),
    "list": ({}, {"config": []}, "config is [], which is not of type dict"),
    "unknown key": ({}, {"config": {"num_layer": 2}}, "'num_layer' is unknown; did you mean 'num_layers'?"),
    "type": ({}, {"config": {"width": "16"}}, "width is '16', which is not of type int"),
    "truth": ({}, {"config": {"num_layers": True}}, "num_layers is True, which is not of type int"),
    "depth": ({}, {"config": {"num_layers": 10**9}}, "says 1000000000 layers, the tensors say 2"),
    "width": ({}, {"config": {"num_layers": 2, "width": 10**12}}, "width is 1000000000000"),
    "no heads": ({}, {"config": {"num_layers": 2, "num_heads": 0}}, "num_heads is 0"),
    "odd": ({}, {"config": {"num_layers": 2, "width": 16, "num_heads": 3, "inner": 64}}, "not a multiple"),
}


@pytest.mark.parametrize("case", WRONG_NATIVE)
def test_a_native_file_that_was_changed_is_refused(case: str, tmp_path: Path) -> None:
    checkpoints.save(tiny("esm2"), tmp_path / "a.safetensors")
    tensors, card, message = WRONG_NATIVE[case]
    assert message in one_line(edit(tmp_path / "a.safetensors", tensors, **card))


@pytest.mark.parametrize(
    ("text", "message"), [("{", "is not JSON"), ("[]", "not a JSON object"), (None, "is not a file of proteinlm")]
)
def test_metadata_that_is_not_a_card_is_refused(text: str | None, message: str, tmp_path: Path) -> None:
    checkpoints.save(tiny("esm2"), tmp_path / "a.safetensors")
    save_file(load_file(tmp_path / "a.safetensors"), tmp_path / "a.safetensors", {"proteinlm": text} if text else None)
    assert message in one_line(tmp_path / "a.safetensors")


def change_state(change: dict[str, Tensor | None]) -> dict:
    judge = make_judge("esm2")
    state = {**judge.content["model"], **change}
    return {**judge.content, "model": {name: tensor for name, tensor in state.items() if tensor is not None}}


def wrong_fair_esm() -> dict[str, tuple[object, str]]:
    prefix = "encoder.sentence_encoder."
    good = make_judge("esm1b").content
    esm2 = make_judge("esm2").content
    frequencies = f"{prefix}layers.1.self_attn.rot_emb.inv_freq"
    without_heads = argparse.Namespace(
        **{k: v for k, v in vars(good["args"]).items() if k != "encoder_attention_heads"}
    )
    return {
        "missing": (change_state({f"{prefix}layers.0.fc1.bias": None}), "'layers.0.fc1.bias' is missing"),
        "surplus": (change_state({f"{prefix}extra": torch.zeros(1)}), "'extra' is no part"),
        "shape": (change_state({f"{prefix}layers.0.fc1.bias": torch.zeros(3)}), "has shape (3,)"),
        "untied": (change_state({"encoder.lm_head.weight": torch.zeros(33, WIDTH)}), "untied"),
        "no frequencies": (change_state({frequencies: None}), "is missing"),
        "frequencies": (change_state({frequencies: torch.ones(6)}), "copies of the rotary frequencies differ"),
        "layers": (change_state({f"{prefix}layers.3.fc1.bias": torch.zeros(3)}), "says 3 layers, the tensors say 4"),
        "other arch": ({**good, "args": argparse.Namespace(arch="msa_transformer")}, "'msa_transformer' of fair-esm"),
        "no arch": ({**good, "args": argparse.Namespace(encoder_layers=3)}, "does not say which architecture"),
        "no heads": ({**good, "args": without_heads}, "do not say encoder_attention_heads"),
        "no args": ({**good, "args": 3}, "neither 'args' nor 'cfg.model'"),
        "list": ({**esm2, "model": [1, 2]}, "not a dictionary of tensors"),
        "regression": ({"model": make_judge("esm2").regression["model"]}, "neither a fair-esm checkpoint"),
    }


def test_a_fair_esm_file_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    cases = wrong_fair_esm()
    for name, (content, message) in cases.items():
        torch.save(content, tmp_path / "x.pt")
        assert message in one_line(tmp_path / "x.pt"), name
    assert len(cases) == 13


def test_shards_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    model = tiny("esm2")
    assert isinstance(model, Esm2)
    folder = write_folder(tmp_path / "out", model, hub_state(model), "safetensors shards")
    index = folder / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    first = sorted(content["weight_map"])[0]
    for change, message in (
        ({**content["weight_map"], first: "../model.safetensors"}, "same folder"),
        ({**content["weight_map"], "more": content["weight_map"][first]}, "disagree on tensor 'more'"),
        ({**content["weight_map"], first: "absent.safetensors"}, "cannot read"),
        ([], "no 'weight_map'"),
    ):
        index.write_text(json.dumps({"weight_map": change}))
        assert message in one_line(folder)


def test_a_fine_tuned_head_is_called_by_its_name(tmp_path: Path) -> None:
    checkpoints.export(tiny("esm2"), tmp_path / "out", "hf")
    edit(tmp_path / "out" / "model.safetensors", {"classifier.dense.weight": torch.zeros(2)})
    assert "classifier.* belong to a fine-tuned head" in one_line(tmp_path / "out")


@pytest.mark.parametrize("layout", ["native", "hf", "fair-esm"])
def test_damage_anywhere_is_refused_or_changes_nothing(layout: str, tmp_path: Path) -> None:
    """200 files cut or with random bytes changed: one line, or a model of the same shape; never another exception."""
    model = tiny("esm2")
    path = target(tmp_path, layout, "esm2")
    checkpoints.export(model, path, layout)
    file = path / "model.safetensors" if layout == "hf" else path
    whole = file.read_bytes()
    random = np.random.default_rng(11)
    refused = 0
    for trial in range(200):
        damaged = bytearray(whole)
        if trial % 4 == 0:
            del damaged[int(random.integers(len(whole))) :]
        else:
            reach = len(whole) if trial % 2 else 3000
            for at in random.integers(reach, size=3):
                damaged[at] = int(random.integers(256))
        file.write_bytes(bytes(damaged))
        try:
            found = checkpoints.load(path)
        except InputError as error:
            assert "\n" not in str(error)
            refused += 1
        else:
            assert layout != "native" or found.digest == checkpoints.digest_of(model)
            assert architecture_of(found.model)[0] == "esm2"
    assert refused >= 50
