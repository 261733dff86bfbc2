"""What each tool makes of a NIR file: one version of it, and rules that were seen to hold.

A file runs *exactly* where the tool computes NIR's equation by forward Euler with dt = 1e-4 and the
integers of ``model.nir`` with it; in a float file up to the rounding of float32. A rule names the nodes
of a file that it holds for; the gravest verdict counts. Every rule of a tool that is ``seen`` to
"run" decides a case of tests/backends/test_consumers.py, where the tool itself is run on the same file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal

import nir
import numpy as np
from numpy.typing import NDArray

from stl_deploy.backends.consumers.file import NEURONS, File
from stl_deploy.ir import nir_graph as G
from stl_deploy.ir.units import UNIT

Where = Callable[[File], Iterable[str]]


class Verdict(StrEnum):
    """From best to worst."""

    EXACT = "exact"
    UNKNOWN = "unknown"
    DIFFERS = "differs"
    UNREADABLE = "unreadable"


@dataclass(frozen=True)
class Rule:
    """``where`` gives the nodes for which ``why`` holds."""

    verdict: Verdict
    why: str
    where: Where


@dataclass(frozen=True)
class Consumer:
    """A tool that reads NIR files.

    ``call`` is how it reads one. ``seen`` says whether the rules were seen in runs or read in its source.
    ``environment`` names the requirements file of the environment it is run in, "" for none.
    """

    name: str
    title: str
    version: str
    call: str
    rules: tuple[Rule, ...]
    seen: Literal["run", "read"] = "run"
    environment: str = ""


def exact(why: str, where: Where) -> Rule:
    """Something to mind that changes no spike."""
    return Rule(Verdict.EXACT, why, where)


def untried(where: Where) -> Rule:
    """Nodes that the tool may read, but nobody tried."""
    return Rule(Verdict.UNKNOWN, "it may read this node; no rule says what it makes of it", where)


def differs(why: str, where: Where) -> Rule:
    """Runs, with other spikes."""
    return Rule(Verdict.DIFFERS, why, where)


def unreadable(why: str, where: Where) -> Rule:
    """An error of the tool, when it reads or when it runs."""
    return Rule(Verdict.UNREADABLE, why, where)


# Predicates: of all nodes of some kinds, of neurons, of a whole file.


def nodes(test: Callable[[Any], bool], *kinds: type) -> Where:
    """The nodes of these kinds for which ``test`` holds."""
    return lambda file: [name for name, node in file.nodes(*kinds) if test(node)]


def other_than(*kinds: type) -> Where:
    """The nodes of no such kind; nested graphs are left to ``NESTED``."""
    return nodes(lambda node: not isinstance(node, (*kinds, nir.NIRGraph)), object)


def cut(broken: bool, *kinds: type) -> Where:
    """The nodes of no such kind, where nirtorch.load fails over them (``broken``) or cuts them out.

    It keeps one name for all of them, so that it fails over two. One is cut out: the nodes before it
    run, or those behind it where it is the first, which fail unless the input has their shape.
    """

    def where(file: File) -> list[str]:
        left = list(other_than(*kinds)(file))
        fails = len(left) > 1
        for name in left[:1]:
            first = any(isinstance(file.graph.nodes[a], nir.Input) for a in file.into(name))
            fails = fails or (first and reshapes(file.graph.nodes[name]))
        return left if fails == broken else []

    return where


def reshapes(node: Any) -> bool:
    """Whether a node may give another shape than it takes."""
    weight = getattr(node, "weight", None)
    if weight is not None and weight.ndim == 2:
        return bool(weight.shape[0] != weight.shape[1])
    return isinstance(node, nir.Conv1d | nir.Conv2d | nir.AvgPool2d | nir.SumPool2d | nir.Flatten)


def uniform(*values: Any) -> bool:
    """Whether each array holds one value throughout."""
    return all(np.unique(value).size <= 1 for value in values)


def step(tau: NDArray[Any]) -> NDArray[np.float64]:
    """dt / tau."""
    share: NDArray[np.float64] = G.DT / np.asarray(tau, np.float64)
    return share


def any_nonzero(key: str) -> Callable[[Any], bool]:
    """Whether a node's entry is not zero everywhere."""
    return lambda node: bool(np.any(getattr(node, key)))


