"""Protein language models in one package: sequences in, embeddings, logits and contacts out, exact to the originals."""

__version__ = "0.1.0"
