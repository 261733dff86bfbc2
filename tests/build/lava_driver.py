"""Runs in the Lava environment: several exported networks, one after another, in one process.

    python lava_driver.py lava|netx FOLDER ...

A folder holds what the backend would stage, ``in.npz`` and, for netx, ``how.json``; out.npz is written there.
"""

import json
import sys
from pathlib import Path

import numpy as np


def main() -> None:
    tool, *names = sys.argv[1:]
    folders = [Path(name) for name in names]
    # The script is the same in every folder.
    sys.path.insert(0, str(folders[0] / "script"))
    for folder in folders:
        if tool == "lava":
            import lava_network as script

            params = script.read_params(folder / "lava_params.npz")
            network = json.loads(str(params["network"]))
            rasters = script.read_input(folder / "in.npz", network, None)
            trace = script.simulate(rasters, params, states=True)
        else:
            import netx_network as script

            spikes = np.load(folder / "in.npz")["spikes"]
            bits, hold = json.loads((folder / "how.json").read_text())
            spikes = np.repeat(spikes, hold, axis=1)
            trace = script.simulate(folder / "network.net", spikes, bits, states=True)
        script.save(folder / "out.npz", trace)
        print(f"{folder} done", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
