"""Every number of ProtT5 against transformers: small random models in fp32, weights through our reader and writer.

The bound of 1e-5 of the largest value is tens of roundings in fp32; a wrong bucket, norm or mask is off by far more.
"""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from embedding_tools import plm
from safetensors.torch import load_file
from test_model_table import packed, sequences
from tiny_models import tiny
from torch import Tensor

from proteinlm import checkpoints, read_embeddings
from proteinlm.checkpoints.hf_t5 import PIECES
from proteinlm.checkpoints.vocabulary import sentencepiece_bytes
from proteinlm.errors import InputError
from proteinlm.models.base import Want
from proteinlm.models.offsets import buckets
from proteinlm.models.t5 import T5, T5Encoder
from proteinlm.sequences.alphabet import PROTT5
from proteinlm.sequences.batch import PackedBatch

transformers = pytest.importorskip("transformers", reason="transformers is not installed (extra `test`)")

BOUND = 1e-5
SHAPE = {"d_model": 24, "d_kv": 8, "num_heads": 5, "d_ff": 48, "num_layers": 3, "num_decoder_layers": 2}
SOURCE, TARGET = ["MKTVRQGLAGWY", "ACD", "M" * 40, "LAGVSERTIDPKQNFYMHWC" * 8], ["MKT", "ACDWW", "LK" * 20, "VV"]


