"""Runs in which populations hear spikes that are given, instead of those that others send."""

from stl_deploy.hw_sim import reference
from stl_deploy.ir import cut


def run(network, raster, spikes, states=False, by=reference.run, **options):
    """The trace of ``network`` where ``spikes`` [N, T, ...] of populations come over their connections."""
    rasters = cut.rasters(network.inputs, raster, spikes)
    return by(network.cut(spikes), rasters, states, **options)


def is_cut(network):
    """Whether a network is given what its own populations send."""
    return any(cut.given(name) in network.inputs for name in network.by_name)


def as_cut(network, other):
    """``network``, cut where ``other`` is."""
    return network.cut(name for name in other.by_name if cut.given(name) in other.inputs)
