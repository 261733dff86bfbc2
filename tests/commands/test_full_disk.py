"""A disk that fills up: one error naming the file, exit code 2, and nothing left behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import stl_deploy
from stl_deploy.errors import InputError
from stl_deploy.files import atomic, new_folder, write
from stl_deploy.formats.checkpoint import save_checkpoint
from stl_deploy.formats.raster import Raster, save
from tests.build import full_disk
from tests.build.files import write_idx
from tests.build.nets import random_net, random_spikes

WRITTEN = {
    "export": {
        *("model.nir", "model.float.nir", "model.portable.nir", "model.float.portable.nir"),
        *("lava_network.py", "lava_params.npz", "network.net"),
        *("step.onnx", "scan.onnx", "float_step.onnx", "report.html", "manifest.json"),
    },
    "hw_sim": {"0.npy", "new.npz", "new.html"},
    "raster": {"new.npz"},
    "join": {"new.pt"},
    "train": {"new.pt", "new.resume.pt"},
    "parity": {"network.net", "netx_network.py", "in.npz"},
    "check": {"0.in.npz", "jobs.json", "nir_consumer.py"},
}
# Files that are complete by then: the trace of a run, and what --resume continues from.
COMPLETE = {("hw_sim", "new.html"): ["new.npz"], ("train", "new.pt"): ["new.resume.pt"]}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A folder with what the commands read."""
    folder = tmp_path_factory.mktemp("inputs")
    (folder / "images").mkdir()
    net = random_net()
    save_checkpoint(net, folder / "model.pt")
    save_checkpoint(random_net(seed=1), folder / "other.pt")
    save(folder / "raster.npz", Raster(random_spikes(net, 12), np.arange(12) % 10), {})
    write_idx(folder / "images" / "t10k-images-idx3-ubyte.gz", np.zeros((10, 6, 5)))
    write_idx(folder / "images" / "t10k-labels-idx1-ubyte.gz", np.arange(10))
    network = stl_deploy.quantize(stl_deploy.from_torch(net), chip="loihi2")
    stl_deploy.export(network, "nir", folder / "o", nir_dialect="portable")
    return folder


