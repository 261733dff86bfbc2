"""Order, loops and depths of populations."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stl_deploy.ir import order

NAMES = ["a", "b", "c", "d", "e"]


def ways(text):
    """``a>b:2`` is a way from a to b with a delay of two steps."""
    found = []
    for word in text.split():
        ends, _, delay = word.partition(":")
        source, target = ends.split(">")
        found.append((source, target, int(delay or 0)))
    return found


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a>b b>c", [["a"], ["b"], ["c"], ["d"], ["e"]]),
        ("a>b b>a:1 b>c", [["a", "b"], ["c"], ["d"], ["e"]]),
        ("a>a:1 a>b", [["a"], ["b"], ["c"], ["d"], ["e"]]),
        ("e>a:2 a>b", [["e"], ["a"], ["b"], ["c"], ["d"]]),
        ("a>b b>c c>a:1 d>e e>d:3", [["a", "b", "c"], ["d", "e"]]),
    ],
)
def test_parts_are_loops_in_order(text, expected):
    found = order.parts(NAMES, [(a, b) for a, b, _ in ways(text)])
    flat = [name for part in found for name in part]
    assert sorted(flat) == NAMES
    assert sorted(map(tuple, found)) == sorted(map(tuple, expected))
    place = {name: i for i, part in enumerate(found) for name in part}
    assert all(place[a] <= place[b] for a, b, _ in ways(text))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("in>a a>b b>c", {"a": 1, "b": 2, "c": 3}),
        ("in>a a>b a>c b>c", {"a": 1, "b": 2, "c": 3}),  # a skip: c waits for b
        ("in>a a>a:1 a>b", {"a": 1, "b": 2}),
        ("in>a a>b:2", {"a": 1, "b": 1}),  # the delay leaves room for the hop
        ("in>a a>b b>a:2", {"a": 1, "b": 2}),
        ("in>a a>b b>a:1", None),  # two hops around, one step of delay
        ("in>a a>b b>c c>a:2", None),
        ("in>a a>b b>c d>c", {"d": 2}),  # fires by itself, just above c
    ],
)
def test_depths(text, expected):
    found = order.depths(["in"], NAMES, ways(text))
    if expected is None:
        assert found is None
        return
    assert found is not None
    assert found["in"] == 0
    assert {name: found[name] for name in expected} == expected


graphs = st.lists(
    st.tuples(st.sampled_from(["in", *NAMES]), st.sampled_from(NAMES), st.integers(0, 3)),
    min_size=1,
    max_size=8,
)


@given(graphs)
def test_no_way_climbs_by_more_than_it_waits_and_no_depth_is_too_large(given_ways):
    """Against a search through all depths up to the number of populations and their delays."""
    found = order.depths(["in"], NAMES, given_ways)
    hears = {target for _, target, _ in given_ways}

    def right(depth):
        return all(depth[b] >= depth[a] + 1 - delay for a, b, delay in given_ways)

    if found is not None:
        assert right(found)
        assert min(found[name] for name in NAMES) >= 1
        for name in hears:
            if found[name] > 1:
                assert any(found[a] + 1 - d == found[name] for a, b, d in given_ways if b == name)
    else:
        # A loop with more hops than delay: walk every simple loop.
        edges = {
            (a, b): min(d for x, y, d in given_ways if (x, y) == (a, b)) for a, b, _ in given_ways
        }
        loops = (
            loop
            for size in range(1, len(NAMES) + 1)
            for loop in itertools.permutations(NAMES, size)
            if all((a, b) in edges for a, b in zip(loop, (*loop[1:], loop[0]), strict=True))
        )
        assert any(
            sum(1 - edges[a, b] for a, b in zip(loop, (*loop[1:], loop[0]), strict=True)) > 0
            for loop in loops
        )


@given(graphs)
def test_loops_that_are_too_short_serve_once_they_have_what_they_miss(given_ways):
    found = order.short_loops(NAMES, given_ways)
    longer = list(given_ways)
    for loop in found:
        pairs = list(zip(loop.names, (*loop.names[1:], loop.names[0]), strict=True))
        source, target, delay = longer[loop.way]
        assert (source, target) in pairs
        inside = [[d for a, b, d in longer if (a, b) == pair] for pair in pairs]
        assert all(inside)
        assert loop.delay >= sum(map(min, inside))
        assert loop.missing > 0
        longer[loop.way] = source, target, delay + loop.missing
    inner = [way for way in given_ways if way[0] != "in"]
    assert bool(found) == (order.depths([], NAMES, inner) is None)
    assert order.depths(["in"], NAMES, longer) is not None


def test_a_loop_is_named_with_what_it_misses():
    (loop,) = order.short_loops(NAMES, ways("a>b b>c:1 c>a in>a c>d d>d:1"))
    assert set(loop.names) == set("abc")
    assert (loop.what, loop.missing, loop.way) == ("a loop of 3 hops has 1 step of delay", 2, 1)
    (problem,) = order.at_once(NAMES, [("a", "b"), ("b", "a"), ("b", "c")])
    assert problem.where in ("a, b", "b, a")
    assert problem.remedy.endswith("of 1 step for --chip ideal, of 2 for other chips")


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("a>b b>a", "leads back from b to a without a delay"),
        ("a>a", "leads back from a to a without a delay"),
        ("a>x", "not both there"),
        ("a>in", "not both there"),
        ("a>b:4097", "a delay of 4097 steps, not of 0 to 4096"),
        ("a>b a>b", "two connections of this name"),
    ],
)
def test_what_is_no_network_is_refused(text, what):
    given_ways = [(("w", a, b), a, b, delay) for a, b, delay in ways(text)]
    with pytest.raises(ValueError, match=what):
        order.check(["in"], NAMES, given_ways)


def test_names_stand_once():
    with pytest.raises(ValueError, match="a: the name of two"):
        order.check(["a"], NAMES, [])
