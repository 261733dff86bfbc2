"""The integer network as a NIR graph and back; NIR files read as untrusted data.

Each input is an Input node. Each population is a LIF, IF or CubaLIF node, LI, I or CubaLI if it has no
threshold, or Threshold(0) if it is an OR. The readout's source leads to the only Output, through a Linear
(Affine with an offset) where the readout has a matrix. A connection is a node of weights with
an edge from its source and an edge to its target: Conv2d, Linear (Affine with a bias), Scale for
one-to-one weights, and SumPool2d where an OR population counts spikes in windows. Several connections
into a population are several edges into its node. Connections that share name and weights are several
edges into one node of weights.

- A Flatten precedes weights that take a flat input.
- What a Linear or Scale gives may have another shape than its target: it is taken in C order, because
  NIR has no node that reshapes a flat value.
- A connection with a delay leads through a Delay of delay * dt seconds. What a population sends itself
  arrives one step later without a Delay, and with one, that late.

Units (dt = 1e-4): ``v_threshold`` int32 = vth behind NIR's strict >; ``v_reset`` = 0, or with the reset
"constant" v_reset / 2^6; ``tau`` = dt*4096/dv and ``r`` = (4096/dv)*2^exp, so that NIR's equation gives
v = v*(4096-dv)/4096 + 2^exp * I. Here exp is the smallest exponent of all connections into the population.
The weights of the others are written times the power of two that is missing (int32; otherwise int8 or int16
as in the network). Where dv differs from neuron to neuron, tau and r do.

Neurons that remember a current (du not 4095) are a CubaLIF: ``tau_syn`` = dt*4096/(du+1) and ``w_in`` =
4096/(du+1), so that NIR's equation gives I = I*(4096-(du+1))/4096 + S and the rest is as above.

Neurons without a leak (dv 0) are an IF (I) with ``r`` = 2^exp/dt. An IF has no current and no bias, and all
its neurons are alike. Where that does not do, tau is dt * 2^83: such a leak is less than the last bit
of any v in float64.

The bias is added to v after the current. It is ``bias`` = (mant << bias_exp)/2^(6+exp) of the first
node of weights that can hold it: without a delay, not from the population itself, and for a Conv2d the
same for all neurons of a channel. If there is none, and always with a current, it is ``v_leak`` = (mant
<< bias_exp)/2^6 * 4096/dv.

NIR has no sparse connections, which a folded convolution becomes. They are in the ``metadata`` of its
Conv2d node: ``row`` (neuron) and ``column`` (input) int32 [n], both in C order, and ``weight`` [n];
``bias`` is the convolution's own. The nodes themselves are the convolution before rounding: a Conv2d of
float64, and a Scale that brings the inputs of each neuron to its unit.

What NIR cannot say is in one JSON string (``IntegerMeta``), among it the other resets, and in integer arrays
in the ``metadata`` of neurons (``integer_rules.py``) and of the Output (``integer_readout.py``). The loader
rebuilds the integers from arrays and JSON, and refuses what is not an integer or contradicts.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import nir

from stl_deploy.chips import facts as chips
from stl_deploy.errors import InputError, LoweringError, Problem
from stl_deploy.formats import integer_placement
from stl_deploy.formats import integer_readout as readouts
from stl_deploy.formats import integer_rules as rules
from stl_deploy.formats.integer_meta import IntegerMeta, read_meta
from stl_deploy.formats.integer_read import BROKEN, Reader
from stl_deploy.formats.integer_write import NEURONS, SYNAPSES, Writer
from stl_deploy.formats.nir_io import read
from stl_deploy.ir import kinds
from stl_deploy.ir.network import IntegerNetwork
from stl_deploy.ir.notes import Diagnostic, Precision, Rounding

WHO = "model.nir"


def to_nir(network: IntegerNetwork) -> nir.NIRGraph:
    """The NIR graph that carries ``network``. Raises LoweringError naming what NIR cannot."""
    if problems := unsupported(network):
        raise LoweringError(problems)
    return Writer(network).graph()


def unsupported(network: IntegerNetwork) -> list[Problem]:
    """The neurons and synapses that no node of NIR is written for, and values out of their range."""
    found = [
        problem
        for population in network.populations
        for problem in kinds.unsupported(network, population, NEURONS, SYNAPSES, WHO, kinds.TABLE)
    ]
    if found:
        return found
    found = [p for population in network.weighted for p in rules.problems(network, population)]
    return found + readouts.problems(network)


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
    if reader.problems or reader.readout is None:
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
            readout=reader.readout,
            lowering=meta.lowering,
            lowering_reason=meta.lowering_reason,
            rounding={n: Rounding(**r.model_dump()) for n, r in meta.rounding.items()},
            precision={n: Precision(**p.model_dump()) for n, p in meta.precision.items()},
            diagnostics=tuple(Diagnostic(*d) for d in meta.diagnostics),
            read_as=meta.read_as,
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
