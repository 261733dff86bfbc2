"""Samples spread over a Dask cluster: the same results, also when a worker is lost midway."""

from __future__ import annotations

import http.server
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from distributed import LocalCluster
from distributed.diagnostics.plugin import SchedulerPlugin

import stl_deploy
from stl_deploy.backends import cluster
from stl_deploy.backends.cluster import connect
from stl_deploy.commands import hw_sim as hw_sim_command
from stl_deploy.errors import BackendError, InputError, LoweringError, Problem
from stl_deploy.formats import integer_nir as nir_file
from stl_deploy.formats.checkpoint import save_checkpoint
from stl_deploy.formats.raster import Raster
from stl_deploy.formats.raster import save as save_raster
from stl_deploy.hw_sim.simulate import Simulator
from stl_deploy.lower.quantize import quantize
from stl_deploy.spread import Threads
from stl_deploy.verify.against_float import compare
from tests.build.nets import random_net, random_spikes

SAMPLES = 130


@pytest.fixture
def two_workers():
    """A cluster of two processes, each with one thread; what is lost stays lost."""
    with LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=":0"
    ) as made:
        yield made


@pytest.fixture(scope="module")
def shared():
    with LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=":0"
    ) as made:
        yield made


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """(model, graph, network, raster) and the folder that holds them as files."""
    folder = tmp_path_factory.mktemp("case")
    model = random_net(seed=4)
    graph = stl_deploy.from_torch(model)
    network = quantize(graph, "loihi2", weight_bits=4)
    labels = np.arange(SAMPLES, dtype=np.int64) % 10
    raster = Raster(random_spikes(model, SAMPLES), labels)
    save_checkpoint(model, folder / "model.pt")
    stl_deploy.export(network, "nir", folder / "out", graph=graph)
    save_raster(folder / "raster.npz", raster, {"made": "for a test"})
    # As it comes from the file, so that both sides compare the same.
    return model, graph, nir_file.read_network(folder / "out" / "model.nir"), raster, folder


class Watcher(SchedulerPlugin):
    """What became of the tasks, and which workers left."""

    name = "watcher"

    def __init__(self):
        self.left, self.steps, self.assigned = [], [], {}

    def remove_worker(self, scheduler, worker, **_):
        self.left.append(worker)

    def transition(self, key, start, finish, *_args, **more):
        if "_work" in str(key):
            self.steps.append((key, start, finish, more.get("worker")))

    def ends(self, key):
        """How a task went on."""
        return [(start, finish) for k, start, finish, _ in self.steps if k == key]


class Killer:
    """Kills a worker that is in the middle of something, once; call it with every progress.

    The worker is stopped first: it cannot finish what it is given then, and is killed as soon as it has
    something.
    """

    def __init__(self, made):
        self.made, self.victim, self.unfinished = made, None, []
        self.watcher = Watcher()
        made.scheduler.add_plugin(self.watcher)

    def __call__(self, _done):
        if self.victim is None:
            nanny = next(iter(self.made.workers.values()))
            self.victim = nanny.worker_address
            os.kill(nanny.pid, signal.SIGSTOP)
            threading.Thread(target=self.kill, args=(nanny.pid,), daemon=True).start()

    def kill(self, pid):
        time.sleep(0.3)  # what it had sent arrives
        state = self.made.scheduler.workers[self.victim]
        while not self.unfinished:
            self.unfinished = [t.key for t in list(state.processing) if "_work" in str(t.key)]
            time.sleep(0.01)
        os.kill(pid, signal.SIGKILL)

    def check(self):
        """A worker was lost with work in hand, and the work was done again."""
        assert self.victim in self.watcher.left
        for key in self.unfinished:
            ends = self.watcher.ends(key)
            # Given to a worker twice at least, and finished.
            assert sum(finish == "processing" for _, finish in ends) >= 2, ends
            assert ("processing", "memory") in ends
            assert ends.index(("processing", "memory")) > 0


def test_parity_survives_the_loss_of_a_worker(two_workers, case):
    model, graph, network, raster, _ = case
    here = compare(model, graph, network, raster, batch=5)
    killer = Killer(two_workers)
    with connect(two_workers.scheduler_address) as spread:
        there = compare(model, graph, network, raster, batch=5, spread=spread, on_progress=killer)
    killer.check()
    assert json.dumps(there.to_json()) == json.dumps(here.to_json())
    assert here.first_divergence is not None


