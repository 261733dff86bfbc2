"""A float network as the lowered NIR graph that says it."""

from __future__ import annotations

import nir
import numpy as np

from stl_deploy.ir import nir_graph as G
from stl_deploy.ir import nir_words as words
from stl_deploy.ir.floats import FloatNetwork


def graph_of(network: FloatNetwork) -> nir.NIRGraph:
    """The graph of all-to-all weights, with the bias of a population in the first of them."""
    nodes: dict[str, nir.ir.NIRNode] = {
        name: nir.Input({"input": np.array(shape)}) for name, shape in network.inputs.items()
    }
    edges: list[tuple[str, str]] = []
    for population in network.populations:
        nodes[population.name] = population.neurons.reshaped(population.shape).node()
        biased = bool(population.bias.any())
        for c in network.into(population.name):
            node = nir.Linear(c.way.weight)
            if biased and not c.port:
                node = nir.Affine(
                    c.way.weight, np.broadcast_to(population.bias, population.shape).copy()
                )
                biased = False
            words.say(node, port=c.port)
            nodes[c.name], before = node, c.source
            if c.delay:
                before = f"{c.name}_late"
                nodes[before] = nir.Delay(np.full(network.shape(c.source), c.delay * G.DT))
                edges.append((c.source, before))
            edges += [(before, c.name), (c.name, c.target)]
    shape = network.shape(network.output)
    nodes["output"] = nir.Output({"output": np.array(shape)})
    edges.append((network.output, "output"))
    read = network.readout
    assert network.meta is not None
    assert read is not None
    said = G.Read(rule=read.rule, steps=read.steps)
    meta = network.meta.model_copy(update={"version": G.NEWEST, "readout": said})
    return nir.NIRGraph(nodes, edges, metadata={G.KEY: meta.text()}, type_check=False)
