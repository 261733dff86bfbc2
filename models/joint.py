"""Several networks that decide together, as one: members vote through their summed population rates.

Members read the same input and are not connected with each other, so that stacked they are one chain
of layers again. Everything is stacked along the channels, member after member: the first layer reads
the input they share, those in between have a group for each member, and the last one is written out,
its rows in the order of classes. Class k then owns what each member has for it, and the ordinary
readout gives

    rate of class k = mean over members of the member's rate of class k.

With P neurons a class, member m's neuron p of class k is neuron (k*M + m)*P + p of M members'.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stl_deploy.errors import InputError, Problem
from stl_deploy.importers.given import Checkpoint, Params
from stl_deploy.importers.stl import expected_shapes, grouped, ungrouped
from stl_deploy.ir import arch as A

MOST = 1024  # members


def join(checkpoints: Sequence[Checkpoint], names: Sequence[str] | None = None) -> Checkpoint:
    """The network of all ``checkpoints``, in their order; one that is joint brings its members.

    Args:
        checkpoints: networks of one architecture; parameters may differ.
        names: what errors call them.

    Raises:
        InputError: members that do not fit, naming every difference from the first.
    """
    called = names or [f"network {i + 1}" for i in range(len(checkpoints))]
    members = [
        (name, network)
        for checkpoint, label in zip(checkpoints, called, strict=True)
        for name, network in _members(checkpoint, label)
    ]
    if not 2 <= len(members) <= MOST:
        raise InputError(
            Problem("members", f"{len(members)} given; 2 to {MOST} decide together", "name others")
        )
    problems = [p for name, network in members for p in _unfit(network.arch, name)]
    if not problems:
        members = [(name, _plain(network)) for name, network in members]
    if problems := problems + _differences(members):
        raise InputError(problems)
    first = members[0][1].arch
    count = len(members)
    params = _stacked([network for _, network in members])
    return Checkpoint(_resized(first, lambda n: n * count, count), params)


def member(joint: Checkpoint, index: int) -> Checkpoint:
    """Member ``index``, from 0, of a network made by ``join``: its parameters, bit for bit.

    A first or last layer in groups comes back without them, zeros in between.

    Raises:
        InputError: no joint network, no such member, or members that are connected with each other.
    """
    count = joint.arch.members
    if count is None:
        raise InputError(Problem("network", "is one alone, not several that decide together"))
    if not 0 <= index < count:
        raise InputError(Problem("member", f"{index} is none of 0..{count - 1}"))
    arch = _resized(joint.arch, lambda n: n // count, None)
    if problems := _unfit(arch, "network"):
        raise InputError(problems)
    first, last = _ends(arch)
    from_stacked = np.argsort(_class_major(arch, count))
    params: Params = {}
    for key in expected_shapes(arch):
        value = joint.params[key]
        position = _position(arch, key)
        if position >= last:
            value = value[from_stacked]
        if position == last > first and key.endswith(".weight"):
            value = _unconnected(value, count, key)
        params[key] = np.split(value, count)[index]
    return Checkpoint(arch, params)


def _members(checkpoint: Checkpoint, name: str) -> list[tuple[str, Checkpoint]]:
    """(name, network) of each member, or of the network itself."""
    count = checkpoint.arch.members
    if count is None:
        return [(name, checkpoint)]
    return [(f"{name}, member {i}", member(checkpoint, i)) for i in range(count)]


def _ends(arch: A.Architecture) -> tuple[int, int]:
    """Positions of the first and the last layer with weights."""
    found = [i for i, layer in enumerate(arch.layers) if layer.weighted]
    return found[0], found[-1]


def _position(arch: A.Architecture, key: str) -> int:
    """Position of the layer that parameter ``key`` belongs to."""
    return [layer.name for layer in arch.layers].index(key.rpartition(".")[0])


def _unfit(arch: A.Architecture, name: str) -> list[Problem]:
    """Why a network cannot be a member of any."""
    if not arch.weighted:
        return [Problem(name, "has no layer with weights")]
    if arch.joins or arch.readout != "votes":
        branches = [
            Problem(
                f"{name}: {at}", "joins layers, and members are chains", "join networks without it"
            )
            for at in arch.joins
        ]
        by = f"classes are read by {arch.readout}, and members vote"
        voted = (
            []
            if arch.readout == "votes"
            else [Problem(f"{name}: readout", by, "train it by votes")]
        )
        return branches + voted
    problems = [
        Problem(
            f"{name}: {layer.name}",
            "comes before any weights, and members cannot share it",
            "begin the network with a convolution or a linear layer",
        )
        for layer in arch.layers[: _ends(arch)[0]]
        if layer.parameters
    ]
    problems += [
        Problem(
            f"{name}: {layer.name}",
            f"its {what} is one for all of a population, and members cannot share it",
            f"train without {what}",
        )
        for layer in arch.layers
        for what in layer.shared
    ]
    plane = math.prod(arch.shapes[arch.layers[-1].name][1:])
    if arch.population % plane:
        problems.append(
            Problem(
                f"{name}: {arch.layers[-1].name}",
                f"{arch.population} neurons vote for a class, not a multiple of the {plane} neurons "
                "of its channels",
                "let a linear layer end the network",
            )
        )
    return problems


def _differences(members: Sequence[tuple[str, Checkpoint]]) -> list[Problem]:
    """Every fact in which a member's architecture is not the first one's."""
    (reference, one), *others = ((name, _facts(m.arch)) for name, m in members)
    return [
        Problem(
            f"{name}: {fact}",
            f"{facts.get(fact, 'is not there')}, but {reference} has {one.get(fact, 'none')}",
            "join networks of one architecture",
        )
        for name, facts in others
        for fact in one | facts
        if facts.get(fact) != one.get(fact)
    ]


def _facts(arch: A.Architecture) -> dict[str, Any]:
    """What describes a network, by names that an error can use."""
    data = arch.to_dict()
    facts: dict[str, Any] = {
        "input shape": tuple(data["input"]["shape"]),
        "input levels": data["input"]["levels"],
        "timesteps": arch.timesteps,
        "population": arch.population,
        "weight bits (trained on integers)": data.get("quantized", {}).get("weight_bits"),
    }
    for i, layer in enumerate(data["layers"]):
        name = layer.pop("name")
        facts[f"layer {i + 1}"] = name
        facts |= {f"{name}.{what}": value for what, value in layer.items()}
    return facts


def _plain(checkpoint: Checkpoint) -> Checkpoint:
    """The same network, its first and last layer with weights in one group."""
    arch, params = checkpoint.arch, dict(checkpoint.params)
    names = list(arch.weighted)
    for name in {names[0], names[-1]}:
        key = f"{name}.weight"
        params[key] = ungrouped(params[key], arch.weighted[name].groups)
    layers = _regrouped(arch, lambda number: number)
    return Checkpoint(arch.model_copy(update={"layers": layers}), params)


def _resized(
    arch: A.Architecture, size: Callable[[int], int], members: int | None
) -> A.Architecture:
    """``arch`` with other numbers of channels, groups and voters; raises InputError for too many."""
    new = {
        "layers": _regrouped(arch, size),
        "population": size(arch.population),
        "members": members,
    }
    return A.Architecture.from_dict(arch.model_copy(update=new).to_dict(), "network of the members")


def _regrouped(arch: A.Architecture, size: Callable[[int], int]) -> tuple[A.Layer, ...]:
    """The layers with other numbers of channels and groups; the first and last weights in one group."""
    first, last = _ends(arch)
    return tuple(
        layer.resized(size, grouped=first < at < last) for at, layer in enumerate(arch.layers)
    )


def _class_major(arch: A.Architecture, count: int) -> NDArray[np.int64]:
    """For each last channel of ``count`` members of ``arch``, where it is when they are stacked."""
    plane = math.prod(arch.shapes[arch.layers[-1].name][1:])
    stacked = np.arange(count * arch.classes * (arch.population // plane))
    return stacked.reshape(count, arch.classes, -1).swapaxes(0, 1).reshape(-1)


def _stacked(members: Sequence[Checkpoint]) -> Params:
    """The parameters of members of one architecture that ``_plain`` gave, as those of one network."""
    arch, count = members[0].arch, len(members)
    first, last = _ends(arch)
    order = _class_major(arch, count)
    params: Params = {}
    for key in expected_shapes(arch):
        value = np.concatenate([m.params[key] for m in members])
        position = _position(arch, key)
        if position == last > first and key.endswith(".weight"):
            value = ungrouped(value, count)
        params[key] = value[order] if position >= last else value
    return params


def _unconnected(weight: NDArray[Any], count: int, key: str) -> NDArray[Any]:
    """The weights of each of ``count`` members. Raises InputError where they are connected."""
    alone = grouped(weight, count)
    if np.count_nonzero(alone) != np.count_nonzero(weight):
        raise InputError(
            Problem(key, "connects members with each other, so that none can be taken out alone")
        )
    return alone
