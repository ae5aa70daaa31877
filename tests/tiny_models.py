"""Every architecture at a size that takes no time, with random weights."""

from esm_reference import (
    randomise,
)

from proteinlm.models import ARCHITECTURES
from proteinlm.models.albert import AlbertConfig
from proteinlm.models.base import ProteinModel
from proteinlm.models.bert import BertConfig
from proteinlm.models.electra import ElectraConfig, ElectraPairConfig
from proteinlm.models.elmo import ElmoConfig
from proteinlm.models.esm import Esm1bConfig, Esm1Config, Esm2, Esm2Config
from proteinlm.models.recurrent import LstmConfig
from proteinlm.models.t5 import T5Config, T5EncoderConfig
from proteinlm.models.transformer_xl import TransformerXlConfig
from proteinlm.models.unirep import UniRepConfig
from proteinlm.models.xlnet import XlnetConfig

TINY = {
    "albert": ("albert", AlbertConfig(3, 16, 2, 40, embedding_width=6, max_positions=30)),
    "albert-body": ("albert", AlbertConfig(2, 16, 2, 40, 6, 30, exact_gelu=True, language_head=False)),
    "bert": ("bert", BertConfig(2, 16, 2, 40, max_positions=30)),
    "bert-body": ("bert", BertConfig(2, 16, 2, 40, max_positions=30, token_types=1, language_head=False)),
    "bert-tape": ("bert", BertConfig(2, 16, 2, 40, max_positions=30, alphabet="TAPE")),
    "electra": ("electra", ElectraPairConfig(2, 16, 2, 40, 2, 8, 2, 20, max_positions=30)),
    "electra-discriminator": ("electra-discriminator", ElectraConfig(2, 16, 2, 40, 16, 30)),
    "electra-generator": ("electra-generator", ElectraConfig(2, 8, 2, 20, 16, 30)),
    "elmo": ("elmo", ElmoConfig(3, 8, 12, cell_limit=2.0, state_limit=1.5)),
    "esm1": ("esm1", Esm1Config(2, 16, 2, 40)),
    "esm1-bias": ("esm1", Esm1Config(2, 16, 2, 40, token_dropout=True, output_bias=True, contact_head=False)),
    "esm1b": ("esm1b", Esm1bConfig(2, 16, 2, 40, max_positions=30)),
    "esm1v": ("esm1b", Esm1bConfig(2, 16, 2, 40, max_positions=30, embedding_norm=False, contact_head=False)),
    "esm1b-body": ("esm1b", Esm1bConfig(2, 16, 2, 40, max_positions=30, language_head=False)),
    "esm2": ("esm2", Esm2Config(2, 16, 2, 64, max_residues=30)),
    "esm2-body": ("esm2", Esm2Config(3, 16, 4, 64, token_dropout=False, contact_head=False, language_head=False)),
    "esm2-convolved": ("esm2", Esm2Config(2, 16, 2, 40, max_residues=30, reach=2)),
    "lstm": ("lstm", LstmConfig(num_layers=2, width=8)),
    "lstm-projected": ("lstm", LstmConfig(num_layers=2, width=6, cell_width=10)),
    "transformer-xl": ("transformer-xl", TransformerXlConfig(2, 16, 2, 6, 24, segment=8, memory=6)),
    "transformer-xl-bare": ("transformer-xl", TransformerXlConfig(2, 16, 4, 4, 24, boundaries=False)),
    "t5": ("t5", T5Config(2, 3, 16, 3, 8, 40)),
    "t5-encoder": ("t5-encoder", T5EncoderConfig(3, 16, 3, 8, 40, buckets=8, furthest=20)),
    "unirep": ("unirep", UniRepConfig(width=12, num_layers=2, embedding_width=5)),
    "xlnet": ("xlnet", XlnetConfig(2, 16, 2, 40, text_segments=True)),
}


def tiny(name: str, seed: int = 5) -> ProteinModel:
    """A small model, random in every parameter; its rotary frequencies are not those that would be computed."""
    architecture, config = TINY[name]
    model = ARCHITECTURES[architecture].model(config).eval()
    randomise(model, seed)
    if isinstance(model, Esm2):
        model.rotary.inverse_frequency.mul_(1.01)
    return model
