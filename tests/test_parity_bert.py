"""Parity of BERT, ALBERT and ELECTRA with `transformers`: hidden states, maps, logits, losses and gradients.

Small configurations, random in every parameter, go through `save_pretrained` and our reader, and back. Bound: 1e-5 of
the largest value (or of 1, where values are smaller), some fifty roundings of fp32 over three layers.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from embedding_tools import plm, write_fasta
from esm_reference import packed, padded, randomise
from tiny_models import TINY, tiny
from torch import Tensor, nn

from proteinlm import checkpoints, read_embeddings
from proteinlm.checkpoints.hf_bert import ALBERT_NAMES, BERT_NAMES, ELECTRA_NAMES
from proteinlm.checkpoints.names import Naming, to_theirs
from proteinlm.checkpoints.vocabulary import sentencepiece_bytes
from proteinlm.errors import InputError
from proteinlm.models import PRESETS
from proteinlm.models.base import Output, ProteinModel, Want
from proteinlm.models.electra import ElectraPair
from proteinlm.sequences.alphabet import PROTALBERT, PROTBERT, STANDARD, Alphabet

transformers = pytest.importorskip("transformers")

LAYERS, WIDTH, HEADS, INNER, NARROW = 3, 48, 4, 96, 20
BOUND = 1e-5
SEQUENCES = ("MKTVRQGAAXBUZO", "LAGVSERTIDPKQNFYMHWC", "MAC", "WYVKLLPTMAHEDQ")
MASKED = ((0, 3), (1, 0), (1, 19), (3, 7))
"""Sequence and residue (from 0) of the residues that are replaced by a mask; their true ids are the targets."""

NAMES: dict[str, tuple[str, Naming]] = {
    "bert": ("bert.", BERT_NAMES),
    "albert": ("albert.", ALBERT_NAMES),
    "albert-erf": ("albert.", ALBERT_NAMES),
    "generator": ("electra.", ELECTRA_NAMES),
    "discriminator": ("electra.", ELECTRA_NAMES),
    "discriminator-narrow": ("electra.", ELECTRA_NAMES),
}


def judge(kind: str, seed: int = 0) -> nn.Module:
    """A small model of `transformers`, random in every parameter."""
    common = {
        "hidden_size": WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "intermediate_size": INNER,
        "max_position_embeddings": 40,
        "pad_token_id": 0,
        "attn_implementation": "eager",
    }
    if kind == "bert":
        model = transformers.BertForMaskedLM(transformers.BertConfig(vocab_size=30, **common))
    elif kind.startswith("albert"):
        act = "gelu" if kind == "albert-erf" else "gelu_new"
        config = transformers.AlbertConfig(vocab_size=34, embedding_size=NARROW, hidden_act=act, **common)
        model = transformers.AlbertForMaskedLM(config)
    else:
        wide = kind == "discriminator"
        config = transformers.ElectraConfig(vocab_size=30, embedding_size=WIDTH if wide else NARROW, **common)
        discriminator = kind.startswith("discriminator")
        model = (transformers.ElectraForPreTraining if discriminator else transformers.ElectraForMaskedLM)(config)
    randomise(model, seed)
    return model.eval()


def saved(model: nn.Module, kind: str, folder: Path) -> Path:
    """The folder as a publisher would leave it: with the vocabulary where that is needed."""
    model.save_pretrained(folder)
    if kind.startswith("albert"):
        (folder / "spiece.model").write_bytes(sentencepiece_bytes(PROTALBERT, unknown=1))
    return folder


def encoded(alphabet: Alphabet) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Token ids with masks, and the targets: the true id at a mask, -100 elsewhere."""
    seen = [alphabet.encode(sequence) for sequence in SEQUENCES]
    targets = [np.full(len(ids), -100) for ids in seen]
    for sequence, residue in MASKED:
        targets[sequence][residue + 1] = seen[sequence][residue + 1]
        seen[sequence][residue + 1] = alphabet.mask
    return seen, targets


PAPER = {
    "prot_bert": (420.98, True),
    "prot_bert_bfd": (420.98, True),
    "prot_albert": (224.34, True),
    "prot_electra_discriminator_bfd": (419.93, False),
    "prot_electra_generator_bfd": (65.2, False),
}
"""Millions of parameters in papers.md 6.1, and whether a pooler, which is not read here, is among them."""


