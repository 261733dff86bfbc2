"""What each energy model says of a load that was measured on Loihi 2, next to the measurement.

    python benchmarks/pilotnet.py

PilotNet with LIF neurons (``[pilotnet]`` of ``stl_deploy/chips/loihi2.toml``): counts a step are
known, where they fell is not. So every update is taken as active, every synapse as a convolution's, a
spike as one packet without hops, and the work as spread evenly over the cores. More packets and hops
would cost more; an uneven spread would take longer. Prints a table in Markdown, and the two factors
that turn loihi1-nahuku into loihi2-pilotnet.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from stl_deploy.chips import facts as chips
from stl_deploy.chips.facts import Chip, Profile
from stl_deploy.chips.tables import PilotNet
from stl_deploy.hw_sim.account.neurobench import AC_PJ


@dataclass(frozen=True)
class Said:
    """What an energy model says of a step: microjoules and microseconds; static is a range."""

    dynamic_uj: float
    static_uj: tuple[float, float]
    step_us: float


def say(load: PilotNet, chip: Chip, energy_model: Profile) -> Said:
    """Energy and time of one step of ``load``, spread evenly."""
    n, spikes, synops = load.updates.value, load.spikes.value, load.synops.value
    pj, ns, cores = energy_model.update_pj, energy_model.update_ns, load.cores.value
    picojoules = (
        (pj.always + pj.active) * n
        + (pj.spike + energy_model.packet_pj.out + energy_model.packet_pj.in_) * spikes
        + energy_model.synop_pj.conv * synops
    )
    generate = (ns.always + ns.active) * n + (ns.spike + energy_model.packet_ns.out) * spikes
    receive = energy_model.packet_ns.in_ * spikes + energy_model.synop_ns.conv * synops
    assert chip.limits.cores_per_tile is not None
    assert chip.static is not None
    barrier = energy_model.barrier.seconds(math.ceil(cores / chip.limits.cores_per_tile.value))
    step_us = 1e-3 * max(generate, receive) / cores + 1e6 * barrier
    low, high = chip.static.watt(cores, 1)
    return Said(1e-6 * picojoules, (low * step_us, high * step_us), step_us)


def main() -> None:
    """Print the table and the factors."""
    load = chips.load("loihi2").pilotnet
    assert load is not None
    said = {name: say(load, *known) for name, known in chips.profiles().items()}
    print("| a step of PilotNet | dynamic | to measured | static | time | to measured |")
    print("| --- | --- | --- | --- | --- | --- |")
    static = load.total_uj.value - load.dynamic_uj.value
    print(
        f"| measured on Loihi 2 | {load.dynamic_uj.value:.1f} uJ | | {static:.1f} uJ "
        f"| {load.step_us.value:.1f} us | |"
    )
    for name, s in said.items():
        print(
            f"| {name} | {s.dynamic_uj:.1f} uJ | {s.dynamic_uj / load.dynamic_uj.value:.2f} "
            f"| {s.static_uj[0]:.1f} to {s.static_uj[1]:.1f} uJ "
            f"| {s.step_us:.1f} us | {s.step_us / load.step_us.value:.2f} |"
        )
    at_45nm = 1e-6 * AC_PJ * load.synops.value
    print(
        f"| 45 nm, 0.9 pJ an AC | {at_45nm:.1f} uJ | {at_45nm / load.dynamic_uj.value:.2f} | | | |"
    )
    nahuku = said["loihi1-nahuku"]
    print(
        f"\nloihi2-pilotnet: energies of loihi1-nahuku times "
        f"{load.dynamic_uj.value / nahuku.dynamic_uj:.4f}, times times "
        f"{load.step_us.value / nahuku.step_us:.4f}"
    )


if __name__ == "__main__":
    main()
