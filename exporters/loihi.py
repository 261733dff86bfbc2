"""Target ``loihi``: ``network.net`` for netx, a script and ``lava_params.npz`` for Lava."""

from __future__ import annotations

from pathlib import Path

from stl_deploy.errors import LoweringError
from stl_deploy.exporters import lava, loihi_layers, netx
from stl_deploy.network import IntegerNetwork


def write(network: IntegerNetwork, folder: Path) -> None:
    """Write the three files into ``folder``, which exists and is empty.

    Raises:
        LoweringError: something cannot be carried; all problems at once, and nothing is written.
            Those of netx alone say so.
    """
    if found := [*loihi_layers.problems(network), *netx.problems(network)]:
        raise LoweringError(found)
    netx.write(network, folder)
    lava.write(network, folder)