@pytest.fixture(scope="module")
def rows(inputs):
    """What tests/build/full_disk.py printed."""
    done = subprocess.run(
        [sys.executable, full_disk.__file__, inputs],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, f"ended with {done.returncode}: {done.stderr[-2000:]}"
    return [json.loads(line) for line in done.stdout.splitlines()]


def check(row, where, left):
    """That ``row`` is a single problem with a remedy, at the end of what is said."""
    head, problem, remedy = row["err"].splitlines()[-3:]
    assert row["code"] == 2
    assert head.endswith(": 1 problem")
    assert problem.endswith(f"{where}: cannot be written: File too large")
    assert remedy.strip().startswith("remedy: ")
    assert "Traceback" not in row["err"]
    assert "bug in stl-deploy" not in row["err"]
    assert "/." not in problem, "a temporary file is named"
    assert row["left"] == left


@pytest.mark.parametrize("command", WRITTEN)
def test_each_file_of_a_command_can_meet_a_full_disk(rows, command):
    own = [row for row in rows if row["command"] == command and "size" not in row]
    (files,) = (set(row["files"]) for row in own if "files" in row)
    assert files == WRITTEN[command], "written by other means than Python, or not at all"
    failed = [row for row in own if "full" in row]
    assert {row["full"] for row in failed} == files
    for row in failed:
        check(row, row["full"], COMPLETE.get((command, row["full"]), []))


@pytest.mark.parametrize("size", full_disk.SIZES)
def test_exports_end_cleanly_wherever_the_disk_fills(rows, size):
    (row,) = (row for row in rows if row.get("size") == size)
    check(row, "new/model.nir", [])


@pytest.mark.parametrize(
    ("number", "remedy"),
    [(28, "free some space"), (122, "free some space"), (27, "ulimit -f"), (5, "another folder")],
)
def test_the_remedy_follows_the_reason(tmp_path, number, remedy):
    """And whatever a target raises that writes by itself, its folder does not stay."""

    def fail(folder):
        (folder / "file").write_bytes(b"half")
        raise OSError(number, os.strerror(number))

    with pytest.raises(InputError) as caught, new_folder(tmp_path / "out") as temporary:
        fail(temporary)
    (problem,) = caught.value.problems
    assert problem.where == str(tmp_path / "out")
    assert os.strerror(number) in problem.what
    assert remedy in problem.remedy
    assert list(tmp_path.iterdir()) == []


def test_errors_of_a_new_folder_name_the_place_that_was_asked_for(tmp_path):
    from stl_deploy.errors import LoweringError, Problem

    with pytest.raises(LoweringError) as caught, new_folder(tmp_path / "out") as temporary:
        raise LoweringError([Problem(f"{temporary}/a", "no"), Problem("layer", "no")])
    assert [p.where for p in caught.value.problems] == [str(tmp_path / "out" / "a"), "layer"]


def test_compiled_code_that_cannot_be_kept_still_runs(monkeypatch):
    from numba.core.caching import FunctionCache

    from stl_deploy.hw_sim import kernels

    def full(*_args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(FunctionCache, "save_overload", full)
    assert kernels.compiled(lambda x: x + 1)(2) == 3


@pytest.mark.parametrize("links", [True, False])
def test_of_two_runs_into_one_file_the_second_fails(tmp_path, monkeypatch, links):
    """Also on file systems without hard links."""

    def none(*_):
        raise OSError(95, "Operation not supported")

    if not links:
        monkeypatch.setattr(os, "link", none)
    path = tmp_path / "trace.npz"

    def run():
        with atomic(path, replace=False) as second:
            second.write_bytes(b"second")
            write(path, b"first", replace=False)

    with pytest.raises(InputError, match="exists already -> give --force"):
        run()
    assert path.read_bytes() == b"first"
    write(path, b"third")
    assert path.read_bytes() == b"third"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "command", [name for name in full_disk.COMMANDS if name not in ("parity", "check", "export")]
)
def test_no_command_replaces_a_file_that_came_while_it_ran(
    tmp_path, inputs, command, monkeypatch, capsys
):
    """Without --force; that the file is not there at the start is what the commands look at first."""
    monkeypatch.chdir(inputs)
    named = [str(tmp_path / a) if a.startswith("new.") else a for a in full_disk.COMMANDS[command]]
    made = [Path(a) for a in named if a.startswith(str(tmp_path))]

    def late(path, *, replace):
        """The other run ends now."""
        path.write_bytes(b"other")

    for module in ("hw_sim", "raster", "join", "train"):
        monkeypatch.setattr(f"stl_deploy.commands.{module}.refuse_existing", late)
    monkeypatch.setattr(sys, "argv", named)
    (script,) = full_disk.SCRIPTS.select(name=named[0])
    main = script.load()
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert f"{made[0]}: exists already" in capsys.readouterr().err.replace("\n", "")
    assert {path.read_bytes() for path in made} == {b"other"}


@pytest.mark.parametrize(("mask", "folder", "file"), [(0o077, 0o700, 0o600), (0o002, 0o775, 0o664)])
def test_outputs_follow_the_umask(tmp_path, net, mask, folder, file):
    network = stl_deploy.quantize(stl_deploy.from_torch(net), chip="loihi2")
    before = os.umask(mask)
    try:
        stl_deploy.export(network, "loihi", tmp_path / "out")
        save_checkpoint(net, tmp_path / "model.pt")
    finally:
        os.umask(before)
    made = [tmp_path / "out", tmp_path / "model.pt", *(tmp_path / "out").rglob("*")]
    assert {path.stat().st_mode & 0o777 for path in made if path.is_dir()} == {folder}
    assert {path.stat().st_mode & 0o777 for path in made if path.is_file()} == {file}


def test_exports_need_no_fcntl(tmp_path):
    """As on Windows, where filelock locks by other means."""
    program = (
        "import sys, warnings; sys.modules['fcntl'] = None; warnings.simplefilter('ignore')\n"
        "from pathlib import Path; from stl_deploy.exporters.folder import _turn\n"
        "with _turn(Path('out')): print(len(list(Path().iterdir())))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (0, "1\n"), done.stderr
    assert list(tmp_path.iterdir()) == []
