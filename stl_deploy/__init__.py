"""stl-deploy: trained spiking networks to neuromorphic hardware, with proof of how close they are.

    import stl_deploy as stl
    model = stl.load("model.pt")
    network = stl.quantize(stl.from_torch(model), chip="loihi2")
    stl.export(network, "loihi", "out")
    trace = stl.simulate(network, spikes)
    report = stl.parity(model, network, spikes)

Importing this module is light: torch, h5py and the rest are loaded by the first call that needs them.
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from stl_deploy import errors
from stl_deploy.checkout import find_rooms
from stl_deploy.errors import InputError, Problem, UncheckedWarning
from stl_deploy.formats import signatures
from stl_deploy.version import __version__

__all__ = [
    "__version__",
    "export",
    "from_nir",
    "from_torch",
    "load",
    "parity",
    "quantize",
    "read_as",
    "save_checkpoint",
    "simulate",
]

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import nir
    import torch
    from numpy.typing import ArrayLike, NDArray

    from stl_deploy.exporters.folder import export
    from stl_deploy.formats.checkpoint import save_checkpoint
    from stl_deploy.hw_sim.reference import Trace
    from stl_deploy.importers.given import Reset, Tool
    from stl_deploy.importers.given import Spikes as SpikesAStep
    from stl_deploy.importers.torch.net import Lowered
    from stl_deploy.ir.network import IntegerNetwork
    from stl_deploy.ir.notes import Diagnostic
    from stl_deploy.ir.read_as import ReadAs
    from stl_deploy.ir.readouts import Rule
    from stl_deploy.lower.quantize import quantize
    from stl_deploy.models.net import STLNet
    from stl_deploy.verify.against_float import ParityReport

A_PATH = "a path"
FLOAT_FIRST = "give the network that quantize makes of a float graph"

find_rooms(Path(__file__).resolve().parent)

_LAZY = {
    "export": "stl_deploy.exporters.folder",
    "quantize": "stl_deploy.lower.quantize",
    "save_checkpoint": "stl_deploy.formats.checkpoint",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'stl_deploy' has no attribute {name!r}")
    value = getattr(import_module(_LAZY[name]), name)
    globals()[name] = value
    return value


def load(path: str | Path) -> STLNet | IntegerNetwork:
    """A PyTorch model from a checkpoint (evaluation mode), an integer network from a NIR file.

    Raises InputError naming every problem of the file.
    """
    errors.expect("path", path, (str, Path), A_PATH, "name a .pt or .nir file")
    if signatures.is_nir(Path(path)):
        from stl_deploy.formats.integer_nir import read_network

        return read_network(Path(path))
    from stl_deploy.importers import stl
    from stl_deploy.importers.read import refuse_snntorch
    from stl_deploy.models.net import from_params

    refuse_snntorch(Path(path))
    checkpoint = stl.read(Path(path))
    return from_params(checkpoint.arch, checkpoint.params)


def from_torch(
    model: STLNet | torch.nn.Module,
    sample: torch.Tensor | None = None,
    *,
    timesteps: int | None = None,
    classes: int | None = None,
    levels: int = 1,
    signed: bool = False,
    normalize: tuple[float | Sequence[float], float | Sequence[float]] | None = None,
) -> nir.NIRGraph:
    """The lowered float NIR graph of a model. Raises LoweringError naming every problem.

    Args:
        model: an ``STLNet``, which needs nothing else, or a module with snnTorch neurons.
        sample: an input of that module, [batch, ...], or with time before or behind the batch where its
            ``forward`` takes time apart by x[t] or x[:, t]. Values do not matter.
        timesteps: T of the network; default the steps of a loop in ``forward``, else 4.
        classes: the last neurons are that many groups, each voting for a class; default one each.
        levels: inputs are whole numbers 0..levels; 1 for spikes. With ``signed`` -levels..levels.
        normalize: (mean, std), one number or one for each channel, of a module that was trained on
            (x / levels - mean) / std of those whole numbers.
    """
    from stl_deploy.importers import stl
    from stl_deploy.lower.graph import lower

    if sample is not None:
        import torch

        from stl_deploy.importers.given import Normalize
        from stl_deploy.importers.nir import graph as nir_graph
        from stl_deploy.importers.torch import net as torch_net

        errors.expect(
            "model", model, torch.nn.Module, "a torch.nn.Module", "give the network itself"
        )
        options = nir_graph.Options(
            timesteps=timesteps,
            classes=classes,
            levels=levels,
            signed=signed,
            normalize=None if normalize is None else Normalize.given(normalize),
        )
        graph = torch_net.from_net(model, sample, options)
        _warn(_assumed(graph, type(model).__name__))
        return graph
    params = stl.params_of(model)
    return lower(stl.to_graph(cast("STLNet", model).arch, params))


def from_nir(
    source: str | Path | nir.NIRGraph,
    *,
    dt: float | None = None,
    reset: Reset | None = None,
    written_by: Tool | None = None,
    spikes: SpikesAStep | None = None,
    timesteps: int | None = None,
    classes: int | None = None,
    levels: int = 1,
    signed: bool = False,
    normalize: tuple[float | Sequence[float], float | Sequence[float]] | None = None,
    readout: Rule | None = None,
    steps: Sequence[float] | None = None,
) -> nir.NIRGraph:
    """The lowered float NIR graph of a NIR file or graph of any tool; of a model.float.nir, what it holds.

    Args:
        source: a file, read as untrusted data, or a graph.
        dt: seconds of a time step, by which time constants are read (forward Euler), default 1e-4.
        reset: "zero" (to v_reset) or "subtract", for populations that do not state theirs; default "zero".
        written_by: "norse", "rockpool" or "sinabs", for a file of theirs to be read as they compute it
            (docs/import-nir.md); default: as NIR's equations have it.
        spikes: "one" or "many" in a step; "many" is refused unless the weights exclude it. Default "one", or
            what the tool does by default that wrote the file.
        timesteps: T of the network, default 4.
        readout: how classes are scored: by "votes" of spikes, the "first" spike, or v of the "last" step, its
            "mean" or its "max" over time. Default: the last v of neurons without a threshold, the mean
            of weights behind the last neurons, else votes.
        steps: the weight of each time step in votes, default 1; of a graph by another tool.
        classes, levels, signed, normalize: as in ``from_torch``.

    ``read_as`` says how each population was read. Warns (UncheckedWarning) of resets, T and readouts that the
    source does not state. Raises InputError for a broken file, LoweringError for a network that cannot be
    lowered, each naming every problem.
    """
    import nir

    from stl_deploy.formats import integer_meta, nir_io
    from stl_deploy.importers import read as models
    from stl_deploy.importers.given import Given, Normalize
    from stl_deploy.importers.nir import graph as nir_graph
    from stl_deploy.ir.nir_graph import KEY

    errors.expect(
        "source", source, (str, Path, nir.NIRGraph), "a path or a NIR graph", "give one of these"
    )
    options = nir_graph.Options(
        dt=dt,
        reset=reset,
        written_by=written_by,
        spikes=spikes,
        timesteps=timesteps,
        classes=classes,
        levels=levels,
        signed=signed,
        normalize=None if normalize is None else Normalize.given(normalize),
        readout=readout,
        steps=None if steps is None else tuple(map(float, steps)),
    )
    if isinstance(source, str | Path):
        graph = nir_io.read(Path(source))
        if integer_meta.holds_integers(graph):
            what = "contains integers, which need no lowering"
            raise InputError(Problem(str(source), what, "read it with stl_deploy.load"))
        if KEY in graph.metadata:
            if steps is not None:
                what = "goes with graphs of other tools; this one says how its steps count"
                raise InputError(Problem("steps", what, "omit it"))
            given = Given(
                dt=dt,
                reset=reset,
                written_by=written_by,
                spikes=spikes,
                timesteps=timesteps,
                classes=classes,
                levels=None if levels == 1 else levels,
                signed=signed or None,
                normalize=options.normalize,
                readout=readout,
            )
            own = models.read(Path(source), given).graph
            assert own is not None
            return own
        lowered = nir_graph.read(Path(source), options, graph)
    else:
        if KEY in source.metadata:
            what = "is a graph of stl-deploy already, whose T, levels and readout would be lost"
            raise InputError(Problem("source", what, "use it as it is, or name its file"))
        graph, lowered = source, nir_graph.to_float(source, options)
    name = "graph" if isinstance(source, nir.NIRGraph) else Path(source).name
    _warn((*_assumed(lowered, name), *nir_graph.notes(graph, lowered, options)))
    return lowered


def read_as(source: nir.NIRGraph | IntegerNetwork) -> tuple[ReadAs, ...]:
    """How the populations of a float graph, or of the network made of it, were read; empty if not known."""
    import nir

    from stl_deploy.ir.network import IntegerNetwork
    from stl_deploy.ir.nir_graph import float_meta

    remedy = "give what from_nir, from_torch, quantize or load makes"
    errors.expect(
        "source", source, (nir.NIRGraph, IntegerNetwork), "a float graph or a network", remedy
    )
    return source.read_as if isinstance(source, IntegerNetwork) else float_meta(source).read_as


def _assumed(graph: nir.NIRGraph, where: str) -> tuple[Diagnostic, ...]:
    """That resets or T of ``graph`` were assumed; dt alone has a default that NIR's readers share."""
    from stl_deploy.report import reading

    takes = ("reset", "dt", "timesteps")
    return reading.note(read_as(graph), where, takes, python=True, unless=frozenset({"dt"}))


