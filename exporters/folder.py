"""The output folder: model.nir, manifest.json, report.html and a folder per target, all or nothing."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import filelock
import nir
import numpy as np

from stl_deploy.chips import facts as chips
from stl_deploy.chips import placement, rules
from stl_deploy.errors import InputError, Problem, expect
from stl_deploy.exporters import TARGETS, NirDialect, Origin
from stl_deploy.exporters import check as check_targets
from stl_deploy.exporters import write as write_target
from stl_deploy.files import new_folder, sha256
from stl_deploy.files import write as write_file
from stl_deploy.formats import integer_nir as nir_file
from stl_deploy.formats import nir_io
from stl_deploy.formats import portable_nir as nir_portable
from stl_deploy.formats import spinnaker2_nir as nir_spinnaker2
from stl_deploy.ir.kinds import entry
from stl_deploy.ir.network import (
    Connection,
    Input,
    IntegerNetwork,
    Population,
    synapse_count,
)
from stl_deploy.ir.notes import Diagnostic, Placement
from stl_deploy.report.rows import effective_bits, neuron_words, readout_row
from stl_deploy.report.sections import render
from stl_deploy.version import __version__

MANIFEST = "manifest.json"
FORMAT = "stl-deploy/export"


def export(
    network: IntegerNetwork,
    target: str | Sequence[str],
    out: str | Path,
    *,
    graph: nir.NIRGraph | None = None,
    source: Path | None = None,
    force: bool = False,
    report: Callable[[], str] | None = None,
    extra: dict[str, Any] | None = None,
    nir_dialect: NirDialect = "spec",
) -> dict[str, Any]:
    """Write ``network`` for one target or several into the folder ``out``; the manifest is returned.

    Args:
        network: from ``quantize``.
        target: one of ``exporters.TARGETS``, or several.
        out: a new folder, or with ``force`` one that an earlier export wrote.
        graph: the lowered float graph, written as model.float.nir, and for "onnx" as float_step.onnx.
        source: the file that the model came from; its sha256 goes into the manifest, and for "onnx" into
            the models.
        force: replace an earlier export.
        report: gives the text of report.html; without it the hardware sections alone.
        extra: more entries for the manifest.
        nir_dialect: with "portable" model.portable.nir and, with ``graph``, model.float.portable.nir
            are written too, for other tools (``nir_portable``); with "spinnaker2" model.spinnaker2.nir,
            for py-spinnaker2 (``nir_spinnaker2``).

    Raises:
        InputError: ``out`` exists, is not an export, or cannot be written. LoweringError: the target
            cannot carry it.
    """
    remedy = "give the network that quantize makes of a float graph"
    expect("network", network, IntegerNetwork, "an integer network", remedy)
    expect("target", target, (str, list, tuple), "a name or several", f"name {', '.join(TARGETS)}")
    expect("out", out, (str, Path), "a path", "name the folder to write")
    if graph is not None:
        expect(
            "graph", graph, nir.NIRGraph, "a float graph", "give what from_torch or from_nir made"
        )
    targets = (target,) if isinstance(target, str) else tuple(target)
    check_targets(targets)
    out = Path(out)
    check_out(out, force, [source])
    digest = None if source is None else sha256(source)
    origin = Origin(graph, digest)
    with new_folder(out) as temporary:
        nir_io.write(nir_file.to_nir(network), temporary / "model.nir")
        if graph is not None:
            nir_io.write(graph, temporary / "model.float.nir")
        noted: list[Diagnostic] = []
        if nir_dialect == "portable":
            nir_portable.write_beside(network, graph, temporary)
        elif nir_dialect == "spinnaker2":
            noted += nir_spinnaker2.write_beside(network, temporary)
        for name in targets:
            noted += write_target(network, name, temporary, origin)
        notes = [asdict(note) for note in noted]
        text = report() if report is not None else render(out.name, network)
        write_file(temporary / "report.html", text.encode(errors="backslashreplace"))
        manifest = {**describe(network), "targets": list(targets)}
        manifest |= {"nir_dialect": nir_dialect, **(extra or {})}
        manifest["diagnostics"] += notes
        manifest["source"] = None if source is None else {"file": source.name, "sha256": digest}
        manifest["files"] = {
            str(path.relative_to(temporary)): sha256(path)
            for path in sorted(temporary.rglob("*"))
            if path.is_file()
        }
        write_file(temporary / MANIFEST, f"{json.dumps(manifest, indent=1)}\n".encode())
        _swap(temporary, out, force)
    return manifest


def _swap(new: Path, out: Path, force: bool) -> None:
    """Put ``new`` in the place of ``out``; the old folder goes only when the new one stands.

    Exports to one place take turns, and each looks again at what it would replace.
    """
    with _turn(out):
        check_out(out, force)
        if not out.exists():
            new.replace(out)
            return
        old = new.with_name(f"{new.name}.old")
        out.replace(old)
        try:
            new.replace(out)
        except OSError:
            old.replace(out)
            raise
        shutil.rmtree(old)


@contextmanager
def _turn(out: Path) -> Iterator[None]:
    """Hold the lock of ``out``, a file next to it that does not stay."""
    lock = out.with_name(f".{out.name}.lock")
    with filelock.FileLock(lock).acquire(poll_interval=0.01):
        try:
            yield
        finally:
            # Windows deletes no open file; there filelock itself does.
            with suppress(OSError):
                lock.unlink()


def check_out(out: Path, force: bool, inputs: Sequence[Path | None] = ()) -> None:
    """Raise InputError unless ``out`` can become the output folder without any loss."""
    remedy = "name another folder with -o"
    if not out.parent.is_dir():
        raise InputError(Problem(str(out), f"the folder {out.parent} does not exist", "create it"))
    if not os.access(out.parent, os.W_OK):
        raise InputError(Problem(str(out), f"the folder {out.parent} cannot be written to", remedy))
    if out.is_symlink():
        raise InputError(Problem(str(out), "is a symbolic link", "name the folder itself with -o"))
    if Path.cwd().is_relative_to(out.resolve()):
        raise InputError(Problem(str(out), "is, or contains, the current directory", remedy))
    if not out.exists():
        return
    if not out.is_dir():
        raise InputError(Problem(str(out), "is a file", remedy))
    for path in inputs:
        if path is not None and path.resolve().is_relative_to(out.resolve()):
            raise InputError(Problem(str(out), f"contains the input {path}", remedy))
    if not any(out.iterdir()):
        return
    if not force:
        raise InputError(
            Problem(str(out), "already exists", "use --force to replace it, or choose another -o")
        )
    foreign = _foreign_files(out)
    if foreign:
        listed = ", ".join(foreign[:3]) + (", ..." if len(foreign) > 3 else "")
        raise InputError(
            Problem(
                str(out),
                f"contains {len(foreign)} files that stl-export did not write ({listed}), so --force "
                "does not replace it",
                remedy,
            )
        )


def _foreign_files(folder: Path) -> list[str]:
    """Files in ``folder`` that its manifest does not list; all of them when it has none."""
    try:
        data = json.loads((folder / MANIFEST).read_text("utf-8"))
        own = {MANIFEST, *data["files"]} if data["format"] == FORMAT else set()
    except (OSError, ValueError, KeyError, TypeError):
        own = set()
    files = (str(p.relative_to(folder)) for p in folder.rglob("*") if not p.is_dir())
    return sorted(name for name in files if name not in own)


def describe(network: IntegerNetwork) -> dict[str, Any]:
    """What the manifest and ``--json`` say of a network."""
    chip = chips.of(network)
    placed = placement.of(network, chip)
    assumed = rules.assumed(network)
    return {
        "format": FORMAT,
        "version": 1,
        "stl_deploy": __version__,
        "chip": network.chip,
        "timesteps": network.timesteps,
        "thresholds": {"lowering": network.lowering, "reason": network.lowering_reason},
        "weights": _weights(network, placed),
        "read_as": [record.model_dump() for record in network.read_as],
        "inputs": {name: _input(port) for name, port in network.inputs.items()},
        "layers": [
            _row(network, p) | {"assumed": assumed.get(p.name, [])} | _cores(placed, p.name, chip)
            for p in network.populations
        ],
        "connections": [_connection(network, c) for c in network.connections],
        "readout": readout_row(network.readout),
        "cores": None if placed is None else placed.cores,
        "tiles": None if placed is None else placed.tiles,
        "chips": None if placed is None else placed.chips,
        "diagnostics": [asdict(d) for d in (*network.diagnostics, *_notes(assumed, chip))],
    }


def _notes(assumed: Mapping[str, Sequence[str]], chip: chips.Chip) -> Iterator[Diagnostic]:
    """That a chip needs a program for some rules of its neurons: a note for each set of rules."""
    names: dict[tuple[str, ...], list[str]] = {}
    for name, words in assumed.items():
        names.setdefault(tuple(words), []).append(name)
    for words, named in names.items():
        what = (
            f"{', '.join(words)}: assumed. {chip.title} needs a neuron program for it; none is written, "
            "and what it takes of a core is not published"
        )
        yield Diagnostic(", ".join(named), what, "run it on Lava's process graph, ONNX or hw_sim")


def _weights(network: IntegerNetwork, placed: Placement | None) -> dict[str, Any]:
    """How weights are stored, and what all connections take for it; bytes None without cores."""
    rows = () if placed is None else placed.layers.values()
    memory = sum(row.total["synapse_bytes"] for row in rows)
    return {
        "precision": network.weight_precision,
        "synapses": sum(synapse_count(network, c) for c in network.connections),
        "synapse_bytes": None if placed is None else memory,
    }


def _row(network: IntegerNetwork, population: Population) -> dict[str, Any]:
    """What the manifest says of a population; ``lowering`` is how its thresholds came about."""
    lowerings = {"lif": network.lowering, "or": "native"}
    lowering = entry(lowerings, population.kind, population.name, "the manifest")
    neurons, into = population.neurons, network.into(population.name)
    precision = network.precision.get(population.name)
    rounding = network.rounding.get(population.name)
    return {
        "name": population.name,
        "kind": population.kind,
        "shape": list(population.shape),
        "neurons": population.size,
        "synapses": sum(synapse_count(network, c) for c in into),
        "weight_bits": max((c.bits for c in into), default=None),
        "weight_precision": ", ".join(dict.fromkeys(c.precision for c in into))
        if population.kind == "lif"
        else None,
        "grid_bits": max((c.grid_bits for c in into), default=None),
        "recurrent": any(c.source == population.name for c in into),
        "neuron": neuron_words(population),
        "reset": neurons.reset,
        "decays": {name: _span(values) for name, values in neurons.decays.items()},
        "rules": rules.words(neurons),
        "thresholds": {
            "distinct": len(np.unique(neurons.vth)) if neurons.fires else 0,
            "min": int(neurons.vth.min()) if neurons.fires else None,
            "max": int(neurons.vth.max()) if neurons.fires else None,
            "lowering": lowering,
            "rounding": None if rounding is None else asdict(rounding),
        },
        "precision": None if precision is None else asdict(precision),
    }


def _span(values: Any) -> int | list[int]:
    """The value that all neurons have, or the lowest and the highest."""
    low, high = int(np.min(values)), int(np.max(values))
    return low if low == high else [low, high]


def _connection(network: IntegerNetwork, c: Connection) -> dict[str, Any]:
    """What the manifest says of a connection."""
    return {
        "name": c.name,
        "source": c.source,
        "target": c.target,
        "kind": c.synapses.kind,
        "delay": c.delay,
        "port": c.port,
        "synapses": synapse_count(network, c),
        "weight_bits": c.bits,
        "precision": c.precision,
        "exp": c.exp,
        "effective_bits": effective_bits(network, c),
    }


def _input(port: Input) -> dict[str, Any]:
    """What the manifest says of an input."""
    return {
        "shape": list(port.shape),
        "levels": port.levels,
        "signed": port.signed,
        "held": port.held,
    }


def _cores(where: Placement | None, name: str, chip: chips.Chip) -> dict[str, Any]:
    """What the manifest says of the cores of population ``name``."""
    if where is None:
        return {"cores": None, "placement": None}
    placed = where.layers[name]
    return {
        "cores": placed.cores,
        "placement": {
            "bound_by": placed.bound_by,
            "utilisation": placement.utilisation(placed, chip),
            "first_core": placed.first_core,
            "fullest": placed.fullest,
            "total": placed.total,
        },
    }
