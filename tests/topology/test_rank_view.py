"""What one rank sees."""

from __future__ import annotations

import copy
import pickle

from hypothesis import given

from parallel_topology import ParallelTopology, RankView
from parallel_topology.testing.strategies import topologies

topology = ParallelTopology(tp=2, pp=4)


@given(topologies())
def test_the_world_is_a_group_too(topology: ParallelTopology):
    for rank in topology.world:
        world = topology.at(rank).world
        assert world.ranks == topology.world
        assert world.ranks[world.rank] == rank


def test_combined_axes():
    view = topology.at(5)
    assert view["pp", "tp"].name == "tp-pp"
    assert view["tp", "pp"].ranks == view.world.ranks
    assert view["tp"].ranks == view.tp.ranks


def test_a_group_is_a_collection_of_its_ranks():
    group = topology.at(5).pp
    assert (list(group), len(group), 5 in group, 4 in group) == ([1, 3, 5, 7], 4, True, False)


def test_views_are_values():
    assert topology.at(5) == topology.at(5)
    assert topology.at(5) != topology.at(4)
    assert topology.at(5) != "at 5"
    assert len({topology.at(5), topology.at(5)}) == 1
    used = topology.at(5)
    assert used.tp.size == 2
    for twin in (pickle.loads(pickle.dumps(used)), copy.deepcopy(used)):
        assert isinstance(twin, RankView)
        assert twin == used


def test_representations():
    assert repr(topology.at(5)) == "<RankView of tp2-pp4 at rank 5 (tp=1 pp=2)>"
    assert repr(topology.at(5).pp) == "<RankGroup pp rank 2 of [1, 3, 5, 7]>"
    assert repr(topology) == "ParallelTopology.parse('tp2-pp4')"


def test_a_members_share():
    pp = topology.at(5).pp
    assert pp.shard(8) == range(4, 6)
    assert pp.shard(9, uneven="chunk") == range(6, 9)
    assert pp.batch_share(16) == range(8, 12)
    assert pp.stage_layers(10) == range(6, 8)
    assert pp.stage_chunks(16, virtual=2) == (range(4, 6), range(12, 14))


def test_a_view_of_another_kind_is_equal_to_itself_alone():
    class Kind(RankView):
        """As a manager is one."""

    one = Kind(topology, 5)
    assert one.__eq__(one) is True
    assert one != Kind(topology, 5)
    assert one != topology.at(5)
    assert len({one, Kind(topology, 5)}) == 2
