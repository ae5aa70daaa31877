"""A folder of heads that belong to one model: what `plm heads train` writes and `plm predict` reads.

In: fitted heads with what was measured of them. Out: `NAME.safetensors` for each, `heads.json` and a card to read; and
back, for the model whose digest they carry and for no other. A folder may also come with the package, see `choose`.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from proteinlm.checkpoints.catalogue import PACKAGED, is_name
from proteinlm.checkpoints.files import atomic_folder, read_card, read_json
from proteinlm.config import to_dict
from proteinlm.errors import InputError
from proteinlm.heads.store import FittedHead, load_head, save_head
from proteinlm.models import DEFAULT

SECONDARY_STRUCTURE, LOCALISATION, MEMBRANE, CONTACTS = "secondary-structure", "localisation", "membrane", "contacts"
HEADS = (SECONDARY_STRUCTURE, LOCALISATION, MEMBRANE, CONTACTS)
"""Heads by the names that users type; each is a file of that name."""

FILE, CARD = "heads.json", "README.md"
FORMAT_VERSION = 1

OURS = PACKAGED / f"{DEFAULT}.heads"
"""The heads that come with the package, which fit its own model only."""


@dataclass(frozen=True)
class Figure:
    """Something that was measured of a head.

    Args:
        head: its name. measure: what. data: on which proteins. value, low, high: with the 95 % interval over proteins.
        proteins: how many.
    """

    head: str
    measure: str
    data: str
    value: float
    low: float
    high: float
    proteins: int


@dataclass(frozen=True)
class BundleCard:
    """What `heads.json` says.

    Args:
        model, digest: of the model. layer, width: of the vectors. heads: name -> digest of its file's content.
        figures: what was measured, by name: value, low, high and proteins of a `Figure`.
        data: set -> sha256. seed, quick: of the training. software: versions. format_version: of this layout.
    """

    model: str
    digest: str
    layer: int
    width: int
    heads: dict
    figures: dict
    data: dict
    seed: int
    quick: bool
    software: dict
    format_version: int = FORMAT_VERSION


@dataclass(frozen=True)
class Bundle:
    """Heads ready to be used.

    Attributes:
        heads: by name, in the order of `HEADS`. card: what the folder says. digest: of the card and all heads.
    """

    heads: dict[str, FittedHead]
    card: BundleCard
    digest: str


def save_bundle(folder: Path, heads: Mapping[str, FittedHead], card: BundleCard, page: str) -> None:
    """Write a folder of heads, whole or not at all.

    Args:
        folder: new, or empty. heads: by name. card: its digests are filled in. page: the card to read, Markdown.

    Raises:
        InputError: the folder is not empty or cannot be written.
    """
    with atomic_folder(folder) as temporary:
        digests = {name: save_head(head, temporary / f"{name}.safetensors") for name, head in heads.items()}
        told = {**to_dict(card), "heads": digests}
        (temporary / FILE).write_text(json.dumps(told, indent=1) + "\n", "utf-8")
        (temporary / CARD).write_text(page, "utf-8")


def read_bundle_card(folder: Path) -> BundleCard:
    """What a folder of heads says of itself.

    Raises:
        InputError: it is no such folder, or of another version.
    """
    path = folder / FILE
    if not path.is_file():
        raise InputError(f"{str(folder)!r} is no folder of heads: it has no {FILE}; `plm heads train` makes one")
    card = read_card(BundleCard, json.dumps(read_json(path)), FORMAT_VERSION, path)
    if unknown := set(card.heads) - set(HEADS):
        raise InputError(f"{path}: head {min(unknown)!r} is unknown; known: {', '.join(HEADS)}; update proteinlm")
    return card


def load_bundle(folder: str | Path, digest: str) -> Bundle:
    """The heads of a folder, for the model of a digest.

    Raises:
        InputError: the folder is damaged, or its heads were fitted on another model.
    """
    folder = Path(folder)
    card = read_bundle_card(folder)
    if card.digest != digest:
        raise InputError(
            f"the heads in {str(folder)!r} belong to {card.model} (digest {card.digest[:12]}), not to this model "
            f"(digest {digest[:12]}); use that model, or train heads for this one with `plm heads train`"
        )
    heads = {name: load_head(folder / f"{name}.safetensors", digest) for name in HEADS if name in card.heads}
    content = hashlib.sha256(json.dumps([card.digest, card.heads], sort_keys=True).encode())
    return Bundle(heads, card, content.hexdigest())


def choose(model: str | None, heads: Path | None) -> tuple[str, Path]:
    """Which model and which heads to load.

    Args:
        model, heads: what the user named, or None.

    Returns:
        model and folder of heads; those of the package where nothing is named, and its heads for any model, though
        they fit their own only.

    Raises:
        InputError: the heads belong to a model that has no name.

    >>> choose(None, None)[0], choose("unirep-64", Path("heads"))[0]
    ('plm_t9_3M_SwissProt', 'unirep-64')
    """
    if heads is None:
        return model or DEFAULT, OURS
    if model is None:
        model = read_bundle_card(heads).model
        if not is_name(model):
            raise InputError(f"the heads in {str(heads)!r} belong to {model}, which is a file; name it with --model")
    return model, heads


def page(card: BundleCard, figures: Sequence[Figure], notes: Sequence[str]) -> str:
    """The card to read: what the heads are, what they were trained on, how good they are. Markdown."""
    lines = [
        f"# Heads for {card.model}",
        "",
        f"Prediction heads for the model of digest `{card.digest}`, layer {card.layer}. No other model can use them.",
        "",
        "| head | measure | on | value | 95 % interval | proteins |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for one in figures:
        interval = f"{one.low:.3f} to {one.high:.3f}"
        lines.append(f"| {one.head} | {one.measure} | {one.data} | {one.value:.3f} | {interval} | {one.proteins:,} |")
    lines += ["", *(f"- {note}" for note in notes), "", "Data (sha256):", ""]
    lines += [f"- `{name}` {digest}" for name, digest in card.data.items()]
    if card.quick:
        lines += ["", "**A quick run on a small part of the data: to try things out, not to be relied on.**"]
    return "\n".join(lines) + "\n"