def test_hw_sim_survives_the_loss_of_a_worker(two_workers, case, tmp_path, monkeypatch):
    from stl_deploy.hw_sim import simulate

    _, _, network, raster, _ = case
    monkeypatch.setattr(simulate, "SPREAD_BATCH", 7)
    here = Simulator(network).run(raster, tmp_path / "here.npz", states=True)
    killer = Killer(two_workers)
    with connect(two_workers.scheduler_address) as spread:
        there = Simulator(network).run(
            raster, tmp_path / "there.npz", True, on_progress=killer, spread=spread
        )
    killer.check()
    same_run(network, here, there)
    with np.load(tmp_path / "here.npz") as mine, np.load(tmp_path / "there.npz") as other:
        assert mine.files == other.files
        for name in mine.files:
            np.testing.assert_array_equal(mine[name], other[name])


def same_run(network, here, there):
    first, second = (
        json.dumps(hw_sim_command.to_json(network, done.counts, done.energies, None))
        for done in (here, there)
    )
    assert first == second
    for name, energy in here.energies.items():
        np.testing.assert_array_equal(energy.series_s, there.energies[name].series_s)
        np.testing.assert_array_equal(energy.series_j, there.energies[name].series_j)


@pytest.mark.parametrize("name", ["stl-parity", "hw_sim"])
def test_the_commands_print_the_same(shared, case, command, tmp_path, name):
    folder = case[-1]
    args = [folder / "out" / "model.nir", "--input", folder / "raster.npz"]
    if name == "stl-parity":
        args = [folder / "model.pt", *args]
    address = ("--dask", shared.scheduler_address)
    texts = []
    for where, more in (("here", ()), ("there", address)):
        files = ("--out", tmp_path / f"{where}.npz", "--report", tmp_path / f"{where}.html")
        files = files if name == "hw_sim" else ()
        code, out, err = command(name, *args, *files, *more, "--json")
        assert (code, err) == (0, "")
        texts.append(out)
    assert texts[0] == texts[1]
    if name == "hw_sim":
        for kind in ("npz", "html"):
            assert (tmp_path / f"here.{kind}").read_bytes() == (
                tmp_path / f"there.{kind}"
            ).read_bytes()


def test_what_fails_on_a_worker_fails_here(shared, case, command, monkeypatch):
    """A worker of another version, and errors that travel whole."""
    folder = case[-1]
    monkeypatch.setattr(cluster, "__version__", "0.0.0")
    code, out, err = command(
        "hw_sim",
        folder / "out" / "model.nir",
        "--input",
        folder / "raster.npz",
        "--dask",
        shared.scheduler_address,
    )
    assert (code, out) == (1, "")
    assert "a worker has stl-deploy " in err
    assert "install stl-deploy 0.0.0 on all workers" in err
    assert "Traceback" not in err


def test_errors_survive_a_pickle():
    import pickle

    for kind in (InputError, LoweringError, BackendError):
        error = pickle.loads(pickle.dumps(kind([Problem("a", "b", "c"), Problem("d", "e")])))
        assert type(error) is kind
        assert error.problems == (Problem("a", "b", "c"), Problem("d", "e"))


def test_a_cluster_without_workers_is_refused(case, monkeypatch):
    monkeypatch.setattr(cluster, "WORKERS_S", 0.5)
    network, raster = case[2], case[3]
    with (
        LocalCluster(n_workers=0, processes=False, dashboard_address=":0") as made,
        connect(made.scheduler_address) as spread,
        pytest.raises(InputError, match="has no worker after"),
    ):
        Simulator(network).run(raster, spread=spread)


