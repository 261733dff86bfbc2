"""Two processes train what one does, end as one, and continue each other's runs."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.build import two_processes
from tests.build.files import bars, write_images
from tests.build.nets import ROOT

CASES = sorted(two_processes.CASES)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """What ``two_processes.py`` left in each of two processes."""
    folder = tmp_path_factory.mktemp("two")
    script = ["-m", "tests.build.two_processes"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    started = [
        subprocess.Popen(
            [sys.executable, *script, str(rank), folder],
            cwd=ROOT,
            env=env,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    try:
        said = [p.communicate(timeout=300)[1] for p in started]
    finally:
        for p in started:
            p.kill()
    assert [p.returncode for p in started] == [0, 0], "\n".join(said)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in (0, 1)]


@pytest.mark.parametrize("name", CASES)
def test_two_processes_are_one(two, name):
    """Parameters, running statistics, losses, rates and tests."""
    one, both = two_processes.train(name), two[0][name]
    assert one["state"].keys() == both["state"].keys()
    for key, value in one["state"].items():
        torch.testing.assert_close(
            both["state"][key], value, rtol=1e-5, atol=1e-9, msg=lambda m, key=key: f"{key}: {m}"
        )
    for a, b in zip(one["history"], both["history"], strict=True):
        assert b.loss == pytest.approx(a.loss, rel=1e-9)
        assert (b.accuracy, b.test_accuracy) == (a.accuracy, a.test_accuracy)
        assert (b.rates, b.test_rates) == (a.rates, a.test_rates)


@pytest.mark.parametrize("name", [*CASES, "cut"])
def test_both_end_with_the_same_bits(two, name):
    first, second = (found[name]["state"] for found in two)
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert two[0][name]["history"] == two[1][name]["history"]


def test_a_resumed_run_of_two_is_that_of_two(two):
    whole, cut = two[0]["normed"], two[0]["cut"]
    assert cut["history"] == whole["history"]
    assert all(torch.equal(whole["state"][key], cut["state"][key]) for key in whole["state"])


@pytest.mark.parametrize(
    ("what", "first", "second"),
    [
        ("one", "InputError: process 1: failed", "OSError: [Errno 28] No space left on device"),
        ("first", "none does not exist", "InputError: process 0: failed"),
        ("damaged", "is not a complete PyTorch checkpoint", "InputError: process 0: failed"),
        ("same", "processes 1 differ from process 0", "processes 1 differ from process 0"),
        ("batch", "a batch of 1 for 2 processes", "a batch of 1 for 2 processes"),
    ],
)
def test_an_error_of_one_is_that_of_all(two, what, first, second):
    assert first in two[0]["errors"][what]
    assert second in two[1]["errors"][what]


def torchrun(*words):
    """The command of the page, with ``words`` in place of stl-train and its arguments."""
    text = (ROOT / "docs" / "training.md").read_text("utf-8")
    (own,) = re.findall(r"^torchrun (--standalone .*?) --no-python stl-train", text, re.M)
    command = [sys.executable, "-m", "torch.distributed.run", *own.split(), *map(str, words)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)


@pytest.fixture
def arguments(tmp_path):
    write_images(tmp_path, *bars())
    network = ["--arch", two_processes.NORMED, "--batch", "20", "--epochs", "3"]
    return ["--data", tmp_path, *network, "-o", tmp_path / "m.pt"]


def test_a_process_that_dies_ends_the_run_and_another_number_resumes_it(
    command, tmp_path, arguments
):
    """It dies in the second epoch; one process finishes, and then there is nothing left to start."""
    script = ROOT / "tests" / "build" / "killed_training.py"
    died = torchrun(script, "5", *arguments)
    assert died.returncode != 0
    assert died.stderr.count("epoch   1/3") == 1  # the first process alone prints
    assert "internal error" not in died.stderr
    assert sorted(p.name for p in tmp_path.glob("*.pt")) == ["m.resume.pt"]
    assert command("stl-train", *arguments, "--resume")[0] == 0
    training = torch.load(tmp_path / "m.pt", weights_only=True)["training"]
    assert (len(training["history"]), training["processes"]) == (3, 1)
    refused = torchrun(script, "never", *arguments)
    assert refused.returncode != 0
    assert refused.stderr.count("exists already") == 1


def test_the_command_of_the_page(tmp_path, arguments):
    stl_train = Path(sys.executable).with_name("stl-train")
    done = torchrun("--no-python", stl_train, *arguments, "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["processes"], len(told["history"])) == (2, 3)
    assert sorted(p.name for p in tmp_path.glob("*.pt")) == ["m.pt"]
