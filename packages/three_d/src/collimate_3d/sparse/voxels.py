"""Features on sparse voxels.

Shape legend: V sites, C channels, B clouds, Z Y X extents of the grid, D = C Z.
"""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor

from collimate_3d.operators.segments import segment_max, segment_mean
from collimate_3d.sparse.sites import Triple, VoxelSites, keys_of


@dataclass(frozen=True)
class SparseVoxels:
    """A feature vector for each occupied voxel of a batch of clouds.

    Attributes:
        features: (V, C), in the order of the sites.
        sites: where they are: cloud, z, y, x, ascending.
    """

    features: Float[Tensor, "V C"]
    sites: VoxelSites

    def __post_init__(self) -> None:
        if len(self.features) != len(self.sites):
            raise ValueError(f"There are {len(self.features)} feature vectors for {len(self.sites)} sites.")

    @classmethod
    def build(
        cls, features: Float[Tensor, "V C"], coords: Int[Tensor, "V 4"], shape: Triple, batch_size: int
    ) -> SparseVoxels:
        """Sparse voxels from coordinates in any order.

        Args:
            coords: cloud, z, y, x of each row of features, whole numbers.
            shape: extent of the grid along z, y, x.
            batch_size: clouds, of which some may be empty.

        Raises:
            ValueError: a voxel lies outside the grid or the batch, or is given twice.
        """
        keys, order = keys_of(coords, shape, batch_size).sort()
        if bool((keys[1:] == keys[:-1]).any()):
            raise ValueError("A voxel is given twice: bring points together with `voxelise` first.")
        return cls(features[order], VoxelSites(keys, shape, batch_size))

    def __len__(self) -> int:
        """V."""
        return len(self.features)

    @property
    def coords(self) -> Int[Tensor, "V 4"]:
        """int32: cloud, z, y, x of each voxel."""
        return self.sites.coords

    @property
    def cloud(self) -> Int[Tensor, " V"]:
        """int64: the cloud of each voxel."""
        depth, height, width = self.shape
        return self.sites.keys // (depth * height * width)

    @property
    def shape(self) -> Triple:
        """Z, Y, X."""
        return self.sites.shape

    @property
    def batch_size(self) -> int:
        """B."""
        return self.sites.batch_size

    def with_features(self, features: Float[Tensor, "V D"]) -> SparseVoxels:
        """Other features on the same sites."""
        return SparseVoxels(features, self.sites)

    def dense(self) -> Float[Tensor, "B C Z Y X"]:
        """The whole grid, 0 where no voxel is."""
        cells = self.batch_size * self.shape[0] * self.shape[1] * self.shape[2]
        full = self.features.new_zeros(cells, self.features.shape[1]).index_copy(0, self.sites.keys, self.features)
        return full.view(self.batch_size, *self.shape, -1).permute(0, 4, 1, 2, 3).contiguous()

    def bev(self) -> Float[Tensor, "B D Y X"]:
        """The grid from above, its layers side by side: channel c Z + z, as in OpenPCDet."""
        return self.dense().flatten(1, 2)

    def means(self) -> Float[Tensor, "B C"]:
        """The mean of each cloud's voxels; 0 for a cloud that has none."""
        return segment_mean(self.features, self.cloud, self.batch_size)

    def maxima(self) -> Float[Tensor, "B C"]:
        """The maximum over each cloud's voxels; 0 for a cloud that has none."""
        return segment_max(self.features, self.cloud, self.batch_size)
