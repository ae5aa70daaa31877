"""Every attention kernel against the plain loop: widths, lengths, precisions, an extra key, scores of any size.

The loop works in fp32 on the same inputs. Bound in fp32: 1e-5. In bf16 one rounding is 2^-9 of a value. Scores are
rounded twice at most (the scaled query and the product), which moves a weight by twice |score| x 2^-9; the weight, its
sum and the result are rounded once each. An output is an average of values: it moves by (3 + 2 |score|) 2^-9 |value|.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from tiny_models import tiny
from torch import Tensor

from proteinlm.errors import InputError
from proteinlm.models import attention, native
from proteinlm.models.attention import KERNELS, SAFE_EXPONENT, Heads, attend

LENGTHS = [*range(1, 71), 70, 70, 33, 33, 5, 1, 1]
"""Every length from 1 to 70, and runs of equal lengths as batches sorted by length have them."""

ON_CPU = [name for name in KERNELS if name not in ("loop", "varlen")]


def make_heads(channels: int, dtype: torch.dtype, extra: bool = False, scale: float = 1.0, heads: int = 3) -> Heads:
    generator = torch.Generator().manual_seed(channels)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    starts = (0, *torch.tensor(LENGTHS).cumsum(0).tolist())
    query, key, value = (normal(heads, starts[-1], channels) for _ in range(3))
    learned = (normal(heads, channels).to(dtype), normal(heads, channels).to(dtype)) if extra else None
    return Heads(*(x.to(dtype) for x in (query * channels**-0.5 * scale, key, value)), starts, learned)


def in_fp32(heads: Heads) -> Heads:
    extra = None if heads.extra is None else (heads.extra[0].float(), heads.extra[1].float())
    return Heads(heads.query_HTC.float(), heads.key_HTC.float(), heads.value_HTC.float(), heads.starts, extra)


def bound_on_scores(heads: Heads) -> float:
    """The largest score there is, in the units of the exponential."""
    exact = in_fp32(heads)
    return max(
        (query[0] @ key[0].transpose(1, 2)).abs().max().item() for query, key, _ in map(exact.take, exact.each())
    )


def allowed(heads: Heads) -> float:
    if heads.query_HTC.dtype == torch.float32:
        return 1e-5
    return (3 + 2 * bound_on_scores(heads)) * 2.0**-9 * heads.value_HTC.float().abs().max().item()


def check(name: str, heads: Heads) -> None:
    expected = KERNELS["loop"](in_fp32(heads))
    with torch.no_grad():
        ours = attend(heads, name)
    assert ours.shape == expected.shape and ours.dtype == heads.query_HTC.dtype
    assert torch.isfinite(ours).all()
    assert (ours.float() - expected).abs().max().item() <= allowed(heads)
    assert ours.numel() == heads.starts[-1] * heads.query_HTC.shape[0] * heads.query_HTC.shape[2]


@pytest.fixture(scope="module", autouse=True)
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The compiled kernel in a cache folder of its own, where this machine can build it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        native.library.cache_clear()
        with contextlib.suppress(InputError):
            native.build()
        yield
    native.library.cache_clear()


def skip_where_not_built(name: str, heads: Heads) -> None:
    if name != "compiled":
        return
    if native.library(heads.query_HTC.dtype) is None:
        pytest.skip("the compiled attention kernel cannot be built on this machine")
    if heads.extra is not None:
        pytest.skip("the compiled kernel takes no extra key")


@pytest.mark.parametrize("name", ON_CPU)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("extra", [False, True], ids=["", "extra key"])
@pytest.mark.parametrize("channels", [8, 16, 24, 64])
def test_kernels_equal_the_loop(name: str, dtype: torch.dtype, extra: bool, channels: int) -> None:
    heads = make_heads(channels, dtype, extra)
    skip_where_not_built(name, heads)
    check(name, heads)


def test_the_loop_is_what_the_formula_says() -> None:
    """Three tokens by hand, the second sequence of one token only."""
    query = torch.tensor([[[1.0], [0.0], [3.0]]])
    key = torch.tensor([[[0.0], [2.0], [5.0]]])
    value = torch.tensor([[[10.0], [20.0], [7.0]]])
    ours = attend(Heads(query, key, value, starts=(0, 2, 3)), "loop").flatten().tolist()
    e2 = 7.38905609893065
    assert ours == pytest.approx([(10 + 20 * e2) / (1 + e2), 15.0, 7.0], rel=1e-6)
    learned = (torch.tensor([[0.0]]), torch.tensor([[40.0]]))
    ours = attend(Heads(query, key, value, starts=(0, 2, 3), extra=learned), "loop").flatten().tolist()
    e15 = 3269017.3724721107
    expected = [(10 + 20 * e2 + 40) / (2 + e2), 70 / 3, (7 * e15 + 40) / (e15 + 1)]
    assert ours == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("name", ON_CPU)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("scale", [30.0, 1000.0])
def test_large_scores_do_not_overflow(name: str, dtype: torch.dtype, scale: float) -> None:
    """Where exp2 of a score would leave the range, the row maximum must be found: no infinity, no nan."""
    heads = make_heads(16, dtype, scale=scale)
    skip_where_not_built(name, heads)
    assert bound_on_scores(heads) > SAFE_EXPONENT
    with torch.no_grad():
        ours = attend(heads, name)
    assert torch.isfinite(ours).all()
    if dtype == torch.float32:
        check_large(ours, heads)


def check_large(ours: Tensor, heads: Heads) -> None:
    """Scores of thousands carry absolute errors of their own size x 2^-24, which weights turn into relative ones."""
    expected = KERNELS["loop"](heads)
    assert (ours - expected).abs().max().item() <= bound_on_scores(
        heads
    ) * 2.0**-22 * heads.value_HTC.abs().max().item()


@pytest.mark.parametrize("name", ON_CPU)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("score", [-1000.0, -65.0, 65.0, 1000.0])
def test_scores_far_from_zero_do_not_vanish(name: str, dtype: torch.dtype, score: float) -> None:
    """Where all keys are alike the output is the mean of the values, however far below or above zero scores are."""
    heads = make_heads(16, dtype)
    ones = torch.ones_like(heads.query_HTC)
    heads = replace(heads, query_HTC=ones * 4, key_HTC=ones * (score / 64))
    skip_where_not_built(name, heads)
    with torch.no_grad():
        ours = attend(heads, name)
    means = [part.float().mean(1, keepdim=True).expand_as(part) for part in heads.value_HTC.split(LENGTHS, dim=1)]
    largest = heads.value_HTC.float().abs().max().item()
    rounding = 1e-5 if dtype == torch.float32 else 3 * 2.0**-9 * largest
    assert (ours.float() - torch.cat(means, 1).transpose(0, 1)).abs().max().item() <= rounding


@pytest.mark.parametrize("name", [*ON_CPU, "loop"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("channels", [6, 16, 24, 64])
@pytest.mark.parametrize("turned", [False, True], ids=["scaled", "turned"])
def test_queries_are_scaled_and_turned(name: str, dtype: torch.dtype, channels: int, turned: bool) -> None:
    """As views of one projection, against the definition: a pair of channels is a complex number, turned by an angle.

    bf16 rounds the turned keys too, which moves a score once more.
    """
    heads = make_heads(channels, dtype)
    qkv_THC = torch.stack([heads.query_HTC, heads.key_HTC, heads.value_HTC]).permute(2, 0, 1, 3).contiguous()
    query, key, value = qkv_THC.permute(1, 2, 0, 3)
    angles_TF = torch.randn(heads.starts[-1], channels // 2, generator=torch.Generator().manual_seed(1))
    turns_TF = torch.polar(torch.ones_like(angles_TF), angles_TF) if turned else None
    ours = Heads(query, key, value, heads.starts, scale=1.5, turns_TF=turns_TF)
    skip_where_not_built(name, ours)

    def by_definition(x_HTC: Tensor) -> Tensor:
        real, imaginary = x_HTC.double()[..., ::2], x_HTC.double()[..., 1::2]
        cos, sin = (angles_TF.double().cos(), angles_TF.double().sin()) if turned else (1.0, 0.0)
        pairs = torch.stack([real * cos - imaginary * sin, real * sin + imaginary * cos], dim=-1)
        return pairs.flatten(-2).float()

    plain = Heads(by_definition(query) * 1.5, by_definition(key), value.float(), heads.starts)
    with torch.no_grad():
        found, expected = attend(ours, name), KERNELS["loop"](plain)
    moved = 0.0 if dtype == torch.float32 else (3 + 3 * bound_on_scores(plain)) * 2.0**-9
    assert (found.float() - expected).abs().max().item() <= max(1e-5, moved * value.float().abs().max().item())


def test_matmul_leaves_only_the_large_runs_to_sdpa(monkeypatch: pytest.MonkeyPatch) -> None:
    """One protein with large scores does not slow the others down, nor change them."""
    heads = make_heads(16, torch.bfloat16)
    span = slice(heads.starts[40], heads.starts[41])
    query = heads.query_HTC.clone()
    query[:, span] *= 200
    mixed = replace(heads, query_HTC=query)
    calls = []
    original = attention.F.scaled_dot_product_attention

    def counted(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        calls.append(query.shape[2])
        return original(query, key, value, scale=scale)

    monkeypatch.setattr(attention.F, "scaled_dot_product_attention", counted)
    with torch.no_grad():
        plain, changed = attend(heads, "matmul"), attend(mixed, "matmul")
    assert calls == [LENGTHS[40]]
    assert torch.isfinite(changed).all() and not torch.equal(changed[span], plain[span])
    outside = torch.ones(len(plain), dtype=torch.bool)
    outside[span] = False
    assert torch.equal(changed[outside], plain[outside])


def test_an_extra_key_with_a_large_norm_counts_too() -> None:
    heads = make_heads(16, torch.bfloat16, extra=True)
    assert heads.extra is not None
    large = replace(heads, extra=(heads.extra[0] * 500, heads.extra[1]))
    with torch.no_grad():
        ours = attend(large, "matmul")
    assert torch.isfinite(ours).all()
    expected = KERNELS["loop"](in_fp32(large))
    assert torch.cosine_similarity(ours.float(), expected, dim=-1).median() > 0.999


def test_no_token_sees_another_sequence() -> None:
    heads = make_heads(16, torch.float32)
    span = slice(heads.starts[10], heads.starts[11])
    value = heads.value_HTC.clone()
    value[:, span] = float("nan")
    for name in ("loop", "sdpa", "matmul"):
        with torch.no_grad():
            output = attend(replace(heads, value_HTC=value), name)
        assert (
            output[span].isnan().all()
            and not output[: span.start].isnan().any()
            and not output[span.stop :].isnan().any()
        )


def test_a_kernel_that_does_not_exist_raises() -> None:
    with pytest.raises(InputError, match="kernel 'flash' is unknown; choose one of loop, sdpa, matmul"):
        attend(make_heads(8, torch.float32), "flash")


def test_a_model_runs_the_kernel_that_it_is_told_to(monkeypatch: pytest.MonkeyPatch) -> None:
    from test_model_table import packed, sequences

    from proteinlm.models.base import Want

    model = tiny("esm2")
    batch = packed(model, sequences())
    used = []
    monkeypatch.setitem(KERNELS, "loop", lambda heads: used.append("loop") or attention.sdpa(heads))
    with torch.no_grad():
        before = model(batch, Want(layers=(2,))).hidden[2]
        assert not used
        model.attention_kernel = "loop"
        after = model(batch, Want(layers=(2,))).hidden[2]
    assert used == ["loop"] * model.num_layers
    torch.testing.assert_close(after, before, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("architecture", ["esm1b", "esm2"])
def test_a_model_on_the_compiled_kernel_equals_itself_on_the_loop(architecture: str) -> None:
    """fp32, scales and rotary turns included; tens of roundings over all layers."""
    from test_model_table import packed, sequences

    from proteinlm.models.base import Want

    if native.library(torch.float32) is None:
        pytest.skip("the compiled attention kernel cannot be built on this machine")
    model = tiny(architecture).prepare(torch.float32)
    found = {}
    for model.attention_kernel in ("loop", "compiled"):
        with torch.inference_mode():
            found[model.attention_kernel] = model(packed(model, sequences()), Want(layers=(model.num_layers,)))
    ours, expected = (found[name].hidden[model.num_layers] for name in ("compiled", "loop"))
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("extra", [False, True], ids=["", "extra key"])
def test_varlen_equals_the_loop(dtype: torch.dtype, extra: bool) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device here")
    heads = make_heads(64, dtype, extra)
    extra_there = None if heads.extra is None else (heads.extra[0].cuda(), heads.extra[1].cuda())
    there = Heads(heads.query_HTC.cuda(), heads.key_HTC.cuda(), heads.value_HTC.cuda(), heads.starts, extra_there)
    with torch.no_grad():
        ours = attend(there, "varlen").cpu()
    assert (ours.float() - KERNELS["loop"](in_fp32(heads))).abs().max().item() <= allowed(heads)


@pytest.mark.parametrize("name", ["sdpa", "trainable"])
@pytest.mark.parametrize("extra", [False, True], ids=["", "extra key"])
def test_gradients_equal_those_of_the_loop(name: str, extra: bool) -> None:
    """Queries, keys, values and the extra key; the bound is that of fp32 sums over 70 tokens."""

    def gradients(kernel: str) -> list[Tensor]:
        heads = make_heads(16, torch.float32, extra)
        leaves = [heads.query_HTC, heads.key_HTC, heads.value_HTC, *(heads.extra or ())]
        output = attend(heads, kernel) if all(leaf.requires_grad_() is leaf for leaf in leaves) else None
        assert output is not None
        weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(0))
        (output * weights).sum().backward()
        return [leaf.grad for leaf in leaves if leaf.grad is not None]

    ours, expected = gradients(name), gradients("loop")
    assert len(ours) == len(expected) == (5 if extra else 3)
    for one, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(one, other, atol=2e-5, rtol=1e-4)


def test_training_takes_the_kernel_with_a_gradient() -> None:
    heads = make_heads(16, torch.bfloat16)
    fastest = "matmul" if native.library(torch.bfloat16) is None else "compiled"
    assert attention.choose(heads) == fastest
    heads.query_HTC.requires_grad_()
    assert attention.choose(heads) == "trainable"
    with torch.no_grad():
        assert attention.choose(heads) == fastest
