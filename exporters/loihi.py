"""Target ``loihi``: ``network.net`` for netx, a script and ``lava_params.npz`` for Lava."""

from __future__ import annotations

from pathlib import Path

from stl_deploy.errors import LoweringError
from stl_deploy.exporters import Origin, lava, loihi_layers, netx
from stl_deploy.ir.network import IntegerNetwork
from stl_deploy.ir.notes import Diagnostic


def write(
    network: IntegerNetwork, folder: Path, _origin: Origin | None = None
) -> tuple[Diagnostic, ...]:
    """Write the files into ``folder``, which exists and is empty; what was left out is returned.

    netx knows no weight exponent, no single connections and no weights in more than one group, which are
    asked for by name (``--weight-exp``, ``--thresholds fold``, ``--weight-precision``), and no neurons
    that are recurrent or reset by subtraction: the process graph is then written alone. Anything else
    that one of the two cannot carry is an error.

    Raises:
        LoweringError: something cannot be carried; all problems at once, and nothing is written.
            Those of netx alone say so.
    """
    notes = netx.notes(network)
    refused = [] if notes else netx.problems(network)
    if found := [*loihi_layers.problems(network), *refused]:
        raise LoweringError(found)
    lava.write(network, folder)
    if not notes:
        netx.write(network, folder)
    return notes
