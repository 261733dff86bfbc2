"""What glibc is told, in a process of its own: it cannot be taken back."""

from __future__ import annotations

import subprocess
import sys

import pytest

# Blocks above 32 MiB, taken and given back; page faults that this costs.
SCRIPT = """
import resource, sys
import torch
from stl_deploy.models import memory
if sys.argv[1] == "keep":
    assert memory.keep()
torch.set_num_threads(1)
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    torch.ones(12 << 20)
before = faults()
for _ in range(20):
    torch.ones(12 << 20)
print(faults() - before)
"""


def faults(how: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, how], capture_output=True, text=True, check=True
    )
    return int(done.stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc is of Linux")
def test_large_blocks_are_used_again():
    """As it is, each block of 48 MiB costs its 12,288 pages again."""
    assert faults("keep") < 0.1 * faults("as it is")


@pytest.mark.parametrize("platform", ["darwin", "win32"])
def test_elsewhere_nothing_happens(monkeypatch, platform):
    from stl_deploy.models import memory

    monkeypatch.setattr(sys, "platform", platform)
    assert not memory.keep()
