"""Subclasses and parametrizations of known layers are those layers, unless they override what runs."""

from __future__ import annotations

import pytest
import snntorch as snn
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

from stl_deploy import from_torch
from tests.build.torch_nets import agrees, made, raster, refused


class Lin(nn.Linear):
    def reset_parameters(self):
        nn.init.xavier_uniform_(self.weight)
        nn.init.zeros_(self.bias)


class Twice(nn.Module):
    def forward(self, weight):
        return 2 * weight

    def right_inverse(self, value):
        return value / 2


class Computed(nn.Linear):
    """Its weight is a property, which forward reads."""

    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.kept = nn.Parameter(self.weight.detach().clone())
        del self.weight

    @property
    def weight(self):
        return self.kept * 1.5

    @weight.setter
    def weight(self, value):
        """As nn.Linear's __init__ sets it."""
        self.register_parameter("weight", value)


class Own(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


class OwnConv(nn.Conv2d):
    def _conv_forward(self, x, weight, bias):
        return super()._conv_forward(x, weight - weight.mean(), bias)


class MyLeaky(snn.Leaky):
    """Sets defaults and adds a method."""

    def __init__(self, **how):
        super().__init__(beta=0.5, init_hidden=True, **how)

    def describe(self):
        return f"beta {float(self.beta)}"


class Late(MyLeaky):
    def fire(self, mem):
        return super().fire(mem - 0.1)


class Net(nn.Module):
    one_step = True

    def __init__(self, layer=nn.Linear, neuron=MyLeaky, wrap=lambda m: m):
        super().__init__()
        self.a = wrap(layer(6, 8))
        self.l = neuron(threshold=0.3)
        self.b = nn.Linear(8, 4)
        self.m = snn.Leaky(beta=0.7, init_hidden=True)

    def forward(self, x):
        return self.m(self.b(self.l(self.a(x))))


def pruned(module):
    prune.l1_unstructured(module, "weight", amount=0.4)
    return prune.random_unstructured(module, "bias", amount=0.3)


def custom(module):
    parametrize.register_parametrization(module, "weight", Twice())
    return module


class Conv(Net):
    def forward(self, x):
        return self.m(self.b(self.l(self.a(x).flatten(1))))


def conv(cls, **how):
    return lambda *_: cls(1, 2, 3, **how)


@pytest.mark.parametrize(
    "wrap",
    [
        *(
            parametrizations.weight_norm,
            parametrizations.spectral_norm,
            parametrizations.orthogonal,
        ),
        *(nn.utils.weight_norm, nn.utils.spectral_norm, pruned, custom),
    ],
    ids=lambda wrap: f"{wrap.__module__.rpartition('.')[2]}.{wrap.__name__}",
)
@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_parametrizations(wrap):
    net = made(Net, wrap=wrap, gain=1, seed=3)
    with torch.no_grad():
        net.b.weight *= 4
    net.train()  # in which a look at a weight of spectral_norm changes it
    before = {name: value.clone() for name, value in net.state_dict().items()}
    agrees(net.eval(), raster((6,)))
    net.train()
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


def test_a_weight_that_changes_in_training_is_that_of_evaluation():
    net = made(Net, wrap=parametrizations.spectral_norm, gain=1).train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    from_torch(net, (torch.rand(1, 6) > 0.5).float(), timesteps=4)
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


@pytest.mark.parametrize("layer", [Lin, Computed, lambda _, out: nn.LazyLinear(out)])
def test_subclasses_of_layers(layer):
    net = Net(layer)
    net(torch.rand(1, 6))  # as PyTorch asks of a lazy layer
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.uniform_(-1, 1)
        net.l.threshold.fill_(0.3)
    agrees(net.eval(), raster((6,)))


def test_a_subclass_of_a_convolution():
    class Plain(nn.Conv2d):
        pass

    agrees(made(Conv, conv(Plain)), raster((1, 4, 4)))


def test_a_subclass_of_neurons():
    agrees(made(Net), raster((6,)))


@pytest.mark.parametrize(
    ("net", "parts"),
    [
        (Net(Own), ["a: its class Own overrides forward of nn.Linear; linear of", "use nn.Linear"]),
        (Conv(conv(OwnConv)), ["a: its class OwnConv overrides forward of nn.Conv2d; conv2d of"]),
        (
            nn.Sequential(Own(6, 4), MyLeaky()),
            ["0 (Own): its class Own overrides forward of nn.Linear"],
        ),
        (
            nn.Sequential(nn.Linear(6, 4), Late()),
            ["1 (Late): its class Late overrides fire of snnTorch's Leaky -> use Leaky itself"],
        ),
    ],
)
def test_a_subclass_that_overrides_what_runs_is_named(net, parts):
    sample = torch.rand(1, 6) if not isinstance(net, Conv) else torch.rand(1, 1, 4, 4)
    text = refused(net, sample)
    for part in parts:
        assert part in text


def test_a_forward_that_is_replaced_is_followed():
    net = Net()
    own = net.a.forward
    net.a.forward = lambda x: own(x) * 2
    assert "a: its class Linear overrides forward of nn.Linear" in refused(net, torch.rand(1, 6))


class Empty(nn.Module):
    """snnTorch itself fails on the empty states that its reset_mem() returns."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(6, 4)
        how = {"reset_mechanism": "zero", "reset_delay": False, "linear_features": 4}
        self.lif = snn.RSynaptic(alpha=0.5, beta=0.5, **how)

    def forward(self, x):
        states = self.states(x)
        out = []
        for step in x:
            states = self.lif(self.fc(step), *states)
            out.append(states[0])
        return torch.stack(out)

    def states(self, x):
        return self.lif.reset_mem()


class Zeros(Empty):
    def states(self, x):
        return [torch.zeros(x.size(1), 4)] * 3


def test_where_snntorch_itself_fails_the_remedy_helps():
    sample = torch.rand(5, 2, 6)
    text = refused(Empty(), sample)
    assert "lif: snnTorch's RSynaptic fails with reset_delay=False (RuntimeError" in text
    assert "start it from zeros of its own shape, torch.zeros(batch, neurons)" in text
    from_torch(Zeros(), sample)


def test_the_layer_that_a_sample_does_not_fit_is_named():
    assert "cannot run on a sample of shape (1, 5) in a: RuntimeError" in refused(
        Net(), torch.rand(1, 5)
    )


def test_layers_that_are_numbers_say_what_they_are():
    net = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), snn.Leaky(beta=0.5, init_hidden=True))
    assert "1 (ReLU): relu of a tensor" in refused(net, torch.rand(1, 6))
    net = nn.Sequential(
        nn.Linear(6, 4), snn.Leaky(beta=0.5, init_hidden=True, threshold=-1), nn.Identity()
    )
    assert "1 (Leaky): thresholds below 0" in refused(net, torch.rand(1, 6))