def splits_wrongly(node: nir.Conv2d) -> bool:
    """A convolution that torch refuses when a group's channels are taken for all channels."""
    return bool(node.groups > 1 and node.weight.shape[1] % node.groups)


def is_close(a: Any, b: Any) -> bool:
    """As SpikingJelly and snnTorch compare."""
    return bool(np.allclose(np.asarray(a, np.float64), b, rtol=1e-6, atol=1e-12))


def of_integers(file: File) -> bool:
    """Whether the file holds the integers of a network."""
    return file.kind in ("integer", "portable integer")


def on_a_grid(value: Any) -> bool:
    """Multiples of 1/64, as weights and thresholds of integers are."""
    scaled = np.asarray(value, np.float64) * UNIT
    return bool((scaled == np.rint(scaled)).all())


def may_tie(file: File) -> Iterator[str]:
    """Neurons whose v can be their threshold to the last bit: both are multiples of 1/64."""
    for name, node in file.nodes(nir.LIF, nir.CubaLIF):
        sources = [file.graph.nodes[source] for source in file.into(name)]
        inputs = [getattr(source, "weight", np.zeros(1)) for source in sources]
        on_grid = on_a_grid(node.v_threshold) and all(map(on_a_grid, inputs))
        if on_grid and not always_fires(file, name, node):
            yield name


def always_fires(file: File, name: str, node: Any) -> bool:
    """Whether a threshold below 0 is below any v: that of every step then begins at 0."""
    least = sum(least_of(file, source) for source in file.into(name))
    gain = input_scale(node) * (node.r * step(node.tau_mem) if hasattr(node, "tau_mem") else 1)
    if (
        (gain < 0).any()
        or np.any(node.v_leak < 0)
        or any((step(tau) > 1).any() for tau in taus(node))
    ):
        return False
    lowest = least * gain.max() if least < 0 else 0.0
    return bool((node.v_threshold < min(0.0, lowest)).all())


def least_of(file: File, name: str) -> float:
    """The least that may come from a node of weights; spikes go in, or from the input any number above 0."""
    node = file.graph.nodes[name]
    if not isinstance(node, nir.Affine | nir.Linear | nir.Conv1d | nir.Conv2d):
        return 0.0 if isinstance(node, (*NEURONS, nir.Input)) else -np.inf
    below = np.minimum(node.weight.astype(np.float64), 0).reshape(len(node.weight), -1).sum(1).min()
    before = file.into(name)
    while len(before) == 1 and isinstance(file.graph.nodes[before[0]], nir.Flatten):
        before = file.into(before[0])
    spikes = len(before) == 1 and isinstance(file.graph.nodes[before[0]], NEURONS)
    bias = min(0.0, float(np.min(getattr(node, "bias", 0.0))))
    return float(below) + bias if spikes or below == 0 else -np.inf


def neurons_of(file: File) -> list[str]:
    """All neurons."""
    return [name for name, _ in file.nodes(*NEURONS)]


def beyond_float32(file: File) -> Iterator[str]:
    """Nodes with numbers that are infinite, or 0, in float32 alone."""
    for name, node in file.nodes(object):
        for value in vars(node).values():
            if isinstance(value, np.ndarray) and value.dtype.kind == "f":
                near = value.astype(np.float32)
                if not np.isfinite(near).all() or ((near == 0) & (value != 0)).any():
                    yield name
                    break


def recurrent_neurons(file: File) -> list[str]:
    """Neurons that are recurrent through other nodes; a bare edge back is one more input."""
    others = [(a, b) for a, b in file.graph.edges if a != b]
    found = G.on_cycles(list(file.graph.nodes), others)
    return [name for name in found if isinstance(file.graph.nodes[name], NEURONS)]


