"""NIR files of any kind: written whole or not at all, read as untrusted data."""

from __future__ import annotations

import io
import warnings
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import h5py
import nir

from stl_deploy.errors import InputError, Problem
from stl_deploy.files import check_readable, is_zip
from stl_deploy.files import write as write_file
from stl_deploy.formats import signatures

MAX_BYTES = 4 << 30
MAX_OBJECTS = 20_000
MAX_RATIO = 1100
NAMED = 5  # parts of a file that a message names
NOT_NIR = (
    "name the NIR file or the PyTorch checkpoint of the model, not a netx file or a Keras model"
)


def write(graph: nir.NIRGraph, path: Path) -> None:
    """Write any NIR graph, whole or not at all. Raises InputError for names that a file cannot hold."""
    problems = [Problem(name, *fault) for name in graph.nodes if (fault := name_fault(name))]
    if problems:
        raise InputError(problems)
    write_file(path, to_hdf5(graph).getvalue())


def to_hdf5(graph: nir.NIRGraph) -> io.BytesIO:
    """The NIR file of a graph, in memory: HDF5 crashes when it writes to a full disk."""
    file = io.BytesIO()
    nir.write(file, graph, compression="gzip", compression_opts=1)
    return file


def name_fault(name: str) -> tuple[str, str] | None:
    """What is wrong with a node's name, and the remedy; a file keeps nodes as folders of that name."""
    if name in ("", ".") or "/" in name or "\0" in name:
        what = f"the node's name {name!r} is none that a NIR file can hold: empty, '.', or with '/' in it"
        return what, "rename the node (in PyTorch the module), e.g. with '_' in its place"
    return None


def read(path: Path) -> nir.NIRGraph:
    """Read a NIR file as untrusted data. Raises InputError for anything that is not one."""
    if not signatures.is_hdf5(path) and (other := signatures.other(path)) is not None:
        raise InputError(Problem(str(path), *other))
    check_readable(path, MAX_BYTES)
    try:
        _check_contents(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # numpy's, over values that are refused below
            graph = nir.read(path, type_check=False)
    except InputError:
        raise
    except Exception as error:  # whatever h5py and nir raise for broken files
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        if slashed := _names_with_slashes(path):
            what = "is not a node: it has no type. A name with '/' makes folders in a NIR file"
            remedy = "rename the node without '/', and write the file again"
            raise InputError([Problem(f"{path}: {n}", what, remedy) for n in slashed]) from None
        if is_zip(path):
            raise InputError(_packed(path)) from None
        if (keys := _keys(path)) and not {"node", "version"} & keys:
            what = f"is an HDF5 file, but not one of NIR: it contains {', '.join(sorted(keys)[:NAMED])}"
            raise InputError(Problem(str(path), what, NOT_NIR)) from None
        raise InputError(
            Problem(str(path), f"is not a NIR file that nir can read ({reason})", "write it again")
        ) from None
    if not isinstance(graph, nir.NIRGraph):
        raise InputError(Problem(str(path), f"holds a {type(graph).__name__}, not a NIRGraph"))
    return graph


def _packed(path: Path) -> Problem:
    """What to do about a zip archive, which is a checkpoint of PyTorch or a raster."""
    with (
        suppress(Exception),
        zipfile.ZipFile(path) as archive,
    ):  # a damaged one is no checkpoint either
        if any(name.endswith("/data.pkl") for name in archive.namelist()):
            remedy = (
                f"export it first: stl-export {path} --target nir -o out, then name out/model.nir"
            )
            return Problem(str(path), "is a checkpoint, not a NIR file", remedy)
    what = "is a zip archive, as rasters are, not a NIR file"
    return Problem(str(path), what, "name the model.nir that stl-export wrote")


def _keys(path: Path) -> set[str]:
    """What an HDF5 file contains at its top."""
    with suppress(Exception), h5py.File(path, "r") as file:  # whatever a broken one raises
        return {str(key) for key in file}
    return set()


def _names_with_slashes(path: Path) -> list[str]:
    """The folders among the nodes of a file that hold nodes and are none, as a/b makes one of a."""
    found: list[str] = []

    def visit(name: str, item: Any) -> None:
        parent, _, own = name.rpartition("/")
        among = parent == "nodes" or parent.endswith("/nodes")
        if among and isinstance(item, h5py.Group) and "type" not in item:
            inside = [k for k, v in item.items() if isinstance(v, h5py.Group)]
            found.extend(f"{own}/{k}" for k in inside)

    with suppress(Exception), h5py.File(path, "r") as file:
        file.visititems(visit)
    return found


def _check_contents(path: Path) -> None:
    """Refuse links, references and sizes that a NIR file has no use for, before anything is read."""
    total = 0
    pending: list[tuple[str, Any]] = []
    with h5py.File(path, "r") as file:
        pending.append(("", file))
        seen = 0
        while pending:
            name, group = pending.pop()
            for key in group:
                seen += 1
                link = group.get(key, getlink=True)
                if not isinstance(link, h5py.HardLink) or seen > MAX_OBJECTS or len(name) > 512:
                    raise InputError(
                        Problem(f"{path}: {name}/{key}", "a link, or too many or too deep objects")
                    )
                item = group[key]
                if isinstance(item, h5py.Group):
                    pending.append((f"{name}/{key}", item))
                    continue
                if item.external or item.is_virtual:
                    raise InputError(Problem(f"{path}: {name}/{key}", "refers to other files"))
                total += item.size * item.dtype.itemsize if item.size else 0
        # A small file that declares much is no network: deflate makes at most 1,032 bytes of one.
        limit = min(MAX_BYTES, MAX_RATIO * path.stat().st_size)
        if total > limit:
            raise InputError(Problem(str(path), f"holds {total:,} bytes, limit {limit:,}"))
