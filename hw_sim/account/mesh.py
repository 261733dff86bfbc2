"""The mesh between the tiles of a chip: where a tile lies, and which links a packet takes to another.

Packets go XY: east or west to the column of their target, then north or south. Tiles fill a column
before the next begins; several chips are one mesh, side by side from west to east.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from stl_deploy.chips.facts import Chip

Int64 = NDArray[np.int64]
DIRECTIONS = ("east", "west", "north", "south")


@dataclass(frozen=True)
class Link:
    """The way from a tile to its neighbour in ``direction``; north is the next row."""

    source: int
    target: int
    direction: str
    between_chips: bool


class Mesh:
    """The tiles of as many chips as ``cores`` take, and the links between them.

    A link has the number direction * tiles + source tile, also where the mesh ends and no packet
    ever leaves.
    """

    def __init__(self, chip: Chip, cores: int) -> None:
        limits, grid = chip.limits, chip.mesh
        if grid is None or limits.cores_per_tile is None:
            raise ValueError(f"{chip.name} has no cores")
        self.cores_per_tile = limits.cores_per_tile.value
        self.rows, self.chip_columns = grid.rows.value, grid.columns.value
        per_chip = self.cores_per_tile * self.rows * self.chip_columns
        self.chips = math.ceil(cores / per_chip)
        self.columns = self.chip_columns * self.chips
        self.tiles = self.rows * self.columns
        self.links = len(DIRECTIONS) * self.tiles
        numbers = np.arange(self.links)
        self.east_west = numbers < 2 * self.tiles

    def tile(self, core: Int64 | int) -> Int64:
        """The tile of each core."""
        return np.asarray(core) // self.cores_per_tile

    def position(self, tile: Int64 | int) -> tuple[Int64, Int64]:
        """Column and row of each tile."""
        column, row = np.divmod(np.asarray(tile), self.rows)
        return column, row

    def hops(self, source: Int64, target: Int64) -> tuple[Int64, Int64]:
        """Links in east-west and in north-south direction between tiles."""
        (x0, y0), (x1, y1) = self.position(source), self.position(target)
        return np.abs(x1 - x0), np.abs(y1 - y0)

    def link(self, number: int) -> Link:
        """What the link with this number connects."""
        direction, source = divmod(number, self.tiles)
        step = (self.rows, -self.rows, 1, -1)[direction]
        before, after = (tile // self.rows // self.chip_columns for tile in (source, source + step))
        return Link(source, source + step, DIRECTIONS[direction], before != after)

    def route(self, source: int, target: int) -> list[int]:
        """The numbers of the links from one tile to another, in order."""
        (x0, y0), (x1, y1) = ((t // self.rows, t % self.rows) for t in (source, target))
        across = (0, range(x0, x1)) if x1 > x0 else (1, range(x0, x1, -1))
        along = (2, range(y0, y1)) if y1 > y0 else (3, range(y0, y1, -1))
        return [
            *(across[0] * self.tiles + x * self.rows + y0 for x in across[1]),
            *(along[0] * self.tiles + x1 * self.rows + y for y in along[1]),
        ]

    def routes(self, source: Int64, target: Int64) -> csr_array:
        """int32 [pairs, links]: 1 at the links that a packet takes between each pair of tiles."""
        pairs, which = np.unique(source * self.tiles + target, return_inverse=True)
        taken = [self.route(*divmod(int(pair), self.tiles)) for pair in pairs]
        starts = np.concatenate([[0], np.cumsum([len(links) for links in taken])])
        links = np.concatenate([np.zeros(0, np.int64), *(np.array(t, np.int64) for t in taken)])
        shape = (len(pairs), self.links)
        known = csr_array((np.ones(len(links), np.int32), links, starts), shape=shape)
        chosen: csr_array = known[which]
        return chosen
