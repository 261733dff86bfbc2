"""Places in a NIR file that a rule may hold for: predicates of nodes, of neurons, of a whole file."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import nir
import numpy as np
from numpy.typing import NDArray

from stl_deploy.backends.consumers.file import NEURONS, File
from stl_deploy.ir import nir_graph as G
from stl_deploy.ir.units import UNIT

Where = Callable[[File], Iterable[str]]


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


def grouped_or_dilated(node: nir.Conv2d) -> bool:
    """A convolution with groups or with gaps in its kernel."""
    return bool(node.groups != 1 or np.any(np.asarray(node.dilation) != 1))


def is_close(a: Any, b: Any) -> bool:
    """As SpikingJelly and snnTorch compare."""
    return bool(np.allclose(np.asarray(a, np.float64), b, rtol=1e-6, atol=1e-12))


def of_integers(file: File) -> bool:
    """Whether the file holds the integers of a network."""
    return file.kind.endswith("integer")


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


WEIGHTS = (nir.Affine, nir.Linear, nir.Conv2d)


def sends(file: File, name: str) -> bool:
    """Whether a node sends spikes: neurons, or an input."""
    return isinstance(file.graph.nodes[name], (*NEURONS, nir.Input))


def straight_to_neurons(file: File) -> list[str]:
    """Neurons that other neurons or an input lead to without weights."""
    return [name for name in neurons_of(file) if any(sends(file, a) for a in file.into(name))]


def weights_in_a_row(file: File) -> list[str]:
    """Weights that weights lead to."""
    return [
        name
        for name, _ in file.nodes(*WEIGHTS)
        if any(isinstance(file.graph.nodes[a], WEIGHTS) for a in file.into(name))
    ]


def weights_to_others(file: File) -> list[str]:
    """Weights that lead to anything but neurons or weights."""
    others = (*NEURONS, *WEIGHTS)
    return list(
        dict.fromkeys(
            a
            for a, b in file.graph.edges
            if isinstance(file.graph.nodes[a], WEIGHTS)
            and not isinstance(file.graph.nodes[b], others)
        )
    )


def flattened_alone(file: File) -> list[str]:
    """Flattens of what neurons or an input send."""
    return [
        name for name, _ in file.nodes(nir.Flatten) if any(sends(file, a) for a in file.into(name))
    ]


def pools_to_others(file: File) -> list[str]:
    """SumPool2d in front of anything but a Conv2d, neurons, or a Flatten that leads to an Affine alone."""
    found = []
    for a, b in file.graph.edges:
        node = file.graph.nodes[b]
        if not isinstance(file.graph.nodes[a], nir.SumPool2d):
            continue
        behind = [file.graph.nodes[d] for c, d in file.graph.edges if c == b]
        flat = isinstance(node, nir.Flatten) and all(isinstance(n, nir.Affine) for n in behind)
        if not (flat or isinstance(node, (nir.Conv2d, *NEURONS))):
            found.append(a)
    return list(dict.fromkeys(found))


def pools_that_overlap(file: File) -> list[str]:
    """SumPool2d in front of a Conv2d with windows that do not tile the plane."""
    return [
        name
        for name, node in file.nodes(nir.SumPool2d)
        if (np.any(np.asarray(node.padding)) or np.any(node.kernel_size != node.stride))
        and any(
            a == name and isinstance(file.graph.nodes[b], nir.Conv2d) for a, b in file.graph.edges
        )
    ]


def behind_kernels(*kinds: type) -> Where:
    """Neurons of these kinds that a Conv2d leads to."""
    return lambda file: [
        name
        for name, _ in file.nodes(*kinds)
        if any(isinstance(file.graph.nodes[a], nir.Conv2d) for a in file.into(name))
    ]


def kernels_and_others(file: File) -> list[str]:
    """Neurons that a Conv2d and something else lead to."""
    return [
        name
        for name in behind_kernels(*NEURONS)(file)
        if not all(isinstance(file.graph.nodes[a], nir.Conv2d) for a in file.into(name))
    ]


def not_of_eight_bits(file: File) -> list[str]:
    """Weights that are not whole numbers from -127 to 127."""
    return [
        name
        for name, node in file.nodes(*WEIGHTS)
        if np.any(np.abs(node.weight) > 127) or np.any(node.weight != np.rint(node.weight))
    ]


def act_without_input(file: File) -> Iterator[str]:
    """Neurons with a bias or a leak, or with thresholds below 0."""
    for name, node in file.nodes(*NEURONS):
        biases = [getattr(file.graph.nodes[a], "bias", 0) for a in file.into(name)]
        leak = getattr(node, "v_leak", 0)
        if any(map(np.any, biases)) or np.any(leak) or np.any(np.asarray(node.v_threshold) < 0):
            yield name


def at_two_depths(file: File) -> list[str]:
    """Neurons that spikes reach over more connections on one way than on another."""
    following: dict[str, list[str]] = {}
    for source, target in file.graph.edges:
        following.setdefault(source, []).append(target)

    def reached(name: str) -> set[str]:
        """The neurons that a sender's spikes arrive at."""
        found: set[str] = set()
        seen: set[str] = set()
        pending = list(following.get(name, []))
        while pending:
            node = pending.pop()
            if node in seen:
                continue
            seen.add(node)
            if isinstance(file.graph.nodes[node], NEURONS):
                found.add(node)
            else:
                pending += following.get(node, [])
        return found - {name}

    depth = dict.fromkeys(file.inputs, 0)
    pending, several = list(depth), []
    while pending:
        name = pending.pop(0)
        for target in sorted(reached(name)):
            if target not in depth:
                depth[target] = depth[name] + 1
                pending.append(target)
            elif depth[target] != depth[name] + 1:
                several.append(target)
    return list(dict.fromkeys(several))


def keeps_nothing(node: Any) -> bool:
    """Whether neurons forget v in every step, so that their reset means nothing."""
    return isinstance(node, nir.LIF) and bool((step(node.tau) == 1).all())


def other_rules(file: File) -> list[str]:
    """Neurons whose metadata say more than a reset by subtraction."""
    return [name for name, said in file.unsaid.items() if set(said) != {SUBTRACTS}]


def two_resets(file: File) -> list[str]:
    """The neurons, where some reset by subtraction and others do not."""
    lasting = [name for name, node in file.nodes(*NEURONS) if not keeps_nothing(node)]
    subtracts = [name for name in lasting if SUBTRACTS in file.unsaid.get(name, [])]
    return lasting if 0 < len(subtracts) < len(lasting) else []


SUBTRACTS = "reset by subtraction"
