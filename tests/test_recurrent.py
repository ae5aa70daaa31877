"""The bidirectional LSTM against its equations, its sizes against the paper's, a toy source learnt to its entropy."""

from pathlib import Path

import numpy as np
import pytest
import torch
from esm_reference import randomise

from proteinlm import checkpoints
from proteinlm.errors import InputError
from proteinlm.models import on_meta, recurrent
from proteinlm.models.base import Want
from proteinlm.models.recurrent import PRESETS, BidirectionalLstm, LstmConfig, Reading
from proteinlm.sequences.alphabet import ESM1B, STANDARD
from proteinlm.sequences.batch import PackedBatch

PLAIN = LstmConfig(num_layers=3, width=7)
PROJECTED = LstmConfig(num_layers=2, width=5, cell_width=9)
SEQUENCES = ["MKTVRQG", "W", "SEQWENCEXBZJUO", "MKT", "ACDEFGHIKLMNPQRSTVWY" * 3, "GG"]


def random_model(config: LstmConfig) -> BidirectionalLstm:
    model = BidirectionalLstm(config).eval()
    randomise(model, seed=4, std=0.5)
    return model


def packed(sequences: list[str]) -> PackedBatch:
    return PackedBatch.pack([ESM1B.encode(residues) for residues in sequences], prefix=1, suffix=1)


@pytest.mark.parametrize(
    "config, millions",
    [
        (PRESETS["S"], 28.4),
        (PRESETS["L"], 113.4),
        (LstmConfig(num_layers=2, width=384, cell_width=2048), 28.4),
        (LstmConfig(num_layers=2, width=768, cell_width=4096), 113.4),
    ],
)
def test_sizes_of_the_paper(config: LstmConfig, millions: float) -> None:
    """papers.md 2.1 gives the paper's totals to a tenth of a million, and the shapes that match them."""
    total = sum(parameter.numel() for parameter in on_meta("lstm", config).parameters())
    assert round(total / 1e6, 1) == millions


def lstm_loop(values: dict[str, np.ndarray], prefix: str, inputs: np.ndarray) -> np.ndarray:
    """One direction of one layer, one token at a time: the textbook's equations, and a projection if there is one."""
    cells = values[f"{prefix}.weight_hh_l0"].shape[0] // 4
    state, cell = np.zeros(values[f"{prefix}.weight_hh_l0"].shape[1]), np.zeros(cells)
    states = []
    for x in inputs:
        gates = values[f"{prefix}.weight_ih_l0"] @ x + values[f"{prefix}.bias_ih_l0"]
        gates = gates + values[f"{prefix}.weight_hh_l0"] @ state + values[f"{prefix}.bias_hh_l0"]
        enter, forget, update, leave = np.split(gates, 4)
        cell = cell / (1 + np.exp(-forget)) + np.tanh(update) / (1 + np.exp(-enter))
        state = np.tanh(cell) / (1 + np.exp(-leave))
        if f"{prefix}.weight_hr_l0" in values:
            state = values[f"{prefix}.weight_hr_l0"] @ state
        states.append(state)
    return np.stack(states)


def naive(model: BidirectionalLstm, residues: str) -> tuple[list[np.ndarray], np.ndarray]:
    """Hidden states of layers 0 to N, and logits, of one sequence in float64."""
    values = {name: tensor.double().numpy() for name, tensor in model.state_dict().items()}
    tokens = ESM1B.encode(residues)
    forward = backward = values["embed_tokens.weight"][tokens]
    hidden = [np.concatenate([forward, backward], axis=1)]
    for layer in range(model.num_layers):
        forward = lstm_loop(values, f"layers.{layer}.forwards", forward)
        backward = lstm_loop(values, f"layers.{layer}.backwards", backward[::-1])[::-1]
        hidden.append(np.concatenate([forward, backward], axis=1))
    logits = []
    for t in range(len(tokens)):
        around = np.zeros(forward.shape[1])
        if t > 0:
            around = around + forward[t - 1]
        if t + 1 < len(tokens):
            around = around + backward[t + 1]
        logits.append(values["head.weight"] @ around + values["head.bias"])
    return hidden, np.stack(logits)


