"""Runs in the Lava environment: the predictions of an exported script for given traces.

    python lava_readouts.py SCRIPT_FOLDER FOLDER ...

A folder holds ``lava_params.npz`` and ``trace.npz``. Predictions are printed as JSON, a line a folder.
"""

import json
import sys
from pathlib import Path

import numpy as np


def main() -> None:
    sys.path.insert(0, sys.argv[1])
    import lava_network as script

    for folder in map(Path, sys.argv[2:]):
        params = script.read_params(folder / "lava_params.npz")
        network = json.loads(str(params["network"]))
        found = script.predict(network, params, dict(np.load(folder / "trace.npz")))
        print(json.dumps(found.tolist()))


if __name__ == "__main__":
    main()
