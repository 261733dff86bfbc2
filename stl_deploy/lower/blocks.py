"""The float graph as blocks for the quantizer: one weight node and the neurons behind it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import nir
import numpy as np
from numpy.typing import NDArray

from stl_deploy.errors import LoweringError, Problem
from stl_deploy.ir import nir_graph as G
from stl_deploy.ir.network import OrPool, Reset

Float = NDArray[np.float64]
NAMED = 5  # neurons that a message lists before it says "..."


@dataclass(frozen=True)
class Block:
    """One weight node and the neurons behind it, in float, as v counts.

    ``gain`` is what turns the sums of the graph into that, ``decay`` and ``current_decay`` what a step
    leaves of v and of the current, before they are rounded to ``dv`` and ``du``.
    """

    name: str
    synapse_name: str
    node: nir.ir.NIRNode
    weight: Float
    bias: Float
    threshold: Float
    dv: int
    decay: float
    gain: float
    input_shape: tuple[int, ...]
    du: int = 4095
    current_decay: float = 0.0
    recurrent: Float | None = None
    recurrent_name: str = ""
    reset: Reset = "zero"


def read_blocks(graph: nir.NIRGraph) -> list[Block | OrPool]:
    """Pair the nodes of the chain up. Raises LoweringError naming every node that does not fit."""
    out: list[Block | OrPool] = []
    problems: list[Problem] = []
    beside = G.recurrent(graph)
    shape = population = G.in_shape(graph)
    pending: tuple[str, nir.ir.NIRNode] | None = None
    for name, node in G.inner(graph).items():
        try:
            after = G.node_output(name, node, shape)
        except ValueError as error:
            what = str(error).removeprefix(f"{name}: ")
            raise LoweringError([*problems, Problem(name, what)]) from None
        match pending, node:
            case None, nir.Flatten():
                pass
            case None, nir.Conv2d() | nir.Linear() | nir.Affine() | nir.SumPool2d():
                pending = (name, node)
            case (
                (synapse, nir.Conv2d() | nir.Linear() | nir.Affine() as source),
                nir.LIF() | nir.IF() | nir.CubaLIF(),
            ):
                try:
                    block = _block(name, node, synapse, source, population)
                    out.append(_with_recurrent(block, beside.get(name)))
                except LoweringError as error:
                    problems += error.problems
                pending, population = None, after
            case (pool, nir.SumPool2d() as source), nir.Threshold() if (node.threshold < 1).all():
                kernel = G.pair(source.kernel_size)
                out.append(OrPool(name, pool, population, after, kernel))
                if G.pair(source.stride) != kernel or G.pair(source.padding) != (0, 0):
                    problems.append(Problem(pool, "pooling windows overlap or are padded"))
                pending, population = None, after
            case _:
                before = pending[0] if pending else "spikes"
                problems.append(
                    Problem(
                        name,
                        f"{type(node).__name__} follows {before}; what can be lowered is "
                        "convolution or linear -> LIF, IF or CubaLIF, and max pooling of spikes",
                    )
                )
                pending = None
        shape = after
    if pending is not None:
        problems.append(Problem(pending[0], "has no neurons behind it"))
    if problems:
        raise LoweringError(problems)
    return out


def _block(
    name: str,
    node: G.Neurons,
    synapse: str,
    source: nir.ir.NIRNode,
    input_shape: tuple[int, ...],
) -> Block:
    """The block in the units of v. Raises LoweringError with all that the neurons cannot have."""
    cuba = isinstance(node, nir.CubaLIF)
    current = G.DT / node.tau_syn if cuba else np.ones(1)
    if isinstance(node, nir.IF):
        step, gain, dv = np.zeros(1), G.DT * node.r, np.zeros(1)
    else:
        step = G.DT / (node.tau_mem if cuba else node.tau)
        gain = step * node.r * (current * node.w_in if cuba else 1)
        # dv = 0 would be no leak and 4096 does not fit 12 bits; what rounding changes is reported.
        dv = np.clip(np.rint(4096 * step), 1, 4095)
    leaks = not isinstance(node, nir.CubaLIF | nir.IF) and (node.v_leak != 0).any()
    du = np.clip(np.rint(4096 * current) - 1, 0, 4095)
    problems = []
    if (node.v_reset != 0).any() or leaks:
        problems.append(Problem(name, "v_leak or v_reset is not zero"))
    constants = [] if isinstance(node, nir.IF) else [("tau", step, dv), ("tau_syn", current, du)]
    for tau, decays, rounded in constants:
        if np.ptp(rounded) != 0 or not (decays.min() > 0 and decays.max() <= 1):
            problems.append(
                Problem(
                    name,
                    f"decay 1 - dt/{tau} from {(1 - decays).min():g} to {(1 - decays).max():g}; one "
                    "value a layer, from 0 to less than 1, can be held",
                    f"give all neurons of the layer one {tau}",
                )
            )
    if np.ptp(gain) > 1e-12 * np.abs(gain).max() or not gain.flat[0] > 0:
        what = "w_in * dt / tau_syn * r * dt / tau_mem" if cuba else "r * dt / tau"
        what = "r * dt" if isinstance(node, nir.IF) else what
        problems.append(Problem(name, f"{what} differs between neurons or is not positive"))
    weight = source.weight.astype(np.float64) * gain.flat[0]
    bias = np.zeros(len(weight))
    if hasattr(source, "bias"):
        bias = source.bias.astype(np.float64) * gain.flat[0]
    if cuba and bias.any() and (current != 1).any():
        problems.append(
            Problem(
                synapse,
                f"has a bias, which would pass through the current of {name}; a chip adds it to v",
                "give it as v_leak, or train the layer without a bias",
            )
        )
    if cuba:
        leak = (step * node.v_leak).reshape(len(weight), -1)
        bias = bias + leak[:, 0]
        if (leak != leak[:, :1]).any():
            problems.append(Problem(name, "v_leak differs between the neurons of a channel"))
    if problems:
        raise LoweringError(problems)
    # The float file holds nextafter(theta, -inf) behind NIR's strict >; theta itself is meant here.
    threshold = np.nextafter(node.v_threshold, np.inf) + 0.0  # and no negative zero
    return Block(
        name,
        synapse,
        source,
        weight,
        bias,
        threshold,
        int(dv.flat[0]),
        float(1 - step.flat[0]),
        float(gain.flat[0]),
        input_shape,
        int(du.flat[0]),
        float(1 - current.flat[0]),
        reset=G.reset_of(node),
    )


def _with_recurrent(block: Block, found: tuple[str, nir.Linear] | None) -> Block:
    """``block`` with the weights from its neurons back to them, in the units of v."""
    if found is None:
        return block
    name, node = found
    G.verify_recurrent(block.name, name, node, block.threshold.shape)
    weight = node.weight.astype(np.float64) * block.gain
    return replace(block, recurrent=weight, recurrent_name=name)
