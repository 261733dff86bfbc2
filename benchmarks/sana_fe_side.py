"""SANA-FE's part of ``sana_fe.py``: runs where sanafe is installed, with the standard library alone.

    python benchmarks/sana_fe_side.py SPEC.json OUT.json

Builds the architecture, network and mapping that SPEC describes and simulates it with the "simple"
timing model; OUT has the time and energy of every step, the spikes, and the seconds it took.
"""

from __future__ import annotations

import json
import re
import sys
import time
from pathlib import Path
from typing import Any

PICO, NANO = 1e-12, 1e-9


def main() -> None:
    """Simulate what SPEC says."""
    import sanafe

    spec = json.loads(Path(sys.argv[1]).read_text("utf-8"))
    folder = Path(sys.argv[2]).parent
    # JSON is YAML, but numbers as keys are not quoted there.
    described = folder / "architecture.yaml"
    text = re.sub(r'"(\d+)":', r"\1:", json.dumps(architecture(spec)))
    described.write_text(text, "utf-8")
    start = time.perf_counter()
    arch = sanafe.load_arch(str(described))
    network = build(sanafe.Network(), spec)
    for group in spec["groups"]:
        neurons = network.groups[group["name"]].neurons
        for i, core in enumerate(group["cores"]):
            neurons[i].map_to_core(arch.cores()[core])
    chip = sanafe.SpikingChip(arch)
    chip.load(network)
    built = time.perf_counter()
    traced = {"perf_trace": True, "spike_trace": True}
    result = chip.sim(spec["steps"], timing_model="simple", processing_threads=1, **traced)
    runs = [run_without_traces(sanafe.SpikingChip(arch), network, spec["steps"]) for _ in range(3)]
    perf = result["perf_trace"]
    out = {
        "seconds": list(perf["sim_time"]),
        "joules": list(perf["total_energy"]),
        "updated": list(perf["updated"]),
        "fired": [
            [(a.group_name, a.neuron_offset) for a in step] for step in result["spike_trace"]
        ],
        "build_seconds": built - start,
        "run_seconds": sorted(runs),
    }
    Path(sys.argv[2]).write_text(json.dumps(out), "utf-8")


def run_without_traces(chip: Any, network: Any, steps: int) -> float:
    """Seconds of a simulation that records nothing."""
    chip.load(network)
    start = time.perf_counter()
    chip.sim(steps, timing_model="simple", processing_threads=1)
    return time.perf_counter() - start


def architecture(spec: dict[str, Any]) -> dict[str, Any]:
    """A chip with the costs of SPEC's energy model; input units only in the tiles that hold inputs."""
    cost, grid, cores = spec["energy_model"], spec["grid"], spec["groups"][0]["cores"]
    inputs = max(cores) // grid["cores_per_tile"]
    size = max(cores.count(core) for core in set(cores))
    late = any(connection["waits"] for connection in spec["connections"])
    tiles = grid["columns"] * grid["rows"]
    return {
        "architecture": {
            "name": "chip",
            "attributes": {
                "topology": "mesh",
                "width": grid["columns"],
                "height": grid["rows"],
                "link_buffer_size": 16,
                "sync_model": "table",
                "latency_sync": {
                    tiles: 1e-6 * us
                    for tiles, us in zip(
                        cost["barrier"]["tiles"], cost["barrier"]["us"], strict=True
                    )
                },
            },
            "tile": [
                tile(cost, grid, f"input_tile[0..{inputs}]", size, late),
                tile(cost, grid, f"tile[{inputs + 1}..{tiles - 1}]", 0, late),
            ],
        }
    }


