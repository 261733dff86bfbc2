"""stl-train that kills itself: python killed_training.py MOMENT ARGUMENTS OF stl-train...

MOMENT is a batch, counted from 1 over all epochs, before which it happens, or ``snapshot``: while the
second snapshot is half written. Where torchrun starts two, the second process kills itself at a batch.
"""

from __future__ import annotations

import os
import signal
import sys

import torch

from stl_deploy.commands.train import main
from stl_deploy.models import train

moment = sys.argv.pop(1)
done = {"batches": 0, "snapshots": 0}
step, save = train.Trainer._step, torch.save


def counted_step(self, *args):
    done["batches"] += 1
    if str(done["batches"]) == moment and os.environ.get("RANK", "1") == "1":
        os.kill(os.getpid(), signal.SIGKILL)
    return step(self, *args)


def counted_save(data, path):
    done["snapshots"] += 1
    save(data, path)
    if moment == "snapshot" and done["snapshots"] == 2:
        os.truncate(path, os.path.getsize(path) // 2)
        os.kill(os.getpid(), signal.SIGKILL)


train.Trainer._step, torch.save = counted_step, counted_save
main()
