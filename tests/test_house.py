"""The rules of the house, measured: who imports whom, how large things are, what may not be written, what is told."""

import abc
import ast
import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

import proteinlm

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "proteinlm"

ORDER = (
    "errors",
    "config",
    "metrics",
    "sequences",
    "corpora",
    "datasets",
    "models",
    "checkpoints",
    "objectives",
    "inference",
    "embedding",
    "generation",
    "variants",
    "training",
    "heads",
    "tasks",
    "evaluation",
    "figures",
    "prediction",
    "reproduce",
    "api",
    "cli",
)
"""Packages in the order in which data flows. A module imports from its own package and from those before it."""

MOST_LINES_OF_A_FUNCTION = 80
MOST_LINES_OF_A_FILE = 600
MOST_PARAMETERS = 6

FORBIDDEN_CALLS = {
    "hasattr": "state what a thing is by its class",
    "eval": "read data, never run it",
    "exec": "read data, never run it",
    "pickle.load": "checkpoints.safe reads the pickles that are allowed",
    "pickle.loads": "checkpoints.safe reads the pickles that are allowed",
    "torch.manual_seed": "pass a generator",
    "torch.seed": "pass a generator",
    "np.random.seed": "pass a generator",
    "random.seed": "pass a generator",
}

IMPORTED_AS = {"backports": "backports.zstd", "sklearn": "scikit-learn"}
"""Distributions whose import name is another."""

STANDARD_LIBRARY = sys.stdlib_module_names | {"compression"}
"""Top-level modules of any Python that we run on; `compression` is new in 3.14."""

Function = ast.FunctionDef | ast.AsyncFunctionDef


@cache
def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def modules() -> list[Path]:
    """Every module of the package."""
    found = sorted(SOURCE.rglob("*.py"))
    assert len(found) >= 7, "the package has not been found"
    return found


def python_files() -> list[Path]:
    """Every Python file that we wrote."""
    folders = [ROOT / name for name in ("src", "tests", "examples", "benchmarks")]
    return sorted(path for folder in folders for path in folder.rglob("*.py"))


def functions(path: Path) -> Iterator[Function]:
    return (node for node in ast.walk(parse(path)) if isinstance(node, Function))


def dotted(node: ast.expr) -> str:
    """`a.b.c` of an expression that is a name or an attribute of one; empty for any other."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return ""


def imported(path: Path) -> Iterator[tuple[str, int]]:
    """Full names that a module imports anywhere in it, with the line."""
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: write the full name of the module"
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)


def tracked() -> list[str]:
    """Paths that git knows or would take in, relative to the root."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    return [path for path in listed.stdout.splitlines() if (ROOT / path).exists()]


def distribution(requirement: str) -> str:
    """The name in a requirement, as PyPI compares names."""
    found = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert found, requirement
    return found[0].lower().replace("_", "-")


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_imports_go_one_way() -> None:
    seen, wrong = 0, []
    for path in modules():
        package = path.relative_to(SOURCE).parts[0].removesuffix(".py")
        if package in ("__init__", "__main__"):
            continue
        assert package in ORDER, f"{package} has no place in the order of packages; give it one"
        for name, line in imported(path):
            if name.startswith("proteinlm.") and name != "proteinlm.__version__":
                seen += 1
                target = name.split(".")[1]
                if target not in ORDER or ORDER.index(target) > ORDER.index(package):
                    wrong.append(f"{path.relative_to(ROOT)}:{line} imports {name}")
    assert not wrong, "\n".join(wrong)
    assert seen >= 10, "almost nothing was compared"


def test_sizes() -> None:
    wrong = []
    for path in python_files():
        where = path.relative_to(ROOT)
        if (lines := len(path.read_text(encoding="utf-8").splitlines())) > MOST_LINES_OF_A_FILE:
            wrong.append(f"{where}: {lines} lines")
        for node in functions(path):
            assert node.end_lineno is not None
            if (lines := node.end_lineno - node.lineno + 1) > MOST_LINES_OF_A_FUNCTION:
                wrong.append(f"{where}:{node.lineno} {node.name}: {lines} lines")
    assert not wrong, "\n".join(wrong)


def is_command(node: Function) -> bool:
    """Whether a function is a click command, whose parameters are the options that a user sees."""
    decorators = [dotted(item.func if isinstance(item, ast.Call) else item) for item in node.decorator_list]
    return any(name.endswith((".command", ".group")) for name in decorators)


