"""stl-train that kills itself: python killed_training.py MOMENT ARGUMENTS OF stl-train...

MOMENT is a batch, counted from 1 over all epochs, before which it happens, or ``snapshot``: while the
second snapshot is half written. Where torchrun starts two, the second process kills itself at a batch.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from stl_deploy.commands.train import main
from stl_deploy.models import train

moment = sys.argv.pop(1)
done = {"batches": 0, "writes": 0}
step, write = train.Trainer._step, Path.write_bytes


def counted_step(self, *args):
    done["batches"] += 1
    if str(done["batches"]) == moment and os.environ.get("RANK", "1") == "1":
        os.kill(os.getpid(), signal.SIGKILL)
    return step(self, *args)


def counted_write(path, data):
    done["writes"] += 1
    if moment == "snapshot" and done["writes"] == 2:
        write(path, data[: len(data) // 2])
        os.kill(os.getpid(), signal.SIGKILL)
    return write(path, data)


train.Trainer._step, Path.write_bytes = counted_step, counted_write
main()
