"""Runs NIR files in other tools, in an environment of their own; started by stl_deploy.consumers.run.

Usage: nir_consumer.py JOBS.json. The jobs are a list of {"tool", "file", "raster", "out"}: a NIR file, an
.npz with ``spikes`` [N, T, *shape], and the .npz to write: ``output`` [N, T, ...] of the graph's output and
``spikes/NODE`` of its spiking nodes, as the tool gives them. What becomes of each job goes to stdout,
one JSON object a line: ``error``, null or what the tool raised, and ``alone``, whether samples were run
one by one because the tool took no batch. Nothing of stl-deploy is imported.

STL_CONSUMER_SITES names folders that are searched after the environment's own, for torch and numpy.
"""

from __future__ import annotations

import contextlib
import inspect
import json
import logging
import os
import sys
import warnings
from collections.abc import Callable
from importlib import import_module
from typing import Any

sys.path += os.environ["STL_CONSUMER_SITES"].split(os.pathsep)
warnings.simplefilter("ignore")

import nir  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402

DT = 1e-4
SPIKING = ("IF", "LIF", "CubaLIF", "Threshold")
Run = Callable[[torch.Tensor], torch.Tensor]  # [N, T, ...] -> [N, T, ...]
Made = tuple[torch.nn.Module, Run]


def norse(graph: Any, samples: int, steps: int) -> Made:
    """Steps through time; the state is handed on. Its own dt would be 1e-3."""
    logging.disable(logging.WARNING)
    return _stepped(import_module("norse.torch").from_nir(graph, dt=DT))


def snntorch(graph: Any, samples: int, steps: int) -> Made:
    """Steps through time; states are in the modules."""
    return _stepped(import_module("snntorch.import_nir").import_from_nir(graph))


def spikingjelly(graph: Any, samples: int, steps: int) -> Made:
    """Steps through time; the state is handed on."""
    module = import_module("spikingjelly.activation_based.nir_exchange")
    return _stepped(module.import_from_nir(graph))


def nirtorch(graph: Any, samples: int, steps: int) -> Made:
    """What nirtorch makes of a graph without the help of a tool."""
    return _stepped(import_module("nirtorch").nir_to_torch(graph, {}))


def sinabs(graph: Any, samples: int, steps: int) -> Made:
    """All steps of all samples at once, one after the other."""
    model = import_module("sinabs.nir").from_nir(graph, batch_size=samples)

    def run(x: torch.Tensor) -> torch.Tensor:
        out = _first(model(x.flatten(0, 1)))
        return out.reshape(samples, steps, *out.shape[1:])

    return model, run


def rockpool(graph: Any, samples: int, steps: int) -> Made:
    """All steps of a batch at once."""
    model = import_module("rockpool.nn.modules.torch.nir").from_nir(graph)
    return model, lambda x: _first(model(x))


TOOLS: dict[str, Callable[[Any, int, int], Made]] = {
    function.__name__: function
    for function in (norse, snntorch, spikingjelly, nirtorch, sinabs, rockpool)
}


def _stepped(model: Any) -> Made:
    def run(x: torch.Tensor) -> torch.Tensor:
        state, outputs = None, []
        for t in range(x.shape[1]):
            out = model(x[:, t], state)
            out, state = out if isinstance(out, tuple) else (out, None)
            # A tool that flattens the dimension of a batch gives back none.
            outputs.append(out.detach().clone().reshape(len(x), -1))
        return torch.stack(outputs, 1)

    return model, run


def _first(value: Any) -> torch.Tensor:
    first: torch.Tensor = value[0] if isinstance(value, tuple) else value
    return first.detach().clone()


def job(tool: str, file: str, raster: str) -> tuple[dict[str, Any], bool]:
    """Run one file on one raster: what was found, and whether the samples had to be run one by one."""
    with np.load(raster, allow_pickle=False) as arrays:
        x = torch.from_numpy(arrays["spikes"].astype(np.float32))
    try:
        found, alone = _run(tool, file, x), False
    except Exception:
        if len(x) == 1:
            raise
        parts = [_run(tool, file, sample[None]) for sample in x]
        found = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
        alone = True
    return found, alone


def _run(tool: str, file: str, x: torch.Tensor) -> dict[str, Any]:
    """The output and the spikes of all nodes that could be watched, on a fresh model."""
    graph = _read(file)
    spiking = [n for n, node in graph.nodes.items() if type(node).__name__ in SPIKING]
    samples, steps = x.shape[:2]
    torch.manual_seed(0)  # for what a tool leaves as it was initialised
    model, run = TOOLS[tool](graph, samples, steps)
    seen: dict[str, list[torch.Tensor]] = {}
    modules = dict(model.named_modules())
    for name in spiking:
        if (module := modules.get(name.replace(".", "_"))) is not None:
            module.register_forward_hook(
                lambda *args, name=name: seen.setdefault(name, []).append(_first(args[2]))
            )
    with torch.no_grad():
        arrays = {"output": run(x).numpy()}
    for name, parts in seen.items():
        by_step = [part.reshape(samples, -1) for part in parts]
        value = torch.stack(by_step, 1) if len(parts) == steps else parts[0]
        shape = graph.nodes[name].output_type["output"]
        if value.numel() == samples * steps * int(np.prod(shape)):
            arrays[f"spikes/{name}"] = value.reshape(samples, steps, *shape).numpy()
    return arrays


def _read(file: str) -> Any:
    """The graph, without nir's check of types: nir 1.0.8 errs on kernels that are not square."""
    if "type_check" in inspect.signature(nir.read).parameters:
        return nir.read(file, type_check=False)
    return nir.read(file)


def main() -> None:
    """All jobs, one after the other; one that fails does not stop the rest."""
    with open(sys.argv[1]) as file:
        jobs = json.load(file)
    answers, sys.stdout = sys.stdout, sys.stderr  # the tools print on stdout
    for each in jobs:
        answer: dict[str, Any] = {"error": None}
        out = each.pop("out")
        try:
            with contextlib.redirect_stdout(sys.stderr):
                found, answer["alone"] = job(**each)
        except Exception as raised:
            answer["error"] = f"{type(raised).__name__}: {raised}".strip().splitlines()[0]
        else:
            np.savez(out, **found)  # outside: a full disk is not the tool's fault
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
