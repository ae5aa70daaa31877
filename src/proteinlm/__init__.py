"""Protein language models in one package: sequences in, embeddings, logits and contacts out, exact to the originals.

`import proteinlm` is light; what stands in `__all__` is imported when it is first used.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from proteinlm.api import Embedded, LanguageModel, load
    from proteinlm.embedding.formats import read_embeddings
    from proteinlm.errors import InputError

__version__ = "0.1.0"

__all__ = ["Embedded", "InputError", "LanguageModel", "__version__", "load", "read_embeddings"]

_HOME = {
    "Embedded": "proteinlm.api",
    "LanguageModel": "proteinlm.api",
    "load": "proteinlm.api",
    "read_embeddings": "proteinlm.embedding.formats",
    "InputError": "proteinlm.errors",
}


def __getattr__(name: str) -> Any:
    """Import a public name from the module that it lives in."""
    if name not in _HOME:
        raise AttributeError(f"module 'proteinlm' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOME[name]), name)
