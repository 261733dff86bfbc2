"""Batches spread over threads: what an error leaves behind."""

from __future__ import annotations

import threading

import pytest

import stl_deploy
from stl_deploy import spread
from stl_deploy.formats.raster import Raster
from stl_deploy.lower.quantize import quantize
from stl_deploy.verify.against_float import compare
from tests.build.nets import random_net, random_spikes


def test_an_error_ends_the_work_before_the_caller_sees_it(monkeypatch):
    """The traceback of an error keeps the frames that it passed: they must not keep threads at work."""
    started = []
    net = random_net()
    graph = stl_deploy.from_torch(net)
    network = quantize(graph, "loihi2")
    before = threading.active_count()
    monkeypatch.setattr(spread.Threads, "__init__", lambda self: setattr(self, "workers", 2))

    def stop(done):
        started.append(done)
        raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough") as caught:
        compare(net, graph, network, Raster(random_spikes(net, 40)), batch=1, on_progress=stop)
    assert started == [1]
    assert threading.active_count() == before
    assert caught.tb is not None  # kept until here