@pytest.mark.parametrize("config", [PLAIN, PROJECTED], ids=["plain", "projected"])
@pytest.mark.parametrize("side_by_side", [1, 4, 8])
def test_equals_the_equations(config: LstmConfig, side_by_side: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """fp32 against float64: states are below 1 (projected: below 10), so 1e-5 is tens of roundings."""
    monkeypatch.setattr(recurrent, "SIDE_BY_SIDE", side_by_side)
    model = random_model(config)
    batch = packed(SEQUENCES)
    with torch.inference_mode():
        output = model(batch, Want(layers=tuple(range(config.num_layers + 1)), logits=True))
    compared = 0
    for b, residues in enumerate(SEQUENCES):
        hidden, logits = naive(model, residues)
        for layer, expected in enumerate(hidden):
            np.testing.assert_allclose(output.hidden[layer][batch.tokens(b)].numpy(), expected, rtol=0, atol=1e-5)
            compared += expected.size
        np.testing.assert_allclose(output.logits_TV[batch.tokens(b)].numpy(), logits, rtol=0, atol=2e-5)
        compared += logits.size
    tokens = sum(len(residues) + 2 for residues in SEQUENCES)
    assert compared == tokens * ((config.num_layers + 1) * 2 * config.width + len(ESM1B))


def test_padding_changes_neither_states_nor_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU sequences are padded, on a GPU not: same numbers either way, within tens of roundings of sums."""
    found = []
    padding, exactly = Reading.padded(packed(SEQUENCES)), Reading.exact(packed(SEQUENCES))
    assert len(padding.groups[0][0]) == 6 * 62 and len(exactly.groups[0][0]) == exactly.place_T.numel() == 99
    for reading in (Reading.padded, Reading.exact):
        model, batch = random_model(PLAIN), packed(SEQUENCES)
        monkeypatch.setattr(Reading, "padded", reading)
        output = model(batch, Want(layers=(3,), logits=True))
        (output.logits_TV.square().sum() + output.hidden[3].sum()).backward()
        found.append([output.logits_TV.detach(), *(parameter.grad for parameter in model.parameters())])
    assert len(found[0]) == 1 + 1 + 3 * 2 * 4 + 2
    for padded, exact in zip(*found, strict=True):
        assert (padded - exact).abs().max() <= 1e-5 * exact.abs().max()


def test_logits_never_see_the_token_they_are_about() -> None:
    model = random_model(PLAIN)
    ids = ESM1B.encode("MKTVRQGAAC")
    with torch.inference_mode():
        plain = model(PackedBatch.pack([ids], prefix=1, suffix=1), Want(logits=True)).logits_TV
        for t in range(len(ids)):
            changed = ids.copy()
            changed[t] = ESM1B.mask
            masked = model(PackedBatch.pack([changed], prefix=1, suffix=1), Want(logits=True)).logits_TV
            assert torch.equal(masked[t], plain[t])
            others = torch.arange(len(ids)) != t
            assert (masked[others] != plain[others]).any(dim=1).all(), "every other token hears of it"


def test_the_directions_never_meet() -> None:
    model = random_model(PLAIN)
    first, second = ESM1B.encode("MKTVRQGAAC"), ESM1B.encode("MKTVRWGAAC")
    width, at = PLAIN.width, 6
    with torch.inference_mode():
        one, other = (
            model(PackedBatch.pack([ids], prefix=1, suffix=1), Want(layers=(3,))).hidden[3] for ids in (first, second)
        )
    same = one == other
    assert same[:at, :width].all() and not same[at:, :width].any(), "forward states know what stands at or before them"
    assert same[at + 1 :, width:].all() and not same[: at + 1, width:].any(), "backward states what stands at or behind"


def test_a_projection_must_narrow() -> None:
    with pytest.raises(InputError, match="cell_width 8 does not exceed width 8"):
        BidirectionalLstm(LstmConfig(num_layers=1, width=8, cell_width=8))


def test_forget_gates_begin_open() -> None:
    model = BidirectionalLstm(PROJECTED)
    for layer in model.layers:
        for direction in (layer.forwards, layer.backwards):
            total = direction.bias_ih_l0 + direction.bias_hh_l0
            assert torch.equal(total[9:18], torch.ones(9)) and total.shape == (36,)


def test_a_projected_model_is_read_back(tmp_path: Path) -> None:
    model = random_model(PROJECTED)
    checkpoints.save(model, tmp_path / "m.safetensors")
    again = checkpoints.load(tmp_path / "m.safetensors").model
    assert isinstance(again, BidirectionalLstm) and again.config == PROJECTED
    ours, theirs = model.state_dict(), again.state_dict()
    assert ours.keys() == theirs.keys() and len(ours) == 1 + 2 * 2 * 5 + 2
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    batch, want = packed(SEQUENCES), Want(logits=True)
    with torch.inference_mode():
        difference = model(batch, want).logits_TV - again(batch, want).logits_TV
    # Tensors of a file may lie at other offsets in memory, where a product sums in another order: a few roundings.
    assert difference.abs().max() < 2e-6


def markov_chain(letters: int, sharpness: float, seed: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    weights = np.exp(sharpness * random.standard_normal((letters, letters)))
    return weights / weights.sum(axis=1, keepdims=True)


def entropy_between_neighbours(chain: np.ndarray) -> float:
    """H(x_t | x_t-1, x_t+1) in nats of the stationary chain, summed over all triples."""
    values, vectors = np.linalg.eig(chain.T)
    stationary = np.real(vectors[:, np.argmax(np.real(values))])
    stationary = stationary / stationary.sum()
    joint = stationary[:, None, None] * chain[:, :, None] * chain[None, :, :]
    return float(-(joint * np.log(joint / joint.sum(axis=1, keepdims=True))).sum())


def test_a_toy_source_is_learnt_to_its_entropy() -> None:
    """A Markov chain over six residues: knowing both neighbours is all there is to know.

    The bound is 3 % above the entropy: two standard errors of the 6,000 scored residues, and what is left to learn. No
    model can be far below it; one that saw the answer would be near zero.
    """
    chain = markov_chain(6, sharpness=1.5, seed=1)
    random = np.random.default_rng(2)

    def sample(count: int, length: int) -> PackedBatch:
        states = random.integers(0, 6, size=count)
        columns = [states]
        for _ in range(length - 1):
            states = (random.random(count)[:, None] > chain[states].cumsum(axis=1)).sum(axis=1)
            columns.append(states)
        letters = np.array(list(STANDARD))[np.stack(columns, axis=1)]
        return packed(["".join(row) for row in letters])

    def loss(model: BidirectionalLstm, batch: PackedBatch) -> torch.Tensor:
        """Over residues with a residue on either side."""
        logits = model(batch, Want(logits=True)).logits_TV
        inner = torch.cat(
            [torch.arange(batch.residues(b).start + 1, batch.residues(b).stop - 1) for b in range(len(batch))]
        )
        return torch.nn.functional.cross_entropy(logits[inner], batch.tokens_T[inner])

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(3)
        model = BidirectionalLstm(LstmConfig(num_layers=1, width=24))
    optimiser = torch.optim.Adam(model.parameters(), lr=0.02)
    for step in range(150):
        for group in optimiser.param_groups:
            group["lr"] = 0.02 * (1 - step / 150)
        optimiser.zero_grad()
        loss(model, sample(40, 25)).backward()
        optimiser.step()
    with torch.no_grad():
        reached = loss(model, sample(260, 25)).item()
    entropy = entropy_between_neighbours(chain)
    assert 0.3 < entropy < np.log(6) - 0.3, "neither certain nor guesswork"
    assert 0.95 * entropy < reached < 1.03 * entropy, (reached, entropy)