def test_a_scheduler_that_goes_away_is_an_error(case, monkeypatch):
    """And not a wait without an end."""
    monkeypatch.setattr(cluster, "WORKERS_S", 1)
    monkeypatch.setattr(cluster, "POLL_S", 0.2)
    network, raster = case[2], case[3]
    script = (
        "from distributed import LocalCluster; import sys\n"
        "c = LocalCluster(n_workers=1, threads_per_worker=1, processes=False,"
        " dashboard_address=':0', protocol='tcp')\n"
        "print(c.scheduler_address, flush=True); sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        monkeypatch.setattr("stl_deploy.hw_sim.simulate.SPREAD_BATCH", 2)
        with connect(address) as spread, pytest.raises(BackendError, match="was lost"):
            Simulator(network).run(raster, on_progress=lambda _: process.kill(), spread=spread)


class Nothing(http.server.BaseHTTPRequestHandler):
    """A web server, which is no scheduler."""

    def log_message(self, *_args):
        pass


@pytest.mark.parametrize("what", ["nobody", "silence", "web", "empty", "scheme"])
def test_an_address_without_a_scheduler_is_bad_input(case, command, monkeypatch, what):
    monkeypatch.setattr(cluster, "CONNECT_S", 0.5)
    folder = case[-1]
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{listening.getsockname()[1]}"
        web = None
        if what == "silence":
            listening.listen()
        elif what == "web":
            web = http.server.HTTPServer(("127.0.0.1", 0), Nothing)
            threading.Thread(target=web.serve_forever, daemon=True).start()
            address = f"tcp://127.0.0.1:{web.server_port}"
        address = {"empty": " ", "scheme": "gopher://x:1"}.get(what, address)
        args = (folder / "out" / "model.nir", "--input", folder / "raster.npz")
        code, out, err = command("hw_sim", *args, "--dask", address)
        if web is not None:
            web.shutdown()
            web.server_close()
    assert (code, out) == (2, ""), err
    assert "--dask" in err
    assert "Traceback" not in err
    assert "remedy" in err


def test_without_dask_the_extra_is_named(case, command, monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    folder = case[-1]
    args = (folder / "out" / "model.nir", "--input", folder / "raster.npz")
    code, out, err = command("hw_sim", *args, "--dask", "tcp://127.0.0.1:8786")
    assert (code, out) == (2, "")
    assert "pip install 'stl-deploy[dask]'" in err


def test_dask_is_not_imported_unless_asked_for(case):
    folder = case[-1]
    script = (
        "import sys\n"
        "from stl_deploy.commands.parity import main\n"
        f"sys.argv = ['stl-parity', {str(folder / 'model.pt')!r}, "
        f"{str(folder / 'out' / 'model.nir')!r}, '--input', {str(folder / 'raster.npz')!r}, "
        "'--limit', '2', '--json']\n"
        "try: main()\n"
        "except SystemExit as stop: assert stop.code == 0, stop.code\n"
        "assert not {'dask', 'distributed'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, cwd=folder)


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_threads_keep_the_order(workers):
    taken = []

    class Squares:
        def prepare(self):
            def do(n):
                time.sleep(0.002 * (n % 3))
                return n * n

            return do

    def numbers():
        for n in range(40):
            taken.append(n)
            yield n

    results = Threads(workers).run(Squares(), numbers())
    assert [next(results) for _ in range(3)] == [0, 1, 4]
    # Few are taken before they are needed.
    assert len(taken) <= 3 + 2 * workers
    assert list(results) == [n * n for n in range(3, 40)]


@pytest.mark.parametrize("workers", [1, 3])
def test_an_error_of_a_thread_comes_in_its_turn(workers):
    class Fails:
        def prepare(self):
            def do(n):
                if n >= 5:
                    raise BackendError(Problem("batch", str(n)))
                return n

            return do

    results = Threads(workers).run(Fails(), range(20))
    seen = [next(results) for _ in range(5)]
    with pytest.raises(BackendError, match="batch: 5"):
        next(results)
    assert seen == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_the_report_does_not_depend_on_the_threads(case, workers):
    import torch

    model, graph, network, raster, _ = case
    before = torch.get_num_threads()
    done = []
    here = compare(
        model,
        graph,
        network,
        raster,
        batch=9,
        spread=Threads(workers),
        on_progress=done.append,
    )
    assert torch.get_num_threads() == before
    # The bar tells what is done, in steps of a batch, up to the end.
    assert done == [*range(9, SAMPLES, 9), SAMPLES]
    assert here.to_json() == compare(model, graph, network, raster, batch=50).to_json()
