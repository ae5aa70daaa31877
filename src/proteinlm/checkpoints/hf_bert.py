"""Hugging Face folders of BERT, ALBERT and ELECTRA (ProtBert, ProtAlbert, ProtElectra).

In: a folder. Out: `Contents`; and back, so that `BertForMaskedLM`, `AlbertForMaskedLM`, `ElectraForMaskedLM`,
`ElectraForPreTraining` and their tokenisers load what we write. Every field of `config.json` that would change a number
is read or checked. Poolers and sentence-order heads are left out knowingly (`IGNORED`): they were trained for pairs of
sentences and have no part in what we compute. The rows of tokens are put from the order of the vocabulary into ours.

Source: papers.md 8.3.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from proteinlm.checkpoints.contents import (
    Contents,
    count_layers,
    meta_model,
    require_layers,
    weights_of,
)
from proteinlm.checkpoints.files import Tensors
from proteinlm.checkpoints.hf_family import (
    Family,
    Fields,
    Files,
    Fixed,
    read_weights,
    refuse_heads,
    require_fixed,
    whole_numbers,
)
from proteinlm.checkpoints.names import Naming, has_part, require_tied, to_ours, to_theirs
from proteinlm.checkpoints.vocabulary import rows_of, sentencepiece_bytes, vocabulary_of
from proteinlm.config import from_dict, to_dict
from proteinlm.errors import InputError
from proteinlm.models.albert import Albert, AlbertConfig
from proteinlm.models.bert import Bert, BertConfig
from proteinlm.models.electra import ElectraConfig, ElectraDiscriminator, ElectraGenerator, ElectraPair
from proteinlm.sequences.alphabet import PROTALBERT, PROTBERT, Alphabet

IGNORED = (
    "pooler.",
    "cls.seq_relationship.",
    "sop_classifier.",
    "embeddings.position_ids",
    "embeddings.token_type_ids",
)
"""Tensors without a part in what we compute: heads for pairs of sentences, and tables of 0, 1, 2 ... and of zeros."""

FINE_TUNED = {"classifier", "qa_outputs", "sequence_summary"}

_EMBEDDING = {
    "embedding.tokens": "embeddings.word_embeddings",
    "embedding.positions": "embeddings.position_embeddings",
    "embedding.token_types": "embeddings.token_type_embeddings",
    "embedding.norm": "embeddings.LayerNorm",
}
_LAYER: dict[str, tuple[str, ...]] = {
    "attention.qkv": ("attention.self.query", "attention.self.key", "attention.self.value"),
    "attention.out": ("attention.output.dense",),
    "attention_norm": ("attention.output.LayerNorm",),
    "feed_forward.up": ("intermediate.dense",),
    "feed_forward.down": ("output.dense",),
    "feed_forward_norm": ("output.LayerNorm",),
}

BERT_NAMES = Naming(
    outside={
        **_EMBEDDING,
        "masked_head.dense": "cls.predictions.transform.dense",
        "masked_head.norm": "cls.predictions.transform.LayerNorm",
        "masked_head.bias": "cls.predictions.bias",
    },
    layer="encoder.layer.{}.",
    inside=_LAYER,
)
ALBERT_NAMES = Naming(
    outside={
        **_EMBEDDING,
        "widen": "encoder.embedding_hidden_mapping_in",
        "masked_head.dense": "predictions.dense",
        "masked_head.norm": "predictions.LayerNorm",
        "masked_head.bias": "predictions.bias",
    },
    layer="encoder.albert_layer_groups.{}.albert_layers.0.",
    inside={
        "attention.qkv": ("attention.query", "attention.key", "attention.value"),
        "attention.out": ("attention.dense",),
        "attention_norm": ("attention.LayerNorm",),
        "feed_forward.up": ("ffn",),
        "feed_forward.down": ("ffn_output",),
        "feed_forward_norm": ("full_layer_layer_norm",),
    },
)
ELECTRA_NAMES = Naming(
    outside={
        **_EMBEDDING,
        "body.project": "embeddings_project",
        "masked_head.dense": "generator_predictions.dense",
        "masked_head.norm": "generator_predictions.LayerNorm",
        "masked_head.bias": "generator_lm_head.bias",
        "replaced_head.dense": "discriminator_predictions.dense",
        "replaced_head.output": "discriminator_predictions.dense_prediction",
    },
    layer="encoder.layer.{}.",
    inside=_LAYER,
    stack="body.layers.",
)
"""papers.md 8.3, without the prefixes `bert.`, `albert.` and `electra.`."""

SIZES = {
    "num_layers": "num_hidden_layers",
    "width": "hidden_size",
    "num_heads": "num_attention_heads",
    "inner": "intermediate_size",
    "max_positions": "max_position_embeddings",
}
NARROW_SIZES = {**SIZES, "embedding_width": "embedding_size"}
"""Our names of sizes -> theirs."""

TOKEN_TYPES = "type_vocab_size"
"""Two, where `config.json` does not say (`transformers`)."""


def _fixed(alphabet: Alphabet) -> dict[str, tuple[object, ...]]:
    """Fields that may have one value only, here; they change the numbers and nothing published differs."""
    return {
        "vocab_size": (len(alphabet),),
        "pad_token_id": (alphabet.pad,),
        "layer_norm_eps": (1e-12,),
        "position_embedding_type": ("absolute", None),
        "is_decoder": (False, None),
        "add_cross_attention": (False, None),
        "tie_word_embeddings": (True, None),
    }


BERT_FIXED: Fixed = {**_fixed(PROTBERT), "hidden_act": ("gelu",)}
ALBERT_FIXED: Fixed = {
    **_fixed(PROTALBERT),
    "hidden_act": ("gelu_new", "gelu_pytorch_tanh", "gelu"),
    "num_hidden_groups": (1,),
    "inner_group_num": (1,),
}


def plain_state(folder: Path, prefix: str, copies: Mapping[str, str], heads: set[str] = FINE_TUNED) -> Tensors:
    """Tensors of a folder without those that are `IGNORED`, nor `copies` of others that they are tied to.

    Args:
        folder: with weights. prefix: of the body. copies: name of a copy -> of its original. heads: fine-tuned ones.

    Raises:
        InputError: there is a fine-tuned head, or a copy differs from its original.
    """
    source = str(folder)
    state = read_weights(folder, prefix)
    state = {name: tensor for name, tensor in state.items() if not name.startswith(IGNORED)}
    refuse_heads(state, heads, source)
    for name, original in copies.items():
        copy = state.pop(name, None)
        if copy is not None and original in state:
            require_tied(copy, state[original], name, source)
    return state


EMBEDDED_TOKENS = "embeddings.word_embeddings.weight"


def whole_sizes(fields: Fields, folder: Path, names: Mapping[str, str]) -> dict[str, object]:
    """Sizes by our names, that of the table of token types among them; see `whole_numbers`."""
    return whole_numbers({TOKEN_TYPES: 2, **fields}, {**names, "token_types": TOKEN_TYPES}, str(folder))


def _in_our_order(tensors: Tensors, alphabet: Alphabet, folder: Path) -> Tensors:
    """The tensors with the rows of embedding and output bias in the order of the alphabet.

    A folder of ProtBert or ProtElectra without a vocabulary is taken to have the published one, which is the alphabet;
    in what order ProtAlbert's tokens stand, nothing but its file says.
    """
    found = vocabulary_of(folder)
    if found is None and alphabet is PROTBERT:
        return tensors
    if found is None:
        raise InputError(
            f"{folder} has no spiece.model, which says in what order its tokens stand; put the publisher's beside the "
            "weights"
        )
    pieces, path = found
    rows = rows_of(alphabet, pieces, str(path))
    tables = {"embedding.tokens.weight", "masked_head.bias"} & tensors.keys()
    return {**tensors, **{name: tensors[name][rows] for name in tables}}


def read_bert(folder: Path, fields: Fields) -> Contents:
    """Read a folder of `BertForMaskedLM`, `BertForPreTraining` or `BertModel`.

    Raises:
        InputError: fields that this version cannot follow, or tensors that do not fit.
    """
    source = str(folder)
    require_fixed(fields, BERT_FIXED, folder)
    copies = {
        "cls.predictions.decoder.weight": EMBEDDED_TOKENS,
        "cls.predictions.decoder.bias": "cls.predictions.bias",
    }
    state = plain_state(folder, "bert.", copies)
    values = {**whole_sizes(fields, folder, SIZES), "language_head": has_part(state, "cls.predictions")}
    config = from_dict(BertConfig, values, source)
    require_layers(config.num_layers, count_layers(state, "encoder.layer."), source)
    model = meta_model("bert", config, source)
    tensors = to_ours(model, state, BERT_NAMES, source)
    return Contents("bert", config, _in_our_order(tensors, PROTBERT, folder), source)


def read_albert(folder: Path, fields: Fields) -> Contents:
    """Read a folder of `AlbertForMaskedLM`, `AlbertForPreTraining` or `AlbertModel`, with its vocabulary.

    Raises:
        InputError: the vocabulary is missing, fields that this version cannot follow, or tensors that do not fit.
    """
    source = str(folder)
    require_fixed(fields, ALBERT_FIXED, folder)
    copies = {"predictions.decoder.weight": EMBEDDED_TOKENS, "predictions.decoder.bias": "predictions.bias"}
    state = plain_state(folder, "albert.", copies)
    values = {**whole_sizes(fields, folder, NARROW_SIZES), "language_head": has_part(state, "predictions")}
    config = from_dict(AlbertConfig, {**values, "exact_gelu": fields.get("hidden_act") == "gelu"}, source)
    tensors = to_ours(meta_model("albert", config, source), state, ALBERT_NAMES, source)
    return Contents("albert", config, _in_our_order(tensors, PROTALBERT, folder), source)


def read_electra(folder: Path, fields: Fields) -> Contents:
    """Read a folder of `ElectraForMaskedLM`, `ElectraForPreTraining` or `ElectraModel`.

    Which of the two it is, its head says; a body without a head is read as a discriminator.

    Raises:
        InputError: fields that this version cannot follow, or tensors that do not fit.
    """
    source = str(folder)
    require_fixed(fields, BERT_FIXED, folder)
    state = plain_state(folder, "electra.", {"generator_lm_head.weight": EMBEDDED_TOKENS})
    generator, discriminator = (has_part(state, f"{part}_predictions") for part in ("generator", "discriminator"))
    config = from_dict(
        ElectraConfig, {**whole_sizes(fields, folder, NARROW_SIZES), "head": generator or discriminator}, source
    )
    require_layers(config.num_layers, count_layers(state, "encoder.layer."), source)
    architecture = "electra-generator" if generator else "electra-discriminator"
    model = meta_model(architecture, config, source)
    tensors = to_ours(model, state, ELECTRA_NAMES, source)
    return Contents(architecture, config, _in_our_order(tensors, PROTBERT, folder), source)


@dataclasses.dataclass(frozen=True)
class _Style:
    """How a family writes: type and names, classes of `transformers` with and without head, sizes, names of heads."""

    model_type: str
    names: Naming
    headed: str
    bare: str
    sizes: Mapping[str, str]
    heads: tuple[str, ...]


_BERT = _Style("bert", BERT_NAMES, "BertForMaskedLM", "BertModel", SIZES, ("cls.",))
_ALBERT = _Style("albert", ALBERT_NAMES, "AlbertForMaskedLM", "AlbertModel", NARROW_SIZES, ("predictions.",))
_ELECTRA_HEADS = ("generator_predictions.", "generator_lm_head.", "discriminator_predictions.")
_GENERATOR = _Style("electra", ELECTRA_NAMES, "ElectraForMaskedLM", "ElectraModel", NARROW_SIZES, _ELECTRA_HEADS)
_DISCRIMINATOR = dataclasses.replace(_GENERATOR, headed="ElectraForPreTraining")


def _write(model: Any, dtype: torch.dtype, style: _Style, specific: Mapping[str, object]) -> Files:
    """Weights and `config.json` of a model; `specific` are the fields of its family."""
    named = to_theirs(model, weights_of(model), style.names)
    prefix = f"{style.model_type}."
    tensors = {name if name.startswith(style.heads) else prefix + name: t.to(dtype) for name, t in named.items()}
    config = to_dict(model.config)
    head = config.get("language_head", config.get("head"))
    fields: dict[str, object] = {
        "architectures": [style.headed if head else style.bare],
        "attention_probs_dropout_prob": 0.0,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "initializer_range": 0.02,
        "layer_norm_eps": 1e-12,
        "model_type": style.model_type,
        "pad_token_id": model.alphabet.pad,
        "position_embedding_type": "absolute",
        "torch_dtype": str(dtype).removeprefix("torch."),
        "type_vocab_size": config["token_types"],
        "vocab_size": len(model.alphabet),
        **{theirs: config[ours] for ours, theirs in style.sizes.items()},
        **specific,
    }
    texts: dict[str, Mapping[str, object] | str] = {"config.json": fields}
    return Files(tensors, texts)


SPECIAL_TOKENS = {"cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}


def _with_tokeniser(files: Files, longest: int) -> Files:
    """The same folder with the vocabulary and the settings of `BertTokenizer`, whose letters keep their case."""
    special = {**SPECIAL_TOKENS, "pad_token": "[PAD]", "unk_token": "[UNK]"}
    settings = {"do_lower_case": False, "model_max_length": longest, "tokenizer_class": "BertTokenizer"}
    texts: dict[str, Mapping[str, object] | str] = {
        "vocab.txt": "\n".join(PROTBERT.tokens),
        "tokenizer_config.json": {**special, **settings},
        "special_tokens_map.json": special,
    }
    return dataclasses.replace(files, texts={**files.texts, **texts})


def write_bert(model: Bert, dtype: torch.dtype) -> Files:
    """The files of a folder that `BertForMaskedLM` and `BertTokenizer` read.

    Raises:
        InputError: the alphabet is TAPE's, whose rows for B, O, U and Z a reader of ProtBert's would take for X.
    """
    if model.alphabet is not PROTBERT:
        raise InputError(
            f"a BERT with the alphabet {model.alphabet.name} has no Hugging Face layout; keep it as native"
        )
    return _with_tokeniser(_write(model, dtype, _BERT, {}), model.config.max_positions)


def write_albert(model: Albert, dtype: torch.dtype) -> Files:
    """The files of a folder that `AlbertForMaskedLM` and `AlbertTokenizer` read."""
    specific = {
        "hidden_act": "gelu" if model.config.exact_gelu else "gelu_new",
        "inner_group_num": 1,
        "num_hidden_groups": 1,
        "bos_token_id": PROTALBERT.prefix[0],
        "eos_token_id": PROTALBERT.suffix[0],
    }
    files = _write(model, dtype, _ALBERT, specific)
    special = {**SPECIAL_TOKENS, "pad_token": "<pad>", "unk_token": "<unk>"}
    settings = {"do_lower_case": False, "keep_accents": True, "tokenizer_class": "AlbertTokenizer"}
    texts: dict[str, Mapping[str, object] | str] = {
        "tokenizer_config.json": {**special, **settings},
        "special_tokens_map.json": special,
    }
    binaries = {"spiece.model": sentencepiece_bytes(PROTALBERT, PROTALBERT.tokens.index("<unk>"))}
    return dataclasses.replace(files, texts={**files.texts, **texts}, binaries=binaries)


def write_electra(model: ElectraGenerator | ElectraDiscriminator | ElectraPair, dtype: torch.dtype) -> Files:
    """The files of a folder that `ElectraForMaskedLM` or `ElectraForPreTraining` and `BertTokenizer` read.

    A pair becomes two folders inside the one that was named: `generator` and `discriminator`.
    """
    if isinstance(model, ElectraPair):
        weights_of(model)
        generator, discriminator = model.split()
        return Files(
            folders={"generator": write_electra(generator, dtype), "discriminator": write_electra(discriminator, dtype)}
        )
    style = _GENERATOR if isinstance(model, ElectraGenerator) else _DISCRIMINATOR
    return _with_tokeniser(_write(model, dtype, style, {}), model.config.max_positions)


BERT = Family(read_bert, (Bert,), write_bert)
ALBERT = Family(read_albert, (Albert,), write_albert)
ELECTRA = Family(read_electra, (ElectraGenerator, ElectraDiscriminator, ElectraPair), write_electra)
"""By `model_type`: "bert", "albert", "electra"."""