def tile(
    cost: dict[str, Any], grid: dict[str, Any], name: str, inputs: int, late: bool
) -> dict[str, Any]:
    """A tile of cores with neurons and, where there are any, units that replay a spike train.

    With ``late`` dendrites keep what arrives for as many steps as its synapse says; they then stand
    between one step and the next, which else the soma does.
    """
    hop: dict[str, float] = {}
    for key, unit, table in (("energy", PICO, cost["hop_pj"]), ("latency", NANO, cost["hop_ns"])):
        for direction, axis in (
            ("north", "north_south"),
            ("south", "north_south"),
            ("east", "east_west"),
            ("west", "east_west"),
        ):
            hop[f"{key}_{direction}_hop"] = unit * table[axis]
    soma = {
        f"{key}_{what}": unit * cost[table][ours]
        for key, unit, table in (("energy", PICO, "update_pj"), ("latency", NANO, "update_ns"))
        for what, ours in (
            ("access_neuron", "always"),
            ("update_neuron", "active"),
            ("spike_out", "spike"),
        )
    }
    units = [{"name": "lif", "attributes": {"model": "leaky_integrate_fire", **soma}}]
    if inputs:
        units.append({"name": f"input[0..{inputs - 1}]", "attributes": {"model": "input", **soma}})
    core = {
        "name": f"core[0..{grid['cores_per_tile'] - 1}]",
        "attributes": {
            "buffer_position": "dendrite" if late else "soma",
            "buffer_inside_unit": late,
            "max_neurons_supported": grid["neurons_per_core"],
        },
        "axon_in": [
            {
                "name": "in",
                "attributes": {
                    "energy_message_in": PICO * cost["packet_pj"]["in"],
                    "latency_message_in": NANO * cost["packet_ns"]["in"],
                },
            }
        ],
        "synapse": [
            {
                "name": kind,
                "attributes": {
                    "model": "current_based",
                    "energy_process_spike": PICO * cost["synop_pj"][kind],
                    "latency_process_spike": NANO * cost["synop_ns"][kind],
                },
            }
            for kind in cost["synop_pj"]
        ],
        "dendrite": [
            {
                "name": "dendrite",
                "attributes": {
                    "model": "accumulator_with_delay" if late else "accumulator",
                    "energy_update": 0.0,
                    "latency_update": 0.0,
                },
            }
        ],
        "soma": units,
        "axon_out": [
            {
                "name": "out",
                "attributes": {
                    "energy_message_out": PICO * cost["packet_pj"]["out"],
                    "latency_message_out": NANO * cost["packet_ns"]["out"],
                },
            }
        ],
    }
    return {"name": name, "attributes": hop, "core": [core]}


def build(network: Any, spec: dict[str, Any]) -> Any:
    """Neurons of every group and the synapses between them."""
    first, *others = spec["groups"]
    made = {first["name"]: inputs(network, first, spec["trains"])}
    for group in others:
        own = made[group["name"]] = network.create_neuron_group(
            group["name"],
            len(group["cores"]),
            model_attributes={
                "reset": 0.0,
                "reset_mode": "hard",
                "reverse_threshold": -1e12,
                "leak_decay": group["leak"],
                "input_decay": 0.0,
            },
            soma_hw_name="lif",
            log_spikes=True,
        )
        for j, threshold in enumerate(group["thresholds"]):
            own.neurons[j].set_attributes(model_attributes={"threshold": float(threshold)})
    for connection in spec["connections"]:
        target = made[connection["target"]]
        for neuron in target.neurons:
            neuron.set_attributes(default_synapse_hw_name=connection["kind"])
        attributes = {"weight": [float(w) for w in connection["weights"]]}
        if any(c["waits"] for c in spec["connections"]):
            attributes["delay"] = [connection["waits"]] * len(attributes["weight"])
        made[connection["source"]].connect_neurons_sparse(
            target, attributes, [tuple(pair) for pair in connection["pairs"]]
        )
    return network


def inputs(network: Any, group: dict[str, Any], trains: list[list[int]]) -> Any:
    """Neurons that replay spike trains."""
    made = network.create_neuron_group(group["name"], len(group["cores"]), log_spikes=True)
    used: dict[int, int] = {}
    for j, (core, train) in enumerate(zip(group["cores"], trains, strict=True)):
        unit = used[core] = used.get(core, -1) + 1
        made.neurons[j].set_attributes(
            soma_hw_name=f"input[{unit}]", model_attributes={"spikes": [bool(s) for s in train]}
        )
    return made


if __name__ == "__main__":
    main()
