"""The integer network in ONNX: one step of it, and that step in a Scan over time.

Every line of ``hw_sim/reference.py`` in integers (docs/onnx.md has the table): weighted sums (onnx_sums.py),
neurons (onnx_neurons.py) and, behind the last step, the classes (onnx_readout.py).
"""

from __future__ import annotations

import numpy as np
import onnx

from stl_deploy.exporters import onnx_inputs, onnx_readout, onnx_sums
from stl_deploy.exporters import onnx_neurons as neurons
from stl_deploy.exporters.onnx_graph import Builder
from stl_deploy.exporters.onnx_neurons import State
from stl_deploy.ir import kinds
from stl_deploy.ir.network import IntegerNetwork
from stl_deploy.ir.synapses import Shape


def step_graph(network: IntegerNetwork) -> onnx.GraphProto:
    """One time step: the inputs and the state in; what every population sends and the state out."""
    b = Builder()
    for name, port in network.inputs.items():
        b.input(onnx_inputs.label(network, name), onnx_inputs.kind(port), ("N", *port.shape))
    states, results = _states(network), _results(network)
    for name, kind, shape in states:
        b.input(name, kind, ("N", *shape))
    _step(b, network)
    given = {name for name, _, _ in results}
    for name, kind, shape in states:
        if _after(name) not in given:
            b.output(_after(name), kind, ("N", *shape))
    for name, kind, shape in results:
        b.output(name, kind, ("N", *shape))
    return b.graph("step")


def scan_graph(network: IntegerNetwork) -> onnx.GraphProto:
    """All steps: inputs [N, T, ...] in, those that are held [N, 1, ...].

    Out: what every population sends and its state [N, T, ...], the scores of the classes and the prediction.
    """
    b = Builder()
    for name, port in network.inputs.items():
        steps: int | str = 1 if port.held else "T"
        label = onnx_inputs.label(network, name)
        b.input(label, onnx_inputs.kind(port), ("N", steps, *port.shape))
    states, results = _states(network), _results(network)
    batch = b.op("Shape", [b.inputs[0].name], "batch", start=0, end=1)
    starts = [_zeros(b, batch, *state) for state in states]
    ends = [f"last_{name}" for name, _, _ in states]
    # Time goes to the front and back again: not every tool scans along another axis.
    arriving = [
        _swapped(b, value, f"by_time_{name}", network.shape(name))
        for name, value in onnx_inputs.in_every_step(b, network).items()
    ]
    kept = [f"by_time_{name}" for name, _, _ in results]
    b.nodes.append(
        onnx.helper.make_node(
            "Scan",
            [*starts, *arriving],
            [*ends, *kept],
            name="steps",
            body=_body(network),
            num_scan_inputs=len(arriving),
        )
    )
    for name, kind, shape in results:
        _swapped(b, f"by_time_{name}", name, shape)
        b.output(name, kind, ("N", "T", *shape))
    onnx_readout.write(b, network)
    return b.graph("scan")


def _swapped(b: Builder, value: str, name: str, shape: Shape) -> str:
    """The first two axes, of samples and of time, in the other order."""
    return b.op("Transpose", [value], name, perm=(1, 0, *range(2, 2 + len(shape))))


def _zeros(b: Builder, batch: str, name: str, kind: type[np.generic], shape: Shape) -> str:
    """The state before the first step, for as many samples as there are."""
    size = b.op("Concat", [batch, b.shape(shape)], f"size_{name}", axis=0)
    zero = onnx.numpy_helper.from_array(np.zeros(1, kind))
    return b.op("ConstantOfShape", [size], f"first_{name}", value=zero)


def _body(network: IntegerNetwork) -> onnx.GraphProto:
    """The step as Scan takes it: state first; the state goes on, and the results are kept."""
    b = Builder(prefix="step:")
    for name, kind, shape in _states(network):
        b.input(b.name(name), kind, ("N", *shape))
    for name, port in network.inputs.items():
        label = onnx_inputs.label(network, name)
        b.input(b.name(label), onnx_inputs.kind(port), ("N", *port.shape))
    _step(b, network)
    for name, kind, shape in _states(network):
        # One name cannot be an output twice.
        on = b.op("Identity", [b.name(_after(name))], b.name(f"next_{_after(name)}"))
        b.output(on, kind, ("N", *shape))
    for name, kind, shape in _results(network):
        b.output(b.name(name), kind, ("N", *shape))
    return b.graph("step")


def _states(network: IntegerNetwork) -> list[State]:
    """What goes from step to step: name of the input, type, shape.

    ``past_in/<source>`` [N, D, *shape] are the last D steps of what a source sent, the newest first; D is
    the longest delay of a connection out of it.
    """
    found = [state for p in network.populations for state in neurons.states(network, p)]
    for source in (*network.inputs, *network.by_name):
        if longest := _longest(network, source):
            kind = onnx_inputs.sent_type(network, source)
            found.append((f"past_in/{source}", kind, (longest, *network.shape(source))))
    return found


def _longest(network: IntegerNetwork, source: str) -> int:
    """The longest delay of a connection that leads out of a source."""
    return max((c.delay for c in network.out_of(source)), default=0)


def _after(name: str) -> str:
    """The output that becomes the state ``name`` of the next step."""
    return name.replace("_in/", "/", 1)


def _results(network: IntegerNetwork) -> list[State]:
    """What every step gives: name, type, shape."""
    return [result for p in network.populations for result in neurons.results(network, p)]


def _step(b: Builder, network: IntegerNetwork) -> None:
    """One population after the other, from the inputs and the state to the results."""
    sent = {name: b.name(onnx_inputs.label(network, name)) for name in network.inputs}
    for population in network.populations:
        name = population.name
        currents = 1 if population.neurons.du2 is None else 2
        sums = [onnx_sums.accumulate(b, network, population, sent, i) for i in range(currents)]
        form = kinds.entry(neurons.POPULATIONS, population.kind, name, onnx_sums.WHO)
        sent[name] = form.step(b, population, sums, network)
    for source, now in sent.items():
        if longest := _longest(network, source):
            _remember(b, source, now, network.shape(source), longest)


def _remember(b: Builder, source: str, now: str, shape: Shape, longest: int) -> None:
    """What a source sent in the last steps, this one included."""
    first = b.op("Unsqueeze", [now, b.shape((1,))], b.name("newest", source))
    if longest == 1:
        b.op("Identity", [first], b.name("past", source))
        return
    old = b.name("past_in", source)
    ends = [b.shape((n,)) for n in (0, longest - 1, 1)]
    kept = b.op("Slice", [old, *ends], b.name("kept_past", source))
    b.op("Concat", [first, kept], b.name("past", source), axis=1)
