"""The integer network as a NIR graph and back; NIR files read as untrusted data.

Every input is an Input node, every population a LIF, IF, CubaLIF or, where it is an OR, Threshold(0); the spikes
of the readout's source go to the one Output. A connection is a node of weights with an edge from its source and one
to its target: Conv2d, Linear (Affine with a bias), Scale where it leads from each neuron to the one in its
place, SumPool2d where an OR population counts spikes in windows. Several connections into a population are
several edges into its node. Those that share name and weights are several edges into one node of weights.

- A Flatten stands before weights that take a flat input. What a Linear or Scale gives in another shape than that of
  its target is taken in C order: NIR knows no node that brings a flat population into another shape.
- Between a source and the weights of connections with a delay stands a Delay of delay * dt seconds. What a
  population sends itself arrives one step later without one; with a Delay, that late.

Units (dt = 1e-4): ``v_threshold`` int32 = vth behind NIR's strict >; ``v_reset`` = 0; ``tau`` =
dt*4096/dv and ``r`` = (4096/dv)*2^exp, so that NIR's equation gives v = v*(4096-dv)/4096 + 2^exp * I. ``exp`` is the
smallest of the connections into the population; the weights of another count 2^(its own - exp) more, and are
written so (int8 or int16 as in the network, int32 with such a factor). Decays differ from neuron to neuron as tau and r do.
Neurons without a leak (dv 0) are an IF with ``r`` = 2^exp/dt. Where they have no such word (with a current, beside
neurons that leak, with a bias that no weights can have) their tau is dt * 2^83: what a step of it takes of v is less than
any float64 holds of it.

Neurons that remember a current (du not 4095) are a CubaLIF: ``tau_syn`` = dt*4096/(du+1) and ``w_in`` =
4096/(du+1), so that NIR's equation gives I = I*(4096-(du+1))/4096 + S and the rest is as above.

The bias is added to v past the current. It stands where NIR adds it to v: as ``bias`` = (mant << bias_exp) /
2^(6+exp) of the first weights into the population that come without a delay from elsewhere and that can have it
(of a Linear any; of a Conv2d one that is the same within a channel), else, and always with a current, as ``v_leak`` =
(mant << bias_exp)/2^6 * 4096/dv.

NIR knows no single connections, which a folded convolution becomes. They stand in the ``metadata`` of its
Conv2d node: ``row`` (neuron) and ``column`` (input) int32 [n], both in C order, and ``weight`` [n]; ``bias`` is
that of the convolution. The nodes themselves say the same before rounding: a Conv2d of float64 and a Scale
behind it, which brings each neuron's inputs to its own unit.

What NIR cannot say stands in one JSON string (``IntegerMeta``), the reset by subtraction among it. The loader rebuilds
the integers from both and refuses what is not an integer or contradicts.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import nir

from stl_deploy.chips import facts as chips
from stl_deploy.errors import InputError, LoweringError, Problem
from stl_deploy.formats import integer_placement
from stl_deploy.formats.integer_meta import IntegerMeta, read_meta
from stl_deploy.formats.integer_read import BROKEN, Reader
from stl_deploy.formats.integer_write import NEURONS, SYNAPSES, Writer
from stl_deploy.formats.nir_io import read
from stl_deploy.ir import kinds
from stl_deploy.ir.network import IntegerNetwork, Readout
from stl_deploy.ir.notes import Diagnostic, Precision, Rounding

WHO = "model.nir"


def to_nir(network: IntegerNetwork) -> nir.NIRGraph:
    """The NIR graph that carries ``network``. Raises LoweringError naming what NIR cannot."""
    problems = [
        problem
        for population in network.populations
        for problem in kinds.unsupported(network, population, NEURONS, SYNAPSES, WHO)
    ]
    if problems:
        raise LoweringError(problems)
    return Writer(network).graph()


def _chip(meta: IntegerMeta, where: str) -> chips.Chip:
    """The chip of the file. Raises InputError where it is not known, or its facts are not right."""
    if meta.chip_facts is not None:
        chip = chips.check(meta.chip_facts, f"{where}: chip_facts")
        if chip.name != meta.chip:
            what = f"are those of {chip.name!r}, and the network is for {meta.chip!r}"
            raise InputError(Problem(f"{where}: chip_facts", what))
        return chip
    if meta.chip not in chips.names():
        raise InputError(
            Problem(f"{where}: chip", f"{meta.chip!r} is not one of {', '.join(chips.names())}")
        )
    return chips.load(meta.chip)


def from_nir(graph: nir.NIRGraph, where: str = "graph") -> IntegerNetwork:
    """Rebuild the integer network. Raises InputError naming everything that is off."""
    meta = read_meta(graph, where)
    chip = _chip(meta, where)
    try:
        reader = Reader(graph, meta, chip)
        connections = reader.read()
    except BROKEN as error:
        # What shapes and types from a broken file can do to arithmetic on them.
        raise InputError(Problem(where, f"contains an invalid node: {error}")) from None
    if reader.problems:
        found = dict.fromkeys((f"{where}: {p.where}", p.what, p.remedy) for p in reader.problems)
        raise InputError([Problem(*problem) for problem in found])
    try:
        network = IntegerNetwork(
            chip=chip.name,
            chip_facts=chips.carried(chip),
            timesteps=meta.timesteps,
            inputs=reader.inputs,
            populations=tuple(reader.populations),
            connections=tuple(connections),
            readout=Readout(meta.readout.classes, meta.readout.population, meta.readout.source),
            lowering=meta.lowering,
            lowering_reason=meta.lowering_reason,
            rounding={n: Rounding(**r.model_dump()) for n, r in meta.rounding.items()},
            precision={n: Precision(**p.model_dump()) for n, p in meta.precision.items()},
            diagnostics=tuple(Diagnostic(*d) for d in meta.diagnostics),
        )
    except ValueError as error:
        raise InputError(Problem(f"{where}: metadata", str(error))) from None
    if meta.placement is None:
        return network
    try:
        return replace(
            network, placement=integer_placement.from_meta(meta.placement, network, chip)
        )
    except ValueError as error:
        raise InputError(
            Problem(
                f"{where}: placement", str(error), "was the file changed by hand? export it again"
            )
        ) from None


def read_network(path: Path) -> IntegerNetwork:
    """The integer network in ``path``. Raises InputError naming everything that is off."""
    return from_nir(read(path), str(path))
