"""Graph layers over objects: neighbours, padding, order, and what shifts and turns change."""

import pytest
import torch

from collimate_3d.graphs import (
    FeatureAttention,
    FeatureAttentionGraph,
    NoGraph,
    OffsetAttention,
    PlaceAttention,
    TripletConvolution,
    TripletGraph,
)
from collimate_3d.graphs.geometry import corners, nearest, pair_numbers, point_numbers, position_clues

GRAPHS = {
    "triplets": lambda: TripletGraph(16, 8, 12, k=3),
    "both ends": lambda: TripletGraph(16, 8, 12, layers=3, k=2, ends="both", aggregation="add"),
    "features": lambda: FeatureAttentionGraph(16, 8, 4, k=3),
    "offsets": lambda: OffsetAttention(16, 4),
    "places": lambda: PlaceAttention(16, 4),
    "none": lambda: NoGraph(16),
}


@pytest.fixture
def scenes():
    torch.manual_seed(0)
    boxes = torch.cat([torch.randn(3, 6, 3) * 2, torch.rand(3, 6, 3) + 0.2], -1)
    given = torch.arange(6) < torch.tensor([6, 4, 1])[:, None]
    related = torch.rand(3, 6, 6) < 0.2
    return torch.randn(3, 6, 16), boxes, given, related & ~torch.eye(6, dtype=torch.bool)


def test_the_nearest_objects_are_neighbours(scenes):
    _, boxes, given, _ = scenes
    found = nearest(boxes[..., :3], given, 2)
    for scene in range(3):
        count = int(given[scene].sum())
        for place in range(6):
            neighbours = found[scene, :, place].nonzero()[:, 0].tolist()
            if place >= count:
                assert not neighbours
                continue
            distance = (boxes[scene, :count, :3] - boxes[scene, place, :3]).norm(dim=-1)
            assert set(neighbours) == set(distance.argsort()[1:3].tolist())
    assert nearest(boxes[..., :3], given, 99)[0].sum() == 30


@pytest.mark.parametrize("name", GRAPHS)
def test_order_and_padding_change_nothing(scenes, name):
    nodes, boxes, given, related = scenes
    torch.manual_seed(1)
    graph = GRAPHS[name]().eval()
    found = graph(nodes, boxes, given, related)
    order = torch.randperm(6)
    shuffled = graph(nodes[:, order], boxes[:, order], given[:, order], related[:, order][:, :, order])
    real = given[:, order]
    torch.testing.assert_close(shuffled[real], found[:, order][real], rtol=1e-4, atol=1e-5)
    other = torch.where(given[..., None], nodes, torch.randn_like(nodes))
    torch.testing.assert_close(graph(other, boxes, given, related)[given], found[given])
    alone = graph(nodes[1:2, :4], boxes[1:2, :4], given[1:2, :4], related[1:2, :4, :4])
    torch.testing.assert_close(alone[0], found[1, :4], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", [name for name in GRAPHS if name != "none"])
def test_objects_learn_of_their_neighbours_and_not_of_where_the_room_lies(scenes, name):
    nodes, boxes, given, related = scenes
    graph = GRAPHS[name]().eval()
    found = graph(nodes, boxes, given, related)
    shifted = boxes + torch.tensor([5.0, -3.0, 1.0, 0, 0, 0])
    torch.testing.assert_close(graph(nodes, shifted, given, related), found, rtol=1e-3, atol=1e-4)
    changed = nodes.clone()
    changed[0, 0] += 1
    differing = (graph(changed, boxes, given, related) - found).abs().amax(-1) > 1e-6
    assert differing[0].sum() > 1
    assert not differing[1:].any()


def test_given_relations_reach_where_neighbourhoods_do_not(scenes):
    nodes, boxes, given, _ = scenes
    graph = TripletGraph(16, 8, 12, layers=1, k=1).eval()
    none = torch.zeros(3, 6, 6, dtype=torch.bool)
    far = int((boxes[0, :, :3] - boxes[0, 0, :3]).norm(dim=-1).argmax())
    related = none.clone()
    related[0, 0, far] = True
    changed = nodes.clone()
    changed[0, 0] += 1

    def told(edges):
        return (graph(changed, boxes, given, edges) - graph(nodes, boxes, given, edges))[0, far].abs().max() > 1e-6

    assert told(related)
    assert not told(none)


def test_messages_reach_both_ends_in_the_paper():
    torch.manual_seed(0)
    nodes, edges, features = torch.randn(3, 8), torch.tensor([[0], [1]]), torch.randn(1, 4)
    reached = {}
    for ends in ("object", "both"):
        layer = TripletConvolution(8, 4, 8, ends)
        bare = layer.nn2(torch.zeros(1, 8))
        reached[ends] = ((layer(nodes, edges, features)[0] - nodes - bare).abs().amax(1) > 1e-6).tolist()
    assert reached == {"object": [False, True, False], "both": [True, True, False]}


def test_no_edges_at_all():
    layer = TripletConvolution(8, 4, 8)
    nodes = torch.randn(3, 8, requires_grad=True)
    found, features = layer(nodes, torch.zeros(2, 0, dtype=torch.int64), torch.zeros(0, 4))
    torch.testing.assert_close(found, nodes + layer.nn2(torch.zeros(1, 8)))
    assert features.shape == (0, 4)
    found.sum().backward()


def test_a_node_that_nothing_reaches_is_told_nothing():
    layer = FeatureAttention(8, 4, 2)
    nodes, edges, features = torch.randn(3, 8), torch.tensor([[0], [1]]), torch.randn(1, 4)
    found, told, weights = layer(nodes, edges, features)
    alone = layer.update_node(torch.cat([nodes, torch.zeros(3, 4)], 1))
    torch.testing.assert_close(found[1:], alone[1:])
    assert (found[0] - alone[0]).abs().max() > 1e-6
    assert told.shape == (1, 4)
    torch.testing.assert_close(weights.sum(1), torch.ones(1, 2))
    with pytest.raises(ValueError, match="divisors"):
        FeatureAttention(8, 5, 2)


def test_flat_boxes_and_lone_points():
    boxes = torch.tensor([[0.0, 0, 0, 1, 1, 0], [1.0, 0, 0, 1, 1, 1]])
    graph = TripletGraph(8, 4, 8, k=2)
    given, none = torch.ones(1, 2, dtype=torch.bool), torch.zeros(1, 2, 2, dtype=torch.bool)
    assert graph(torch.randn(1, 2, 8), boxes[None], given, none).isfinite().all()
    assert pair_numbers(torch.ones(2, 8), torch.tensor([[0], [1]])).tolist() == [[0.0] * 8]
    with pytest.raises(ValueError, match="two or more"):
        point_numbers(torch.zeros(1, 3))


def test_clues_tell_where_a_box_lies():
    box = torch.tensor([1.0, 2, 3, 2, 4, 6])
    clues = position_clues(corners(box))
    assert clues[:3].tolist() == [1, 2, 3]
    assert clues[3:6].tolist() == [-1, -2, -3]
    assert clues[-3:].tolist() == [1, 2, 3]