@pytest.mark.parametrize("name", PAPER)
def test_parameters_as_the_paper_counts_them(name: str) -> None:
    preset, (millions, pooler) = PRESETS[name], PAPER[name]
    counted = preset.parameters + (preset.config.width * (preset.config.width + 1) if pooler else 0)
    assert counted / 1e6 == pytest.approx(millions, abs=0.02)
    # Sizes of published files, in bytes, with up to 0.1 % of names and padding in them.
    size = {"prot_albert": 897_396_780, "prot_electra_generator_bfd": 260_980_000}.get(name)
    assert size is None or 4 * counted == pytest.approx(size, rel=1e-3)


class Comparison:
    """Counts what it compares, so that a test cannot pass by comparing nothing."""

    def __init__(self) -> None:
        self.tensors = self.numbers = 0

    def same(self, ours: Tensor, theirs: Tensor, what: str) -> None:
        assert ours.shape == theirs.shape, what
        difference = (ours - theirs).abs().max().item()
        scale = max(1.0, theirs.abs().max().item())
        assert difference <= BOUND * scale, f"{what}: {difference} of {scale}"
        self.tensors += 1
        self.numbers += ours.numel()


def losses(model: ProteinModel, output: Output, targets: list[np.ndarray]) -> Tensor:
    """Our loss as `transformers` has it: cross-entropy at masks, or of "replaced" at every token."""
    flat = torch.from_numpy(np.concatenate(targets))
    if model.has_replaced:
        assert output.replaced_T is not None
        return F.binary_cross_entropy_with_logits(output.replaced_T, (flat >= 0).float())
    assert output.logits_TV is not None
    return F.cross_entropy(output.logits_TV, flat, ignore_index=-100)


@pytest.mark.parametrize("kind", NAMES)
def test_equals_transformers(kind: str, tmp_path: Path) -> None:
    original = judge(kind)
    model = checkpoints.load(saved(original, kind, tmp_path)).model
    replaced = model.has_replaced
    seen, targets = encoded(model.alphabet)
    tokens = padded(model, seen)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones(len(ids)) for ids in seen], batch_first=True).long()
    labels = torch.nn.utils.rnn.pad_sequence([torch.from_numpy(ids) for ids in targets], True, -100)
    theirs = original(
        tokens,
        attention_mask=mask,
        labels=(labels >= 0).long() if replaced else labels,
        output_hidden_states=True,
        output_attentions=True,
    )
    assert len(theirs.hidden_states) == LAYERS + 1 and len(theirs.attentions) == LAYERS
    want = Want(tuple(range(LAYERS + 1)), logits=not replaced, attentions=True, replaced=replaced)
    batch = packed(model, seen)
    ours = model(batch, want)
    logits = ours.replaced_T if replaced else ours.logits_TV
    counted = Comparison()
    for b, ids in enumerate(seen):
        length, at = len(ids), batch.tokens(b)
        for layer in range(LAYERS + 1):
            counted.same(ours.hidden[layer][at], theirs.hidden_states[layer][b, :length], f"layer {layer}")
        counted.same(logits[at], theirs.logits[b, :length], "logits")
        maps = torch.stack([layer[b, :, :length, :length] for layer in theirs.attentions])
        counted.same(ours.attentions[b], maps, "attentions")
    assert counted.tensors == len(seen) * (LAYERS + 3)
    loss = losses(model, ours, targets)
    counted.same(loss, theirs.loss, "loss")
    loss.backward()
    theirs.loss.backward()
    prefix, naming = NAMES[kind]
    compared = compare_gradients(model, original, prefix, naming, counted)
    assert compared == len(to_theirs(model, model.state_dict(), naming)) and counted.numbers > 40_000


def compare_gradients(
    model: ProteinModel, original: nn.Module, prefix: str, naming: Naming, counted: Comparison
) -> int:
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert all(gradient is not None for gradient in gradients.values())
    ours = to_theirs(model, gradients, naming)
    theirs = {name.removeprefix(prefix): parameter.grad for name, parameter in original.named_parameters()}
    assert ours.keys() == theirs.keys()
    for name, gradient in theirs.items():
        counted.same(ours[name], gradient, f"gradient of {name}")
    return len(theirs)


