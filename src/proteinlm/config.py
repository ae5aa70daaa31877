"""Configurations: frozen dataclasses to and from the plain dictionaries that JSON and TOML hold.

In: a dataclass, or a dictionary that a user or a file gave us. Out: the other one. A key that the dataclass does not
have, a missing one and a value of the wrong type are `InputError`s; an unknown key is answered with the nearest one.
"""

import dataclasses
import difflib
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from proteinlm.errors import InputError

Config = TypeVar("Config")


def nearest(name: str, known: typing.Iterable[str]) -> str:
    """A hint at the known name that looks most like `name`; empty where none does.

    >>> nearest("esm2-8n", ["esm2-8m", "unirep-64"])
    "; did you mean 'esm2-8m'?"
    """
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""


LATER = {"later": True}
"""Metadata of a field that was added to a configuration when models of it had already been saved."""


def to_dict(config: Any) -> dict[str, Any]:
    """The fields of a configuration, in the order they were declared.

    A field that was added later is left out while it has its default, so that files and digests from before stay valid.

    >>> from proteinlm.models.unirep import UniRepConfig
    >>> to_dict(UniRepConfig(width=64, num_layers=4))
    {'width': 64, 'num_layers': 4, 'embedding_width': 10}
    """
    values = ((field, getattr(config, field.name)) for field in dataclasses.fields(config))
    return {field.name: value for field, value in values if field.metadata != LATER or value != field.default}


def from_dict(kind: type[Config], values: Mapping[str, object], where: str) -> Config:
    """A configuration of class `kind` from a dictionary.

    Args:
        kind: a dataclass whose fields are scalars, or dictionaries whose content is not looked at.
        values: what the user or the file said.
        where: what the dictionary is, for messages.

    Raises:
        InputError: for an unknown or missing key, or a value of another type than the field's.

    >>> from proteinlm.models.unirep import UniRepConfig
    >>> from_dict(UniRepConfig, {"width": 64, "num_layer": 4}, "config")
    Traceback (most recent call last):
    proteinlm.errors.InputError: config: key 'num_layer' is unknown; did you mean 'num_layers'?
    """
    assert dataclasses.is_dataclass(kind), "a configuration is a dataclass"
    fields = {field.name: field for field in dataclasses.fields(kind)}
    for key in values:
        if key not in fields:
            raise InputError(
                f"{where}: key {key!r} is unknown{nearest(key, fields) or '; known: ' + ', '.join(fields)}"
            )
    types = typing.get_type_hints(kind)
    arguments = {}
    for name, field in fields.items():
        if name in values:
            arguments[name] = _checked(values[name], types[name], f"{where}: {name}")
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise InputError(f"{where}: key {name!r} is missing")
    config: Config = kind(**arguments)
    return config


def _checked(value: object, kind: Any, what: str) -> object:
    """The value, if it is of the field's type; a whole number is taken for a float, a bool never for a number."""
    allowed = (dict,) if typing.get_origin(kind) is dict else typing.get_args(kind) or (kind,)
    if type(value) in allowed:
        return value
    if type(value) is int and float in allowed:
        return float(value)
    names = " or ".join("none" if one is type(None) else one.__name__ for one in allowed)
    raise InputError(f"{what} is {value!r}, which is not of type {names}")
