"""SeqVec: folders as its authors publish them, against a plain loop over characters, steps and gates.

The loop and the reader follow allennlp 0.9. Its own code, run once on such a folder, gave the same states within
1.4e-5, with embeddings of up to 84.
"""

import json
import math
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from embedding_tools import plm, write_fasta
from esm_reference import packed
from tiny_models import tiny

from proteinlm import checkpoints, read_embeddings
from proteinlm.errors import InputError
from proteinlm.models import PRESETS, on_meta
from proteinlm.models.base import Want
from proteinlm.models.elmo import ElmoConfig
from proteinlm.sequences.alphabet import SEQVEC

OPTIONS = {
    "lstm": {
        "n_layers": 2,
        "projection_dim": 6,
        "dim": 10,
        "cell_clip": 0.6,
        "proj_clip": 0.4,
        "use_skip_connections": True,
    },
    "char_cnn": {
        "activation": "relu",
        "embedding": {"dim": 4},
        "filters": [[1, 3], [2, 5], [3, 4]],
        "max_characters_per_token": 9,
        "n_characters": 261,
        "n_highway": 2,
    },
}
SEQUENCES = ("MKTVRQGAAXBUZO", "W", "ACDEFGHIKL")


def arrays_of(seed: int = 3) -> dict[str, np.ndarray]:
    """Random weights under the names of the published file, TensorFlow's shapes."""
    random = np.random.default_rng(seed)
    lstm, cnn = OPTIONS["lstm"], OPTIONS["char_cnn"]
    width, cells, filters = lstm["projection_dim"], lstm["dim"], sum(count for _, count in cnn["filters"])
    shapes = {"char_embed": (261, 4), "CNN_proj/W_proj": (filters, width), "CNN_proj/b_proj": (width,)}
    for number, (reach, count) in enumerate(cnn["filters"]):
        shapes |= {f"CNN/W_cnn_{number}": (1, reach, 4, count), f"CNN/b_cnn_{number}": (count,)}
    for number in range(2):
        for kind in ("carry", "transform"):
            shapes |= {f"CNN_high_{number}/W_{kind}": (filters, filters), f"CNN_high_{number}/b_{kind}": (filters,)}
        for layer in range(2):
            cell = f"RNN_{number}/RNN/MultiRNNCell/Cell{layer}/LSTMCell"
            shapes |= {
                f"{cell}/W_0": (2 * width, 4 * cells),
                f"{cell}/B": (4 * cells,),
                f"{cell}/W_P_0": (cells, width),
            }
    return {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def elmo_folder(folder: Path, arrays: dict[str, np.ndarray], **changed: object) -> Path:
    folder.mkdir()
    options = {**OPTIONS, "lstm": {**OPTIONS["lstm"], **changed}}
    (folder / "options.json").write_text(json.dumps(options))
    with h5py.File(folder / "weights.hdf5", "w") as file:
        for name, array in arrays.items():
            file[name] = array
    return folder


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def token(character: int, arrays: dict[str, np.ndarray]) -> np.ndarray:
    """The embedding of a word of one character."""
    vectors = arrays["char_embed"][[258, character, 259, 260, 260, 260, 260, 260, 260]]
    found = []
    for number, (reach, count) in enumerate(OPTIONS["char_cnn"]["filters"]):
        kernel, bias = arrays[f"CNN/W_cnn_{number}"][0], arrays[f"CNN/b_cnn_{number}"]
        for channel in range(count):
            places = range(len(vectors) - reach + 1)
            answers = [(vectors[at : at + reach] * kernel[:, :, channel]).sum() + bias[channel] for at in places]
            found.append(max(0.0, max(answers)))
    x = np.array(found)
    for number in range(2):
        part = {
            name: arrays[f"CNN_high_{number}/{name}"] for name in ("W_carry", "b_carry", "W_transform", "b_transform")
        }
        share = sigmoid(x @ part["W_carry"] + part["b_carry"])
        x = share * np.maximum(0, x @ part["W_transform"] + part["b_transform"]) + (1 - share) * x
    return x @ arrays["CNN_proj/W_proj"] + arrays["CNN_proj/b_proj"]


def lstm(inputs: list[np.ndarray], arrays: dict[str, np.ndarray], direction: int, layer: int) -> list[np.ndarray]:
    """One direction of one layer over inputs in the order in which it reads them."""
    cell_name = f"RNN_{direction}/RNN/MultiRNNCell/Cell{layer}/LSTMCell"
    weight, bias, project = (arrays[f"{cell_name}/{part}"] for part in ("W_0", "B", "W_P_0"))
    state, cell, states = np.zeros(6), np.zeros(10), []
    for x in inputs:
        i, g, f, o = np.split(np.concatenate([x, state]) @ weight + bias, 4)
        cell = np.clip(sigmoid(f + 1) * cell + sigmoid(i) * np.tanh(g), -0.6, 0.6)
        state = np.clip((sigmoid(o) * np.tanh(cell)) @ project, -0.4, 0.4)
        states.append(state)
    return states


def by_hand(residues: str, arrays: dict[str, np.ndarray]) -> list[np.ndarray]:
    """The three layers of a protein, with the marks of its beginning and end, each (L + 2, 12)."""
    below = [token(character, arrays) for character in (256, *residues.encode(), 257)]
    layers = [np.array([np.tile(x, 2) for x in below])]
    ahead, back = below, below[::-1]
    for layer in range(2):
        found = lstm(ahead, arrays, 0, layer), lstm(back, arrays, 1, layer)
        ahead, back = (
            states if layer == 0 else [x + y for x, y in zip(states, read, strict=True)]
            for states, read in zip(found, (ahead, back), strict=True)
        )
        layers.append(np.concatenate([np.array(ahead), np.array(back[::-1])], axis=1))
    return layers


def test_every_layer_is_that_of_the_plain_loop(tmp_path: Path) -> None:
    arrays = arrays_of()
    model = checkpoints.load(elmo_folder(tmp_path / "model", arrays)).model
    assert model.config == ElmoConfig(2, 6, 10, 0.6, 0.4)
    batch = packed(model, [SEQVEC.encode(residues) for residues in SEQUENCES])
    with torch.no_grad():
        ours = model(batch, Want(layers=(0, 1, 2)))
    cut = compared = 0
    for row, residues in enumerate(SEQUENCES):
        for layer, theirs in enumerate(by_hand(residues, arrays)):
            found = ours.hidden[layer][batch.tokens(row)].numpy()
            np.testing.assert_allclose(found, theirs, atol=1e-5, rtol=1e-5)
            cut += int((np.abs(theirs) == 0.4).sum()) if layer == 1 else 0
            compared += found.size
    assert compared == 3 * 12 * (25 + 6) and cut > 20, "states were cut off, and that is the same too"


def test_the_command_line_takes_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = arrays_of()
    folder = elmo_folder(tmp_path / "model", arrays)
    source = write_fasta(tmp_path / "in.fasta", [("one", "MKTVUJ"), ("two", "AC")])
    assert plm(monkeypatch, "convert", folder, "-o", tmp_path / "native.safetensors", "--to", "native") == 0
    for number, model in enumerate((folder, tmp_path / "native.safetensors")):
        out = tmp_path / f"{number}.h5"
        options = ("--model", model, "--precision", "fp32", "--device", "cpu", "--storage", "fp32", "--layers", "1")
        assert plm(monkeypatch, "embed", source, "-o", out, *options) == 0
        found = dict(read_embeddings(out))
        for name, residues in (("one", "MKTVUJ"), ("two", "AC")):
            theirs = by_hand(residues, arrays)[1][1:-1].mean(axis=0)
            np.testing.assert_allclose(np.ravel(found[name]), theirs, atol=1e-5, rtol=1e-5)


def test_seqvec_has_the_size_of_its_lstms() -> None:
    """93 million with its characters (papers.md 8.5); a table takes their place."""
    preset = PRESETS["seqvec"]
    model = on_meta(preset.architecture, preset.config)
    cells = 4 * (2 * 512 * 4 * 4096 + 4 * 4096 + 4096 * 512)
    assert sum(math.prod(one.shape) for one in model.parameters()) == cells + 29 * 512 == preset.parameters
    with pytest.raises(InputError, match=r"put options.json and weights.hdf5 .* into .*seqvec"):
        checkpoints.load("seqvec")


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("CNN_proj/W_proj", None, "array CNN_proj/W_proj is missing"),
        ("char_embed", np.zeros((261, 4), np.int64), "array char_embed is missing"),
        ("CNN/W_cnn_1", np.zeros((1, 2, 4, 6), np.float32), r"CNN/W_cnn_1 has shape \(1, 2, 4, 6\)"),
        (
            "RNN_1/RNN/MultiRNNCell/Cell1/LSTMCell/W_P_0",
            np.zeros((10, 5), np.float32),
            r"project.weight has shape \(5, 10\)",
        ),
        ("CNN_high_0/W_carry", np.zeros((11, 12), np.float32), "arrays do not fit options.json"),
    ],
)
def test_weights_that_do_not_fit_are_refused(name: str, array: np.ndarray | None, message: str, tmp_path: Path) -> None:
    arrays = {**arrays_of(), name: array}
    folder = elmo_folder(tmp_path / "model", {key: value for key, value in arrays.items() if value is not None})
    with pytest.raises(InputError, match=message) as raised:
        checkpoints.load(folder)
    assert "\n" not in str(raised.value)


