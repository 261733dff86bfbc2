"""A description of a network in a file of its own, as JSON: what ``Architecture.to_dict`` gives."""

from __future__ import annotations

import json
from pathlib import Path

from stl_deploy.errors import InputError, Problem
from stl_deploy.files import check_readable
from stl_deploy.ir.arch import Architecture

SUFFIX = ".json"
MAX_BYTES = 4 << 20


def read(path: Path) -> Architecture:
    """The description in ``path``. Raises InputError naming everything that is wrong."""
    check_readable(path, MAX_BYTES)
    try:
        data = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        what = f"is not JSON: {error}"
        remedy = "write json.dumps(architecture.to_dict()) into it"
        raise InputError(Problem(str(path), what, remedy)) from None
    return Architecture.from_dict(data, str(path))