def depth_first(file: File) -> list[str]:
    """The nodes in the order in which nirtorch.load runs them: depth first, edge by edge, from the first."""
    following: dict[str, list[str]] = {}
    for source, target in file.graph.edges:
        following.setdefault(source, []).append(target)
    order: dict[str, None] = {}
    pending = file.starts[:1]
    while pending:
        name = pending.pop()
        if name not in order:
            order[name] = None
            pending += reversed(following.get(name, []))
    return list(order)


def out_of_order(file: File) -> list[str]:
    """Nodes that nirtorch.load runs before one that leads to them, and the last if it is not the output."""
    order = depth_first(file)
    place, loops = {name: i for i, name in enumerate(order)}, set(file.recurrent)
    early = [
        name
        for name, i in place.items()
        if any(place.get(a, i) > i and not {a, name} <= loops for a in file.into(name))
    ]
    last = [name for name in order[-1:] if not isinstance(file.graph.nodes[name], nir.Output)]
    return early + last


def several_starts(file: File) -> list[str]:
    """The inputs and neurons that nothing leads to, where there are several."""
    return file.starts if len(file.starts) > 1 else []


def several_inputs(file: File) -> list[str]:
    """The inputs, where there are several."""
    return file.inputs if len(file.inputs) > 1 else []


def neurons_alone(file: File) -> list[str]:
    """The neurons that nothing leads to."""
    return [name for name in file.starts if isinstance(file.graph.nodes[name], NEURONS)]


def in_other_shapes(file: File) -> Iterator[str]:
    """Weights of our integers that give another shape than their neurons have."""
    if file.network is not None:
        for c in file.network.connections:
            shape, before = file.network.shape(c.target), file.network.shape(c.source)
            alike = c.synapses.kind == "one_to_one" and before == shape
            if c.synapses.kind in ("dense", "one_to_one") and len(shape) > 1 and not alike:
                yield c.name


def biases_on_cycles(file: File) -> list[str]:
    """Nodes between neurons and themselves with a constant of their own."""
    named = [(name, file.graph.nodes[name]) for name in file.recurrent]
    return [name for name, node in named if np.any(getattr(node, "bias", 0))]


NO_WORD = "it does not support this node"
CUT_OUT = "it does not support this node: it drops it with everything after it, or fails over that"
SUBTRACTS = differs(
    "a spike takes the threshold off v, as only the metadata say; it resets to v_reset",
    lambda file: file.subtracts,
)
INEXACT = differs(
    "the chip's integers round or saturate where these equations do not, or leave what float32 holds",
    lambda file: file.inexact,
)
FLOAT32 = exact(
    "it rounds weights, thresholds and v to float32: a v within that of its threshold may go either way",
    lambda file: () if of_integers(file) else neurons_of(file),
)
BATCH = exact(
    "one sample at a time: it flattens the dimension of a batch too",
    nodes(lambda node: node.start_dim == 0, nir.Flatten),
)
UNCHECKED = exact(
    "read the graph with nir.read(path, type_check=False): nir's own check of shapes refuses it",
    lambda file: ["graph"] if file.unchecked else [],
)
NESTED = Rule(
    Verdict.UNKNOWN, "a graph within the graph: no rule looks into it", nodes(bool, nir.NIRGraph)
)
PADDED_SUM = differs("it leaves out the padding", nodes(any_nonzero("padding"), nir.SumPool2d))
GROUPS = unreadable(
    "it takes the channels of one group for all: groups must divide them",
    nodes(splits_wrongly, nir.Conv2d),
)
OTHER_SHAPE = Rule(
    Verdict.UNKNOWN,
    "these values have another shape than the neurons, in C order; no rule says what becomes of them",
    in_other_shapes,
)
HELD = exact(
    "the input is one frame, to be given in every step",
    lambda file: file.inputs if file.held else (),
)
FIRST_STEP = differs(
    "in the first step nothing comes back yet, nor the bias of recurrent weights", biases_on_cycles
)
ONE_INPUT = unreadable("a graph must have one input", several_inputs)
LED_TO = unreadable("an edge must lead to all neurons", neurons_alone)
BEYOND = differs("it computes in float32, which does not hold these numbers", beyond_float32)
COMMON = (SUBTRACTS, INEXACT, BEYOND, NESTED, OTHER_SHAPE, FLOAT32, HELD, UNCHECKED)
ENDS = (nir.Input, nir.Output)