@pytest.mark.parametrize("kind", NAMES)
def test_what_comes_in_goes_out_and_runs_there(kind: str, tmp_path: Path) -> None:
    original = judge(kind)
    first = checkpoints.load(saved(original, kind, tmp_path / "theirs"))
    checkpoints.export(first.model, tmp_path / "ours", "hf")
    again = checkpoints.load(tmp_path / "ours")
    assert again.digest == first.digest and again.model.config == first.model.config
    state = again.model.state_dict()
    assert len(state) > 20
    assert all(torch.equal(tensor, state[name]) for name, tensor in first.model.state_dict().items())
    options = {"output_loading_info": True, "attn_implementation": "eager"}
    reloaded, info = type(original).from_pretrained(tmp_path / "ours", **options)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    theirs = dict(original.named_parameters())
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in reloaded.named_parameters()) and len(theirs) > 20
    tokens = torch.from_numpy(first.model.alphabet.encode(SEQUENCES[1]))[None]
    with torch.no_grad():  # the same numbers, up to where in memory they lie
        torch.testing.assert_close(reloaded.eval()(tokens).logits, original(tokens).logits, atol=1e-6, rtol=1e-6)
    written = json.loads((tmp_path / "ours" / "config.json").read_text())
    assert written["architectures"] == [type(original).__name__]


@pytest.mark.parametrize("kind", ["bert", "generator"])
def test_their_tokeniser_reads_our_vocabulary(kind: str, tmp_path: Path) -> None:
    model = tiny("bert" if kind == "bert" else "electra-generator")
    checkpoints.export(model, tmp_path / "out", "hf")
    tokeniser = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    for sequence in (STANDARD + "X", "MKTVRQG"):
        assert tokeniser(" ".join(sequence))["input_ids"] == model.alphabet.encode(sequence).tolist()


def test_bodies_without_a_head(tmp_path: Path) -> None:
    """`BertModel`, `AlbertModel` and `ElectraModel`: the same vectors, logits refused, poolers left out."""
    compared = 0
    for kind, part in (("bert", "bert"), ("albert", "albert"), ("discriminator", "electra")):
        body = getattr(judge(kind), part)
        kept = transformers.AutoModel.from_config(body.config)  # with a pooler, where the class has one
        kept.load_state_dict(body.state_dict(), strict=False)
        model = checkpoints.load(saved(kept.eval(), kind, tmp_path / kind)).model
        assert not model.has_logits and not model.has_replaced
        ids = model.alphabet.encode(SEQUENCES[1])
        with torch.no_grad():
            theirs = body(torch.from_numpy(ids)[None]).last_hidden_state[0]
            ours = model(packed(model, [ids]), Want(layers=(LAYERS,))).hidden[LAYERS]
        torch.testing.assert_close(ours, theirs, atol=BOUND, rtol=BOUND)
        with pytest.raises(InputError, match="were asked for"):
            model(packed(model, [ids]), Want(logits=True))
        compared += ours.numel()
        checkpoints.export(model, tmp_path / f"{kind}-again", "hf")
        assert checkpoints.load(tmp_path / f"{kind}-again").digest == checkpoints.digest_of(model)
    assert compared == 3 * 22 * WIDTH


def test_pretraining_heads_for_pairs_of_sentences_are_left_out(tmp_path: Path) -> None:
    """ProtBert's published file is of `BertForPreTraining`."""
    original = judge("bert")
    whole = transformers.BertForPreTraining(original.config)
    whole.bert.load_state_dict(original.bert.state_dict(), strict=False)
    whole.cls.predictions.load_state_dict(original.cls.predictions.state_dict())
    model = checkpoints.load(saved(whole, "bert", tmp_path / "whole")).model
    same = checkpoints.load(saved(original, "bert", tmp_path / "masked")).model
    assert checkpoints.digest_of(model) == checkpoints.digest_of(same)


