"""Folders of TAPE's BERT: `config.json` without a `model_type`, and `pytorch_model.bin`.

In: a folder as `ProteinBertModel` or `ProteinBertForMaskedLM` saves it. Out: `Contents`. It is BERT with an alphabet of
its own and other names around it. The pooler is left out knowingly, as of ProtBert; fine-tuned heads are refused.

Source: TAPE, `tape/models/modeling_bert.py`, `modeling_utils.py`, `tokenizers.py` (version 0.5); papers.md 8.6.
"""

import dataclasses
from pathlib import Path

from proteinlm.checkpoints.contents import Contents, count_layers, meta_model, require_layers
from proteinlm.checkpoints.hf_bert import BERT_NAMES, EMBEDDED_TOKENS, SIZES, plain_state, whole_sizes
from proteinlm.checkpoints.hf_family import Fields, Fixed, require_fixed
from proteinlm.checkpoints.names import has_part, to_ours
from proteinlm.config import from_dict
from proteinlm.models.bert import BertConfig
from proteinlm.sequences.alphabet import TAPE

WRITTEN_BY_TAPE = ("finetuning_task", "num_labels", "output_attentions", "output_hidden_states", "torchscript")
"""What TAPE's `ProteinConfig` always writes, whatever the model."""

FIXED: Fixed = {"vocab_size": (len(TAPE),), "layer_norm_eps": (1e-12,), "hidden_act": ("gelu",)}

NAMES = dataclasses.replace(
    BERT_NAMES,
    outside={
        **BERT_NAMES.outside,
        "masked_head.dense": "mlm.transform.dense",
        "masked_head.norm": "mlm.transform.LayerNorm",
        "masked_head.bias": "mlm.bias",
    },
)
"""After the prefix `bert.` is gone."""

FINE_TUNED = {"classify", "predict"}


def is_tape(fields: Fields) -> bool:
    """Whether a `config.json` is TAPE's: `transformers` writes `model_type`, which TAPE did not know yet.

    >>> is_tape({"model_type": "bert", "finetuning_task": None}), is_tape(dict.fromkeys(WRITTEN_BY_TAPE))
    (False, True)
    """
    return "model_type" not in fields and all(name in fields for name in WRITTEN_BY_TAPE)


def read_tape(folder: Path, fields: Fields) -> Contents:
    """Read a folder of TAPE's BERT.

    Raises:
        InputError: fields that this version cannot follow (TAPE's LSTM and ResNet have others), a fine-tuned head, or
            tensors that do not fit.
    """
    source = str(folder)
    require_fixed(fields, FIXED, folder)
    state = plain_state(folder, "bert.", {"mlm.decoder.weight": EMBEDDED_TOKENS}, FINE_TUNED)
    values = {**whole_sizes(fields, folder, SIZES), "language_head": has_part(state, "mlm"), "alphabet": TAPE.name}
    config = from_dict(BertConfig, values, source)
    require_layers(config.num_layers, count_layers(state, "encoder.layer."), source)
    tensors = to_ours(meta_model("bert", config, source), state, NAMES, source)
    return Contents("bert", config, tensors, source)
