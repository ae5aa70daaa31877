"""N-gram counts against a dictionary filled residue by residue, smoothing by hand, and a source of known entropy."""

import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from proteinlm import checkpoints
from proteinlm.checkpoints.ngram import ENTRY, load_ngram, save_ngram
from proteinlm.errors import InputError
from proteinlm.metrics import Bootstrap, bootstrap_interval
from proteinlm.models import build, ngram
from proteinlm.models.ngram import BITS, LETTERS, NGram, NGramConfig, count, search_grid
from proteinlm.sequences.alphabet import STANDARD, LetterError

CONTEXTS = [(1, 0), (3, 0), (8, 0), (11, 0), (0, 1), (0, 4), (1, 1), (2, 3), (5, 6)]


def letters(residues: str) -> np.ndarray:
    return np.frombuffer(residues.encode(), dtype=np.uint8)


def proteins(number: int, longest: int, seed: int, alphabet: str = LETTERS) -> list[str]:
    random = np.random.default_rng(seed)
    return ["".join(random.choice(list(alphabet), size=random.integers(1, longest + 1))) for _ in range(number)]


class Dictionary:
    """The same model in the plainest words: a counter of (context, residue) and one of contexts."""

    def __init__(self, training: list[str], config: NGramConfig) -> None:
        self.config = config
        self.joint: Counter[tuple[str, str]] = Counter()
        for residues in training:
            for at, residue in enumerate(residues):
                self.joint[self.context(residues, at), residue] += 1
        self.contexts: Counter[str] = Counter()
        for (context, _), seen in self.joint.items():
            self.contexts[context] += seen

    def context(self, residues: str, at: int) -> str:
        ahead, behind = "-" * self.config.left, "-" * self.config.right
        padded, here = ahead + residues + behind, at + self.config.left
        return padded[here - self.config.left : here] + padded[here + 1 : here + 1 + self.config.right]

    def loss(self, residues: str, at: int) -> float:
        context, alpha = self.context(residues, at), self.config.alpha
        seen = self.joint[context, residues[at]]
        return -math.log((seen + alpha) / (self.contexts[context] + 25 * alpha))