def test_albert_follows_the_order_of_its_vocabulary(tmp_path: Path) -> None:
    """The same model with its rows in another order, and a `spiece.model` that says so, is the same model."""
    original = judge("albert")
    first = checkpoints.load(saved(original, "albert", tmp_path / "one"))
    order = torch.randperm(34, generator=torch.Generator().manual_seed(4))
    order = torch.cat([torch.arange(5), order[order >= 5]])
    with torch.no_grad():
        table, bias = original.albert.embeddings.word_embeddings.weight, original.predictions.bias
        table.copy_(table[order].clone())
        bias.copy_(bias[order].clone())
    folder = saved(original, "albert", tmp_path / "two")
    tokens = tuple(PROTALBERT.tokens[index] for index in order)
    shuffled = Alphabet("shuffled", tokens, pad=0, mask=4, prefix=(2,), suffix=(3,))
    (folder / "spiece.model").write_bytes(sentencepiece_bytes(shuffled, unknown=1))
    assert checkpoints.load(folder).digest == first.digest
    (folder / "spiece.model").unlink()
    with pytest.raises(InputError, match=r"no spiece\.model, which says in what order"):
        checkpoints.load(folder)


@pytest.mark.parametrize("kind", ["bert", "albert"])
def test_what_their_tokeniser_saves_says_the_order(kind: str, tmp_path: Path) -> None:
    """`transformers` 5 writes `tokenizer.json` and nothing else; its order is followed, whatever it is."""
    original = judge(kind)
    first = checkpoints.load(saved(original, kind, tmp_path / "one"))
    alphabet = first.model.alphabet
    order = [*range(5), *reversed(range(5, len(alphabet)))]
    tokens = [alphabet.tokens[index] for index in order]
    body = original.bert if kind == "bert" else original.albert
    head = original.cls.predictions if kind == "bert" else original.predictions
    with torch.no_grad():
        for table in (body.embeddings.word_embeddings.weight, head.bias):
            table.copy_(table[order].clone())
    original.save_pretrained(tmp_path / "two")
    if kind == "bert":
        (tmp_path / "vocab.txt").write_text("\n".join(tokens))
        tokeniser = transformers.BertTokenizer(str(tmp_path / "vocab.txt"), do_lower_case=False)
    else:
        pieces = [("▁" + token if token.isalpha() else token, -float(index)) for index, token in enumerate(tokens)]
        tokeniser = transformers.AlbertTokenizer(vocab=pieces, do_lower_case=False)
    tokeniser.save_pretrained(tmp_path / "two")
    names = {file.name for file in (tmp_path / "two").iterdir()}
    assert "tokenizer.json" in names or "vocab.txt" in names
    again = checkpoints.load(tmp_path / "two")
    assert again.digest == first.digest
    ids = tokeniser(" ".join(SEQUENCES[1]))["input_ids"]
    assert [tokens[index] for index in ids] == ["[CLS]", *SEQUENCES[1], "[SEP]"]


def test_a_pair_becomes_its_two_models(tmp_path: Path) -> None:
    pair = tiny("electra")
    assert isinstance(pair, ElectraPair)
    checkpoints.export(pair, tmp_path / "pair", "hf")
    batch = packed(pair, [pair.alphabet.encode("MKTVRQG")])
    with torch.no_grad():
        ours = pair(batch, Want(layers=(pair.num_layers,), logits=True, replaced=True))
        generator = checkpoints.load(tmp_path / "pair" / "generator").model
        discriminator = checkpoints.load(tmp_path / "pair" / "discriminator").model
        assert torch.equal(generator(batch, Want(logits=True)).logits_TV, ours.logits_TV)
        theirs = discriminator(batch, Want(layers=(discriminator.num_layers,), replaced=True))
    assert torch.equal(theirs.replaced_T, ours.replaced_T)
    assert torch.equal(theirs.hidden[discriminator.num_layers], ours.hidden[pair.num_layers])
    tied = (generator.embedding.tokens.weight, discriminator.embedding.tokens.weight)
    assert torch.equal(*tied) and torch.equal(
        generator.embedding.positions.weight, discriminator.embedding.positions.weight
    )
    with pytest.raises(InputError, match="holds no model"):
        checkpoints.load(tmp_path / "pair")


WRONG_CONFIG = {
    "bert": {
        "vocab_size": (31, "vocab_size = 31"),
        "layer_norm_eps": (1e-5, "layer_norm_eps = 1e-05"),
        "hidden_act": ("relu", "hidden_act = 'relu'"),
        "position_embedding_type": ("relative_key", "position_embedding_type"),
        "is_decoder": (True, "is_decoder = True"),
        "tie_word_embeddings": (False, "tie_word_embeddings = False"),
        "num_hidden_layers": (7, "the configuration says 7 layers, the tensors say 2"),
        "num_attention_heads": (3, "not a multiple of num_heads 3"),
        "max_position_embeddings": (31, "shape"),
        "type_vocab_size": (1, "shape"),
        "intermediate_size": (None, "does not say intermediate_size"),
    },
    "albert": {
        "num_hidden_groups": (2, "num_hidden_groups = 2"),
        "inner_group_num": (2, "inner_group_num = 2"),
        "embedding_size": (7, "shape"),
        "num_hidden_layers": (0, "num_layers is 0"),
        "pad_token_id": (1, "pad_token_id = 1"),
    },
    "electra-generator": {"embedding_size": (None, "does not say embedding_size"), "hidden_act": ("silu", "'silu'")},
}