NORSE_READS = (
    *ENDS,
    *(nir.Affine, nir.Linear, nir.Conv2d, nir.Flatten, nir.SumPool2d),
    *NEURONS,
)
NORSE = Consumer(
    "norse",
    "Norse",
    "1.1.0",
    "norse.torch.from_nir(nir.read(path), dt=1e-4)",
    (
        unreadable(NO_WORD, cut(True, *NORSE_READS)),
        differs(CUT_OUT, cut(False, *NORSE_READS)),
        GROUPS,
        differs("it takes r for 1", nodes(lambda node: bool((node.r != 1).any()), nir.LIF)),
        differs("it resets to 0", nodes(any_nonzero("v_reset"), nir.LIF, nir.CubaLIF)),
        differs("v begins at v_leak, not at 0", nodes(any_nonzero("v_leak"), nir.LIF)),
        differs("v_leak drives the current too", nodes(any_nonzero("v_leak"), nir.CubaLIF)),
        PADDED_SUM,
        differs(
            "it runs nodes depth first along the edges: what one sends that it runs later arrives a step "
            "late, and what comes out is that of the last",
            out_of_order,
        ),
        FIRST_STEP,
        differs(
            "it begins at one of several nodes that no edge leads to, and may leave out the others",
            several_starts,
        ),
        untried(nodes(bool, nir.IF)),
        BATCH,
        *COMMON,
    ),
    environment="current",
)


def scaled_threshold(node: Any) -> NDArray[np.float64]:
    """The threshold as snnTorch has it, whose inputs are not scaled."""
    if isinstance(node, nir.CubaLIF):
        return np.asarray(node.v_threshold / (node.w_in * step(node.tau_syn)))
    return np.asarray(node.v_threshold, np.float64)


def input_scale(node: Any) -> NDArray[np.float64]:
    """What snnTorch divides the threshold by, in place of a factor of the inputs."""
    if isinstance(node, nir.CubaLIF):
        return np.asarray(node.w_in * step(node.tau_syn))
    return np.asarray(node.r * step(node.tau))


def taus(node: Any) -> list[NDArray[Any]]:
    """The time constants of a node."""
    return [getattr(node, key) for key in ("tau", "tau_mem", "tau_syn") if hasattr(node, key)]


