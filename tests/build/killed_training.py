"""stl-train that kills itself: python killed_training.py MOMENT ARGUMENTS OF stl-train...

MOMENT is a batch, counted from 1 over all epochs, before which it happens, or ``snapshot``: while the
second snapshot is half written. Where torchrun starts two, the second process kills itself at a batch.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stl_deploy.commands.train import main
from stl_deploy.models import train


def run(moment: str, arguments: Sequence[Any]) -> None:
    """Run stl-train to its end, or to ``moment``, in this process."""
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
    sys.argv = ["stl-train", *map(str, arguments)]
    main()


def in_a_process(
    moment: str, arguments: Sequence[Any], log: Path
) -> subprocess.CompletedProcess[str]:
    """``run`` in a process of its own, forked from one that has imported PyTorch but done nothing yet.

    To import it takes several times as long as to train. Its output goes to ``log`` and is returned as
    stderr.
    """
    context = multiprocessing.get_context("forkserver")
    # An optimizer imports the last one when it is made.
    context.set_forkserver_preload([train.__name__, "torch._dynamo"])
    process = context.Process(target=_logged, args=(moment, arguments, log))
    process.start()
    process.join()
    assert process.exitcode is not None
    return subprocess.CompletedProcess([], process.exitcode, "", log.read_text("utf-8"))


def _logged(moment: str, arguments: Sequence[Any], log: Path) -> None:
    with log.open("wb") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    run(moment, arguments)


if __name__ == "__main__":
    run(sys.argv[1], sys.argv[2:])
