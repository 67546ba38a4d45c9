"""Tables of nearest others: by brute force, of other groups only, from a folder of embeddings to a batch."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.nn.functional import normalize

from collimate.data import GroupedStream, Mixture, Source, WithNeighbours
from collimate.evaluation import neighbours
from collimate.evaluation.neighbours import nearest_neighbours, write_neighbours


def vectors(count=17):
    return torch.randn(count, 5, generator=torch.Generator().manual_seed(0))


def test_the_nearest_others_are_found_in_parts(monkeypatch):
    monkeypatch.setattr(neighbours, "SCORES", 50)
    units = normalize(vectors(), dim=1)
    cosines = (units @ units.T).fill_diagonal_(-2)
    assert torch.equal(nearest_neighbours(vectors(), 3), cosines.argsort(dim=1, descending=True)[:, :3])


def test_neighbours_of_other_groups_only():
    groups = torch.tensor([0] * 9 + [1] * 8)
    found = nearest_neighbours(vectors(), 8, groups)
    assert (groups[found] != groups[:, None])[:9].all()
    assert nearest_neighbours(vectors(), 9, groups)[9:].ge(0).all()
    assert nearest_neighbours(vectors(), 9, groups)[:9, 8].eq(-1).all(), "only 8 are of the other group"


class Numbers(Source):
    name = "numbers"

    def __len__(self):
        return 17

    def read(self, index):
        return {"__key__": str(index), "__source__": self.name}


def test_from_embeddings_to_batches(tmp_path):
    folder = tmp_path / "embeddings"
    folder.mkdir()
    order = torch.randperm(17, generator=torch.Generator().manual_seed(1))  # places in the source, not in this order
    save_file({"image": vectors()[order].contiguous(), "index": order}, folder / "000000.safetensors")
    (folder / "000000.keys.json").write_text(json.dumps([str(place) for place in order.tolist()]))
    (folder / "embeddings.json").write_text(json.dumps({"modalities": ["image"]}))
    write_neighbours(str(folder), str(tmp_path / "near.npy"), count=2)
    table = np.load(tmp_path / "near.npy")
    assert table.tolist() == nearest_neighbours(vectors(), 2).tolist()
    stream = GroupedStream(Mixture([Numbers()]), WithNeighbours(tmp_path / "near.npy"), 4, 1)
    batch = [stream.index(stream.draw(position)) for position in range(4)]
    assert batch[1] in table[batch[0]]
    with pytest.raises(ValueError, match="both --data and --other"):
        write_neighbours(str(folder), str(tmp_path / "x.npy"), other="cls")