SNNTORCH = Consumer(
    "snntorch",
    "snnTorch",
    "1.0.0",
    "snntorch.import_nir.import_from_nir(nir.read(path))",
    (
        unreadable(
            NO_WORD,
            other_than(
                *ENDS,
                *(nir.Affine, nir.Linear, nir.Conv1d, nir.Conv2d, nir.Flatten, nir.AvgPool2d),
                *(nir.SumPool2d, *NEURONS),
            ),
        ),
        GROUPS,
        ONE_INPUT,
        LED_TO,
        unreadable(
            "thresholds must be one for all neurons of the node",
            nodes(lambda node: not uniform(scaled_threshold(node)), nir.LIF, nir.CubaLIF),
        ),
        unreadable("v_leak must be 0", nodes(any_nonzero("v_leak"), nir.LIF, nir.CubaLIF)),
        unreadable(
            "r must be tau_mem / dt",
            nodes(lambda node: not is_close(node.r * step(node.tau_mem), 1), nir.CubaLIF),
        ),
        unreadable(
            "recurrent neurons must have names like a.b",
            lambda file: [name for name in recurrent_neurons(file) if "." not in name],
        ),
        differs(
            "recurrent weights become those of RLeaky or RSynaptic, which runs other steps",
            lambda file: [name for name in recurrent_neurons(file) if "." in name],
        ),
        differs(
            "r * dt / tau differs from neuron to neuron; it takes the smallest for all",
            nodes(lambda node: not uniform(node.r * step(node.tau)), nir.LIF),
        ),
        differs("it resets to 0", nodes(any_nonzero("v_reset"), nir.LIF, nir.CubaLIF)),
        differs(
            "a threshold below 0: it takes a v above it, be it 0, for one that was reset already",
            lambda file: [
                name
                for name, node in file.nodes(nir.LIF, nir.CubaLIF)
                if (node.v_threshold < 0).any() and not always_fires(file, name, node)
            ],
        ),
        differs(
            "r or w_in below 0: it divides the threshold by it and does not turn the inputs",
            nodes(lambda node: bool((input_scale(node) < 0).any()), nir.LIF, nir.CubaLIF),
        ),
        differs(
            "tau below dt: it takes 0 for the share of v or current that is kept, which is below 0",
            nodes(lambda node: any(bool((step(tau) > 1).any()) for tau in taus(node)), *NEURONS),
        ),
        PADDED_SUM,
        untried(nodes(bool, nir.IF, nir.Conv1d, nir.AvgPool2d)),
        BATCH,
        *COMMON,
    ),
    environment="current",
)


def lif_refused_by_spikingjelly(node: nir.LIF) -> bool:
    """What its LIFNode has no form for."""
    return not (
        uniform(node.tau, node.r, node.v_leak, node.v_reset, node.v_threshold)
        and (is_close(node.r, 1) or is_close(node.r * step(node.tau), 1))
        and is_close(node.v_leak, node.v_reset)
        and bool((step(node.tau) < 1).all())
    )


def cuba_refused_by_spikingjelly(node: nir.CubaLIF) -> bool:
    """What its CUBALIFNode has no form for."""
    return not (
        uniform(node.tau_syn, node.tau_mem, node.r, node.w_in)
        and uniform(node.v_leak, node.v_reset, node.v_threshold)
        and is_close(node.r * step(node.tau_mem), 1)
        and is_close(node.w_in * step(node.tau_syn), 1)
        and is_close(node.v_leak, 0)
    )


SPIKINGJELLY = Consumer(
    "spikingjelly",
    "SpikingJelly",
    "2.0.0",
    "spikingjelly.activation_based.nir_exchange.import_from_nir(nir.read(path))",
    (
        unreadable(
            NO_WORD,
            other_than(
                *ENDS,
                *(nir.Affine, nir.Linear, nir.Conv1d, nir.Conv2d, nir.Flatten, nir.AvgPool2d),
                *(nir.SumPool2d, *NEURONS),
            ),
        ),
        unreadable(
            "weights and biases must not be integers",
            nodes(lambda node: node.weight.dtype.kind in "iu", nir.Affine, nir.Linear, nir.Conv2d),
        ),
        unreadable("convolutions must have one group", nodes(lambda n: n.groups != 1, nir.Conv2d)),
        unreadable(
            "every parameter must be one for all neurons of the node, r 1 or tau/dt, tau above dt, v_leak "
            "and v_reset the same",
            nodes(lif_refused_by_spikingjelly, nir.LIF),
        ),
        unreadable(
            "every parameter must be one for all neurons of the node, r tau_mem/dt, w_in tau_syn/dt, "
            "v_leak 0",
            nodes(cuba_refused_by_spikingjelly, nir.CubaLIF),
        ),
        differs(
            "v begins at v_reset, not at 0", nodes(any_nonzero("v_reset"), nir.LIF, nir.CubaLIF)
        ),
        differs(
            "it spikes at v >= threshold; v and threshold are multiples of 1/64 and can be the same",
            may_tie,
        ),
        FIRST_STEP,
        PADDED_SUM,
        untried(nodes(bool, nir.IF, nir.Conv1d, nir.AvgPool2d)),
        *COMMON,
    ),
    environment="current",
)

