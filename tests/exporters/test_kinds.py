"""The tables of targets and backends; kinds that none of them knows are refused by name."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass
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
from stl_deploy.ir.network import Connection, Input, IntegerNetwork, Population
from stl_deploy.ir.neurons import Lif, Or
from stl_deploy.ir.readouts import Readout
from stl_deploy.ir.synapses import Conv, Dense

TARGETS = [name for name, entry in exporters.TARGETS.items() if entry.module]


@dataclass(frozen=True, eq=False)
class MadeUpNeurons(Lif):
    """A LIF under another name, so that whoever forgets to look at the kind would take it for one."""

    kind: ClassVar[Any] = "made_up"


@dataclass(frozen=True)
class MadeUpSynapses(Dense):
    """A matrix under another name."""

    kind: Any = "made_up"


@dataclass(frozen=True, eq=False)
class Noisy(Lif):
    """A LIF with a field that changes what it computes, and that nobody carries."""

    noise: int = 0


class Bare:
    """Neurons with nothing but a kind."""

    kind = "made_up"


Part = tuple[Population, Dense | Conv]


def part(
    name: str, synapses: Dense | Conv, shape: tuple[int, ...], of: type[Lif] = Lif, **fields: Any
) -> Part:
    """A population, and the synapses from the one before."""
    none = np.zeros(shape[:1] + (1,) * (len(shape) - 1), np.int32)
    neurons = of(np.full(shape, 3, np.int32), none, np.ones(none.shape), **fields)
    return Population(name, shape, neurons), synapses


def matrix(of: type[Dense] = Dense) -> Dense:
    return of(np.arange(-8, 8, dtype=np.int8).reshape(4, 4))


def network(*unknown: Part) -> IntegerNetwork:
    """What all of them carry, and behind it ``unknown``, of 4 neurons each."""
    ones = [Conv(np.ones((1, 1, n, n), np.int8), (n, n), (0, 0), (1, 1), 1) for n in (1, 2)]
    parts = (
        part("lif1", ones[0], (1, 4, 4)),
        (Population("pool1", (1, 2, 2), Or()), ones[1]),
        part("lif2", matrix(), (4,)),
        *unknown,
    )
    names = ["input", *(population.name for population, _ in parts)]
    return IntegerNetwork(
        "loihi2",
        2,
        {"input": Input((1, 4, 4))},
        tuple(population for population, _ in parts),
        tuple(
            Connection(
                f"{population.name}_w",
                before,
                population.name,
                synapses,
                bits=1 if population.kind == "or" else 8,
            )
            for before, (population, synapses) in zip(names, parts, strict=False)
        ),
        Readout(4, 1, names[-1]),
    )


UNKNOWN: dict[str, Callable[[str], Part]] = {
    "population": lambda name: part(name, matrix(), (4,), MadeUpNeurons),
    "synapses": lambda name: part(name, matrix(MadeUpSynapses), (4,)),
}


def odd(what: str, *names: str) -> IntegerNetwork:
    return network(*map(UNKNOWN[what], names))


@pytest.mark.parametrize("target", exporters.TARGETS)
def test_a_target_refuses_a_field_that_it_does_not_know(tmp_path, target):
    """Left out of the files, it would be another network without a word."""
    output.export(network(part("odd", matrix(), (4,), Noisy)), target, tmp_path / "as_by_default")
    with pytest.raises(LoweringError, match=r"odd: .* does not support the field 'noise'"):
        output.export(
            network(part("odd", matrix(), (4,), Noisy, noise=2)), target, tmp_path / "out"
        )
    assert not (tmp_path / "out").exists()
    if target in TARGETS:
        with pytest.raises(LoweringError, match=r"odd: .* does not support the field 'noise'"):
            exporters.write(network(part("odd", matrix(), (4,), Noisy, noise=2)), target, tmp_path)


@pytest.mark.parametrize("backend", backends.BACKENDS)
def test_a_backend_refuses_a_field_that_it_does_not_know(backend):
    backends.check((backend,), network(part("odd", matrix(), (4,), Noisy)))
    with pytest.raises(LoweringError, match=r"odd: .* does not support the field 'noise'"):
        backends.check((backend,), network(part("odd", matrix(), (4,), Noisy, noise=2)))


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
    twice = odd(what, "odd", "strange")
    with pytest.raises(LoweringError) as caught:
        output.export(twice, target, tmp_path / "out")
    refused(caught.value.problems, {"odd", "strange"})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("what", UNKNOWN)
@pytest.mark.parametrize("target", TARGETS)
def test_its_own_writer_refuses_it_too(tmp_path, target, what):
    """model.nir comes first in an export: here the writer of the target is asked alone."""
    twice = odd(what, "odd", "strange")
    with pytest.raises(LoweringError) as caught:
        exporters.write(twice, target, tmp_path)
    refused(caught.value.problems, {"odd", "strange"})
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize("what", UNKNOWN)
@pytest.mark.parametrize("backend", backends.BACKENDS)
def test_a_backend_refuses_a_kind_that_it_does_not_know(backend, what):
    twice = odd(what, "odd", "strange")
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
    bare: Any = Bare()
    unknown = network((Population("bare", (4,), bare), matrix()))
    with pytest.raises(LoweringError) as caught:
        backends.load(backend).check(unknown)
    refused(caught.value.problems, {"bare"})


@pytest.mark.parametrize("write", [integer_nir.to_nir, portable_nir.from_network])
def test_nir_refuses_them(write):
    for what in UNKNOWN:
        with pytest.raises(LoweringError) as caught:
            write(odd(what, "odd"))
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
    with pytest.raises(LoweringError) as caught:
        backends.check(tuple(backends.BACKENDS), odd("population", "odd"))
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
        (folder / "layers.txt").write_text(" ".join(network.by_name))
        return ()

    module = ModuleType("a_new_target")
    module.__dict__["write"] = write
    monkeypatch.setitem(sys.modules, "a_new_target", module)
    monkeypatch.setitem(exporters.TARGETS, "new", exporters.Target("names", "a_new_target"))
    manifest = output.export(network(), ("nir", "new"), tmp_path / "out")
    assert (tmp_path / "out" / "new" / "layers.txt").read_text() == "lif1 pool1 lif2"
    assert "new/layers.txt" in manifest["files"]
