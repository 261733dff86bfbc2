"""What sources send in ONNX: the types, frames that are held, and values beyond uint8.

ConvInteger and MatMulInteger take inputs of uint8. A value beyond that range is the sum of such planes, each
times a factor: the bytes of its positive part, minus those of its negative part.
"""

from __future__ import annotations

import numpy as np

from stl_deploy.exporters.onnx_graph import Builder
from stl_deploy.ir.network import Input, IntegerNetwork

Planes = list[tuple[str, int]]
BYTE = 1 << 8


def label(network: IntegerNetwork, name: str) -> str:
    """The name of an input in a model: ``input`` where there is one, else with its own name behind it."""
    return "input" if len(network.inputs) == 1 else f"input/{name}"


def kind(port: Input) -> type[np.uint8 | np.int16]:
    """The type of an input's values."""
    return np.int16 if port.signed else np.uint8


def sent_type(network: IntegerNetwork, source: str) -> type[np.uint8 | np.int16]:
    """The type of what an input or a population sends."""
    if source in network.inputs:
        return kind(network.inputs[source])
    return np.uint8 if network.by_name[source].neurons.graded is None else np.int16


def levels_max(port: Input) -> int:
    """The largest magnitude that the type of an input can have."""
    return int(np.iinfo(kind(port)).max)


def in_every_step(b: Builder, network: IntegerNetwork) -> dict[str, str]:
    """The inputs [N, T, ...] by name; a frame that is held is repeated."""
    found: dict[str, str] = {}
    moving = [label(network, name) for name, port in network.inputs.items() if not port.held]
    for name, port in network.inputs.items():
        given = label(network, name)
        if not port.held:
            found[name] = given
            continue
        if moving:
            steps = b.op("Shape", [moving[0]], f"steps_of/{name}", start=1, end=2)
        else:
            steps = b.shape((network.timesteps,))
        ones = b.constant(f"ones_around/{name}", np.ones(len(port.shape), np.int64))
        size = b.op("Concat", [b.shape((1,)), steps, ones], f"repeats/{name}", axis=0)
        found[name] = b.op("Tile", [given, size], f"in_every_step/{name}")
    return found


def planes(b: Builder, network: IntegerNetwork, source: str, value: str, where: str) -> Planes:
    """``value``, what a source sent, as planes of uint8 and their factors."""
    if sent_type(network, source) is np.uint8:
        return [(value, 1)]
    port = network.port(source)
    wide = b.cast(value, np.int32, b.name("signed", where))
    found: Planes = []
    for sign, word in ((1, "above"), (-1, "below")) if port.signed else ((1, "above"),):
        turned = b.op("Mul", [wide, b.number(sign, np.int32)], b.name(f"{word}_turned", where))
        part = b.op("Max", [turned, b.number(0, np.int32)], b.name(word, where))
        if port.levels < BYTE:
            found.append((b.cast(part, np.uint8, b.name(f"{word}_byte", where)), sign))
            continue
        size = b.number(BYTE, np.int32)
        low = b.op("Mod", [part, size], b.name(f"{word}_rest", where), fmod=0)
        high = b.op("Div", [part, size], b.name(f"{word}_ratio", where))
        found += [
            (b.cast(low, np.uint8, b.name(f"{word}_low", where)), sign),
            (b.cast(high, np.uint8, b.name(f"{word}_high", where)), sign * BYTE),
        ]
    return found
