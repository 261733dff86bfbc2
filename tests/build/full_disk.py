"""What tests/commands/test_full_disk.py runs in a process of its own: python full_disk.py FOLDER.

Each command runs once as it is, which shows what it writes, and then once for every such file, in which
that file cannot grow. A limit on the size of files stands for a full disk: the system refuses both in the
same place. One line of JSON is printed a run.
"""

from __future__ import annotations

import contextlib
import io
import json
import mmap
import os
import re
import resource
import shutil
import sys
import tempfile
from importlib.metadata import distribution
from pathlib import Path

from stl_deploy.backends import lava_env, tool_env

SCRIPTS = distribution("stl-deploy").entry_points.select(group="console_scripts")
EVERY_TARGET = ["--target", "nir", "--target", "loihi", "--target", "onnx"]
TRAINED = ["--raster", "raster.npz", "--arch", "FC20-LIF-AvgPool2", "--epochs", "1"]
COMMANDS = {
    "export": ["stl-export", "model.pt", *EVERY_TARGET, "--nir-dialect", "portable", "-o", "new"],
    "hw_sim": [
        *("hw_sim", "o/model.nir", "--input", "raster.npz", "--states"),
        *("--out", "new.npz", "--report", "new.html"),
    ],
    "raster": ["stl-raster", "--data", "images", "-o", "new.npz"],
    "join": ["stl-join", "model.pt", "other.pt", "-o", "new.pt"],
    "train": ["stl-train", *TRAINED, "-o", "new.pt"],
    "parity": [
        *("stl-parity", "model.pt", "o/model.nir", "--input", "raster.npz", "--limit", "1"),
        *("--backend", "netx"),
    ],
    "check": ["stl-check", "o/model.portable.nir", "--input", "raster.npz", "--limit", "1"],
}
# Bytes: HDF5 fails in other places when it has written more.
SIZES = (4_000, 16_000, 64_000)
TEMPORARY = re.compile(r"^\.(.+)\.[0-9a-f]{8}(\.\w+)?$")

watching = False
written: dict[str, None] = {}
full: str | None = None


def limit(size: int) -> None:
    """Let no file grow beyond ``size`` bytes, or any, for -1."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def watch(event: str, args: tuple[object, ...]) -> None:
    """Note each file of ours that is opened to be written; at ``full`` the disk is full."""
    if not watching:
        return
    if event == "mmap.__new__" and args[0] != -1 and args[2] != mmap.ACCESS_READ:
        written["a mapped file"] = None  # ends the process when the disk is full
    if event != "open" or not isinstance(args[1], str):
        return
    if not set(args[1]) & set("wax+"):
        return
    if not isinstance(args[0], str | os.PathLike):
        return
    path = Path(args[0]).absolute()
    if not path.is_relative_to(Path.cwd()):
        return
    found = TEMPORARY.match(path.name)
    name = found[1] if found else path.name
    written[name] = None
    if name == full:
        limit(0)


def run(arguments: list[str], size: int = -1) -> dict[str, object]:
    """Run a command in a copy of FOLDER: exit code, stderr, and the files that are new."""
    global watching
    with tempfile.TemporaryDirectory() as name, contextlib.chdir(name):
        shutil.copytree(sys.argv[1], ".", dirs_exist_ok=True)
        Path("tmp").mkdir()
        tempfile.tempdir = f"{name}/tmp"
        before, err = set(Path().rglob("*")), io.StringIO()
        code: object = None
        kept, sys.argv = sys.argv, arguments
        watching = True
        limit(size)
        try:
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(err):
                SCRIPTS[arguments[0]].load()()
        except SystemExit as stop:
            code = stop.code
        finally:
            limit(-1)
            watching = False
            sys.argv, tempfile.tempdir = kept, None
        left = sorted(str(path) for path in set(Path().rglob("*")) - before)
    return {"code": code, "err": err.getvalue(), "left": left}


def tell(**row: object) -> None:
    print(json.dumps(row), file=sys.__stdout__, flush=True)


def main() -> None:
    """Every command with every file, then exports with every size."""
    global full
    # What these tools would answer is not looked at.
    lava_env.python = lambda: Path(sys.executable)
    tool_env.ensure = lambda *_: Path(sys.executable)
    sys.addaudithook(watch)
    for name, arguments in COMMANDS.items():
        full = None
        written.clear()
        run(arguments)
        # hw_sim writes one array a layer.
        files = [file for file in written if not re.match(r"[1-9]\d*\.npy", file)]
        tell(command=name, files=sorted(files))
        for full in files:
            tell(command=name, full=full, **run(arguments))
    full = None
    for size in SIZES:
        tell(command="export", size=size, **run(COMMANDS["export"], size))


if __name__ == "__main__":
    main()
