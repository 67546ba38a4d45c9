"""Where sparse voxels are, and which of them a convolution brings together.

A site (b, z, y, x) has the key ((b Z + z) Y + y) X + x. Sites lie in the order of their keys, so that a neighbour is
found by bisection; the neighbours at x - 1, x and x + 1 stand side by side, so that one search in a row serves them
all. What was found is kept with the sites: all layers of one resolution share it, and so do all networks that see the
same sites.

Shape legend: V sites, W sites of the output, N pairs, K places of a kernel, Q sites that are looked up.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

Triple = tuple[int, int, int]
"""along z, y, x"""


class Rulebook(NamedTuple):
    """The pairs of input and output sites that meet in each place of a kernel.

    Within one place no input and no output occurs twice, so that sums over the pairs of a place, one place after the
    other, are deterministic on every device.
    """

    sources: Int[Tensor, " N"]
    """int64: the input site of each pair, place by place"""
    targets: Int[Tensor, " N"]
    """int64: the output site of each pair, place by place"""
    counts: list[int]
    """pairs of each of the K places, which are in the order of (kz, ky, kx)"""
    same: int | None = None
    """the place in which every site meets itself, if there is one"""

    def reversed(self) -> Rulebook:
        """From the outputs to the inputs."""
        return Rulebook(self.targets, self.sources, self.counts, self.same)


class VoxelSites:
    """The occupied voxels of some clouds. `SparseVoxels.build` makes them of coordinates in any order.

    Args:
        keys: int64 (V,), ascending, each once.
        shape: extent of the grid along z, y, x.
        batch_size: clouds, of which some may be empty.

    Attributes:
        caches: what further backends keep with the sites.
    """

    def __init__(self, keys: Int[Tensor, " V"], shape: Triple, batch_size: int) -> None:
        self.keys, self.shape, self.batch_size = keys, shape, batch_size
        self.caches: dict[str, Any] = {}
        self._submanifold: dict[Triple, Rulebook] = {}
        self._strided: dict[tuple[Triple, Triple, Triple], tuple[VoxelSites, Rulebook]] = {}

    def __len__(self) -> int:
        """V."""
        return len(self.keys)

    @property
    def coords(self) -> Int[Tensor, "V 4"]:
        """int32: cloud, z, y, x of each site."""
        depth, height, width = self.shape
        rows = self.keys // width
        planes = rows // height
        return torch.stack([planes // depth, planes % depth, rows % height, self.keys % width], 1).int()

    def find(self, coords: Int[Tensor, "Q 4"]) -> Int[Tensor, " Q"]:
        """int64: which site lies at each (cloud, z, y, x); -1 where there is none, or outside the grid."""
        wanted = coords.long()
        limits = torch.tensor((self.batch_size, *self.shape), device=wanted.device)
        inside = ((wanted >= 0) & (wanted < limits)).all(1)
        found = self._find(_keys(wanted, self.shape))
        return found.masked_fill(~inside, -1)

    def submanifold(self, kernel: Triple) -> Rulebook:
        """Every site with its neighbours; outputs are where inputs are. The kernel's extents are odd.

        Raises:
            ValueError: the kernel has no centre.
        """
        if kernel not in self._submanifold:
            if any(extent % 2 == 0 for extent in kernel):
                raise ValueError(f"A submanifold convolution needs a kernel with a centre; {kernel} has none.")
            self._submanifold[kernel] = self._neighbours(kernel)
        return self._submanifold[kernel]

    def strided(self, kernel: Triple, stride: Triple, padding: Triple) -> tuple[VoxelSites, Rulebook]:
        """The sites whose window holds any of these, and the pairs.

        Raises:
            ValueError: the grid is smaller than the kernel.
        """
        geometry = (kernel, stride, padding)
        if geometry not in self._strided:
            self._strided[geometry] = self._windows(*geometry)
        return self._strided[geometry]

    def _find(self, keys: Int[Tensor, " Q"]) -> Int[Tensor, " Q"]:
        if not len(self):
            return torch.full_like(keys, -1)
        place = torch.searchsorted(self.keys, keys).clamp_max(len(self) - 1)
        return torch.where(self.keys[place] == keys, place, -1)

    def _neighbours(self, kernel: Triple) -> Rulebook:
        """One half of the kernel is looked up; the other half holds the same pairs the other way round."""
        total = kernel[0] * kernel[1] * kernel[2]
        centre = total // 2
        everything = torch.arange(len(self), device=self.keys.device)
        sources: list[Tensor] = [everything] * total
        targets: list[Tensor] = [everything] * total
        for row in range(centre // kernel[2] + 1):
            offset = row // kernel[1] - kernel[0] // 2, row % kernel[1] - kernel[1] // 2
            for column, (near, site) in enumerate(self._row(*offset, kernel[2])):
                if (place := row * kernel[2] + column) >= centre:
                    break
                sources[place], targets[place] = near, site
                sources[total - 1 - place], targets[total - 1 - place] = site, near
        return Rulebook(torch.cat(sources), torch.cat(targets), [len(each) for each in sources], centre)

    def _row(self, dz: int, dy: int, width: int) -> list[tuple[Tensor, Tensor]]:
        """For each x offset of a row of the kernel: sites found there, and the sites whose neighbours they are."""
        depth, height, columns = self.shape
        rows = self.keys // columns
        inside = torch.ones_like(rows, dtype=torch.bool)
        if dy:
            y = rows % height + dy
            inside &= (y >= 0) & (y < height)
        if dz:
            z = rows // height % depth + dz
            inside &= (z >= 0) & (z < depth)
        site = inside.nonzero().flatten()
        x = self.keys[site] % columns
        shifted = self.keys[site] + (dz * height + dy) * columns
        place = torch.searchsorted(self.keys, shifted - width // 2)
        found = []
        for dx in range(-(width // 2), width // 2 + 1):
            here = self.keys[place.clamp_max(len(self) - 1)] == shifted + dx if len(self) else x.bool()
            hit = here if dx == 0 else here & (x + dx >= 0) & (x + dx < columns)
            found.append((place[hit], site[hit]))
            place = place + here
        return found

    def _windows(self, kernel: Triple, stride: Triple, padding: Triple) -> tuple[VoxelSites, Rulebook]:
        shape = strided_shape(self.shape, kernel, stride, padding)
        coords = self.coords.long()
        axes = [
            _outputs(coords[:, 1 + axis], kernel[axis], stride[axis], padding[axis], shape[axis]) for axis in range(3)
        ]
        planes = coords[:, 0] * shape[0]
        keys, sources, counts = [], [], []
        for z, fits_z in axes[0]:
            for y, fits_y in axes[1]:
                rows, fits = (planes + z) * shape[1] + y, fits_z & fits_y
                for x, fits_x in axes[2]:
                    source = (fits & fits_x).nonzero().flatten()
                    keys.append((rows * shape[2] + x)[source])
                    sources.append(source)
                    counts.append(len(source))
        found, targets = torch.cat(keys).unique(return_inverse=True)
        return VoxelSites(found, shape, self.batch_size), Rulebook(torch.cat(sources), targets, counts)


def keys_of(coords: Int[Tensor, "V 4"], shape: Triple, batch_size: int) -> Int[Tensor, " V"]:
    """int64 keys of sites.

    Raises:
        ValueError: a site lies outside the grid or the batch, or the grid has too many cells to count.
    """
    extents = (batch_size, *shape)
    if batch_size * shape[0] * shape[1] * shape[2] >= 2**62:
        raise ValueError(f"A grid of {shape} cells for {batch_size} clouds is too large to be numbered.")
    if len(coords):
        wide = coords.long()
        low, high = wide.amin(0).tolist(), wide.amax(0).tolist()
        if min(low) < 0 or any(top >= extent for top, extent in zip(high, extents, strict=True)):
            raise ValueError(
                f"Voxels lie from {low} to {high} (cloud, z, y, x), outside the {batch_size} clouds of {shape} cells."
            )
    return _keys(coords.long(), shape)


def strided_shape(shape: Sequence[int], kernel: Triple, stride: Triple, padding: Triple) -> Triple:
    """Extent of the grid behind a strided convolution.

    Raises:
        ValueError: the grid is smaller than the kernel.
    """
    found = tuple((shape[i] + 2 * padding[i] - kernel[i]) // stride[i] + 1 for i in range(3))
    if min(found) < 1:
        raise ValueError(f"A grid of {tuple(shape)} cells (z, y, x) is too small for a kernel of {kernel}.")
    return found  # type: ignore[return-value]


def _keys(coords: Int[Tensor, "V 4"], shape: Triple) -> Int[Tensor, " V"]:
    cloud, z, y, x = coords.unbind(1)
    return ((cloud * shape[0] + z) * shape[1] + y) * shape[2] + x


def _outputs(place: Tensor, kernel: int, stride: int, padding: int, extent: int) -> list[tuple[Tensor, Tensor]]:
    """Along one axis, for each place of the kernel: the output that sees the input there, and whether there is one."""
    found = []
    for offset in range(kernel):
        reached = place + (padding - offset)
        output = reached.div(stride, rounding_mode="floor")
        found.append((output, (reached == output * stride) & (output >= 0) & (output < extent)))
    return found
