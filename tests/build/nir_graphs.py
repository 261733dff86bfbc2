"""NIR graphs as other tools write them: nothing of this project in their metadata."""

from __future__ import annotations

from itertools import pairwise

import nir
import numpy as np


def lif(n, threshold=0.5, **fields):
    """Neurons whose v halves; fields are numbers for all of them, or arrays."""
    shape = (n,) if isinstance(n, int) else n
    values = {"tau": 2e-4, "r": 2.0, "v_leak": 0.0, "v_reset": 0.0, "v_threshold": threshold}
    return nir.LIF(**{k: np.full(shape, v, np.float64) for k, v in (values | fields).items()})


def chain(*nodes, inputs=(4,), outputs=(3,)):
    """The nodes one behind the other, as n0, n1, ..."""
    names = [f"n{i}" for i in range(len(nodes))]
    every = {"in": nir.Input({"input": np.array(inputs)}), **dict(zip(names, nodes, strict=True))}
    every["out"] = nir.Output({"output": np.array(outputs)})
    order = list(every)
    return nir.NIRGraph(every, list(pairwise(order)), type_check=False)


def braille(n=38, biases=False, reset="zero", flat=False):
    """12-38-7 with currents, a recurrent hidden layer and hard resets, in the form of nirtorch.

    With ``biases`` all three layers of weights have one, which passes through the currents. ``reset`` is
    stated in the metadata, unless it is None. The recurrent layer is a graph in the graph, or with ``flat``
    nodes named "lif1.lif" and "lif1.w_rec", as older files of the network have it.
    """
    rng = np.random.default_rng(5)

    def cuba(size):
        values = {"tau_syn": 2.5e-4, "tau_mem": 4e-4, "r": 4.0, "v_leak": 0.0, "v_reset": 0.0}
        arrays = {k: np.full(size, v) for k, v in values.items()}
        node = nir.CubaLIF(**arrays, v_threshold=np.ones(size), w_in=np.full(size, 2.5))
        if reset is not None:
            node.metadata["reset"] = reset
        return node

    hidden = nir.NIRGraph(
        {
            "input": nir.Input({"input": np.array([n])}),
            "lif": cuba(n),
            "w_rec": nir.Affine(rng.normal(0, 0.15, (n, n)).astype(np.float32), np.zeros(n)),
            "output": nir.Output({"output": np.array([n])}),
        },
        [("input", "lif"), ("lif", "w_rec"), ("w_rec", "lif"), ("lif", "output")],
        type_check=False,
    )
    nodes = {
        "in": nir.Input({"input": np.array([12])}),
        "fc1": nir.Affine(rng.normal(0, 0.4, (n, 12)).astype(np.float32), np.zeros(n)),
        "lif1": hidden,
        "fc2": nir.Affine(rng.normal(0, 0.3, (7, n)).astype(np.float32), np.zeros(7)),
        "lif2": cuba(7),
        "out": nir.Output({"output": np.array([7])}),
    }
    if biases:
        more = np.random.default_rng(6)
        for node in (nodes["fc1"], hidden.nodes["w_rec"], nodes["fc2"]):
            node.bias = more.normal(0, 0.1, len(node.bias))
    edges = list(pairwise(nodes))
    if flat:
        nodes |= {f"lif1.{name}": hidden.nodes[name] for name in ("lif", "w_rec")}
        del nodes["lif1"]
        edges = [tuple("lif1.lif" if end == "lif1" else end for end in edge) for edge in edges]
        edges += [("lif1.lif", "lif1.w_rec"), ("lif1.w_rec", "lif1.lif")]
    graph = nir.NIRGraph(nodes, edges, type_check=False)
    return graph, (rng.random((30, 40, 12)) < 0.3).astype(np.uint8)
