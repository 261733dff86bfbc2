"""Runs NIR files in another tool, in an environment of its own; started by stl_deploy.consumers.

Usage: nir_consumer.py JOBS.json. The jobs are a list of {"tool", "file", "raster", "out"}: a NIR file, an
.npz with ``spikes`` [N, T, *shape], and the .npz to write: ``output`` [N, T, ...] of the graph's output and
``spikes/NODE`` of its spiking nodes, as the tool gives them. What becomes of each job goes to stdout,
one JSON object a line: ``error``, null or what the tool raised, and ``alone``, whether samples were run
one by one because the tool took no batch. Nothing of stl-deploy is imported.

STL_CONSUMER_SITES names folders that are searched after the environment's own, for torch and numpy.
"""

import contextlib
import inspect
import json
import logging
import os
import sys
import warnings

sys.path += os.environ["STL_CONSUMER_SITES"].split(os.pathsep)
warnings.simplefilter("ignore")

import nir  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402

DT = 1e-4
SPIKING = ("IF", "LIF", "CubaLIF", "Threshold")


def norse(graph, samples, steps):
    """Steps through time; the state is handed on. Its own dt would be 1e-3."""
    import norse.torch

    logging.disable(logging.WARNING)
    return _stepped(norse.torch.from_nir(graph, dt=DT))


def snntorch(graph, samples, steps):
    """Steps through time; states are in the modules, and in RLeaky's case in the graph's."""
    from snntorch.import_nir import import_from_nir

    return _stepped(import_from_nir(graph))


def spikingjelly(graph, samples, steps):
    """Steps through time; the state is handed on."""
    from spikingjelly.activation_based.nir_exchange import import_from_nir

    return _stepped(import_from_nir(graph, dt=DT))


def nirtorch(graph, samples, steps):
    """What nirtorch makes of a graph without the help of a tool."""
    from nirtorch import nir_to_torch

    return _stepped(nir_to_torch(graph, {}))


def sinabs(graph, samples, steps):
    """All steps of all samples at once, one after the other."""
    from sinabs.nir import from_nir

    model = from_nir(graph, batch_size=samples)

    def run(x):
        out = model(x.flatten(0, 1))
        out = out[0] if isinstance(out, tuple) else out
        return out.reshape(samples, steps, *out.shape[1:])

    return model, run


def rockpool(graph, samples, steps):
    """All steps of a batch at once."""
    from rockpool.nn.modules.torch import nir as rockpool_nir

    model = rockpool_nir.from_nir(graph)

    def run(x):
        out = model(x)
        return out[0] if isinstance(out, tuple) else out

    return model, run


TOOLS = {f.__name__: f for f in (norse, snntorch, spikingjelly, nirtorch, sinabs, rockpool)}


def _stepped(model):
    def run(x):
        state, outputs = None, []
        for t in range(x.shape[1]):
            out = model(x[:, t], state)
            out, state = out if isinstance(out, tuple) else (out, None)
            outputs.append(out.detach().clone())
        return torch.stack(outputs, 1)

    return model, run


def job(tool, file, raster, out):
    """Run one file on one raster; whether the samples had to be run one by one."""
    with np.load(raster, allow_pickle=False) as arrays:
        x = torch.from_numpy(arrays["spikes"].astype(np.float32))
    try:
        arrays, alone = _run(tool, file, x), False
    except Exception:
        if len(x) == 1:
            raise
        parts = [_run(tool, file, sample[None]) for sample in x]
        arrays = {key: np.stack([part[key] for part in parts]) for key in parts[0]}
        alone = True
    np.savez(out, **arrays)
    return alone


def _run(tool, file, x):
    """The output and the spikes of all nodes that could be watched, on a fresh model."""
    graph = _read(file)
    spiking = [n for n, node in graph.nodes.items() if type(node).__name__ in SPIKING]
    samples, steps = x.shape[:2]
    torch.manual_seed(0)  # for what a tool leaves as it was initialised
    model, run = TOOLS[tool](graph, samples, steps)
    seen, modules = {}, dict(model.named_modules())
    for name in spiking:
        if (module := modules.get(name.replace(".", "_"))) is not None:
            module.register_forward_hook(lambda *args, name=name: _note(seen, name, args[2]))
    with torch.no_grad():
        arrays = {"output": run(x).numpy()}
    for name, parts in seen.items():
        value = torch.stack(parts, 1) if len(parts) == steps else parts[0]
        shape = graph.nodes[name].output_type["output"]
        if value.numel() == samples * steps * int(np.prod(shape)):
            arrays[f"spikes/{name}"] = value.reshape(samples, steps, *shape).numpy()
    return arrays


def _read(file):
    """The graph, without nir's check of types: nir 1.0.8 errs on kernels that are not square."""
    if "type_check" in inspect.signature(nir.read).parameters:
        return nir.read(file, type_check=False)
    return nir.read(file)


def _note(seen, name, value):
    value = value[0] if isinstance(value, tuple) else value
    seen.setdefault(name, []).append(value.detach().clone())


def main():
    """All jobs, one after the other; one that fails does not stop the rest."""
    with open(sys.argv[1]) as file:
        jobs = json.load(file)
    answers, sys.stdout = sys.stdout, sys.stderr  # the tools print on stdout
    for each in jobs:
        answer = {"error": None}
        try:
            with contextlib.redirect_stdout(sys.stderr):
                answer["alone"] = job(**each)
        except Exception as raised:
            answer["error"] = f"{type(raised).__name__}: {raised}".strip().splitlines()[0]
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
