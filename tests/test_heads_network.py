"""Networks on frozen features: no neighbour has a say, masks count nowhere, planted signals are found, seeds decide."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from heads_tools import shuffled
from torch.nn import functional as F

from proteinlm.errors import InputError
from proteinlm.heads import fitting
from proteinlm.heads.batches import BatchSize, Examples, FlatFeatures, batches_of, collate, order_of
from proteinlm.heads.contact import PairProjection, PairProjectionConfig
from proteinlm.heads.fitting import TrainOptions, fit, predict_logits
from proteinlm.heads.layers import BidirectionalLstmLayer, Convolution, Head
from proteinlm.heads.network import (
    CnnConfig,
    ContactResNet,
    ContactResNetConfig,
    FnnConfig,
    LightAttention,
    LightAttentionConfig,
    LstmConfig,
    PooledFnn,
    ResidueCnn,
    ResidueLstm,
    build,
)

WIDTH = 6
HEADS: dict[str, Callable[[], Head]] = {
    "cnn": lambda: build(ResidueCnn, CnnConfig(WIDTH, {"a": 3, "b": 2}), 1),
    "lstm": lambda: build(ResidueLstm, LstmConfig(WIDTH, {"a": 3, "b": 2}, 4, 3, 5, 8, dropout=0.2), 1),
    "fnn": lambda: build(PooledFnn, FnnConfig(WIDTH, {"a": 3, "b": 2}), 1),
    "light attention": lambda: build(LightAttention, LightAttentionConfig(WIDTH, {"a": 3, "b": 2}, 3), 1),
    "contact resnet": lambda: build(ContactResNet, ContactResNetConfig(WIDTH, 8, 8, 3), 1),
    "pair projection": lambda: build(PairProjection, PairProjectionConfig(WIDTH, 4), 1),
}


def proteins(head: Head, count: int, seed: int = 0, signal: float = 3.0) -> Examples:
    """Proteins whose features tell their labels: of each residue, of all of them, or of both ends of a pair."""
    random = np.random.default_rng(seed)
    features, labels = [], []
    for length in random.integers(3, 30, count):
        x = random.standard_normal((length, WIDTH)) * 0.5
        if head.level == "residue":
            a, b = random.integers(0, 3, length), random.integers(0, 2, length)
            y = np.column_stack([a, b])
        elif head.level == "protein":
            a, b = np.full(length, random.integers(0, 3)), np.full(length, random.integers(0, 2))
            y = np.array([a[0], b[0]])
        else:
            a, b = random.integers(0, 3, length), np.zeros(length, int)
            y = (a[:, None] == a[None]).astype(np.int64)
        x[np.arange(length), a] += signal
        x[:, 3] += signal * b
        features.append(x.astype(np.float16))
        labels.append(y)
    return Examples(features, labels)


def randomised(head: Head) -> Head:
    """With a mean and a scale, so that a lost or double use of them shows."""
    generator = torch.Generator().manual_seed(5)
    head.mean_D.normal_(generator=generator)
    head.scale_D.uniform_(0.5, 2, generator=generator)
    return head


@pytest.mark.parametrize("name", HEADS)
def test_neighbours_have_no_say(name: str) -> None:
    """Alone, with others and in another order: the same logits up to the order of fp32 sums."""
    head = randomised(HEADS[name]())
    features = list(proteins(head, 9).features)
    alone = [next(predict_logits(head, [one])) for one in features]
    together = list(predict_logits(head, features))
    backwards = list(predict_logits(head, features[::-1], residues=40))[::-1]
    compared = 0
    for one, two, three in zip(alone, together, backwards, strict=True):
        for first, second, third in zip(one, two, three, strict=True):
            np.testing.assert_allclose(second, first, atol=2e-6)
            np.testing.assert_allclose(third, first, atol=2e-6)
            compared += first.size
    assert compared > 40


def test_lstm_is_that_of_packed_sequences() -> None:
    """Outputs and gradients are those of PyTorch's bidirectional LSTM over a packed sequence with the same weights."""
    torch.manual_seed(0)
    ours, theirs = BidirectionalLstmLayer(5, 3), torch.nn.LSTM(5, 3, batch_first=True, bidirectional=True)
    theirs.load_state_dict(
        {
            **{name: value for name, value in ours.ahead.state_dict().items()},
            **{f"{name}_reverse": value for name, value in ours.back.state_dict().items()},
        }
    )
    batch = collate([np.random.default_rng(length).normal(size=(length, 5)) for length in (4, 1, 7)])
    packed = torch.nn.utils.rnn.pack_sequence(batch.features_TD.float().split([4, 1, 7]), enforce_sorted=False)
    expected, lengths = torch.nn.utils.rnn.pad_packed_sequence(theirs(packed)[0], batch_first=True)
    expected_TD = torch.cat([one[:length] for one, length in zip(expected, lengths, strict=True)])
    found_TD = ours(batch.features_TD.float(), batch)
    torch.testing.assert_close(found_TD, expected_TD, rtol=1e-5, atol=1e-6)
    for output_TD in (found_TD, expected_TD):
        output_TD.square().sum().backward()
    gradients = dict(theirs.named_parameters())
    for part, ending in ((ours.ahead, ""), (ours.back, "_reverse")):
        for name, parameter in part.named_parameters():
            torch.testing.assert_close(parameter.grad, gradients[name + ending].grad, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", sorted(set(HEADS) - {"lstm", "light attention"}))
def test_neighbours_have_no_say_in_training(name: str) -> None:
    """The gradient of one protein's loss does not reach the features of another, batch norm's statistics apart."""
    head = HEADS[name]()
    batch = collate([np.ones((4, WIDTH), np.float32), np.full((7, WIDTH), 2.0, np.float32)])
    batch.features_TD.requires_grad_(True)
    rows = {"residue": 4, "protein": 1, "pair": 16}[head.level]
    logits = head(batch, torch.Generator().manual_seed(0))
    sum((one[:rows] ** 2).sum() for one in logits).backward()
    gradient = batch.features_TD.grad
    assert gradient[:4].abs().sum() > 0 and not gradient[4:].any()


@pytest.mark.parametrize("name", HEADS)
def test_planted_signal_is_found_and_shuffled_labels_are_not(name: str) -> None:
    head = HEADS[name]()
    train, validation, test = (proteins(head, count, seed) for count, seed in ((80, 1), (20, 2), (60, 3)))
    options = TrainOptions(epochs=15, learning_rate=2e-2, size=BatchSize(residues=200, pairs=4000), seed=4)
    history = fit(head, train, validation, options)
    found, total = right_of(head, test)
    assert history.validation_loss[history.best_epoch - 1] == min(history.validation_loss)
    assert found / total > 0.93, "three deviations apart"

    control = HEADS[name]()
    dealt = Examples(train.features, shuffled_labels(train.labels))
    held_out = Examples(validation.features, shuffled_labels(validation.labels))
    fit(control, dealt, held_out, replace(options, epochs=4))
    by_chance = Examples(test.features, shuffled_labels(test.labels, seed=6))
    found, total = right_of(control, by_chance)
    known = np.concatenate(
        [one.reshape(-1, one.shape[-1] if head.level == "residue" else 1) for one in by_chance.labels]
    )
    if head.level == "protein":
        known = np.stack(by_chance.labels)
    chance = np.mean([np.bincount(column).max() / len(column) for column in known.T])
    assert found / total < chance + 0.12, "60 proteins: two and a half deviations"


def shuffled_labels(labels: list[np.ndarray], seed: int = 5) -> list[np.ndarray]:
    """Labels of all proteins dealt out again, row by row of whatever carries them."""
    if labels[0].ndim == 1:
        return list(shuffled(np.stack(labels), seed))
    if labels[0].ndim == 2 and labels[0].shape[1] == 2 and labels[0].shape[0] != 2:
        dealt = shuffled(np.concatenate(labels), seed)
        return np.split(dealt, np.cumsum([len(one) for one in labels])[:-1])
    dealt = shuffled(np.concatenate([one.reshape(-1) for one in labels]), seed)
    parts = np.split(dealt, np.cumsum([one.size for one in labels])[:-1])
    return [part.reshape(one.shape) for part, one in zip(parts, labels, strict=True)]


def right_of(head: Head, examples: Examples) -> tuple[int, int]:
    """How many labels are predicted right, of how many."""
    found = total = 0
    for logits, labels in zip(predict_logits(head, examples.features), examples.labels, strict=True):
        for task, one in enumerate(logits):
            known = labels if head.level == "pair" else labels[..., task]
            found += int((one.argmax(-1) == known).sum())
            total += known.size
    return found, total


@pytest.mark.parametrize("name", HEADS)
def test_same_seed_same_bits(name: str) -> None:
    states = []
    for seed in (1, 1, 2):
        head = HEADS[name]()
        torch.rand(3)  # PyTorch's own generator makes no difference
        examples = proteins(head, 12)
        fit(head, examples, examples, TrainOptions(epochs=2, size=BatchSize(residues=60), seed=seed))
        states.append(torch.cat([parameter.detach().flatten() for parameter in head.parameters()]))
    assert torch.equal(states[0], states[1]) and not torch.equal(states[0], states[2])


def test_convolution_equals_pytorch() -> None:
    layer = build(ResidueCnn, CnnConfig(WIDTH, {"a": 3}, hidden=4, kernel=5), 3).first
    assert isinstance(layer, Convolution)
    features = [np.random.default_rng(n).standard_normal((n, WIDTH)).astype(np.float32) for n in (1, 2, 9)]
    weight_CDK = layer.weight.view(WIDTH, 5, 4).permute(2, 0, 1)
    batch = collate(features)
    ours = layer(batch.features_TD, batch)
    theirs = [F.conv1d(torch.from_numpy(one).T[None], weight_CDK, layer.bias, padding=2)[0].T for one in features]
    torch.testing.assert_close(ours, torch.cat(theirs), atol=1e-6, rtol=1e-5)


def test_residues_without_a_label_count_nowhere() -> None:
    """What stands in for an unknown label, and the loss of a task that has none, change nothing."""
    head = HEADS["cnn"]()
    examples = proteins(head, 6)
    masked = [one.copy() for one in examples.labels]
    for one in masked:
        one[::2, 0] = -1
    (batch, labels_RM), *_ = batches_of(
        Examples(examples.features, masked), "residue", BatchSize(), np.random.default_rng(0)
    )
    sums = fitting.losses(head, head(batch, None), labels_RM)
    logits = head(batch, None)
    known = labels_RM[:, 0] >= 0
    expected = F.cross_entropy(logits[0][known], labels_RM[known, 0], reduction="sum")
    assert sums[0][1] == int(known.sum()) and sums[1][1] == len(labels_RM)
    torch.testing.assert_close(sums[0][0], expected)


def test_dropout_scales_and_order_covers_each_protein_once() -> None:
    lengths = np.random.default_rng(0).integers(1, 400, 500)
    size = BatchSize(residues=1000, proteins=20)
    batches = order_of(lengths, size, False, np.random.default_rng(1))
    assert sorted(np.concatenate(batches).tolist()) == list(range(500))
    assert all(lengths[batch].sum() <= 1000 and len(batch) <= 20 for batch in batches)
    spread = np.mean([np.ptp(lengths[batch]) for batch in batches])
    assert spread < 0.2 * np.ptp(lengths), "batches hold proteins of about one length"
    pairs = order_of(lengths, BatchSize(pairs=2**16, crop=128), True, np.random.default_rng(1))
    assert all((np.minimum(lengths[batch], 128) ** 2).sum() <= 2**16 for batch in pairs)


def test_long_proteins_are_cropped_for_pairs_alone() -> None:
    index = np.arange(50)
    features = [np.column_stack([index] * WIDTH).astype(np.float32)]
    labels = [(np.add.outer(index, index) % 2).astype(np.int64)]
    size = BatchSize(crop=20)
    ((batch, labels_RM),) = batches_of(Examples(features, labels), "pair", size, np.random.default_rng(3))
    kept = batch.features_TD[:, 0].numpy()
    assert len(kept) == 20 and (np.diff(kept) == 1).all() and kept[0] > 0
    np.testing.assert_array_equal(labels_RM.view(20, 20), np.add.outer(kept, kept) % 2)


def test_early_stopping_keeps_the_best_weights() -> None:
    head = HEADS["fnn"]()
    train, validation = proteins(head, 30, 1, signal=0.3), proteins(head, 30, 2, signal=0.3)
    history = fit(head, train, validation, TrainOptions(epochs=200, patience=3, learning_rate=3e-2))
    assert len(history.validation_loss) == history.best_epoch + 3 < 200
    assert fitting.evaluate(head, validation, TrainOptions()) == pytest.approx(min(history.validation_loss), rel=1e-6)


def test_bf16_is_close() -> None:
    head = HEADS["cnn"]()
    examples = proteins(head, 40)
    history = fit(head, examples, examples, TrainOptions(epochs=8, learning_rate=1e-2, bf16=True))
    exact = HEADS["cnn"]()
    reference = fit(exact, examples, examples, TrainOptions(epochs=8, learning_rate=1e-2))
    # bf16 has 8 bits of mantissa: losses agree to about 1 %.
    assert history.validation_loss[-1] == pytest.approx(reference.validation_loss[-1], rel=0.03)


def test_bad_input_is_refused_in_one_line() -> None:
    head, pairs = HEADS["cnn"](), HEADS["contact resnet"]()
    good = proteins(head, 4)
    flat = FlatFeatures(np.zeros((5, WIDTH), np.float16), np.array([0, 2, 5]))
    unknown = Examples(good.features, [np.full_like(one, -1) for one in good.labels])
    cases = [
        (head, Examples(good.features, [one[:-1] for one in good.labels]), good, "labels of shape"),
        (
            head,
            Examples(good.features, [one[:, :1] for one in good.labels]),
            good,
            "labels for 1 tasks; this head has 2",
        ),
        (head, Examples(good.features, [one + 1 for one in good.labels]), good, "class 3 is outside 0..2"),
        (head, good, unknown, "a: no validation protein has a label"),
        (head, Examples([one[:, :2] for one in good.features], good.labels), good, "features are 2 wide"),
        (head, Examples([one * np.nan for one in good.features], good.labels), good, "not finite"),
        (pairs, good, good, "labels of shape"),
    ]
    for one, train, validation, message in cases:
        with pytest.raises(InputError, match=message) as told:
            fit(one, train, validation, TrainOptions(epochs=1))
        assert "\n" not in str(told.value)
    with pytest.raises(InputError, match="2 proteins and 1 labels"):
        Examples(flat, good.labels[:1])