@pytest.mark.parametrize("left, right", CONTEXTS)
@pytest.mark.parametrize("chunk", [1, 37, 10**6])
def test_equals_a_dictionary(left: int, right: int, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Few letters, so that contexts recur; tiny chunks, so that runs are merged at many levels and in many ranges."""
    monkeypatch.setattr(ngram, "LOOSE_KEYS", 50)
    monkeypatch.setattr(ngram, "STRIDE", 3)
    monkeypatch.setattr(ngram, "SAMPLES", 4)
    training = [*proteins(30, 25, seed=1, alphabet="ACXO"), "A", "Y" * 30]
    scored = [*proteins(9, 25, seed=2, alphabet="ACXOW"), training[3], "W", ""]
    config = NGramConfig(left, right, alpha=0.3)
    model = NGram.fit((letters(residues) for residues in training), config, chunk_residues=chunk)
    naive = Dictionary(training, config)
    assert len(model.keys_K) == len(naive.joint) and model.residues == sum(map(len, training))
    assert sorted(model.counts_K.tolist()) == sorted(naive.joint.values())
    sums, counts = model.cross_entropy([letters(residues) for residues in scored])
    assert counts.tolist() == [len(residues) for residues in scored] and counts.sum() > 100
    expected = [sum(naive.loss(residues, at) for at in range(len(residues))) for residues in scored]
    np.testing.assert_allclose(sums, expected, rtol=1e-12)


def test_only_the_named_positions_are_scored() -> None:
    training = proteins(30, 25, seed=1, alphabet="ACX")
    scored = proteins(6, 25, seed=3, alphabet="ACX")
    random = np.random.default_rng(0)
    positions = [np.flatnonzero(random.random(len(residues)) < 0.3) for residues in scored]
    config = NGramConfig(2, 1, alpha=2.0)
    model, naive = NGram.fit(map(letters, training), config), Dictionary(training, config)
    sums, counts = model.cross_entropy([letters(residues) for residues in scored], positions)
    assert counts.tolist() == [len(places) for places in positions] and 5 < counts.sum() < sum(map(len, scored))
    expected = [sum(naive.loss(r, at) for at in places) for r, places in zip(scored, positions, strict=True)]
    np.testing.assert_allclose(sums, expected, rtol=1e-12)


def test_smoothing_by_hand() -> None:
    """In AAB AAB, A follows A twice, B follows A twice, A begins both. The context W was never seen."""
    model = NGram.fit([letters("AAB")] * 2, NGramConfig(left=1, alpha=0.5))
    sums, counts = model.cross_entropy([letters("A"), letters("AB"), letters("WA")])
    begin, after_a = (2 + 0.5) / (2 + 12.5), (2 + 0.5) / (4 + 12.5)
    never_first, after_w = 0.5 / (2 + 12.5), 1 / 25
    expected = [begin, begin * after_a, never_first * after_w]
    np.testing.assert_allclose(np.exp(-sums), expected, rtol=1e-12)
    assert counts.tolist() == [1, 2, 2]


def test_the_probabilities_of_the_25_residues_sum_to_one() -> None:
    model = NGram.fit(map(letters, proteins(200, 40, seed=4)), NGramConfig(left=2, right=1, alpha=0.1))
    contexts = [("MK", "T"), ("AC", "D"), ("WW", "W"), ("XB", "U")]
    for before, behind in contexts:
        every = [letters(before + residue + behind) for residue in LETTERS]
        sums, counts = model.cross_entropy(every, [np.array([2])] * 25)
        assert np.exp(-sums).sum() == pytest.approx(1.0, abs=1e-12) and counts.sum() == 25


def test_a_model_without_knowledge_guesses_among_25() -> None:
    model = NGram.fit([letters("MKT")], NGramConfig(left=3, alpha=1e9))
    interval = bootstrap_interval(
        *model.cross_entropy([letters(r) for r in proteins(20, 30, seed=5)]),
        np.random.default_rng(0),
        Bootstrap(resamples=100, exponential=True),
    )
    assert interval.value == pytest.approx(25, rel=1e-6) and interval.groups == 20


def test_j_is_read_as_x() -> None:
    one, other = (NGram.fit([letters(r)], NGramConfig(left=1)) for r in ("AJAJ", "AXAX"))
    assert one.keys_K.tolist() == other.keys_K.tolist() and one.counts_K.tolist() == other.counts_K.tolist()


def markov_source(number: int, length: int, seed: int) -> tuple[np.ndarray, list[np.ndarray]]:
    """A random chain over the twenty residues, and sequences of it."""
    random = np.random.default_rng(9)
    weights = np.exp(1.5 * random.standard_normal((20, 20)))
    chain = weights / weights.sum(axis=1, keepdims=True)
    random = np.random.default_rng(seed)
    states, columns = random.integers(0, 20, size=number), []
    for _ in range(length):
        columns.append(states)
        states = (random.random(number)[:, None] > chain[states].cumsum(axis=1)).sum(axis=1).clip(max=19)
    table = letters(STANDARD)
    return chain, list(table[np.stack(columns, axis=1)])


def test_a_markov_source_is_learnt_to_its_entropy() -> None:
    """What a model lacks is about half its probabilities over the residues seen: with both neighbours known,
    8,000 / 2 / 1,200,000 = 0.003 nats. Scoring 40,000 residues leaves a standard error of some 0.006; the bound is 3.
    """
    chain, training = markov_source(6000, 200, seed=1)
    _, scored = markov_source(200, 200, seed=2)
    values, vectors = np.linalg.eig(chain.T)
    stationary = np.real(vectors[:, np.argmax(np.real(values))])
    stationary = stationary / stationary.sum()
    before = -(stationary[:, None] * chain * np.log(chain)).sum()
    joint = stationary[:, None, None] * chain[:, :, None] * chain[None, :, :]
    both = -(joint * np.log(joint / joint.sum(axis=1, keepdims=True))).sum()
    inner = [np.arange(1, 199)] * len(scored)
    for sides, entropy in (((1, 0), before), ((1, 1), both)):
        sums, counts = NGram.fit(training, NGramConfig(*sides, alpha=0.1)).cross_entropy(scored, inner)
        assert sums.sum() / counts.sum() == pytest.approx(entropy, abs=0.02)
    assert both < before - 0.3
    trials = search_grid(lambda: training, scored, [(1, 0), (2, 0), (3, 0)], [0.01, 1.0, 100.0])
    assert [(trial.config.left, trial.config.alpha) for trial in trials] == [
        (left, alpha) for left in (1, 2, 3) for alpha in (0.01, 1.0, 100.0)
    ]
    best = min(trials, key=lambda trial: trial.cross_entropy)
    assert best.config.left == 1 and best.cross_entropy < before + 0.02
    alone = NGram.fit(training, best.config).cross_entropy(scored)
    assert best.cross_entropy == pytest.approx(alone[0].sum() / alone[1].sum(), rel=1e-12)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.integers(0, 60), max_size=40), max_size=12), st.integers(1, 30))
def test_counting_equals_a_counter(chunks: list[list[int]], loose: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("LOOSE_KEYS", loose), ("STRIDE", 2), ("SAMPLES", 3)):
            patch.setattr(ngram, name, value)
        keys, counts = count(np.array(chunk, dtype=np.int64) for chunk in chunks)
    expected = sorted(Counter(key for chunk in chunks for key in chunk).items())
    assert list(zip(keys.tolist(), counts.tolist(), strict=True)) == expected
    assert keys.dtype == np.int64 and counts.dtype == np.uint32


def test_a_count_never_wraps_around(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ngram, "LARGEST_COUNT", 99)
    model = NGram.fit([letters("A" * 99)], NGramConfig(left=1))
    assert model.counts_K.tolist() == [1, 98]
    with pytest.raises(InputError, match="seen 100 times in one context; 99 are counted"):
        NGram.fit([letters("A" * 101)], NGramConfig(left=1))


def test_another_alpha_shares_the_counts() -> None:
    model = NGram.fit(map(letters, proteins(20, 30, seed=6)), NGramConfig(left=2, alpha=1.0))
    other = model.with_alpha(0.01)
    assert other.keys_K is model.keys_K and (other.config.alpha, model.config.alpha) == (0.01, 1.0)
    scored = [letters(r) for r in proteins(5, 30, seed=7)]
    direct = NGram.fit(map(letters, proteins(20, 30, seed=6)), NGramConfig(left=2, alpha=0.01)).cross_entropy(scored)
    np.testing.assert_array_equal(other.cross_entropy(scored)[0], direct[0])
    assert not np.allclose(model.cross_entropy(scored)[0], direct[0])


@pytest.mark.parametrize(
    "left, right, alpha", [(0, 0, 1.0), (12, 0, 1.0), (6, 6, 1.0), (-1, 3, 1.0), (2, 0, 0.0), (2, 0, math.nan)]
)
def test_impossible_configurations_are_refused(left: int, right: int, alpha: float) -> None:
    with pytest.raises(InputError, match=r"context of|alpha is"):
        NGramConfig(left, right, alpha)


def test_bad_input_is_refused() -> None:
    config = NGramConfig(left=2)
    with pytest.raises(LetterError, match=r"letter '\*' at position 3"):
        NGram.fit([letters("MKT"), letters("MK*")], config)
    with pytest.raises(InputError, match="one row of uint8"):
        NGram.fit([np.array([1, 2, 3])], config)
    for nothing in ([], [letters("")]):
        with pytest.raises(InputError, match="no residues to count"):
            NGram.fit(nothing, config)
    model = NGram.fit([letters("MKT")], config)
    with pytest.raises(InputError, match="positions of 2 proteins for 1"):
        model.tally([letters("MKT")], [np.array([0]), np.array([0])])
    for places in ([3], [-1]):
        with pytest.raises(InputError, match="positions of protein 0 leave its 3 residues"):
            model.tally([letters("MKT")], [np.array(places)])
    with pytest.raises(InputError, match="no residues are held out"):
        search_grid(lambda: [letters("MKT")], [], [(1, 0)], [1.0])


def test_nothing_to_score_is_nothing() -> None:
    model = NGram.fit([letters("MKT")], NGramConfig(left=2))
    sums, counts = model.cross_entropy([letters("MK"), letters("")], [np.array([], np.int64)] * 2)
    assert sums.tolist() == [0.0, 0.0] and counts.tolist() == [0, 0]
    assert [len(part) for part in model.cross_entropy([])] == [0, 0]


def test_a_saved_model_says_the_same(tmp_path: Path) -> None:
    model = NGram.fit(map(letters, proteins(50, 60, seed=8)), NGramConfig(3, 2, alpha=0.02))
    save_ngram(model, tmp_path / "counts.safetensors")
    again = load_ngram(tmp_path / "counts.safetensors")
    assert again.config == model.config
    np.testing.assert_array_equal(again.keys_K, model.keys_K)
    np.testing.assert_array_equal(again.before_K, model.before_K)
    assert len(model.keys_K) > 1000
    save_ngram(again, tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "counts.safetensors").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again.safetensors", "counts.safetensors"]


def test_damaged_and_foreign_files_are_refused(tmp_path: Path) -> None:
    path, model = tmp_path / "counts.safetensors", NGram.fit([letters("MKTAYI" * 20)], NGramConfig(left=2))
    save_ngram(model, path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    with pytest.raises(InputError, match="truncated or damaged"):
        load_ngram(path)
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(InputError, match="does not match its digest"):
        load_ngram(path)
    path.write_bytes(whole)
    arrays = load_file(path)
    save_file({"keys": arrays["keys"]}, path, {ENTRY: "{}"})
    with pytest.raises(InputError, match="not of format version 1"):
        load_ngram(path)
    save_file(arrays, path, {ENTRY: "no"})
    with pytest.raises(InputError, match="its metadata is not JSON"):
        load_ngram(path)
    path.write_bytes(b"PK\x03\x04 and so on")
    with pytest.raises(InputError):
        load_ngram(path)
    checkpoints.save(build("unirep-64"), path)
    with pytest.raises(InputError, match="holds no n-gram counts"):
        load_ngram(path)
    with pytest.raises(InputError, match="cannot read"):
        load_ngram(tmp_path / "nowhere")


def test_a_file_that_contradicts_itself_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files with a digest that fits, but keys out of order, beyond the context, or none at all."""
    path, config = tmp_path / "counts.safetensors", NGramConfig(left=1)
    for keys in ([40, 35], [35, 1 << 2 * BITS], [-1, 35], []):
        bad = NGram.from_counts(config, np.array(keys, np.int64), np.ones(len(keys), np.uint32))
        save_ngram(bad, path)
        with pytest.raises(InputError, match="not those of a context of 1"):
            load_ngram(path)
