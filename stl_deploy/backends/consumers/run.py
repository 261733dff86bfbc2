"""Running a NIR file in the tools themselves, each in an environment of its own.

The environments hold the tools alone; torch, numpy and h5py are those that stl-deploy runs with, so that
setting one up takes seconds.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import nir
import numpy as np
from numpy.typing import NDArray

from stl_deploy.backends import tool_env
from stl_deploy.backends.consumers.file import File
from stl_deploy.backends.consumers.rules import Consumer
from stl_deploy.errors import BackendError, InputError, LoweringError, Problem
from stl_deploy.files import atomic, write
from stl_deploy.formats import raster as rasters
from stl_deploy.formats.raster_values import PAGE
from stl_deploy.hw_sim import reference
from stl_deploy.importers.nir import graph as nir_graph
from stl_deploy.ir import execute as float_exec
from stl_deploy.ir import floats
from stl_deploy.ir import nir_graph as G
from stl_deploy.ir.floats import FloatNetwork
from stl_deploy.ir.network import IntegerNetwork, Raster
from stl_deploy.ir.synapses import IntArray
from stl_deploy.ir.units import UNIT

WAIT_S = 600.0  # for another process that sets up the environment
RUN_S = 1800.0  # for all runs of one environment
Spikes = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Job:
    """A file in a tool, on one raster [N, T, *input_shape]."""

    consumer: Consumer
    path: Path
    spikes: IntArray


@dataclass(frozen=True)
class Seen:
    """What a tool made of a file.

    ``error`` is what it raised. ``output`` is what came out, [N, T, ...]; ``spikes`` those of the nodes
    that could be watched. ``alone`` says that the samples had to be run one by one.
    """

    error: str | None = None
    alone: bool = False
    output: NDArray[np.float32] | None = None
    spikes: dict[str, NDArray[np.float32]] | None = None

    def mismatches(self, expected: Spikes) -> dict[str, int] | None:
        """By spiking node, the entries that differ; the last one's are those of the output too.

        None where nothing came out, or not as many entries as there are.
        """
        if self.output is None or self.spikes is None or not expected:
            return None
        last = list(expected)[-1]
        if self.output.size != expected[last].size:
            return None
        counts = {
            name: int((self.spikes[name].reshape(spikes.shape) != spikes).sum())
            for name, spikes in expected.items()
            if name in self.spikes and self.spikes[name].size == spikes.size
        }
        wrong = int((self.output.reshape(expected[last].shape) != expected[last]).sum())
        return {**counts, last: max(wrong, counts.get(last, 0))}


def environment(name: str) -> tool_env.Environment:
    """The environment of the requirements file ``name``.txt; it may not be there yet."""

    def requirements() -> str:
        return (resources.files("stl_deploy.backends.consumers") / f"{name}.txt").read_text("utf-8")

    python = f"{sys.implementation.name} {sys.version_info.major}.{sys.version_info.minor} "
    key = hashlib.sha256((python + requirements()).encode()).hexdigest()
    cache = tool_env.cache("consumers")
    return tool_env.Environment(
        subject=f"NIR tools ({name})",
        size="about 15 MB",
        cache=cache,
        folder=cache / f"{name}-{key[:16]}",
        requirements=requirements,
        options=("--no-deps", "--require-hashes", "-r"),
        find_python=lambda: sys.executable,
        python_remedy="use a Python that can make environments",
        wait_s=WAIT_S,
    )


def steps(file: File, spikes: IntArray) -> IntArray:
    """What tools are given in each step [N, T, *shape]; a frame that is held is given in all of them.

    Raises InputError for a raster that does not fit, LoweringError where there are several inputs.
    """
    if len(file.inputs) != 1:
        what = f"has {len(file.inputs)} inputs; tools are given one"
        raise LoweringError(Problem(str(file.path), what))
    shape = G.in_shape(file.graph)
    if not rasters.as_input(spikes.shape[2:], shape):
        what = f"has inputs of shape {spikes.shape[2:]}, the graph {shape}"
        remedy = f"give samples, steps and {shape} values in each ({PAGE})"
        raise InputError(Problem("raster", what, remedy))
    spikes = rasters.laid_out(spikes, shape)
    if not file.held:
        return spikes
    if spikes.shape[1] != 1:
        what = f"has {spikes.shape[1]} steps; the input of this network is one frame"
        raise InputError(Problem("raster", what, "make it with stl-raster --held"))
    return np.broadcast_to(spikes, (len(spikes), file.held, *shape))


def expected(file: File, spikes: IntArray) -> Spikes:
    """What every population sends [N, T, *shape], as it ought to be, for the ``steps`` of a raster.

    The last entry is what comes out of the graph (see ``of_network``). It is that of hw_sim's reference for
    ``model.nir``, else of the graph's equations in float64: as they stand, or after the importer has lowered
    them, where its shapes are the lowered ones.

    Raises LoweringError for a graph that neither can run.
    """
    if file.network is not None:
        return of_network(file.network, spikes[:, :1] if file.held else spikes)
    graph = file.graph
    with np.errstate(over="ignore", invalid="ignore"):
        if not _runs_as_it_is(graph):
            levels = max(1, int(spikes.max(initial=1)))
            try:
                graph = nir_graph.to_float(graph, nir_graph.Options(levels=levels))
            except InputError as error:
                raise LoweringError(error.problems) from None
        return of_graph(floats.decode(graph), spikes)


def of_graph(network: FloatNetwork, raster: IntArray) -> Spikes:
    """The same of a float network (see ``of_network``)."""
    ran, readout = float_exec.trace(network, raster), network.readout
    found: Spikes = dict(ran.sent)
    last = found.pop(network.output)
    found[network.output] = last if network.by_name[network.output].neurons.fires else ran.v
    if readout is not None and readout.matrix is not None:
        votes = last.reshape(*last.shape[:2], -1) @ readout.matrix.T
        found["readout matrix"] = votes if readout.offset is None else votes + readout.offset
    return found


def of_network(network: IntegerNetwork, raster: Raster) -> Spikes:
    """What the populations of an integer network send, and last what NIR's nodes give at the output.

    That is v, in units of the threshold, where the last neurons have none, and the votes of a matrix.
    """
    readout, layers = network.readout, reference.run(network, raster, states=True).layers
    found: Spikes = {name: layer.spikes for name, layer in layers.items()}
    last, v = found.pop(readout.source), layers[readout.source].v
    if v is not None and not network.by_name[readout.source].neurons.fires:
        last = v / UNIT
    found[readout.source] = last
    if readout.matrix is not None:
        votes = last.reshape(*last.shape[:2], -1).astype(np.float64) @ readout.matrix.T
        found["readout matrix"] = votes if readout.offset is None else votes + readout.offset
    return found


def _runs_as_it_is(graph: nir.NIRGraph) -> bool:
    """Whether ``float_exec`` takes a graph that was not lowered."""
    # Where r is 1 everywhere the importer reads an IF as those do that write it.
    if any(isinstance(node, nir.IF) and (node.r == 1).all() for node in graph.nodes.values()):
        return False
    # Without metadata the weights of a readout are not told apart.
    (end,) = (name for name, node in graph.nodes.items() if isinstance(node, nir.Output))
    last = [graph.nodes[a] for a, b in graph.edges if b == end]
    if G.KEY not in graph.metadata and any(type(node) in floats.WAYS for node in last):
        return False
    try:
        floats.decode(graph)
    except (LoweringError, ValueError):
        return False
    return True


def run(jobs: Sequence[Job], say: tool_env.Say | None = None) -> list[Seen]:
    """Run every job, those of one environment one after the other in one process.

    Raises BackendError when an environment cannot be made or its process dies.
    """
    seen: dict[int, Seen] = {}
    for name in dict.fromkeys(job.consumer.environment for job in jobs):
        here = [i for i, job in enumerate(jobs) if job.consumer.environment == name]
        python = tool_env.ensure(environment(name), say)
        seen |= zip(here, _run([jobs[i] for i in here], python), strict=True)
    return [seen[i] for i in range(len(jobs))]


def _run(jobs: Sequence[Job], python: Path) -> list[Seen]:
    with tempfile.TemporaryDirectory(prefix="stl-consumer-") as name:
        folder = Path(name)
        saved: dict[int, str] = {}
        listed = []
        for i, job in enumerate(jobs):
            if id(job.spikes) not in saved:
                saved[id(job.spikes)] = str(folder / f"{i}.in.npz")
                with atomic(Path(saved[id(job.spikes)])) as temporary:
                    np.savez(temporary, spikes=job.spikes)
            listed.append(
                {
                    "tool": job.consumer.name,
                    "file": str(job.path.resolve()),
                    "raster": saved[id(job.spikes)],
                    "out": str(folder / f"{i}.out.npz"),
                }
            )
        write(folder / "jobs.json", json.dumps(listed).encode())
        where = ", ".join(dict.fromkeys(job.consumer.title for job in jobs))
        answers = _work(where, python, folder)
        if len(answers) != len(jobs):
            raise BackendError(
                Problem(where, f"ended after {len(answers)} of {len(jobs)} runs", "report it")
            )
        return [_seen(answer, folder / f"{i}.out.npz") for i, answer in enumerate(answers)]


def _work(where: str, python: Path, folder: Path) -> list[dict[str, object]]:
    script = folder / "nir_consumer.py"
    source = resources.files("stl_deploy.backends.consumers") / "templates" / script.name
    write(script, source.read_bytes())
    kept = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    sites = [p for p in sys.path if Path(p).name in ("site-packages", "dist-packages")]
    try:
        done = subprocess.run(
            [str(python), str(script), str(folder / "jobs.json")],
            cwd=folder,
            env={**kept, "OMP_NUM_THREADS": "1", "STL_CONSUMER_SITES": os.pathsep.join(sites)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=RUN_S,
        )
    except subprocess.TimeoutExpired:
        raise BackendError(
            Problem(where, f"took longer than {RUN_S:.0f} s", "run fewer samples (--limit)")
        ) from None
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        said = lines[-1].strip() if lines else f"exit code {done.returncode}"
        remedy = f"delete {python.parents[1]}; it is made again"
        if said.startswith("OSError"):
            remedy = f"free some space in {folder.parent}, or name another folder with TMPDIR"
        raise BackendError(Problem(where, f"failed: {said}", remedy))
    return [json.loads(line) for line in done.stdout.splitlines()]


def _seen(answer: dict[str, object], path: Path) -> Seen:
    if answer["error"] is not None:
        return Seen(error=str(answer["error"]))
    with np.load(path, allow_pickle=False) as arrays:
        spikes = {
            key.removeprefix("spikes/"): arrays[key] for key in arrays if key.startswith("spikes/")
        }
        return Seen(None, bool(answer["alone"]), arrays["output"], spikes)
