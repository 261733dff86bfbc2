"""What chips can do and hold. This module is light: the options of commands list its ``names``."""

from __future__ import annotations

from functools import cache
from importlib import resources


@cache
def names() -> tuple[str, ...]:
    """Names of the chips that come with the package."""
    files = (path.name for path in resources.files(__name__).iterdir())
    return tuple(sorted(name.removesuffix(".toml") for name in files if name.endswith(".toml")))
