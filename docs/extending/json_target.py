"""A target: populations, connections and their integers as one JSON file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from stl_deploy.errors import LoweringError
from stl_deploy.exporters import Origin, Target
from stl_deploy.files import write as write_file
from stl_deploy.ir import kinds
from stl_deploy.ir.network import IntegerNetwork
from stl_deploy.ir.notes import Diagnostic

WHO = "target json"
NEURONS = ("lif", "or")
# What a kind of synapses has in addition to its weights, and the fields that have it.
SYNAPSES: dict[str, dict[str, str]] = {
    "conv": {"stride": "stride", "padding": "padding", "dilation": "dilation", "groups": "groups"},
    "dense": {},
    "one_to_one": {},
    "sparse": {"rows": "row", "columns": "column"},
}


def write(network: IntegerNetwork, folder: Path, _origin: Origin) -> tuple[Diagnostic, ...]:
    """Write network.json into ``folder``. Raises LoweringError for what it cannot carry."""
    problems = []
    for population in network.populations:
        problems += kinds.unsupported(network, population, NEURONS, SYNAPSES, WHO)
    if problems:
        raise LoweringError(problems)
    rows = {
        "inputs": {name: vars(port) for name, port in network.inputs.items()},
        "populations": [
            {
                "name": p.name,
                "shape": p.shape,
                "reset": p.neurons.reset,
                **{key: np.asarray(getattr(p.neurons, key)).tolist() for key in ("du", "dv")},
                "bias": np.broadcast_to(p.neurons.bias, p.shape).tolist(),
                "vth": np.broadcast_to(p.neurons.vth, p.shape).tolist(),
            }
            for p in network.populations
        ],
        "connections": [
            {
                "from": c.source,
                "to": c.target,
                "delay": c.delay,
                "exp": c.exp,
                "kind": c.synapses.kind,
                "weight": c.synapses.weight.tolist(),
                **{
                    key: np.asarray(getattr(c.synapses, field)).tolist()
                    for key, field in SYNAPSES[c.synapses.kind].items()
                },
            }
            for c in network.connections
        ],
    }
    write_file(folder / "network.json", json.dumps(rows).encode())
    return ()


ROW = {"json": Target("populations and connections as JSON", "stl_deploy.exporters.json_target")}
