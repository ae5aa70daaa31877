"""TAPE's BERT: folders as its authors' code saves them, against `transformers`' BERT with the same weights.

TAPE's classes are those of BERT under other names (compared once with `tape_proteins` 0.5 itself: hidden states, maps
and logits of a random model were the same to 2e-6).
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from embedding_tools import plm, write_fasta
from esm_reference import packed
from test_parity_bert import BOUND, LAYERS, SEQUENCES, judge
from tiny_models import tiny
from torch import nn

from proteinlm import checkpoints, read_embeddings
from proteinlm.checkpoints.hf_bert import SIZES
from proteinlm.errors import InputError
from proteinlm.models.base import Want
from proteinlm.models.bert import BertConfig
from proteinlm.sequences.alphabet import TAPE

IUPAC_VOCAB = ["<pad>", "<mask>", "<cls>", "<sep>", "<unk>", *"ABCDEFGHIKLMNOPQRSTUVWXYZ"]
"""papers.md 8.6; TAPE `tokenizers.py`."""

WRITTEN = {
    "finetuning_task": None,
    "num_labels": -1,
    "output_attentions": False,
    "output_hidden_states": False,
    "torchscript": False,
}

RENAMED = {"cls.predictions.transform": "mlm.transform", "cls.predictions.decoder": "mlm.decoder"}


def tape_folder(model: nn.Module, folder: Path, **changed: object) -> Path:
    """A `BertForMaskedLM` as `ProteinBertForMaskedLM.save_pretrained` leaves it: names, fields, a pooler, a pickle."""
    sizes = (*SIZES.values(), "vocab_size", "hidden_act", "type_vocab_size", "layer_norm_eps")
    folder.mkdir()
    fields = {**WRITTEN, **{name: getattr(model.config, name) for name in sizes}, **changed}
    (folder / "config.json").write_text(json.dumps({name: value for name, value in fields.items() if value != "leave"}))
    state = {}
    for name, tensor in model.state_dict().items():
        for theirs, tapes in RENAMED.items():
            name = name.replace(theirs, tapes)
        if name not in ("cls.predictions.decoder.bias", "mlm.decoder.bias"):
            state[name.replace("cls.predictions.bias", "mlm.bias")] = tensor.clone()
    width = model.config.hidden_size
    state |= {"bert.pooler.dense.weight": torch.ones(width, width), "bert.pooler.dense.bias": torch.ones(width)}
    torch.save(state, folder / "pytorch_model.bin")
    return folder


def test_the_alphabet_is_tapes() -> None:
    assert list(TAPE.tokens) == IUPAC_VOCAB
    assert TAPE.encode("ABUZOX").tolist() == [2, 5, 6, 24, 29, 18, 27, 3]
    assert TAPE.policy() == "X B U Z O: own token; J: read as X"


def test_hidden_states_maps_and_logits_are_theirs(tmp_path: Path) -> None:
    original = judge("bert")
    model = checkpoints.load(tape_folder(original, tmp_path / "model")).model
    assert isinstance(model.config, BertConfig) and model.alphabet is TAPE
    encoded = [TAPE.encode(sequence) for sequence in SEQUENCES]
    compared = 0
    with torch.no_grad():
        wanted = Want(layers=tuple(range(LAYERS + 1)), logits=True, attentions=True)
        batch = packed(model, encoded)
        ours = model(batch, wanted)
        for row, ids in enumerate(encoded):
            theirs = original(torch.from_numpy(ids)[None], output_hidden_states=True, output_attentions=True)
            tokens = batch.tokens(row)
            for layer, hidden in enumerate(theirs.hidden_states):
                torch.testing.assert_close(ours.hidden[layer][tokens], hidden[0], atol=BOUND, rtol=BOUND)
            torch.testing.assert_close(ours.logits_TV[tokens], theirs.logits[0], atol=BOUND, rtol=BOUND)
            maps = torch.stack([one[0] for one in theirs.attentions])
            torch.testing.assert_close(ours.attentions[row], maps, atol=BOUND, rtol=BOUND)
            compared += len(ids)
    assert compared == sum(map(len, SEQUENCES)) + 2 * len(SEQUENCES)


def test_the_command_line_takes_their_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """U has a vector of its own here, where ProtBert reads X; the native copy gives the same vectors."""
    folder = tape_folder(judge("bert"), tmp_path / "model")
    source = write_fasta(tmp_path / "in.fasta", [("one", "MKTVU"), ("two", "MKTVX")])
    assert plm(monkeypatch, "convert", folder, "-o", tmp_path / "native.safetensors", "--to", "native") == 0
    found = []
    for model in (folder, tmp_path / "native.safetensors"):
        out = tmp_path / f"{len(found)}.h5"
        options = ("--model", model, "--precision", "fp32", "--device", "cpu", "--storage", "fp32")
        assert plm(monkeypatch, "embed", source, "-o", out, *options) == 0
        found.append(dict(read_embeddings(out)))
    assert np.abs(found[0]["one"] - found[0]["two"]).max() > 10 * BOUND
    for name in ("one", "two"):
        np.testing.assert_array_equal(found[0][name], found[1][name])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"vocab_size": 31}, "vocab_size = 31; only 30 is supported"),
        ({"hidden_act": "relu"}, "hidden_act = 'relu'; only 'gelu' is supported"),
        ({"hidden_size": "leave"}, "does not say hidden_size"),
        ({"torchscript": "leave"}, "model type None is not supported"),
    ],
)
def test_what_it_cannot_follow_is_refused(changed: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        checkpoints.load(tape_folder(judge("bert"), tmp_path / "model", **changed))


def test_fine_tuned_heads_are_refused_and_bodies_read(tmp_path: Path) -> None:
    original = judge("bert")
    folder = tape_folder(original, tmp_path / "model")
    state = torch.load(folder / "pytorch_model.bin", weights_only=True)
    torch.save({**state, "classify.main.0.bias": torch.zeros(3)}, folder / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"classify\.\* belong to a fine-tuned head"):
        checkpoints.load(folder)
    body = {name.removeprefix("bert."): tensor for name, tensor in state.items() if name.startswith("bert.")}
    torch.save(body, folder / "pytorch_model.bin")
    model = checkpoints.load(folder).model
    assert not model.has_logits and model.alphabet is TAPE


def test_it_does_not_leave_as_another_model(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="alphabet TAPE has no Hugging Face layout; keep it as native"):
        checkpoints.export(tiny("bert-tape"), tmp_path / "out", "hf")
    with pytest.raises(InputError, match="alphabet 'Tape' is none of BERT's; choose one of ProtBert, TAPE"):
        BertConfig(alphabet="Tape")