def _warn(notes: Sequence[Diagnostic]) -> None:
    """Warn whoever called the function that calls this."""
    for note in notes:
        text = str(Problem(note.where, note.what, note.remedy))
        warnings.warn(text, UncheckedWarning, stacklevel=3)


def simulate(
    network: IntegerNetwork, spikes: ArrayLike | Mapping[str, ArrayLike], states: bool = False
) -> Trace:
    """Run the integer network on a raster, all samples at once.

    Args:
        spikes: [N, T, *input_shape], or by name one for each of several inputs; [N, 1, *input_shape] of an
            input that is held. Whole numbers of any type, as numpy, torch or lists (docs/rasters.md).
        states: whether the trace, which holds the spikes of every population as [N, T, *shape], also holds
            u and v.
    """
    from stl_deploy.formats.raster import Raster, check_fits
    from stl_deploy.hw_sim import engine
    from stl_deploy.ir.network import IntegerNetwork

    errors.expect("network", network, IntegerNetwork, "an integer network", FLOAT_FIRST)
    raster = check_fits(Raster.given(spikes), "spikes", network)
    return engine.run(network, raster.spikes, states)


def parity(
    model: STLNet | nir.NIRGraph | torch.nn.Module,
    network: IntegerNetwork,
    spikes: ArrayLike | Mapping[str, ArrayLike],
    labels: ArrayLike | None = None,
    *,
    sample: torch.Tensor | None = None,
    normalize: tuple[float | Sequence[float], float | Sequence[float]] | None = None,
    expect: str | Path | Mapping[str, NDArray[Any]] | None = None,
) -> ParityReport:
    """Measure how far ``network`` is from ``model`` on a raster, given as to ``simulate``.

    Args:
        labels: [N], whole numbers from 0.
        model: an ``STLNet``, a lowered float graph of ``from_torch`` or ``from_nir``, or with ``sample`` a
            module with neurons of another library, which then runs on the spikes itself.
        sample, normalize: as in ``from_torch``.
        expect: what the network sent on these spikes in its own tool: a file, or arrays by the names of
            docs/recordings.md. The float graph must equal it; ``expected.check()`` of the report raises
            ReadingError where it does not.
    """
    import nir

    from stl_deploy.formats import recording as recordings
    from stl_deploy.formats.raster import Raster, check_fits
    from stl_deploy.ir.network import IntegerNetwork
    from stl_deploy.models.net import STLNet
    from stl_deploy.verify import against_network, against_recording
    from stl_deploy.verify.against_float import compare

    remedy = "give the graph that from_torch(net, sample) or from_nir makes"
    errors.expect("network", network, IntegerNetwork, "an integer network", FLOAT_FIRST)
    raster = check_fits(Raster.given(spikes, labels), "spikes", network)
    live = None
    if sample is not None:
        found = _imported(cast("torch.nn.Module", model), sample, network, normalize)
        model, live = found.graph, found.live
    errors.expect("model", model, (nir.NIRGraph, STLNet), "a float graph or an STLNet", remedy)
    own = None if isinstance(model, nir.NIRGraph) else cast("STLNet", model)
    graph = model if isinstance(model, nir.NIRGraph) else from_torch(model)
    itself = expected = None
    if live is not None:
        itself = against_network.compare(live, graph, raster.only("spikes"))
        for note in itself.notes:
            text = f"{note.where}: {note.what} -> {note.remedy}"
            warnings.warn(text, UncheckedWarning, stacklevel=2)
    if expect is not None:
        expected = against_recording.compare(graph, raster.spikes, recordings.given(expect))
    report = compare(own, graph, network, raster)
    return replace(report, expected=expected).with_network(itself)


def _imported(
    model: torch.nn.Module,
    sample: torch.Tensor,
    network: IntegerNetwork,
    normalize: tuple[float | Sequence[float], float | Sequence[float]] | None,
) -> Lowered:
    """A module of another library, read with the steps, classes and inputs of ``network``."""
    from stl_deploy.importers.given import Normalize
    from stl_deploy.importers.nir.graph import Options
    from stl_deploy.importers.torch.net import lowered

    ports = network.inputs.values()
    options = Options(
        timesteps=network.timesteps,
        classes=network.readout.classes,
        levels=max(port.levels for port in ports),
        signed=any(port.signed for port in ports),
        normalize=None if normalize is None else Normalize.given(normalize),
    )
    return lowered(model, sample, options)