def test_options_that_cannot_be_followed_and_files_that_lead_elsewhere_are_refused(tmp_path: Path) -> None:
    arrays = arrays_of()
    with pytest.raises(InputError, match="use_skip_connections is not true"):
        checkpoints.load(elmo_folder(tmp_path / "plain", arrays, use_skip_connections=False))
    with pytest.raises(InputError, match=r"options.json is not ELMo's"):
        checkpoints.load(elmo_folder(tmp_path / "odd", arrays, cell_clip="none"))
    folder = elmo_folder(tmp_path / "linked", {name: a for name, a in arrays.items() if name != "char_embed"})
    with h5py.File(folder / "weights.hdf5", "a") as file:
        file["char_embed"] = h5py.ExternalLink(str(tmp_path / "plain" / "weights.hdf5"), "char_embed")
    with pytest.raises(InputError, match="array char_embed lies in another file; refused"):
        checkpoints.load(folder)
    (folder / "weights.hdf5").write_bytes((folder / "weights.hdf5").read_bytes()[:3000])
    with pytest.raises(InputError, match="cannot be read as HDF5"):
        checkpoints.load(folder)


def test_it_says_nothing_of_residues() -> None:
    model = tiny("elmo")
    with pytest.raises(InputError, match="no language-model head"):
        model(packed(model, [SEQVEC.encode("MKT")]), Want(logits=True))
