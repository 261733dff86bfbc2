"""The tables of targets and backends; kinds that none of them knows are refused by name."""

from __future__ import annotations

import inspect
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
import pytest

from stl_deploy import backends, exporters
from stl_deploy.errors import InputError, LoweringError
from stl_deploy.exporters import folder as output
from stl_deploy.exporters import netx
from stl_deploy.formats import integer_nir, portable_nir
from stl_deploy.ir import chain as chain_view
from tests.build.layers import LifLayer, OrPool
from stl_deploy.ir.network import IntegerNetwork, Readout
from stl_deploy.ir.synapses import Conv, Dense

TARGETS = [name for name, entry in exporters.TARGETS.items() if entry.module]


@dataclass(frozen=True)
class MadeUpLayer(LifLayer):
    """A LIF under another name, so that whoever forgets to look at the kind would take it for one."""

    kind: ClassVar[Any] = "made_up"


@dataclass(frozen=True)
class MadeUpSynapses(Dense):
    """A matrix under another name."""

    kind: Any = "made_up"


@dataclass(frozen=True)
class Held(LifLayer):
    """A LIF with a field that changes what it computes, and that nobody carries."""

    hold: int = 0


class Bare:
    """A population with nothing but a kind and a name."""

    kind, name, neurons, shape = "made_up", "bare", 4, (4,)


def lif(
    name: str, synapses: Dense | Conv, before: tuple[int, ...], shape: tuple[int, ...], of=LifLayer
):
    channels, vth = np.zeros(shape[0], np.int32), np.full(shape, 3, np.int32)
    return of(name, f"{name}_w", synapses, before, shape, channels, vth, np.ones(shape[0]))


def matrix(of: type[Dense] = Dense) -> Dense:
    return of(np.arange(-8, 8, dtype=np.int8).reshape(4, 4))


def network(*unknown: Any) -> IntegerNetwork:
    """What all of them carry, and behind it ``unknown``, of 4 neurons each."""
    conv = Conv(np.ones((1, 1, 1, 1), np.int8), (1, 1), (0, 0), (1, 1), 1)
    layers = (
        lif("lif1", conv, (1, 4, 4), (1, 4, 4)),
        OrPool("pool1", "pool1_w", (1, 4, 4), (1, 2, 2), (2, 2)),
        lif("lif2", matrix(), (1, 2, 2), (4,)),
        *unknown,
    )
    return chain_view.of("loihi2", 2, (1, 4, 4), 1, layers, Readout(4, 1))


UNKNOWN = {
    "population": lambda: lif("odd", matrix(), (4,), (4,), MadeUpLayer),
    "synapses": lambda: lif("odd", matrix(MadeUpSynapses), (4,), (4,)),
}