NIRTORCH = Consumer(
    "nirtorch",
    "nirtorch (alone)",
    "2.6",
    "nirtorch.nir_to_torch(nir.read(path), {})",
    (
        unreadable(
            NO_WORD,
            other_than(
                *ENDS,
                *(nir.Affine, nir.Linear, nir.Conv1d, nir.Conv2d, nir.Flatten, nir.AvgPool2d),
                nir.SumPool2d,
            ),
        ),
        untried(nodes(bool, nir.Affine, nir.Linear, nir.Conv1d, nir.Conv2d, nir.AvgPool2d)),
        NESTED,
    ),
    environment="current",
)


def stored_reset(file: File) -> list[str]:
    """Neurons whose ``v_reset`` stands in the file, be it 0."""
    return [name for name in neurons_of(file) if "v_reset" in file.stored.get(name, ())]


NIR104 = unreadable("nir 1.0.4, which it asks for, knows no v_reset", stored_reset)

SINABS_READS = (
    *ENDS,
    *(nir.Affine, nir.Conv1d, nir.Conv2d, nir.Flatten, nir.SumPool2d),
    *(nir.IF, nir.LI, nir.LIF),
)
SINABS = Consumer(
    "sinabs",
    "sinabs",
    "3.1.3",
    "sinabs.nir.from_nir(nir.read(path), batch_size=N)",
    (
        NIR104,
        unreadable(NO_WORD, cut(True, *SINABS_READS)),
        differs(CUT_OUT, cut(False, *SINABS_READS)),
        unreadable(
            "neurons must be flat: it asks for the truth of v_leak's rows",
            nodes(lambda node: node.v_threshold.ndim > 1, nir.LIF),
        ),
        unreadable("v_leak must be 0", nodes(any_nonzero("v_leak"), nir.LIF)),
        differs(
            "its LIF keeps exp(-1/tau) of v with tau as it stands, fires several times a step and "
            "resets by subtraction",
            nodes(bool, nir.LIF),
        ),
        untried(nodes(bool, nir.IF, nir.LI, nir.Conv1d)),
        NESTED,
    ),
    environment="nir104",
)

ROCKPOOL = Consumer(
    "rockpool",
    "Rockpool",
    "3.1.0",
    "rockpool.nn.modules.torch.nir.from_nir(nir.read(path))",
    (
        NIR104,
        unreadable(
            NO_WORD, other_than(*ENDS, nir.Affine, nir.Linear, nir.LI, nir.LIF, nir.CubaLIF)
        ),
        unreadable("it looks for a tau_mem, which a LIF has not", nodes(bool, nir.LIF)),
        differs(
            "its neurons decay by exp(-dt/tau), fire several times a step and reset by subtraction",
            nodes(bool, nir.CubaLIF),
        ),
        untried(nodes(bool, nir.LI)),
        NESTED,
    ),
    environment="nir104",
)

SPYX = Consumer(
    "spyx",
    "Spyx",
    "1.0.0",
    "spyx.nir.from_nir(nir.read(path), x, dt=1e-4)",
    (
        differs(
            "its neurons spike one step later, reset by subtraction, and know neither r nor v_leak",
            nodes(bool, nir.LIF, nir.CubaLIF),
        ),
        untried(other_than(*ENDS, nir.LIF, nir.CubaLIF)),
        NESTED,
    ),
    seen="read",
)

LAVA_DL = Consumer(
    "lava-dl",
    "lava-dl",
    "0.6.0",
    "lava.lib.dl.netx.hdf5.Network (of loihi/network.net)",
    (
        unreadable(
            "it has no reader of NIR; give netx the loihi/network.net of stl-export --target loihi",
            lambda _: ["graph"],
        ),
    ),
    seen="read",
)

CONSUMERS = {
    consumer.name: consumer
    for consumer in (NORSE, SNNTORCH, SPIKINGJELLY, NIRTORCH, SINABS, ROCKPOOL, SPYX, LAVA_DL)
}
