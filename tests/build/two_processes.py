"""What tests/models/test_parallel.py runs in two processes.

python -m tests.build.two_processes RANK FOLDER, in the root of the repository.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from stl_deploy.errors import StlError
from stl_deploy.importers import stl
from stl_deploy.ir.arch import Architecture
from stl_deploy.models import parallel, qat
from stl_deploy.models.net import STLNet
from stl_deploy.models.train import Settings, Trainer
from tests.build.files import bars

PLAIN = "3C3-LIF-P3-FC20-LIF-AvgPool2"
GRAPH = "3C3-BN-LIF-3R3-A2-FC10-LI[tau=0.5]-Mean"
NORMED = "3C3-BN-LIF-P3-FC20-BN-LIF-AvgPool2"
# name: architecture, images, settings. 61 images in batches of 20 end with a batch of one, of which the
# first process has nothing; 53 with one of 13, shared 6 to 7.
CASES = {
    "plain": (PLAIN, 61, {}),
    "normed": (NORMED, 53, {"flip": True}),
    "graph": (GRAPH, 61, {}),
    "thresholds": (NORMED, 53, {"mode": "threshold"}),
    "weights": (PLAIN, 61, {"mode": "synaptic"}),
    "integers": (NORMED, 61, {"weight_bits": 4, "chip": "loihi2", "lr": 5e-4}),
}


def trainer(name: str) -> Trainer:
    """In float64, so that only a fault and no rounding makes a difference."""
    text, _, settings = CASES[name]
    torch.manual_seed(1)
    model = STLNet(Architecture.parse(text, (1, 6, 6)), 0.3)
    if "weight_bits" in settings:
        model = qat.from_checkpoint(stl.Checkpoint(model.arch, stl.params_of(model)), 4, "loihi2")
    return Trainer(model.arch, Settings(epochs=3, batch=20, **settings), model=model.double())


def train(name: str) -> dict[str, object]:
    """All that a run leaves."""
    t = trainer(name)
    list(t.run(*bars(CASES[name][1]), held_out=bars(21)))
    return {"history": t.history, "state": t.model.state_dict()}


def cut(folder: Path) -> dict[str, object]:
    """As ``train("normed")``, with a break after the first epoch."""
    first = trainer("normed")
    next(iter(first.run(*bars(53), held_out=bars(21))))
    first.save(folder / "s.pt")
    again = trainer("normed")
    again.resume(folder / "s.pt")
    list(again.run(*bars(53), held_out=bars(21)))
    return {"history": again.history, "state": again.model.state_dict()}


def errors(folder: Path) -> dict[str, str]:
    """What each process raises where only one of them, or their contents, are at fault."""
    me = parallel.rank()

    def fail() -> None:
        if me == 1:
            raise OSError(28, "No space left on device")

    calls = {
        "one": lambda: parallel.together(fail),
        "first": lambda: trainer("plain").save(folder / "none" / "s.pt"),
        "damaged": lambda: trainer("plain").resume(folder / "damaged.pt"),
        "same": lambda: parallel.check_same("epoch 1", me),
        "batch": lambda: Trainer(trainer("plain").model.arch, Settings(batch=1)),
    }
    found = {}
    for name, call in calls.items():
        try:
            call()
        except (StlError, OSError) as error:
            found[name] = f"{type(error).__name__}: {error}"
    return found


def main() -> None:
    """Write what happened to FOLDER/RANK.pt."""
    rank, folder = int(sys.argv[1]), Path(sys.argv[2])
    if rank == 0:
        (folder / "damaged.pt").write_bytes(b"PK")
    torch.set_num_threads(1)
    where = f"file://{folder}/meet"
    dist.init_process_group("gloo", init_method=where, rank=rank, world_size=2)
    found = {name: train(name) for name in CASES}
    found["cut"] = cut(folder)
    stdio = sys.stdout, sys.stderr
    found["errors"] = errors(folder)
    sys.stdout, sys.stderr = stdio
    torch.save(found, folder / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()
    os._exit(0)


if __name__ == "__main__":
    main()
