"""Names: safe in their place, unique, and as few changed as possible."""

from pathlib import Path

import pytest

from proteinlm.embedding.names import LONGEST_FILE_NAME, UniqueNames, file_name_of, key_of

HEADERS = [
    "a/b",
    "../up",
    "/etc/passwd",
    "c:d",
    "e\\f",
    ".",
    "..",
    ".hidden",
    "-rf",
    "tab\tin it",
    "sp|P1|N",
    "é" * 300,
]


def test_a_key_never_makes_a_group() -> None:
    assert [key_of(name) for name in ("a/b/c", "/a", ".", "..", "x.y|z:1")] == ["a_b_c", "_a", "_", "..", "x.y|z:1"]


@pytest.mark.parametrize("header", HEADERS)
def test_a_file_name_stays_in_its_folder(header: str, tmp_path: Path) -> None:
    path = tmp_path / f"{file_name_of(header)}.pt"
    path.write_bytes(b"x")
    assert [item.name for item in tmp_path.iterdir()] == [path.name]
    assert not path.name.startswith((".", "-"))
    assert len(path.name.encode()) <= LONGEST_FILE_NAME + len(".pt")


def test_what_is_safe_is_kept() -> None:
    header = "sp|P12345|NAME_HUMAN Protein (fragment) OS=Homo sapiens OX=9606"
    assert file_name_of(header) == header


def test_no_name_is_given_twice(tmp_path: Path) -> None:
    wanted = ["a", "a__2", "a", "a", "a__2", "b", "a__2__2", "b"] + ["c"] * 50
    with UniqueNames(tmp_path / "names") as names:
        given = [names.claim(name) for name in wanted]
        assert names.renamed == sum(got != want for got, want in zip(given, wanted, strict=True))
    assert len(set(given)) == len(wanted) == 58
    assert given[:4] == ["a", "a__2", "a__3", "a__4"]
    assert not list(tmp_path.iterdir())


def test_names_that_differ_in_case_only_are_one_file_on_some_systems(tmp_path: Path) -> None:
    with UniqueNames(tmp_path / "names", fold_case=True) as names:
        assert [names.claim(name) for name in ("Abc", "aBC", "abc__2")] == ["Abc", "aBC__2", "abc__2__2"]
    with UniqueNames(tmp_path / "names") as names:
        assert [names.claim(name) for name in ("Abc", "aBC")] == ["Abc", "aBC"]