def theirs(kind: str = "T5ForConditionalGeneration", seed: int = 0) -> "transformers.T5PreTrainedModel":
    """A random model in which no parameter has the value that it began with."""
    config = transformers.T5Config(vocab_size=128, decoder_start_token_id=0, dropout_rate=0.0, **SHAPE)
    config._attn_implementation = "eager"
    torch.manual_seed(seed)
    model = getattr(transformers, kind)(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def padded(proteins: list[str]) -> tuple[Tensor, Tensor]:
    rows = [torch.from_numpy(PROTT5.encode(protein)) for protein in proteins]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    lengths = torch.tensor([len(row) for row in rows])
    return ids, (torch.arange(ids.shape[1]) < lengths[:, None]).long()


def batch_of(proteins: list[str]) -> PackedBatch:
    return PackedBatch.pack([PROTT5.encode(protein) for protein in proteins], suffix=1)


def unpadded(x: Tensor, mask: Tensor) -> Tensor:
    return x[mask.bool()]


def assert_close(ours: Tensor, others: Tensor) -> int:
    assert ours.shape == others.shape
    assert (ours - others).abs().max().item() <= BOUND * max(1.0, others.abs().max().item())
    return ours.numel()


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple["transformers.T5ForConditionalGeneration", T5]:
    reference = theirs()
    folder = tmp_path_factory.mktemp("t5") / "model"
    reference.save_pretrained(folder)
    ours = checkpoints.load(folder).model
    assert isinstance(ours, T5)
    return reference, ours


def test_the_encoder_is_theirs_in_every_layer(pair: tuple) -> None:
    reference, ours = pair
    ids, mask = padded(SOURCE)
    batch = batch_of(SOURCE)
    with torch.no_grad():
        expected = reference.encoder(ids, mask, output_hidden_states=True, output_attentions=True)
        output = ours(batch, Want(layers=tuple(range(4)), attentions=True))
    compared = 0
    for layer in range(4):
        compared += assert_close(output.hidden[layer], unpadded(expected.hidden_states[layer], mask))
    for b, protein in enumerate(SOURCE):
        length = len(protein) + 1
        maps = torch.stack([layer[b, :, :length, :length] for layer in expected.attentions])
        compared += assert_close(output.attentions[b], maps)
    assert compared > 400_000


def labels_of(proteins: list[str]) -> Tensor:
    ids, mask = padded(proteins)
    return ids.masked_fill(mask == 0, -100)


def test_the_decoder_writes_what_theirs_writes(pair: tuple) -> None:
    """Logits of another text than was read, of chosen places too, and the loss."""
    reference, ours = pair
    ids, mask = padded(SOURCE)
    _, target_mask = padded(TARGET)
    with torch.no_grad():
        expected = reference(input_ids=ids, attention_mask=mask, labels=labels_of(TARGET))
        target = batch_of(TARGET)
        logits_TV = ours.write(batch_of(SOURCE), target)
        some_MV = ours.write(batch_of(SOURCE), target, torch.tensor([0, 7, 20]))
    assert assert_close(logits_TV, unpadded(expected.logits, target_mask)) == len(target.tokens_T) * 128
    torch.testing.assert_close(some_MV, logits_TV[[0, 7, 20]])
    loss = torch.nn.functional.cross_entropy(logits_TV, target.tokens_T)
    assert loss.item() == pytest.approx(expected.loss.item(), rel=1e-5)


def test_logits_of_a_batch_are_what_it_makes_of_itself(pair: tuple) -> None:
    _, ours = pair
    batch = batch_of(SOURCE)
    with torch.no_grad():
        logits_TV = ours(batch, Want(logits=True)).logits_TV
        some_MV = ours(batch, Want(logits=True, places_M=torch.tensor([3, 9]))).logits_TV
        assert torch.equal(logits_TV, ours.write(batch, batch))
    torch.testing.assert_close(some_MV, logits_TV[[3, 9]])


def test_gradients_are_theirs(pair: tuple, tmp_path: Path) -> None:
    """Gradients of the loss, carried into their names by our own writer."""
    reference, ours = pair
    ids, mask = padded(SOURCE)
    reference.zero_grad()
    reference(input_ids=ids, attention_mask=mask, labels=labels_of(TARGET)).loss.backward()
    expected = {name: parameter.grad for name, parameter in reference.named_parameters()}
    target = batch_of(TARGET)
    for recompute in (False, True):
        ours.zero_grad()
        ours.recompute_layers = recompute
        torch.nn.functional.cross_entropy(ours.write(batch_of(SOURCE), target), target.tokens_T).backward()
        holder = T5(ours.config)
        holder.load_state_dict({name: parameter.grad for name, parameter in ours.named_parameters()})
        folder = tmp_path / f"gradients-{recompute}"
        checkpoints.export(holder, folder, "hf")
        found = load_file(folder / "model.safetensors")
        assert found.keys() == expected.keys() and len(found) == 55
        for name, gradient in found.items():
            assert gradient.abs().max() > 0, name
            assert_close(gradient, expected[name])
    ours.recompute_layers = False


def test_a_later_target_changes_no_earlier_logit(pair: tuple) -> None:
    _, ours = pair
    source, target = batch_of(SOURCE), batch_of(TARGET)
    start, end = target.starts[2], target.starts[3]
    changed = target.tokens_T.clone()
    changed[start + 30 : end] = PROTT5.residue_ids("W")[0]
    other = PackedBatch(changed, target.starts, target.max_length, target.row_B, 0, 1)
    with torch.no_grad():
        before, after = ours.write(source, target), ours.write(source, other)
    same = (before == after).all(-1)
    # Token t is written from those before it: what changed at 30 is first seen at 31.
    assert same[: start + 31].all() and same[end:].all() and not same[start + 31 : end].any() and end - start == 41


def test_buckets_are_theirs() -> None:
    bucket_of = transformers.models.t5.modeling_t5.T5Attention._relative_position_bucket
    offsets = torch.arange(-600, 601)
    compared = 0
    for both_sides in (True, False):
        for count, furthest in ((32, 128), (16, 64), (8, 20), (64, 256)):
            ours = buckets(offsets, count, furthest, both_sides)
            assert torch.equal(ours, bucket_of(offsets, both_sides, count, furthest))
            compared += len(ours)
    assert compared == 8 * 1201


def test_an_encoder_alone(tmp_path: Path) -> None:
    reference = theirs("T5EncoderModel")
    reference.save_pretrained(tmp_path / "model")
    ours = checkpoints.load(tmp_path / "model").model
    assert isinstance(ours, T5Encoder)
    ids, mask = padded(SOURCE)
    with torch.no_grad():
        expected = reference(ids, mask, output_hidden_states=True).hidden_states
        output = ours(batch_of(SOURCE), Want(layers=tuple(range(4))))
    for layer in range(4):
        assert assert_close(output.hidden[layer], unpadded(expected[layer], mask)) > 4_000


def test_half_precision_files(tmp_path: Path) -> None:
    """What the published encoder is: fp16, widened without loss; written as fp16 again, the bytes are the same."""
    reference = theirs("T5EncoderModel").half()
    reference.save_pretrained(tmp_path / "half")
    found = checkpoints.load(tmp_path / "half")
    assert found.stored == "fp16"
    state = reference.state_dict()
    assert torch.equal(found.model.embed_tokens.weight, state["shared.weight"].float())
    checkpoints.export(found.model, tmp_path / "again", "hf", torch.float16)
    again = checkpoints.load(tmp_path / "again")
    assert again.digest == found.digest and again.stored == "fp16"


@pytest.mark.parametrize("name", ["t5", "t5-encoder"])
def test_what_is_written_is_read_again_bit_for_bit(name: str, tmp_path: Path) -> None:
    model = tiny(name)
    checkpoints.export(model, tmp_path / "hf", "hf")
    again = checkpoints.load(tmp_path / "hf")
    assert again.digest == checkpoints.loading.digest_of(model)
    state = again.model.state_dict()
    assert all(torch.equal(tensor, state[key]) for key, tensor in model.state_dict().items()) and len(state) > 15


@pytest.mark.parametrize("name", ["t5", "t5-encoder"])
def test_transformers_load_what_is_written(name: str, tmp_path: Path) -> None:
    model = tiny(name)
    checkpoints.export(model, tmp_path / "hf", "hf")
    kind = transformers.T5ForConditionalGeneration if name == "t5" else transformers.T5EncoderModel
    reference, told = kind.from_pretrained(tmp_path / "hf", output_loading_info=True)
    assert not any(told[what] for what in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    proteins = sequences()
    ids, mask = padded(proteins)
    with torch.no_grad():
        expected = reference.get_encoder()(ids, mask).last_hidden_state
        ours = model(packed(model, proteins), Want(layers=(model.num_layers,))).hidden[model.num_layers]
    assert assert_close(ours, unpadded(expected, mask)) > 1_000
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    assert tokenizer("M K T V X").input_ids == PROTT5.encode("MKTVX").tolist()
    assert tokenizer("<extra_id_0>").input_ids == [127, 1]
    assert tokenizer(" ".join("LAGVSERTIDPKQNFYMHWC")).input_ids == PROTT5.encode("LAGVSERTIDPKQNFYMHWC").tolist()


def test_a_vocabulary_in_another_order_is_followed(tmp_path: Path) -> None:
    model = tiny("t5-encoder")
    checkpoints.export(model, tmp_path / "hf", "hf")
    swapped = list(PIECES.tokens)
    swapped[3], swapped[4] = swapped[4], swapped[3]
    other = dataclasses.replace(PIECES, tokens=tuple(swapped))
    (tmp_path / "hf" / "spiece.model").write_bytes(sentencepiece_bytes(other, unknown=2))
    again = checkpoints.load(tmp_path / "hf").model
    expected = model.embed_tokens.weight.detach().clone()
    expected[[3, 4]] = expected[[4, 3]]
    assert torch.equal(again.embed_tokens.weight, expected)


def edited(folder: Path, **fields: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"feed_forward_proj": "gated-gelu"}, "feed_forward_proj = 'gated-gelu'; only 'relu'"),
        ({"vocab_size": 150}, "vocab_size = 150; only 128"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings = False"),
        ({"num_layers": 7}, "says 7 layers, the tensors say 2"),
        ({"num_decoder_layers": 1}, "says 1 layers, the tensors say 3"),
        ({"d_kv": None}, "does not say d_kv as a whole number"),
        ({"d_kv": 9}, "has shape"),
        ({"relative_attention_num_buckets": 30}, "buckets 30 must be a multiple of 4"),
    ],
)
def test_what_is_not_followed_is_refused(fields: dict, message: str, tmp_path: Path) -> None:
    checkpoints.export(tiny("t5"), tmp_path / "hf", "hf")
    edited(tmp_path / "hf", **fields)
    with pytest.raises(InputError, match=message):
        checkpoints.load(tmp_path / "hf")