@pytest.mark.parametrize("name", WRONG_CONFIG)
def test_a_configuration_that_cannot_be_followed_is_refused(name: str, tmp_path: Path) -> None:
    checkpoints.export(tiny(name), tmp_path / "out", "hf")
    file = tmp_path / "out" / "config.json"
    right = json.loads(file.read_text())
    for key, (value, message) in WRONG_CONFIG[name].items():
        file.write_text(json.dumps({**right, key: value}))
        with pytest.raises(InputError) as raised:
            checkpoints.load(tmp_path / "out")
        assert message in str(raised.value) and "\n" not in str(raised.value), key


def test_another_vocabulary_and_fine_tuned_heads_are_refused(tmp_path: Path) -> None:
    checkpoints.export(tiny("bert"), tmp_path / "out", "hf")
    (tmp_path / "out" / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *STANDARD]))
    with pytest.raises(InputError, match="token 'X' of alphabet ProtBert is not there"):
        checkpoints.load(tmp_path / "out")
    original = judge("bert")
    transformers.BertForSequenceClassification(original.config).save_pretrained(tmp_path / "fine")
    with pytest.raises(InputError, match=r"classifier\.\* belong to a fine-tuned head"):
        checkpoints.load(tmp_path / "fine")


FAMILY = [
    name
    for name, (architecture, _) in TINY.items()
    if architecture.startswith(("bert", "albert", "electra-")) and name != "bert-tape"  # `tests/test_tape.py`
]


@pytest.mark.parametrize("name", FAMILY)
def test_every_shape_goes_out_and_comes_back(name: str, tmp_path: Path) -> None:
    model = tiny(name)
    checkpoints.export(model, tmp_path / "whole", "hf")
    again = checkpoints.load(tmp_path / "whole")
    assert again.digest == checkpoints.digest_of(model) and again.model.config == model.config
    checkpoints.export(model, tmp_path / "half", "hf", torch.float16)
    half = checkpoints.load(tmp_path / "half")
    assert half.stored == "fp16" and half.digest == checkpoints.digest_of(model, torch.float16)


def test_the_family_is_whole() -> None:
    assert {TINY[name][0] for name in FAMILY} == {"albert", "bert", "electra-generator", "electra-discriminator"}
    assert len(FAMILY) == 6


@pytest.mark.parametrize("kind", ["bert", "albert", "discriminator"])
def test_the_command_line_takes_their_folder(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """`plm embed` with a folder as `transformers` writes it: the mean of its own hidden states over the residues."""
    original = judge(kind)
    folder = saved(original, kind, tmp_path / "model")
    proteins = {"one": "MKTVRQGAAX", "two": "MKUZOB", "three": "ACDEFGHIKLMNPQRSTVWY"}
    source = write_fasta(tmp_path / "in.fasta", list(proteins.items()))
    options = ("--model", folder, "--precision", "fp32", "--device", "cpu", "--storage", "fp32")
    assert plm(monkeypatch, "embed", source, "-o", tmp_path / "out.h5", *options) == 0, capsys.readouterr().err
    found = dict(read_embeddings(tmp_path / "out.h5"))
    assert found.keys() == proteins.keys()
    for name, sequence in proteins.items():
        spaced = "".join("X" if letter in "UZOB" else letter for letter in sequence)
        alphabet = PROTALBERT if kind == "albert" else PROTBERT
        ids = [alphabet.tokens.index(token) for token in ("[CLS]", *spaced, "[SEP]")]
        with torch.no_grad():
            theirs = original(torch.tensor([ids]), output_hidden_states=True).hidden_states[-1][0, 1:-1].mean(0)
        np.testing.assert_allclose(found[name], theirs.numpy(), atol=BOUND, rtol=BOUND)
