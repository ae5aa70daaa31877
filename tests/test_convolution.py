"""Depthwise convolutions over packed tokens, against PyTorch's own on each protein alone."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from proteinlm.config import to_dict
from proteinlm.errors import InputError
from proteinlm.models.convolution import DepthwiseConvolution, GappedLayout
from proteinlm.models.esm import Esm2Config
from proteinlm.sequences.batch import PackedBatch

WIDTH = 3


@pytest.mark.parametrize("reach", [1, 4, 20])
@pytest.mark.parametrize("lengths", [(5,), (1, 7, 2, 1), (30, 3)])
def test_equals_a_convolution_of_each_protein_alone(reach: int, lengths: tuple[int, ...]) -> None:
    """Values and both gradients; a reach beyond the protein, and beyond the whole batch, included."""
    torch.manual_seed(0)
    batch = PackedBatch.pack([np.arange(length) for length in lengths])
    ours = DepthwiseConvolution(WIDTH, reach).double()
    torch.nn.init.normal_(ours.weight)
    x_TD = torch.randn(sum(lengths), WIDTH, dtype=torch.float64, requires_grad=True)
    alone_TD = x_TD.detach().clone().requires_grad_()
    weight = ours.weight.detach().clone().requires_grad_()
    found = ours(x_TD, GappedLayout.of(batch, reach))
    expected = torch.cat(
        [part + F.conv1d(part.T[None], weight, padding=reach, groups=WIDTH)[0].T for part in alone_TD.split(lengths)]
    )
    torch.testing.assert_close(found, expected)
    gradient = torch.randn_like(found)
    found.backward(gradient)
    expected.backward(gradient)
    torch.testing.assert_close(x_TD.grad, alone_TD.grad)
    torch.testing.assert_close(ours.weight.grad, weight.grad)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("width", [1, 8, 16, 17, 32, 48])
def test_bf16_of_any_width_comes_back_with_the_values_of_fp32(width: int) -> None:
    torch.manual_seed(0)
    layout = GappedLayout.of(PackedBatch.pack([np.arange(250)]), 8)
    convolution, x_TD = DepthwiseConvolution(width, 8), torch.randn(250, width)
    torch.nn.init.normal_(convolution.weight)
    expected = convolution(x_TD.bfloat16().float(), layout)
    torch.testing.assert_close(convolution.bfloat16()(x_TD.bfloat16(), layout).float(), expected, atol=0.1, rtol=0.02)


def test_a_reach_of_nothing_is_refused() -> None:
    with pytest.raises(InputError, match="reach is 0; leave it out"):
        DepthwiseConvolution(WIDTH, 0)


def test_models_without_keep_the_digest_they_had() -> None:
    """The field came later: where it is not used, neither files nor digests hold it."""
    assert "reach" not in to_dict(Esm2Config()) and to_dict(Esm2Config(reach=2))["reach"] == 2


def test_it_begins_as_the_identity_and_computes_as_autocast_says() -> None:
    layout = GappedLayout.of(PackedBatch.pack([np.arange(4)]), 2)
    convolution, x_TD = DepthwiseConvolution(WIDTH, 2), torch.randn(4, WIDTH)
    torch.testing.assert_close(convolution(x_TD, layout), x_TD)
    with torch.autocast("cpu", torch.bfloat16):
        assert convolution(x_TD, layout).dtype == torch.bfloat16
    convolution.prepare_weights(torch.bfloat16)
    assert convolution(x_TD, layout).dtype == torch.bfloat16