@pytest.mark.parametrize("target", exporters.TARGETS)
def test_a_target_refuses_a_field_that_it_does_not_know(tmp_path, target):
    """Left out of the files, it would be another network without a word."""
    held = lif("odd", matrix(), (4,), (4,), Held)
    output.export(network(held), target, tmp_path / "as_by_default")
    with pytest.raises(LoweringError, match=r"odd: .* does not support the field 'hold'"):
        output.export(network(replace(held, hold=2)), target, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    if target in TARGETS:
        with pytest.raises(LoweringError, match=r"odd: .* does not support the field 'hold'"):
            exporters.write(network(replace(held, hold=2)), target, tmp_path)


@pytest.mark.parametrize("backend", backends.BACKENDS)
def test_a_backend_refuses_a_field_that_it_does_not_know(backend):
    held = lif("odd", matrix(), (4,), (4,), Held)
    backends.check((backend,), network(held))
    with pytest.raises(LoweringError, match=r"odd: .* does not support the field 'hold'"):
        backends.check((backend,), network(replace(held, hold=2)))


def refused(problems: Any, names: set[str]) -> None:
    """``problems`` name each of these populations once or more, its kind, and nothing else."""
    assert {name for name in names if any(name in p.where for p in problems)} == names
    for problem in problems:
        assert any(name in problem.where for name in names), problem
        assert "does not support 'made_up'; it supports " in problem.what
        assert problem.remedy == "choose another target or backend"


def test_the_network_without_it_is_carried(tmp_path):
    output.export(network(), tuple(exporters.TARGETS), tmp_path / "out", nir_dialect="portable")
    backends.check(tuple(backends.BACKENDS), network())


@pytest.mark.parametrize("what", UNKNOWN)
@pytest.mark.parametrize("target", exporters.TARGETS)
def test_a_target_refuses_a_kind_that_it_does_not_know(tmp_path, target, what):
    twice = network(UNKNOWN[what](), replace(UNKNOWN[what](), name="strange"))
    with pytest.raises(LoweringError) as caught:
        output.export(twice, target, tmp_path / "out")
    refused(caught.value.problems, {"odd", "strange"})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("what", UNKNOWN)
@pytest.mark.parametrize("target", TARGETS)
def test_its_own_writer_refuses_it_too(tmp_path, target, what):
    """model.nir comes first in an export: here the writer of the target is asked alone."""
    twice = network(UNKNOWN[what](), replace(UNKNOWN[what](), name="strange"))
    with pytest.raises(LoweringError) as caught:
        exporters.write(twice, target, tmp_path)
    refused(caught.value.problems, {"odd", "strange"})
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize("what", UNKNOWN)
@pytest.mark.parametrize("backend", backends.BACKENDS)
def test_a_backend_refuses_a_kind_that_it_does_not_know(backend, what):
    twice = network(UNKNOWN[what](), replace(UNKNOWN[what](), name="strange"))
    for ask in (
        backends.load(backend).check,
        backends.load(backend).session,
        lambda given: backends.check((backend,), given),
    ):
        with pytest.raises(LoweringError) as caught:
            ask(twice)
        refused(caught.value.problems, {"odd", "strange"})


@pytest.mark.parametrize("backend", backends.BACKENDS)
def test_nothing_is_asked_of_a_population_of_unknown_kind(backend):
    with pytest.raises(LoweringError) as caught:
        backends.load(backend).check(network(Bare()))
    refused(caught.value.problems, {"bare"})


@pytest.mark.parametrize("write", [integer_nir.to_nir, portable_nir.from_network])
def test_nir_refuses_them(write):
    for made in UNKNOWN.values():
        with pytest.raises(LoweringError) as caught:
            write(network(made()))
        refused(caught.value.problems, {"odd"})


def test_what_lava_knows_and_netx_does_not_is_refused_by_netx(monkeypatch):
    """As when somebody teaches Lava's tables a new kind of synapses."""
    monkeypatch.delitem(netx.FORMS, "dense")
    backends.load("lava").check(network())
    with pytest.raises(LoweringError) as caught:
        backends.load("netx").check(network())
    (problem,) = caught.value.problems
    assert problem.where == "network.net (netx), lif2_w (pool1 to lif2)"
    assert problem.what == "netx does not support 'dense'; it supports conv, one_to_one, sparse"


def test_all_backends_are_asked_before_one_is_refused():
    odd = network(UNKNOWN["population"]())
    with pytest.raises(LoweringError) as caught:
        backends.check(tuple(backends.BACKENDS), odd)
    who = [problem.what.split(" does not")[0] for problem in caught.value.problems]
    assert who == ["hw_sim", "Lava", "ONNX"]  # what lava and netx share is said once


@pytest.mark.parametrize("backend", backends.BACKENDS)
def test_modules_of_backends_offer_the_protocol(backend):
    module = backends.load(backend)
    assert isinstance(module, ModuleType)
    for name in ("check", "set_up", "session"):
        asked = list(inspect.signature(getattr(backends.Module, name)).parameters)[1:]
        assert len(inspect.signature(getattr(module, name)).parameters) == len(asked)


def test_unknown_targets_are_refused_together():
    with pytest.raises(InputError) as caught:
        exporters.check(("nir", "tpu", "onnx", "fpga"))
    assert [str(problem) for problem in caught.value.problems] == [
        "target: 'tpu' is not a known target -> choose from nir, loihi, onnx",
        "target: 'fpga' is not a known target -> choose from nir, loihi, onnx",
    ]
    with pytest.raises(InputError, match="no target given -> choose from nir, loihi, onnx"):
        exporters.check(())


def test_a_new_target_is_one_line(tmp_path, monkeypatch):
    """Its writer is found by name; nothing else has to know of it."""

    def write(network: IntegerNetwork, folder: Path, origin: exporters.Origin) -> tuple[()]:
        (folder / "layers.txt").write_text(" ".join(layer.name for layer in network.layers))
        return ()

    module = ModuleType("a_new_target")
    module.__dict__["write"] = write
    monkeypatch.setitem(sys.modules, "a_new_target", module)
    monkeypatch.setitem(exporters.TARGETS, "new", exporters.Target("names", "a_new_target"))
    manifest = output.export(network(), ("nir", "new"), tmp_path / "out")
    assert (tmp_path / "out" / "new" / "layers.txt").read_text() == "lif1 pool1 lif2"
    assert "new/layers.txt" in manifest["files"]