def test_few_parameters() -> None:
    seen, wrong = 0, []
    for path in modules():
        for node in functions(path):
            if is_command(node):
                continue
            seen += 1
            where = f"{path.relative_to(ROOT)}:{node.lineno} {node.name}"
            names = [item.arg for item in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
            if len([name for name in names if name not in ("self", "cls")]) > MOST_PARAMETERS:
                wrong.append(f"{where}: {len(names)} parameters; gather them in an options dataclass")
            if node.args.kwarg is not None:
                wrong.append(f"{where}: **{node.args.kwarg.arg} swallows misspelt options")
    assert not wrong, "\n".join(wrong)
    assert seen >= 20, "almost nothing was measured"


def test_nothing_forbidden_is_called() -> None:
    wrong = []
    for path in modules():
        for node in ast.walk(parse(path)):
            if not isinstance(node, ast.Call):
                continue
            where, name = f"{path.relative_to(ROOT)}:{node.lineno}", dotted(node.func)
            if name in FORBIDDEN_CALLS:
                wrong.append(f"{where} {name}: {FORBIDDEN_CALLS[name]}")
            for keyword in node.keywords:
                if keyword.arg == "weights_only" and not (
                    isinstance(keyword.value, ast.Constant) and keyword.value.value is True
                ):
                    wrong.append(f"{where} weights_only must be the literal True")
    assert not wrong, "\n".join(wrong)


def our_classes() -> list[type]:
    names = [info.name for info in pkgutil.walk_packages(proteinlm.__path__, "proteinlm.")]
    found = {
        value
        for name in names
        for value in vars(importlib.import_module(name)).values()
        if inspect.isclass(value) and value.__module__.startswith("proteinlm")
    }
    return sorted(found, key=lambda item: item.__qualname__)


def test_classes_are_abstract_or_final() -> None:
    classes = our_classes()
    assert len(classes) >= 10
    wrong = []
    for item in classes:
        for parent in item.__mro__[1:]:
            if not parent.__module__.startswith("proteinlm") or issubclass(parent, Exception):
                continue
            if abc.ABC not in parent.__mro__:
                wrong.append(f"{item.__qualname__} derives from {parent.__qualname__}, which is not abstract")
            wrong += [
                f"{item.__qualname__}.{name} overrides the concrete {parent.__qualname__}.{name}"
                for name, method in vars(parent).items()
                if name in vars(item)
                and inspect.isfunction(method)
                and not name.startswith("__")
                and name not in parent.__abstractmethods__
            ]
    assert not wrong, "\n".join(wrong)


def test_dependencies_are_justified_and_used() -> None:
    page = (ROOT / "docs" / "dependencies.md").read_text(encoding="utf-8")
    extras = project()["optional-dependencies"]
    everything = {distribution(item) for items in (project()["dependencies"], *extras.values()) for item in items}
    told = {distribution(name) for name in re.findall(r"^\| `([^`]+)` \|", page, flags=re.MULTILINE)}
    assert told == everything, (
        f"docs/dependencies.md has no line for {everything - told}; too many: {told - everything}"
    )

    optional = {
        distribution(item) for name in ("figures", "leakage", "parquet", "plot", "structures") for item in extras[name]
    }
    core = {distribution(item) for item in project()["dependencies"]}
    used = {
        IMPORTED_AS.get(name.split(".")[0], name.split(".")[0].replace("_", "-"))
        for path in modules()
        for name, _ in imported(path)
        if name.split(".")[0] not in STANDARD_LIBRARY and not name.startswith("_")
    } - {"proteinlm"}
    assert used <= core | optional, f"imported but not declared: {used - core - optional}"
    assert core <= used, f"declared but never imported: {core - used}"


def test_constraints_fix_every_dependency() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    rows = [line for line in lines if line and not line.startswith("#")]
    assert all(re.match(r"[a-z0-9.-]+==[0-9][^ +]*( ; python_version (<|>=) \"3\.11\")?$", row) for row in rows)
    fixed = {distribution(row.split("==")[0]) for row in rows}
    extras = project()["optional-dependencies"]
    named = {distribution(item) for items in (project()["dependencies"], *extras.values()) for item in items}
    assert named <= fixed, f"constraints.txt has no line for {named - fixed}"


def tree_of_readme() -> list[str]:
    """Paths in the README's file tree: two spaces of indentation a level, folders end in `/`."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    block = re.search(r"## The files\n.*?```text\n(.*?)```", readme, flags=re.DOTALL)
    assert block, "README.md has no section 'The files' with a tree in it"
    folders: list[str] = []
    paths = []
    for line in block[1].splitlines():
        name = line.split()[0]
        depth = (len(line) - len(line.lstrip())) // 2
        folders = folders[:depth]
        paths.append("".join(folders) + name)
        if name.endswith("/"):
            folders.append(name)
    return paths


def test_every_file_stands_in_the_readme() -> None:
    told = tree_of_readme()
    assert len(told) == len(set(told)), "the README's tree names a path twice"
    # A folder that is listed without anything in it speaks for all that it holds.
    closed = tuple(
        path for path in told if path.endswith("/") and not any(p.startswith(path) and p != path for p in told)
    )
    files = tracked()
    missing = [path for path in files if path not in told and not path.startswith(closed)]
    assert not missing, f"not in the README's file tree: {missing}"
    gone = [path for path in told if not any(file.startswith(path) for file in files)]
    assert not gone, f"in the README's file tree, but not in the repository: {gone}"


def test_no_path_of_one_machine() -> None:
    patterns = [re.compile(r"(?<![\w.~])/" + name + "/") for name in ("work", "root", "home", "Users", "tmp")]
    binary = (".fasta", ".npz", ".h5", ".gz", ".png", ".safetensors")
    files = [path for path in tracked() if not path.endswith(binary)]
    wrong = [
        f"{path}:{number}: {line.strip()[:100]}"
        for path in files
        for number, line in enumerate((ROOT / path).read_text(encoding="utf-8").splitlines(), 1)
        if any(pattern.search(line) for pattern in patterns)
    ]
    assert not wrong, "\n".join(wrong)
    assert len(files) >= 20


def test_changelog_knows_this_version() -> None:
    headings = re.findall(r"^## \[([^\]]+)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert headings and headings[0] in ("Unreleased", proteinlm.__version__)


def test_help_starts_without_heavy_imports() -> None:
    code = (
        "import sys\n"
        "from proteinlm.cli import main\n"
        "sys.argv = ['plm', '--help']\n"
        "try:\n    main()\n"
        "except SystemExit as end:\n    assert not end.code, end.code\n"
        "heavy = {'torch', 'numpy', 'h5py', 'pyarrow', 'matplotlib', 'sklearn', 'huggingface_hub', 'safetensors'}\n"
        "print('heavy:', sorted(heavy & set(sys.modules)))\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "embed" in run.stdout
    assert run.stdout.rstrip().endswith("heavy: []"), run.stdout
