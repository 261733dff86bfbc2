"""The placement of an integer network in the JSON string of ``model.nir``, and back."""

from __future__ import annotations

from stl_deploy.chips import facts as chips
from stl_deploy.chips import placement as place
from stl_deploy.formats.integer_meta import LayerPlacementMeta, PlacementMeta
from stl_deploy.ir.network import IntegerNetwork
from stl_deploy.ir.notes import LayerPlacement, Placement


def to_meta(placement: Placement) -> PlacementMeta:
    """``placement`` as the file has it."""
    return PlacementMeta(
        cores=placement.cores,
        tiles=placement.tiles,
        chips=placement.chips,
        layers=[_placed_meta(name, placed) for name, placed in placement.layers.items()],
    )


def _placed_meta(name: str, placed: LayerPlacement) -> LayerPlacementMeta:
    return LayerPlacementMeta(
        name=name,
        first_core=placed.first_core,
        blocks=list(placed.blocks),
        bound_by=placed.bound_by,
        fullest=placed.fullest,
        total=placed.total,
        order=None if placed.order is None else list(placed.order),
    )


def from_meta(meta: PlacementMeta, network: IntegerNetwork, chip: chips.Chip) -> Placement:
    """The placement of the file. Raises ValueError where its blocks make another one."""
    names, expected = [e.name for e in meta.layers], list(network.by_name)
    if names != expected:
        raise ValueError(f"places {', '.join(names)}; the populations are {', '.join(expected)}")
    rebuilt = place.rebuild(network, chip, {e.name: (e.blocks, e.order) for e in meta.layers})
    if rebuilt is None:
        raise ValueError(f"{chip.name} has no cores")
    right = to_meta(rebuilt)
    for given, entry in zip(meta.layers, right.layers, strict=True):
        for key, value in entry:
            if getattr(given, key) != value:
                raise ValueError(
                    f"{entry.name}: {key} is {getattr(given, key)}, its blocks make {value}"
                )
    if meta != right:
        raise ValueError(
            f"{meta.cores} cores, {meta.tiles} tiles, {meta.chips} chips; its blocks make "
            f"{right.cores}, {right.tiles}, {right.chips}"
        )
    return rebuilt
