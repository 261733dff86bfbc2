"""The exported networks on Lava itself, in the environment that makes itself.

``STL_LAVA_NETWORKS`` sets how many random networks are compared (default 10; releases run 200),
``STL_LAVA_SEED`` the first seed. Without the environment these tests are skipped, but where ``CI`` is
set they fail.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stl_deploy import backends, from_torch, load, quantize, simulate
from stl_deploy.backends import lava_env, lava_worker, tool_env
from stl_deploy.chips import facts as chips
from stl_deploy.commands import parity as parity_command
from stl_deploy.errors import BackendError, LoweringError
from stl_deploy.exporters import lava, loihi_layers, netx
from stl_deploy.formats.checkpoint import save_checkpoint
from stl_deploy.formats.integer_nir import to_nir
from stl_deploy.formats.nir_io import write as write_nir
from stl_deploy.formats.raster import Raster
from stl_deploy.formats.raster import load as load_raster
from stl_deploy.formats.raster import save as save_raster
from stl_deploy.hw_sim import reference
from stl_deploy.ir.network import Connection, Input, IntegerNetwork, Population
from stl_deploy.ir.neurons import Lif
from stl_deploy.ir.readouts import Readout
from stl_deploy.ir.synapses import Dense, OneToOne
from stl_deploy.lower import relays
from stl_deploy.verify import against_reference as agreement
from tests.build import random_graphs, random_networks
from tests.build.floats import random_graph
from tests.build.lava_runs import AT_ONCE, NETWORKS, SEED, TEMPLATES, compared, run_many
from tests.build.nets import ROOT, ZOO, ZOO_RASTER, random_net, random_spikes
from tests.build.networks import chain, dense_lif

TOOLS = ("lava", "netx")


@pytest.fixture(scope="session")
def uv_cache(python: Path) -> str:
    """What uv has downloaded, so that environments for tests need no second download."""
    uv = tool_env.find_uv("tests")
    done = subprocess.run([uv, "cache", "dir"], capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture
def fresh(tmp_path, monkeypatch) -> Path:
    """An empty cache folder of the user."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def temporary(tmp_path, monkeypatch) -> Iterator[Path]:
    """A folder for temporary files, with a short name; ``tmp_path`` stays where it is."""
    with tempfile.TemporaryDirectory() as folder:
        monkeypatch.setattr(tempfile, "tempdir", folder)
        yield Path(folder)


@pytest.fixture(scope="session")
def zoo():
    return quantize(from_torch(load(ZOO)), chip="loihi2")


@pytest.fixture
def small():
    """A small network and its inputs."""
    net = random_net()
    return quantize(from_torch(net), chip="loihi2"), random_spikes(net, 3)


# Equality


@pytest.mark.parametrize("tool", TOOLS)
def test_the_zoo_model_is_the_same_on_lava(python, zoo, tool):
    spikes = load_raster(ZOO_RASTER).spikes[:20]
    result = agreement.measure(tool, zoo, spikes)
    entries = 20 * 4 * sum(p.size for p in zoo.populations)
    assert result == agreement.Agreement(entries, states=2 * entries)


def test_random_networks_are_the_same_on_lava(python, short):
    print(f"seeds {SEED} to {SEED + NETWORKS - 1}")  # shown when the test fails
    entries = 0
    for start in range(SEED, SEED + NETWORKS, AT_ONCE):
        seeds = range(start, min(start + AT_ONCE, SEED + NETWORKS))
        drawn = {seed: random_networks.draw(seed) for seed in seeds}
        for tool in TOOLS:
            traces = run_many(python, tool, drawn, short / f"{tool}{start}")
            for seed, (network, spikes) in drawn.items():
                expected = simulate(network, spikes, states=True)
                result = agreement.compare(network, expected, traces[seed])
                assert result.exact, f"seed {seed}, {tool}: {result}"
                entries += result.entries
    assert entries > 1000 * NETWORKS


