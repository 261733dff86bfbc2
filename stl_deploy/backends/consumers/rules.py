"""What each tool makes of a NIR file: one version of it, and rules that were seen to hold.

A file runs *exactly* where the tool computes NIR's equation by forward Euler with dt = 1e-4 and the
integers of ``model.nir`` with it; in a float file up to the rounding of float32. A rule names the nodes
of a file that it holds for; the gravest verdict counts. Every rule of a tool that is ``seen`` to
"run" decides a case of tests/backends/test_consumers.py, where the tool itself is run on the same file.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

import nir
import numpy as np

from stl_deploy.backends.consumers.file import NEURONS, File
from stl_deploy.backends.consumers.places import (
    SUBTRACTS,
    WEIGHTS,
    Where,
    act_without_input,
    always_fires,
    any_nonzero,
    at_two_depths,
    behind_kernels,
    beyond_float32,
    biases_on_cycles,
    cut,
    flattened_alone,
    grouped_or_dilated,
    in_other_shapes,
    input_scale,
    is_close,
    kernels_and_others,
    may_tie,
    neurons_alone,
    neurons_of,
    nodes,
    not_of_eight_bits,
    of_integers,
    other_rules,
    other_than,
    out_of_order,
    pools_that_overlap,
    pools_to_others,
    recurrent_neurons,
    scaled_threshold,
    several_inputs,
    several_starts,
    splits_wrongly,
    step,
    straight_to_neurons,
    taus,
    two_resets,
    uniform,
    weights_in_a_row,
    weights_to_others,
)


class Verdict(StrEnum):
    """From best to worst."""

    EXACT = "exact"
    UNKNOWN = "unknown"
    DIFFERS = "differs"
    UNREADABLE = "unreadable"


@dataclass(frozen=True)
class Rule:
    """``where`` gives the nodes for which ``why`` holds; ``names`` what it is about, where that differs."""

    verdict: Verdict
    why: str
    where: Where
    names: Where = lambda _: ()


@dataclass(frozen=True)
class Consumer:
    """A tool that reads NIR files.

    ``call`` is how it reads one. ``seen`` says whether the rules were seen in runs or read in its source.
    ``environment`` names the requirements file of the environment it is run in, "" for none.
    """

    name: str
    title: str
    version: str
    call: str
    rules: tuple[Rule, ...]
    seen: Literal["run", "read"] = "run"
    environment: str = ""


def exact(why: str, where: Where) -> Rule:
    """Something to mind that changes no spike."""
    return Rule(Verdict.EXACT, why, where)


def untried(where: Where) -> Rule:
    """Nodes that the tool may read, but nobody tried."""
    return Rule(Verdict.UNKNOWN, "it may read this node; no rule says what it makes of it", where)


def differs(why: str, where: Where) -> Rule:
    """Runs, with other spikes."""
    return Rule(Verdict.DIFFERS, why, where)


def unreadable(why: str, where: Where) -> Rule:
    """An error of the tool, when it reads or when it runs."""
    return Rule(Verdict.UNREADABLE, why, where)


NO_WORD = "it does not support this node"
CUT_OUT = "it does not support this node: it drops it with everything after it, or fails over that"
UNSAID = Rule(
    Verdict.DIFFERS,
    "it leaves out rules of neurons that only the metadata say, such as a reset by subtraction",
    lambda file: file.unsaid,
    lambda file: dict.fromkeys(rule for said in file.unsaid.values() for rule in said),
)
SCORED = Rule(
    Verdict.EXACT,
    "only the metadata say how its outputs are made classes",
    lambda file: [name for name, _ in file.nodes(nir.Output)] if file.scored else [],
    lambda file: file.scored,
)
INEXACT = differs(
    "the chip's integers round or saturate where these equations do not, or leave what float32 holds",
    lambda file: file.inexact,
)
FLOAT32 = exact(
    "it rounds weights, thresholds and v to float32: a v within that of its threshold may go either way",
    lambda file: () if of_integers(file) else neurons_of(file),
)
BATCH = exact(
    "one sample at a time: it flattens the dimension of a batch too",
    nodes(lambda node: node.start_dim == 0, nir.Flatten),
)
UNCHECKED = exact(
    "read the graph with nir.read(path, type_check=False): nir's own check of shapes refuses it",
    lambda file: ["graph"] if file.unchecked else [],
)
NESTED = Rule(
    Verdict.UNKNOWN, "a graph within the graph: no rule looks into it", nodes(bool, nir.NIRGraph)
)
PADDED_SUM = differs("it leaves out the padding", nodes(any_nonzero("padding"), nir.SumPool2d))
GROUPS = unreadable(
    "it takes the channels of one group for all: groups must divide them",
    nodes(splits_wrongly, nir.Conv2d),
)
OTHER_SHAPE = Rule(
    Verdict.UNKNOWN,
    "these values have another shape than the neurons, in C order; no rule says what becomes of them",
    in_other_shapes,
)
HELD = exact(
    "the input is one frame, to be given in every step",
    lambda file: file.inputs if file.held else (),
)
FIRST_STEP = differs(
    "in the first step nothing comes back yet, nor the bias of recurrent weights", biases_on_cycles
)
ONE_INPUT = unreadable("a graph must have one input", several_inputs)
LED_TO = unreadable("an edge must lead to all neurons", neurons_alone)
BEYOND = differs("it computes in float32, which does not hold these numbers", beyond_float32)
COMMON = (UNSAID, INEXACT, BEYOND, NESTED, OTHER_SHAPE, FLOAT32, HELD, SCORED, UNCHECKED)
ENDS = (nir.Input, nir.Output)

NORSE_READS = (
    *ENDS,
    *(nir.Affine, nir.Linear, nir.Conv2d, nir.Flatten, nir.SumPool2d),
    *NEURONS,
)
NORSE = Consumer(
    "norse",
    "Norse",
    "1.1.0",
    "norse.torch.from_nir(nir.read(path), dt=1e-4)",
    (
        unreadable(NO_WORD, cut(True, *NORSE_READS)),
        differs(CUT_OUT, cut(False, *NORSE_READS)),
        GROUPS,
        differs("it takes r for 1", nodes(lambda node: bool((node.r != 1).any()), nir.LIF)),
        differs("it resets to 0", nodes(any_nonzero("v_reset"), nir.LIF, nir.CubaLIF)),
        differs("v begins at v_leak, not at 0", nodes(any_nonzero("v_leak"), nir.LIF)),
        differs("v_leak drives the current too", nodes(any_nonzero("v_leak"), nir.CubaLIF)),
        PADDED_SUM,
        differs(
            "it runs nodes depth first along the edges: what one sends that it runs later arrives a step "
            "late, and what comes out is that of the last",
            out_of_order,
        ),
        FIRST_STEP,
        differs(
            "it begins at one of several nodes that no edge leads to, and may leave out the others",
            several_starts,
        ),
        untried(nodes(bool, nir.IF)),
        BATCH,
        *COMMON,
    ),
    environment="current",
)


SNNTORCH = Consumer(
    "snntorch",
    "snnTorch",
    "1.0.0",
    "snntorch.import_nir.import_from_nir(nir.read(path))",
    (
        unreadable(
            NO_WORD,
            other_than(
                *ENDS,
                *(nir.Affine, nir.Linear, nir.Conv1d, nir.Conv2d, nir.Flatten, nir.AvgPool2d),
                *(nir.SumPool2d, *NEURONS),
            ),
        ),
        GROUPS,
        ONE_INPUT,
        LED_TO,
        unreadable(
            "thresholds must be one for all neurons of the node",
            nodes(lambda node: not uniform(scaled_threshold(node)), nir.LIF, nir.CubaLIF),
        ),
        unreadable("v_leak must be 0", nodes(any_nonzero("v_leak"), nir.LIF, nir.CubaLIF)),
        unreadable(
            "r must be tau_mem / dt",
            nodes(lambda node: not is_close(node.r * step(node.tau_mem), 1), nir.CubaLIF),
        ),
        unreadable(
            "recurrent neurons must have names like a.b",
            lambda file: [name for name in recurrent_neurons(file) if "." not in name],
        ),
        differs(
            "recurrent weights become those of RLeaky or RSynaptic, which runs other steps",
            lambda file: [name for name in recurrent_neurons(file) if "." in name],
        ),
        differs(
            "r * dt / tau differs from neuron to neuron; it takes the smallest for all",
            nodes(lambda node: not uniform(node.r * step(node.tau)), nir.LIF),
        ),
        differs("it resets to 0", nodes(any_nonzero("v_reset"), nir.LIF, nir.CubaLIF)),
        differs(
            "a threshold below 0: it takes a v above it, be it 0, for one that was reset already",
            lambda file: [
                name
                for name, node in file.nodes(nir.LIF, nir.CubaLIF)
                if (node.v_threshold < 0).any() and not always_fires(file, name, node)
            ],
        ),
        differs(
            "r or w_in below 0: it divides the threshold by it and does not turn the inputs",
            nodes(lambda node: bool((input_scale(node) < 0).any()), nir.LIF, nir.CubaLIF),
        ),
        differs(
            "tau below dt: it takes 0 for the share of v or current that is kept, which is below 0",
            nodes(lambda node: any(bool((step(tau) > 1).any()) for tau in taus(node)), *NEURONS),
        ),
        PADDED_SUM,
        untried(nodes(bool, nir.IF, nir.Conv1d, nir.AvgPool2d)),
        BATCH,
        *COMMON,
    ),
    environment="current",
)


def lif_refused_by_spikingjelly(node: nir.LIF) -> bool:
    """What its LIFNode has no form for."""
    return not (
        uniform(node.tau, node.r, node.v_leak, node.v_reset, node.v_threshold)
        and (is_close(node.r, 1) or is_close(node.r * step(node.tau), 1))
        and is_close(node.v_leak, node.v_reset)
        and bool((step(node.tau) < 1).all())
    )


def cuba_refused_by_spikingjelly(node: nir.CubaLIF) -> bool:
    """What its CUBALIFNode has no form for."""
    return not (
        uniform(node.tau_syn, node.tau_mem, node.r, node.w_in)
        and uniform(node.v_leak, node.v_reset, node.v_threshold)
        and is_close(node.r * step(node.tau_mem), 1)
        and is_close(node.w_in * step(node.tau_syn), 1)
        and is_close(node.v_leak, 0)
    )


SPIKINGJELLY = Consumer(
    "spikingjelly",
    "SpikingJelly",
    "2.0.0",
    "spikingjelly.activation_based.nir_exchange.import_from_nir(nir.read(path))",
    (
        unreadable(
            NO_WORD,
            other_than(
                *ENDS,
                *(nir.Affine, nir.Linear, nir.Conv1d, nir.Conv2d, nir.Flatten, nir.AvgPool2d),
                *(nir.SumPool2d, *NEURONS),
            ),
        ),
        ONE_INPUT,
        unreadable(
            "weights and biases must not be integers",
            nodes(lambda node: node.weight.dtype.kind in "iu", nir.Affine, nir.Linear, nir.Conv2d),
        ),
        unreadable("convolutions must have one group", nodes(lambda n: n.groups != 1, nir.Conv2d)),
        unreadable(
            "every parameter must be one for all neurons of the node, r 1 or tau/dt, tau above dt, v_leak "
            "and v_reset the same",
            nodes(lif_refused_by_spikingjelly, nir.LIF),
        ),
        unreadable(
            "every parameter must be one for all neurons of the node, r tau_mem/dt, w_in tau_syn/dt, "
            "v_leak 0",
            nodes(cuba_refused_by_spikingjelly, nir.CubaLIF),
        ),
        differs(
            "v begins at v_reset, not at 0", nodes(any_nonzero("v_reset"), nir.LIF, nir.CubaLIF)
        ),
        differs(
            "it spikes at v >= threshold; v and threshold are multiples of 1/64 and can be the same",
            may_tie,
        ),
        FIRST_STEP,
        PADDED_SUM,
        untried(nodes(bool, nir.IF, nir.Conv1d, nir.AvgPool2d)),
        *COMMON,
    ),
    environment="current",
)

NIRTORCH = Consumer(
    "nirtorch",
    "nirtorch (alone)",
    "2.6",
    "nirtorch.nir_to_torch(nir.read(path), {})",
    (
        unreadable(
            NO_WORD,
            other_than(
                *ENDS,
                *(nir.Affine, nir.Linear, nir.Conv1d, nir.Conv2d, nir.Flatten, nir.AvgPool2d),
                nir.SumPool2d,
            ),
        ),
        untried(nodes(bool, nir.Affine, nir.Linear, nir.Conv1d, nir.Conv2d, nir.AvgPool2d)),
        NESTED,
    ),
    environment="current",
)


def stored_reset(file: File) -> list[str]:
    """Neurons whose ``v_reset`` stands in the file, be it 0."""
    return [name for name in neurons_of(file) if "v_reset" in file.stored.get(name, ())]


NIR104 = unreadable("nir 1.0.4, which it asks for, knows no v_reset", stored_reset)

SINABS_READS = (
    *ENDS,
    *(nir.Affine, nir.Conv1d, nir.Conv2d, nir.Flatten, nir.SumPool2d),
    *(nir.IF, nir.LI, nir.LIF),
)
SINABS = Consumer(
    "sinabs",
    "sinabs",
    "3.1.3",
    "sinabs.nir.from_nir(nir.read(path), batch_size=N)",
    (
        NIR104,
        unreadable(NO_WORD, cut(True, *SINABS_READS)),
        differs(CUT_OUT, cut(False, *SINABS_READS)),
        unreadable(
            "neurons must be flat: it asks for the truth of v_leak's rows",
            nodes(lambda node: node.v_threshold.ndim > 1, nir.LIF),
        ),
        unreadable("v_leak must be 0", nodes(any_nonzero("v_leak"), nir.LIF)),
        differs(
            "its LIF keeps exp(-1/tau) of v with tau as it stands, fires several times a step and "
            "resets by subtraction",
            nodes(bool, nir.LIF),
        ),
        untried(nodes(bool, nir.IF, nir.LI, nir.Conv1d)),
        NESTED,
    ),
    environment="nir104",
)

ROCKPOOL = Consumer(
    "rockpool",
    "Rockpool",
    "3.1.0",
    "rockpool.nn.modules.torch.nir.from_nir(nir.read(path))",
    (
        NIR104,
        unreadable(
            NO_WORD, other_than(*ENDS, nir.Affine, nir.Linear, nir.LI, nir.LIF, nir.CubaLIF)
        ),
        unreadable("it looks for a tau_mem, which a LIF has not", nodes(bool, nir.LIF)),
        differs(
            "its neurons decay by exp(-dt/tau), fire several times a step and reset by subtraction",
            nodes(bool, nir.CubaLIF),
        ),
        untried(nodes(bool, nir.LI)),
        NESTED,
    ),
    environment="nir104",
)

SPYX = Consumer(
    "spyx",
    "Spyx",
    "1.0.0",
    "spyx.nir.from_nir(nir.read(path), x, dt=1e-4)",
    (
        differs(
            "its neurons spike one step later, reset by subtraction, and know neither r nor v_leak",
            nodes(bool, nir.LIF, nir.CubaLIF),
        ),
        untried(other_than(*ENDS, nir.LIF, nir.CubaLIF)),
        NESTED,
    ),
    seen="read",
)

LAVA_DL = Consumer(
    "lava-dl",
    "lava-dl",
    "0.6.0",
    "lava.lib.dl.netx.hdf5.Network (of loihi/network.net)",
    (
        unreadable(
            "it has no reader of NIR; give netx the loihi/network.net of stl-export --target loihi",
            lambda _: ["graph"],
        ),
    ),
    seen="read",
)

SPINNAKER2 = Consumer(
    "spinnaker2",
    "SpiNNaker2",
    "py-spinnaker2",
    's2_nir.from_nir(nir.read(path), s2_nir.ConversionConfig(dt=1e-4, conn_delay=0, reset="zero", '
    'integrator="Forward-Euler"))',
    (
        unreadable(
            NO_WORD,
            other_than(*ENDS, *WEIGHTS, nir.Flatten, nir.SumPool2d, nir.AvgPool2d, *NEURONS),
        ),
        unreadable("weights must lie between spikes and neurons", straight_to_neurons),
        unreadable("weights must not follow weights", weights_in_a_row),
        unreadable("weights must lead to neurons: pools and Flatten come first", weights_to_others),
        unreadable(
            "a SumPool2d must lead to a Conv2d, to neurons, or by a Flatten to an Affine",
            pools_to_others,
        ),
        unreadable(
            "a SumPool2d in front of a Conv2d must tile the plane, without padding",
            pools_that_overlap,
        ),
        unreadable("a current behind a convolution", behind_kernels(nir.CubaLIF)),
        unreadable(
            "an input must be flat or [C, H, W]",
            nodes(lambda node: len(node.input_type["input"]) not in (1, 3), nir.Input),
        ),
        differs("it drops a Flatten that does not follow a SumPool2d", flattened_alone),
        differs("it knows neither groups nor dilation", nodes(grouped_or_dilated, nir.Conv2d)),
        differs("its weights are whole numbers from -127 to 127", not_of_eight_bits),
        differs(
            "it takes r of an IF for all of its factor",
            nodes(lambda node: bool((node.r != 1).any()), nir.IF),
        ),
        differs(
            "it resets to 0",
            nodes(lambda node: bool(np.any(getattr(node, "v_reset", 0))), *NEURONS),
        ),
        differs(
            "a bias, a leak or a threshold below 0 acts before the first input, which arrives one step "
            "late for every population in front",
            act_without_input,
        ),
        differs(
            "a spike needs a step for every connection, so that shorter ways arrive earlier",
            at_two_depths,
        ),
        Rule(
            Verdict.DIFFERS,
            UNSAID.why,
            other_rules,
            lambda file: dict.fromkeys(
                rule for said in file.unsaid.values() for rule in said if rule != SUBTRACTS
            ),
        ),
        differs("it has one reset for all neurons", two_resets),
        exact(
            'neurons reset by subtraction: give reset="subtract"',
            lambda file: [name for name, said in file.unsaid.items() if SUBTRACTS in said],
        ),
        untried(nodes(bool, nir.AvgPool2d)),
        untried(several_inputs),
        Rule(
            Verdict.UNKNOWN,
            "no public source says in which order its current decays and takes its input",
            nodes(bool, nir.CubaLIF),
        ),
        Rule(
            Verdict.UNKNOWN,
            "no public source says that convolutions and other weights add up",
            kernels_and_others,
        ),
        Rule(
            Verdict.UNKNOWN,
            "strides that differ: it takes the first, of rows, for x",
            nodes(lambda node: len(set(np.atleast_1d(node.stride).tolist())) > 1, nir.Conv2d),
        ),
        exact(
            "a population is a step later than those in front of it: run as many steps more",
            neurons_of,
        ),
        exact(
            "alpha_decay comes as [C, H, W] from forward Euler: flatten it in pop.params",
            nodes(lambda node: node.v_threshold.ndim > 1, nir.LIF),
        ),
        *(INEXACT, NESTED, OTHER_SHAPE, HELD, SCORED, UNCHECKED),
    ),
    seen="read",
)

CONSUMERS = {
    consumer.name: consumer
    for consumer in (
        *(NORSE, SNNTORCH, SPIKINGJELLY, NIRTORCH, SINABS, ROCKPOOL, SPYX, LAVA_DL),
        SPINNAKER2,
    )
}
