"""A state_dict of snnTorch alone: parameters, from which nobody can tell what the network computes."""

from __future__ import annotations

import zipfile
from contextlib import suppress
from typing import NoReturn

from stl_deploy.errors import InputError, Problem
from stl_deploy.importers.given import File

MARK = b"reset_mechanism_val"  # a buffer of every neuron of snnTorch
MAX_NAMES = 1 << 24  # bytes that are searched for it


def recognises(file: File) -> bool:
    """Whether its names are those of snnTorch's neurons. Nothing is unpickled."""
    with (
        suppress(Exception),
        zipfile.ZipFile(file.path) as archive,
    ):  # whatever a broken file raises
        for info in archive.infolist():
            if info.filename.endswith("/data.pkl") and info.file_size <= MAX_NAMES:
                with archive.open(info) as names:
                    return MARK in names.read(MAX_NAMES)
    return False


def refuse(file: File) -> NoReturn:
    """Raise InputError, with what is needed."""
    raise InputError(
        Problem(
            str(file.path),
            "is a state_dict of snnTorch: parameters, which do not say what the network computes",
            "name the class that it belongs to: --model-class MODULE:NAME, with --sample-shape "
            "(in Python from_torch(net, sample); docs/import-snntorch.md)",
        )
    )
