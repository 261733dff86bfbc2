"""Target ``loihi``: ``network.net`` for netx, a script and ``lava_params.npz`` for Lava."""

from __future__ import annotations

from pathlib import Path

from stl_deploy.errors import LoweringError
from stl_deploy.exporters import lava, loihi_layers, netx
from stl_deploy.network import Diagnostic, IntegerNetwork


def write(network: IntegerNetwork, folder: Path) -> tuple[Diagnostic, ...]:
    """Write the files into ``folder``, which exists and is empty; what was left out is returned.

    netx knows no weight exponent. It is asked for by name (``--weight-exp``), so the process graph
    is then written alone. Anything else that one of the two cannot carry is an error.

    Raises:
        LoweringError: something cannot be carried; all problems at once, and nothing is written.
            Those of netx alone say so.
    """
    scaled = [layer.name for layer in network.lif_layers if layer.exp]
    refused = [] if scaled else netx.problems(network)
    if found := [*loihi_layers.problems(network), *refused]:
        raise LoweringError(found)
    lava.write(network, folder)
    if not scaled:
        netx.write(network, folder)
        return ()
    return (
        Diagnostic(
            netx.WHERE,
            f"not written: {', '.join(scaled)} have a weight exponent, which netx does not know",
            "export with --weight-exp 0 for netx",
        ),
    )
