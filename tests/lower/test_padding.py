"""Padding "same" of any kernel, and pools that round up where nothing is left over, are exact."""

from __future__ import annotations

import re

import nir
import numpy as np
import pytest
import snntorch as snn
import torch
from torch import nn

import stl_deploy
from stl_deploy.lower.nodes import Reading, linear
from tests.build.torch_nets import agrees, made, raster, refused


@pytest.mark.parametrize("dilation", [(1, 1), (2, 1), (3, 3), (1, 5)])
@pytest.mark.parametrize("kernel", [(4, 4), (2, 3), (1, 4), (3, 2), (3, 3)])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.filterwarnings("ignore:Using padding='same':UserWarning")
def test_same_of_any_kernel(kernel, dilation, groups):
    torch.manual_seed(0)
    module = nn.Conv2d(2, 4, kernel, padding="same", dilation=dilation, groups=groups).double()
    x = torch.rand(1, 2, 9, 8, dtype=torch.float64)
    weight, bias = module.weight.detach().numpy(), module.bias.detach().numpy()
    for padding in ("same", b"same"):
        node = nir.Conv2d(None, weight, (1, 1), "same", dilation, groups, bias)
        node.padding = padding
        made = linear(node, (2, 9, 8), Reading())
        assert made.out_shape == (4, 9, 8)
        assert made.way.weight.astype(bool).sum() == weight.size  # zeros are no synapses
        with torch.no_grad():
            want = module(x).numpy().ravel() - made.constant.ravel()
        np.testing.assert_allclose(made.way.apply(x.numpy()).ravel(), want, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dilation", [1, 2, 3])
@pytest.mark.parametrize("kernel", [2, 3, 4])
@pytest.mark.filterwarnings("ignore:Using padding='same':UserWarning")
def test_same_in_one_dimension(kernel, dilation):
    torch.manual_seed(0)
    module = nn.Conv1d(2, 3, kernel, padding="same", dilation=dilation, bias=False).double()
    x = torch.rand(1, 2, 10, dtype=torch.float64)
    node = nir.Conv1d(None, module.weight.detach().numpy(), 1, "same", dilation, 1, np.zeros(3))
    made = linear(node, (2, 1, 10), Reading())
    with torch.no_grad():
        want = module(x).numpy().ravel()
    np.testing.assert_allclose(made.way.apply(x.numpy()).ravel(), want, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("padding", "stride", "text"),
    [
        ("same", (2, 1), "padding 'same' with strides (2, 1)"),
        ("full", (1, 1), "padding 'full' is not 'same', 'valid' or a number"),
    ],
)
def test_what_is_no_padding(padding, stride, text):
    node = nir.Conv2d(None, np.ones((1, 1, 3, 3)), stride, "same", 1, 1, np.zeros(1))
    node.padding = padding
    with pytest.raises(ValueError, match=re.escape(text)):
        linear(node, (1, 6, 6), Reading())


class Image(nn.Module):
    one_step = True

    def __init__(self, *layers):
        super().__init__()
        self.layers = nn.Sequential(*layers)
        self.end = nn.Sequential(nn.Flatten(), nn.LazyLinear(5))
        how = {"reset_mechanism": "zero", "reset_delay": False, "init_hidden": True}
        self.l1, self.l2 = (snn.Leaky(beta=0.5, threshold=0.3, **how) for _ in "ab")

    def forward(self, x):
        return self.l2(self.end(self.l1(self.layers(x))))


def image(*layers, size=8):
    torch.manual_seed(0)
    net = Image(*layers)
    net(torch.zeros(1, 1, size, size))
    net.l1.reset_mem(), net.l2.reset_mem()
    return made(lambda: net, seed=0)


@pytest.mark.filterwarnings("ignore:Using padding='same':UserWarning")
def test_a_network_with_even_kernels():
    net = image(nn.Conv2d(1, 3, (4, 2), padding="same"), nn.AvgPool2d(2))
    graph = agrees(net, raster((1, 8, 8)))
    assert stl_deploy.quantize(graph, chip="loihi2").by_name["l1"].shape == (3, 4, 4)


@pytest.mark.parametrize(
    "layers",
    [
        lambda: [nn.Conv2d(1, 3, 3, padding=1), nn.AvgPool2d(2, ceil_mode=True)],
        lambda: [nn.AvgPool2d(4, 2, padding=1, ceil_mode=True)],
        lambda: [nn.AvgPool2d((2, 4), ceil_mode=True, divisor_override=8)],
    ],
)
def test_an_average_that_rounds_up_where_nothing_is_left(layers):
    torch.manual_seed(0)
    agrees(image(*layers()), raster((1, 8, 8)))


@pytest.mark.parametrize(
    ("pool", "text"),
    [
        (nn.AvgPool2d(3, ceil_mode=True), "ceil_mode, and windows (3, 3) that leave a part of"),
        (nn.AvgPool2d(2, divisor_override=3), "divisor_override of a pool is not supported"),
    ],
)
def test_an_average_that_is_refused(pool, text):
    net = image(nn.Conv2d(1, 3, 3, padding=1), pool)
    assert text in refused(net, (torch.rand(1, 1, 8, 8) > 0.5).float())


@pytest.mark.parametrize("ceil", [True, False])
def test_a_maximum_that_rounds_up_where_nothing_is_left(ceil):
    class Pooled(Image):
        def forward(self, x):
            return self.l2(self.end(self.pool(self.l1(self.layers(x)))))

    torch.manual_seed(0)
    net = Pooled(nn.Conv2d(1, 3, 3, padding=1))
    net.pool = nn.MaxPool2d(2, ceil_mode=ceil)
    net(torch.zeros(1, 1, 8, 8))
    agrees(made(lambda: net), raster((1, 8, 8)))