def test_what_only_the_process_graph_carries_is_the_same_on_lava(python, short):
    """Folded convolutions as Lava's Sparse, and weight exponents."""
    count = max(1, NETWORKS // 2)
    print(f"seeds {SEED} to {SEED + count - 1}")  # shown when the test fails
    for start in range(SEED, SEED + count, AT_ONCE):
        seeds = range(start, min(start + AT_ONCE, SEED + count))
        drawn = {seed: random_networks.draw(seed, process_graph=True) for seed in seeds}
        traces = run_many(python, "lava", drawn, short / f"{start}")
        for seed, (network, spikes) in drawn.items():
            expected = simulate(network, spikes, states=True)
            result = agreement.compare(network, expected, traces[seed])
            assert result.exact, f"seed {seed}: {result}"


def test_recurrent_networks_are_the_same_on_lava(python, short):
    """Recurrent weights, currents and the reset by subtraction, several samples in a row."""
    print(f"seeds {SEED} to {SEED + NETWORKS - 1}")  # shown when the test fails
    for start in range(SEED, SEED + NETWORKS, AT_ONCE):
        seeds = range(start, min(start + AT_ONCE, SEED + NETWORKS))
        drawn = {seed: random_networks.draw(seed, recurrent=True) for seed in seeds}
        traces = run_many(python, "lava", drawn, short / f"{start}")
        for seed, (network, spikes) in drawn.items():
            expected = simulate(network, spikes, states=True)
            result = agreement.compare(network, expected, traces[seed])
            assert result.exact, f"seed {seed}: {result}"


def test_weights_in_groups_are_the_same_on_lava(python, short):
    """Dense, Sparse and Conv, from the inputs and from the layer itself, binary and graded."""
    count = max(1, NETWORKS // 5)
    print(f"seeds {SEED} to {SEED + count - 1}")  # shown when the test fails
    kinds = [{}, {"process_graph": True}, {"recurrent": True}]
    cases = list(itertools.product(range(SEED, SEED + count), kinds, ["split", "2x8"]))
    for start in range(0, len(cases), 2 * AT_ONCE):
        part = cases[start : start + 2 * AT_ONCE]
        drawn = {
            start + i: random_networks.draw(seed, **kind, precision=precision)
            for i, (seed, kind, precision) in enumerate(part)
        }
        traces = run_many(python, "lava", drawn, short / str(start))
        for i, (network, spikes) in drawn.items():
            expected = simulate(network, spikes, states=True)
            result = agreement.compare(network, expected, traces[i])
            assert result.exact, f"{cases[i]}: {result}"


def test_a_model_quantized_to_slices_is_the_same_on_lava(python):
    net = random_net()
    network = quantize(from_torch(net), chip="loihi2", weight_precision="2x8")
    spikes = random_spikes(net, 2)
    assert agreement.measure("lava", network, spikes).exact
    with pytest.raises(LoweringError, match="weight precision 2x8"):
        agreement.measure("netx", network, spikes)


def test_random_networks_mind_what_they_hear_of_themselves():
    """Leaving it out, taking it over from sample to sample, or another reset changes most of them."""
    without = carried = reset = 0
    for seed in range(SEED, SEED + 20):
        network, spikes = random_networks.draw(seed, recurrent=True)
        right = simulate(network, spikes).layers
        own = [c for c in network.connections if c.source == c.target]
        quiet = [replace(c, synapses=Dense(0 * c.synapses.weight)) for c in own]
        hard = [
            replace(p, neurons=replace(p.neurons, reset="zero"))
            for p in network.populations
            if isinstance(p.neurons, Lif)
        ]
        without += differs(network.changed(*quiet), spikes, right)
        reset += differs(network.changed(*hard), spikes, right)
        carried += any(right[c.source].spikes[:-1, -1].any() for c in own)
    assert min(without, carried) >= 15
    assert reset >= 5


def differs(network, spikes, layers):
    """Whether ``network`` spikes otherwise than the traces ``layers``."""
    other = simulate(network, spikes).layers
    return any((layers[name].spikes != other[name].spikes).any() for name in layers)


@pytest.mark.parametrize("chip", ["loihi1", "loihi2"])
def test_a_quantized_recurrent_graph_is_the_same_on_lava(python, chip):
    """On Loihi 1 with thresholds rounded and neurons laid onto cores by them."""
    rng = np.random.default_rng(4)
    graph = random_graph(rng)
    if chip == "loihi2":
        graph.nodes["lif1"].metadata["reset"] = "subtract"
    spikes = (rng.random((3, 6, 40)) < 0.5).astype(np.uint8)
    network = quantize(graph, chip=chip)
    assert agreement.measure("lava", network, spikes).exact
    with pytest.raises(LoweringError, match=r"rec \(lif1 to lif1\): recurrent weights, for which"):
        agreement.measure("netx", network, spikes)


def test_a_spike_of_the_sample_before_is_not_heard_on_lava(python):
    """Every neuron fires in the last step of a sample and would fire in the first of the next one."""
    layer = dense_lif(
        np.eye(3) * 9,
        [4, 5, 6],
        du=2000,
        recurrent=Dense(np.full((3, 3), 20, np.int8)),
        reset="subtract",
    )
    network = chain(layer, steps=2)
    spikes = np.zeros((4, 2, 3), np.uint8)
    spikes[:, 1] = 1
    expected = simulate(network, spikes).layers["lif"].spikes
    assert (expected == spikes).all()
    assert agreement.measure("lava", network, spikes).exact
    silent = [
        replace(c, synapses=Dense(np.zeros((3, 3), np.int8)))
        for c in network.connections
        if c.source == c.target
    ]
    assert agreement.measure("lava", network.changed(*silent), spikes).exact


def test_random_graphs_are_the_same_on_lava(python, short):
    """Skips, delays, loops, several inputs; decays and biases of each neuron; precisions mixed."""
    print(f"seeds {SEED} to {SEED + NETWORKS - 1}")
    fits = {}
    for seed in range(SEED, SEED + NETWORKS):
        network, rasters = random_graphs.draw(seed)
        if not loihi_layers.problems(network):  # of an ideal chip, what leaves Lava's registers
            fits[seed] = network, rasters
    assert len(fits) >= 0.7 * NETWORKS
    compared(python, "lava", fits, short)


def test_random_graphs_are_the_same_in_netx(python, short):
    """Skips become relays in the layers that they jump over."""
    fits, relayed = {}, 0
    count = max(3, NETWORKS // 3)
    for seed in itertools.count(SEED):
        network, rasters = random_graphs.draw(seed, NETX)
        if not loihi_layers.problems(network) and not netx.problems(network):
            more = len(relays.relayed(network, chips.of(network), "relay").populations)
            if more > len(network.populations):
                fits[seed], relayed = (network, rasters), relayed + 1
        if relayed == count:
            break
    compared(python, "netx", fits, short)


NETX = random_graphs.Features(
    chips=("loihi1", "loihi2"),
    inputs=1,
    graded=False,
    delays=0,
    loops=False,
    own=False,
    sparse=False,
    bias_per_neuron=False,
    decays_per_neuron=False,
    currents=False,
    exponents=False,
    precisions=("8",),
    subtract=False,
)


def test_parts_that_nothing_connects_run_together(python):
    """Lava runs what is connected to the process that is asked to run."""

    def alone(name: str) -> Population:
        fires = Lif(np.full(3, 9, np.int32), np.full(3, 6, np.int32), np.ones(3))
        return Population(name, (3,), fires)

    network = IntegerNetwork(
        "loihi2",
        4,
        {"input": Input((2,)), "other": Input((2,)), "unread": Input((5,))},
        (alone("a"), alone("b"), alone("c")),
        (
            Connection("wa", "input", "a", Dense(np.full((3, 2), 7, np.int8))),
            Connection("wb", "other", "b", Dense(np.full((3, 2), 5, np.int8)), delay=2),
            Connection("nothing", "input", "b", Dense(np.zeros((3, 2), np.int8))),
        ),
        Readout(3, 1, "a"),
    )
    rng = np.random.default_rng(0)
    rasters = {
        name: rng.integers(0, 2, (3, 4, *given.shape)).astype(np.uint8)
        for name, given in network.inputs.items()
    }
    got = on("lava", network, 60).run(rasters)
    expected = reference.run(network, rasters, states=True)
    assert agreement.compare(network, expected, got).exact
    assert expected.layers["c"].spikes.any()


def residual(chip: str) -> IntegerNetwork:
    """Two dense populations and a third one that hears both."""
    rng = np.random.default_rng(6)

    def dense(name: str, source: str, target: str, inputs: int) -> Connection:
        weight = rng.integers(-60, 80, (20, inputs)).astype(np.int8)
        return Connection(name, source, target, Dense(weight))

    def neurons(name: str) -> Population:
        vth = rng.integers(10, 160, 20).astype(np.int32)
        return Population(name, (20,), Lif(vth, np.zeros(20, np.int32), np.ones(20)))

    skip = Connection("skip", "lif1", "lif3", OneToOne(np.full(20, 90, np.int8)))
    return IntegerNetwork(
        chip,
        5,
        {"input": Input((12,))},
        (neurons("lif1"), neurons("lif2"), neurons("lif3")),
        (
            dense("fc1", "input", "lif1", 12),
            dense("fc2", "lif1", "lif2", 20),
            dense("fc3", "lif2", "lif3", 20),
            skip,
        ),
        Readout(20, 1, "lif3"),
    )


@pytest.mark.parametrize("chip", ["loihi1", "loihi2"])
def test_a_residual_network_by_relays_and_by_delays_is_the_same_on_lava(python, chip):
    network = residual(chip)
    spikes = (np.random.default_rng(1).random((3, 5, 12)) < 0.4).astype(np.uint8)
    expected = reference.run(network, spikes, states=True)
    assert all(did.spikes.any() for did in expected.layers.values())
    for skips in ("delay", "relay"):
        way = relays.relayed(network, chips.of(network), skips)
        assert len(way.populations) == 3 + (skips == "relay")
        got = on("lava", way, 60).run(spikes)
        assert agreement.compare(network, expected, got).exact
        if skips == "relay":
            assert (got["spikes/lif1_relay1"] == expected.layers["lif1"].spikes).all()
    assert agreement.compare(network, expected, on("netx", network, 60).run(spikes)).exact


@pytest.mark.parametrize("seed", range(SEED, SEED + 3 * NETWORKS, 3))
def test_random_networks_work_in_every_layer(seed):
    network, spikes = random_networks.draw(seed)
    for population in network.populations:
        fired = simulate(network, spikes).layers[population.name].spikes.mean()
        assert 0.02 <= fired <= 0.6
        assert random_graphs.flips(network, {"input": spikes}, population.name)


def test_a_weight_exponent_goes_to_the_process_graph_and_not_to_netx(python):
    net = random_net()
    network = quantize(from_torch(net), chip="loihi2", weight_exp=2)
    spikes = random_spikes(net, 2)
    assert agreement.measure("lava", network, spikes).exact
    with pytest.raises(LoweringError, match="weight exponent 2; netx knows 0 only"):
        agreement.measure("netx", network, spikes)


@pytest.mark.parametrize("thresholds", ["fold", "grouped"])
def test_lowered_thresholds_are_the_same_on_lava(python, thresholds):
    net = random_net()
    network = quantize(from_torch(net), chip="loihi1", thresholds=thresholds)
    spikes = random_spikes(net, 2)
    assert agreement.measure("lava", network, spikes).exact
    if thresholds == "grouped":
        assert agreement.measure("netx", network, spikes).exact
    else:
        with pytest.raises(LoweringError, match=r"lif1\): a folded convolution; netx knows no"):
            agreement.measure("netx", network, spikes)


def test_long_runs_are_compared_in_batches(python, small, monkeypatch):
    from stl_deploy.hw_sim import simulate as sim

    network, spikes = small
    monkeypatch.setattr(sim, "batch_size", lambda _: 2)
    steps = []
    result = agreement.measure("lava", network, spikes, on_steps=steps.append)
    assert result.exact
    assert result.entries == 3 * 4 * sum(p.size for p in network.populations)
    assert steps == sorted(steps)
    assert steps[-1] == 12


def test_a_difference_is_counted_and_located(small):
    network, spikes = small
    trace = simulate(network, spikes, states=True)
    got = {f"{k}/{n}": getattr(t, k).copy() for n, t in trace.layers.items() for k in ("u", "v")}
    got |= {f"spikes/{n}": t.spikes.copy() for n, t in trace.layers.items()}
    got["spikes/lif2"][1, 2, 0, 1, 1] ^= 1
    got["v/lif3"][0, 0, 5] += 1
    got["u/lif3"][2, 3, 4] -= 1
    result = agreement.compare(network, trace, got, first_sample=10)
    assert (result.spike_mismatches, result.state_mismatches, result.exact) == (1, 2, False)
    assert result.first is not None
    assert (result.first.layer, result.first.kind) == ("lif2", "spikes")
    assert (result.first.sample, result.first.step, result.first.neuron) == (11, 2, (0, 1, 1))


# A worker that fails


def on(tool: str, network: IntegerNetwork, stall_s: float) -> backends.Session:
    """A network on one of TOOLS."""
    return backends.load(tool).session(network, stall_s)


def watch(monkeypatch) -> list[int]:
    """Process ids of the workers that are started."""
    started: list[int] = []
    popen = subprocess.Popen

    class Watched(popen):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            started.append(self.pid)

    monkeypatch.setattr(lava_worker.subprocess, "Popen", Watched)
    return started


def assert_gone(group: int, temporary: Path) -> None:
    assert not any(temporary.iterdir())
    assert not lava_worker._alive(group)


def shared_memory(process: int) -> set[Path]:
    """The files of shared memory that a process has open."""
    lines = Path(f"/proc/{process}/maps").read_text().splitlines()
    return {Path(line.split()[-1]) for line in lines if "/dev/shm/psm_" in line}


def test_a_long_name_of_the_temporary_folder_does_no_harm(python, small, tmp_path, monkeypatch):
    long = tmp_path / ("x" * 90)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    assert agreement.measure("lava", *small).exact
    assert not any(long.iterdir())


@pytest.mark.parametrize("tool", TOOLS)
def test_a_killed_worker_is_one_error(python, zoo, temporary, monkeypatch, tool):
    workers, memory = watch(monkeypatch), set()
    spikes = load_raster(ZOO_RASTER).spikes[:20]

    def kill(_step: int) -> None:
        memory.update(shared_memory(workers[0]))
        os.kill(workers[0], signal.SIGKILL)

    with pytest.raises(BackendError, match=rf"{tool}: the worker was killed \(SIGKILL\)"):
        on(tool, zoo, 60).run(spikes, kill)
    assert_gone(workers[0], temporary)
    assert memory
    assert not [path for path in memory if path.exists()]


def test_a_worker_that_stands_still_is_ended(python, zoo, temporary, monkeypatch):
    workers = watch(monkeypatch)
    spikes = load_raster(ZOO_RASTER).spikes[:20]
    with pytest.raises(BackendError, match="made no progress for 3 s and was ended"):
        on("lava", zoo, 3).run(spikes, lambda _: os.killpg(workers[0], signal.SIGSTOP))
    assert_gone(workers[0], temporary)


def test_a_worker_that_repeats_itself_stands_still(temporary, tmp_path, monkeypatch):
    workers = watch(monkeypatch)
    script = (
        "import subprocess, sys, time\n"
        "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "while True: print('step 1 of 9', file=sys.stderr, flush=True); time.sleep(0.1)"
    )
    with pytest.raises(BackendError, match="no progress"):
        lava_worker.work("lava", [sys.executable, "-c", script], tmp_path, stall_s=1)
    assert_gone(workers[0], temporary)


def test_an_interrupt_ends_the_worker(tmp_path, temporary, monkeypatch):
    workers = watch(monkeypatch)
    main = threading.main_thread().ident
    assert main is not None
    timer = threading.Timer(1, signal.pthread_kill, (main, signal.SIGINT))
    # Python keeps ignoring what its parent ignored, as a shell does for its background jobs.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            lava_worker.work(
                "lava", [sys.executable, "-c", "import time; time.sleep(600)"], tmp_path
            )
    finally:
        signal.signal(signal.SIGINT, before)
    assert_gone(workers[0], temporary)


def test_a_killed_command_leaves_no_worker(python, tmp_path):
    """Lava's own processes are still being started or at work when the command is killed.

    Left alone they would be at work for longer than the wait at the end. The layers are small: before it
    starts Lava, the command runs the float model on all samples.
    """
    net = random_net("FC8-LIF-FC8-LIF-FC8-LIF-FC20-LIF-AvgPool2", shape=(4,))
    model, lowered, raster = (tmp_path / name for name in ("m.pt", "model.nir", "long.npz"))
    save_checkpoint(net, model)
    write_nir(to_nir(quantize(from_torch(net), chip="loihi2")), lowered)
    save_raster(raster, Raster(random_spikes(net, 10_000)), {})
    args = [str(model), str(lowered), "--input", str(raster), "--backend", "lava"]
    code = "from stl_deploy.commands.parity import main; main()"
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    command = subprocess.Popen([sys.executable, "-c", code, *args], env=environment)
    try:
        group = wait_for(lambda: next(iter(children(command.pid)), 0), 300)
        memory = wait_for(lambda: len(children(group)) > 8 and shared_memory(group), 300)
    finally:
        command.kill()
        command.wait()
    wait_for(lambda: not lava_worker._alive(group), 60)
    assert not [path for path in memory if path.exists()]


def test_a_killed_caller_leaves_not_even_what_ignores_signals(tmp_path):
    script = (
        "import os, signal, subprocess, sys, time\n"
        "deaf = 'import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)'\n"
        "subprocess.Popen([sys.executable, '-c', deaf])\n"
        "signal.signal(signal.SIGTERM, lambda *_: open('asked', 'w').close())\n"
        "time.sleep(0.5)\n"
        "open('group', 'w').write(str(os.getpgid(0)))\n"
        "os.kill(os.getpid(), signal.SIGSTOP)\n"
        "time.sleep(600)"
    )
    code = (
        "import sys; from pathlib import Path; from stl_deploy.backends import lava_worker\n"
        "lava_worker.work('lava', [sys.executable, '-c', sys.argv[1]], Path(sys.argv[2]))"
    )
    caller = subprocess.Popen([sys.executable, "-c", code, script, str(tmp_path)])
    try:
        path = tmp_path / "group"
        group = int(wait_for(lambda: path.is_file() and path.read_text(), 60))
        assert lava_worker._alive(group)
    finally:
        caller.kill()
        caller.wait()
    wait_for(lambda: not lava_worker._alive(group), 10)
    assert (tmp_path / "asked").exists()  # politely first, and even what was stopped


def wait_for(answer: Callable[[], Any], seconds: float) -> Any:
    """What ``answer`` gives as soon as that is true."""
    until = time.monotonic() + seconds
    while not (result := answer()):
        assert time.monotonic() < until
        time.sleep(0.05)
    return result


def test_a_dead_process_of_lava_is_noticed(python, zoo, temporary, monkeypatch):
    workers = watch(monkeypatch)

    def kill_children(_step: int) -> None:
        for child in children(workers[0]):
            os.kill(child, signal.SIGKILL)

    spikes = load_raster(ZOO_RASTER).spikes[:20]
    with pytest.raises(BackendError, match="lava: the worker failed: "):
        on("lava", zoo, 60).run(spikes, kill_children)
    assert_gone(workers[0], temporary)


def children(parent: int) -> list[int]:
    """Processes whose parent is ``parent`` and that run the worker's script."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rsplit(")", 1)[1].split()
            if int(fields[1]) == parent:
                found.append(int(stat.parent.name))
        except (OSError, IndexError):
            continue
    return found


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda raw: raw[: len(raw) // 2], id="cut"),
        pytest.param(lambda raw: b"", id="empty"),
        pytest.param(lambda raw: raw[:200] + bytes(60) + raw[260:], id="overwritten"),
    ],
)
def test_a_corrupt_params_file_is_one_error(python, small, tmp_path, damage):
    network, spikes = small
    home, out = tmp_path / "loihi", tmp_path / "out.npz"
    home.mkdir()
    lava.write(network, home)
    path = home / "lava_params.npz"
    path.write_bytes(damage(path.read_bytes()))
    np.savez(tmp_path / "in.npz", spikes=spikes)
    command = [python, home / "lava_network.py", "--input", tmp_path / "in.npz", "--out", out]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {path}: cannot be read (")
    assert done.stderr.endswith("export the network again\n")
    assert len(done.stderr.splitlines()) == 1
    with pytest.raises(
        BackendError, match=r"the worker failed: .*lava_params\.npz: cannot be read"
    ):
        lava_worker.work("lava", list(map(str, command)), tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.npz", "loihi", "tmp"]


def test_a_corrupt_netx_file_is_one_error(python, tmp_path):
    net = tmp_path / "network.net"
    net.write_bytes(b"not HDF5")
    np.savez(tmp_path / "in.npz", spikes=np.zeros((1, 2, 3), np.uint8))
    (tmp_path / "script").mkdir()
    script = shutil.copy(str(TEMPLATES / "netx_network.py"), tmp_path / "script")
    command = [python, script, net, "--input", tmp_path / "in.npz", "--out", tmp_path / "o.npz"]
    with pytest.raises(BackendError, match=r"network\.net: netx cannot read it"):
        lava_worker.work("netx", list(map(str, command)), tmp_path)
    assert not (tmp_path / "o.npz").exists()


def test_a_damaged_environment_is_told_from_a_failing_network(tmp_path):
    command = [sys.executable, "-c", "import lava.proc.lif"]
    with pytest.raises(BackendError, match=r"ModuleNotFoundError: .*delete .*, which is damaged"):
        lava_worker.work("lava", command, tmp_path)


def test_a_worker_without_a_result_is_an_error(python, small, monkeypatch):
    monkeypatch.setattr(lava_worker, "work", lambda *_args: None)
    network, spikes = small
    with pytest.raises(BackendError, match="result cannot be read"):
        on("lava", network, 60).run(spikes)


# The environment


ENSURE = "from stl_deploy.backends import lava_env; print(lava_env.python())"


def test_two_processes_at_once_build_it_once(uv_cache, fresh):
    environment = {**os.environ, "UV_CACHE_DIR": uv_cache}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", ENSURE],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    (out, err), (out2, err2) = (p.communicate(timeout=900) for p in processes)
    assert out == out2 == f"{lava_env.folder() / 'bin' / 'python'}\n"
    assert sorted([err.count("Setting up Lava"), err2.count("Setting up Lava")]) == [0, 1]
    subprocess.run([out.strip(), "-c", "import lava.proc.lif.process, h5py"], check=True)
    assert not list(lava_env.cache().glob("*.building"))


def test_what_is_half_built_is_not_used(uv_cache, fresh, monkeypatch):
    monkeypatch.setenv("UV_CACHE_DIR", uv_cache)
    for folder in (lava_env.folder(), lava_env.folder().with_suffix(".building")):
        (folder / "bin").mkdir(parents=True)
        (folder / "bin" / "python").write_text("half")
    lines: list[str] = []
    python = lava_env.python(lines.append)
    assert [line.split()[0] for line in lines] == ["Setting", "Lava"]
    subprocess.run([python, "-c", "import lava.proc.lif.process, h5py"], check=True)
    assert lava_env.python(lines.append) == python
    assert len(lines) == 2
    assert not list(lava_env.cache().glob("*.building"))


def refused(match: str) -> str:
    """The one error of making the environment; nothing of it stays."""
    with pytest.raises(BackendError, match=match) as caught:
        lava_env.python(lambda _: None)
    (problem,) = caught.value.problems
    if lava_env.cache().is_dir():
        assert {p.suffix for p in lava_env.cache().iterdir()} <= {".lock"}
    return problem.remedy


def test_without_python_3_10_the_remedy_is_said(fresh, tmp_path, monkeypatch):
    (tmp_path / "nothing").mkdir()
    for name in ("PATH", "HOME", "PYENV_ROOT"):
        monkeypatch.setenv(name, str(tmp_path / "nothing"))
    monkeypatch.setenv("UV_PYTHON_DOWNLOADS", "never")
    monkeypatch.delenv("STL_LAVA_PYTHON", raising=False)
    remedy = refused(r"uv venv failed: .*3\.10")
    assert "STL_LAVA_PYTHON" in remedy


@pytest.mark.parametrize("named", [sys.executable, "/there/is/none", str(ROOT / "Makefile")])
def test_another_python_than_3_10_is_refused(fresh, monkeypatch, named):
    monkeypatch.setenv("STL_LAVA_PYTHON", named)
    assert "unset the variable" in refused(rf"STL_LAVA_PYTHON={named}: is not a Python 3\.10")


def test_a_cache_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    # A file where the folder should be: root may write to read-only folders.
    (tmp_path / "cache").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert "XDG_CACHE_HOME" in refused(f"cannot be written to {tmp_path}/cache/stl-deploy/lava")
    assert [p.name for p in tmp_path.iterdir()] == ["cache"]


def test_without_a_network_the_remedy_is_said(python, fresh, tmp_path, monkeypatch):
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "empty"))
    monkeypatch.setenv("UV_OFFLINE", "1")
    assert "UV_DEFAULT_INDEX" in refused("uv pip install failed: ")


def test_a_wrong_hash_is_refused(uv_cache, fresh, monkeypatch):
    monkeypatch.setenv("UV_CACHE_DIR", uv_cache)
    text = f"cloudpickle==3.1.2 --hash=sha256:{'0' * 64}\n"
    monkeypatch.setattr(lava_env, "_requirements", lambda: text)
    refused("(?i)hash")


def test_without_uv_the_remedy_is_said(fresh, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "uv", None)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert refused("uv is not installed") == "pip install uv"


def test_one_that_takes_for_ever_is_given_up(fresh, monkeypatch):
    monkeypatch.setattr(lava_env, "WAIT_S", 0.2)
    lava_env.cache().mkdir(parents=True)
    script = (
        "import filelock, sys, time\n"
        "with filelock.FileLock(sys.argv[1]): print('held', flush=True); time.sleep(600)"
    )
    lock = str(lava_env.folder().with_suffix(".lock"))
    holder = subprocess.Popen(
        [sys.executable, "-c", script, lock], stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None
        holder.stdout.readline()
        refused("another process has been building it")
    finally:
        holder.kill()
        holder.wait()


# The command


@pytest.fixture
def parity(monkeypatch, capfd):
    """Run stl-parity: (exit code, stdout, stderr)."""

    def run(*args):
        monkeypatch.setattr(sys, "argv", ["stl-parity", *map(str, args)])
        with pytest.raises(SystemExit) as stop:
            parity_command.main()
        out, err = capfd.readouterr()
        return stop.value.code, out, err

    return run


@pytest.fixture
def lowered(net, tmp_path) -> Path:
    path = tmp_path / "model.nir"
    write_nir(to_nir(quantize(from_torch(net), chip="loihi2")), path)
    return path


def test_parity_on_all_backends(python, parity, model, lowered, raster):
    args = (model, lowered, "--input", raster, "--limit", 4, "--backend", "hw_sim,lava,netx")
    code, out, err = parity(*args, "--json")
    assert (code, err) == (0, "")
    data = json.loads(out)
    assert data["passed"] is True
    assert data["failures"] == []
    assert set(data["accuracy"]) == {"float", "lowered"}
    assert 0 <= data["prediction_agreement"] <= 1
    assert data["first_divergence"]["layer"] in {row["name"] for row in data["layers"]}
    assert data["overflows"] == 0
    assert [row["name"] for row in data["layers"]] == list(load(lowered).by_name)
    for row in data["layers"]:
        assert row["certified"] + row["mismatch_forced"] <= 1 + 1e-12
        assert row["certified"] > 0.9
        assert {"mismatch", "mismatch_forced", "float32_mismatch"} <= set(row)
    entries = 4 * 4 * sum(p.size for p in load(lowered).populations)
    exact = asdict(agreement.Agreement(entries, states=2 * entries))
    assert data["backends"] == dict.fromkeys(("hw_sim", "lava", "netx"), exact)


def test_parity_in_words(parity, model, lowered, raster):
    code, out, err = parity(model, lowered, "--input", raster)
    assert (code, err) == (0, "")
    assert "Spike mismatch against the float64 model, 12 samples" in out
    assert "hw_sim" in out


def test_a_backend_that_differs_fails(python, parity, model, lowered, raster, monkeypatch):
    true_run = lava_worker.Session.run

    def broken(*args, **kwargs):
        trace = true_run(*args, **kwargs)
        trace["v/lif3"][1, 2, 7] += 1
        return trace

    monkeypatch.setattr(lava_worker.Session, "run", broken)
    args = (model, lowered, "--input", raster, "--limit", 2, "--backend", "lava")
    code, out, err = parity(*args, "--json")
    assert code == 1
    data = json.loads(out)
    assert data["passed"] is False
    assert data["backends"]["lava"]["state_mismatches"] == 1
    assert "lava differs from the reference in 0 spikes and 1 states; first v of lif3 (7,)" in err


def test_budgets(parity, model, lowered, raster):
    args = (model, lowered, "--input", raster)
    code, out, err = parity(*args, "--max-mismatch", 0, "--json")
    worst = max(row["mismatch"] for row in json.loads(out)["layers"])
    assert worst > 0
    assert code == 1
    assert "is above --max-mismatch 0" in err
    assert parity(*args, "--max-mismatch", worst, "--max-accuracy-drop", 100)[0] == 0


def test_an_accuracy_budget_needs_labels(parity, model, lowered, net, tmp_path):
    path = tmp_path / "bare.npz"
    save_raster(path, Raster(random_spikes(net, 2)), {})
    code, _, err = parity(model, lowered, "--input", path, "--max-accuracy-drop", 1)
    assert code == 2
    assert "has no labels" in err


@pytest.mark.parametrize(
    ("names", "what"),
    [
        (
            "lava,brian",
            "'brian' is not a known backend remedy: choose from hw_sim, lava, netx, onnx",
        ),
        ("", "'' is not a known backend"),
    ],
)
def test_other_backends_are_refused(parity, model, lowered, raster, names, what):
    code, out, err = parity(model, lowered, "--input", raster, "--backend", names)
    assert (code, out) == (2, "")
    assert what in " ".join(err.split())


def test_a_network_of_another_model_is_refused(parity, lowered, raster, tmp_path):
    other = tmp_path / "other.pt"
    save_checkpoint(random_net("FC20-LIF-AvgPool2", shape=(1, 8, 8)), other)
    code, out, err = parity(other, lowered, "--input", raster)
    assert (code, out) == (2, "")
    assert "internal error" not in err


def test_an_ideal_network_goes_where_it_fits(python, parity, net, model, raster, tmp_path):
    fits, large = tmp_path / "fits.nir", tmp_path / "large.nir"
    network = quantize(from_torch(net), chip="ideal")
    write_nir(to_nir(network), fits)
    args = ("--input", raster, "--limit", 2, "--backend", "lava")
    assert parity(model, fits, *args)[0] == 0
    last = network.populations[-1]
    below = replace(last.neurons, vth=last.neurons.vth - (1 << 20))
    write_nir(to_nir(network.changed(replace(last, neurons=below))), large)
    code, _, err = parity(model, large, *args)
    assert code == 1
    assert "threshold vth" in err


def test_a_worker_that_fails_fails_the_command(python, parity, model, lowered, raster, monkeypatch):
    monkeypatch.setattr(lava_env, "python", lambda *_: Path("/bin/false"))
    args = (model, lowered, "--input", raster, "--limit", 2, "--backend", "netx", "--json")
    code, out, err = parity(*args)
    assert (code, out) == (1, "")
    assert "netx: the worker failed: it gave no reason" in err.replace("\n", " ")