def test_old_files_hold_copies_and_a_table_that_nobody_reads(tmp_path: Path) -> None:
    """As `pytorch_model.bin` of 2020: the embedding under four names, one surplus table, sizes left out."""
    reference = theirs()
    state = {name: tensor.clone() for name, tensor in reference.state_dict().items()}
    copies = [name for name in state if torch.equal(state[name], state["shared.weight"])]
    state |= {name: state["shared.weight"].clone() for name in ("encoder.embed_tokens.weight", "lm_head.weight")}
    state["decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"] = torch.zeros(32, 5)
    (tmp_path / "old").mkdir()
    torch.save(state, tmp_path / "old" / "pytorch_model.bin")
    reference.config.save_pretrained(tmp_path / "old")
    path = tmp_path / "old" / "config.json"
    fields = json.loads(path.read_text())
    fields = {name: value for name, value in fields.items() if not name.startswith("relative_attention")}
    path.write_text(json.dumps(fields))
    model = checkpoints.load(tmp_path / "old").model
    assert len(copies) > 1 and torch.equal(model.embed_tokens.weight, state["shared.weight"])
    state["lm_head.weight"] += 1.0
    torch.save(state, tmp_path / "old" / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"lm_head\.weight differs from the token embedding"):
        checkpoints.load(tmp_path / "old")


def test_embed_takes_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("t5-encoder")
    checkpoints.export(model, tmp_path / "hf", "hf")
    proteins = {"a": "MKTVRQG", "b": "ACDUZOB", "c": "WW"}
    (tmp_path / "in.fasta").write_text("".join(f">{name}\n{residues}\n" for name, residues in proteins.items()))
    output = tmp_path / "out.h5"
    folder, fasta = tmp_path / "hf", tmp_path / "in.fasta"
    assert plm(monkeypatch, "embed", fasta, "--model", folder, "-o", output, "--precision", "fp32") == 0
    found = dict(read_embeddings(output))
    for name, residues in proteins.items():
        with torch.no_grad():
            hidden = model(packed(model, [residues]), Want(layers=(3,))).hidden[3][:-1]
        assert np.abs(found[name] - hidden.mean(0).numpy()).max() < 1e-5
