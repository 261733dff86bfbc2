"""Finds the rooms that stand next to ``stl_deploy/`` in a checkout.

An install puts ``exporters``, ``hw_sim`` and ``models`` inside the package (pyproject.toml). In the root of
a checkout, Python finds the folder ``stl_deploy/`` before an installed package, and it lacks them.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path
from types import ModuleType

ROOMS = tuple(f"stl_deploy.{name}" for name in ("exporters", "hw_sim", "models"))


class _Rooms(MetaPathFinder):
    """Finds exactly ``ROOMS``, in folders of their own names below ``root``."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def find_spec(
        self, fullname: str, _path: Sequence[str] | None = None, _target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The room called ``fullname``, None for anything else."""
        if fullname not in ROOMS:
            return None
        folder = self.root / fullname.rpartition(".")[2]
        return spec_from_file_location(
            fullname, folder / "__init__.py", submodule_search_locations=[str(folder)]
        )


def find_rooms(package: Path) -> None:
    """Make the rooms importable where ``package``, the folder of stl_deploy, is that of a checkout.

    An install of any other kind finds them first.
    """
    root = package.parent
    if (package / "hw_sim").is_dir() or not (root / "pyproject.toml").is_file():
        return
    if all((root / name.rpartition(".")[2] / "__init__.py").is_file() for name in ROOMS):
        sys.meta_path.append(_Rooms(root))
