"""The Pareto front, held to its definition by brute force."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from regraft.planner.front import LATENCY_MARGIN, Point, dominates, few, front

# Few values, so that ties of every kind occur.
points_of = st.lists(
    st.tuples(
        st.sampled_from([0.5, 0.8, 0.9]),
        st.sampled_from([0, 10, 1000, 10**6]),
        st.sampled_from([None, 1.0, 1.2, 1.4, 5.0]),
    ),
    min_size=1,
    max_size=12,
).map(lambda rows: [Point(f"m{number:02}", *row) for number, row in enumerate(rows)])


def test_more_of_everything_dominates() -> None:
    good = Point("good", 0.9, 100, 1.0)
    assert dominates(good, Point("worse", 0.8, 100, 1.0))
    assert dominates(good, Point("larger", 0.9, 200, 1.0))
    assert not dominates(good, Point("smaller", 0.8, 50, 1.0))
    assert not dominates(good, Point("better", 0.95, 100, 1.0))


def test_latency_speaks_when_it_clearly_differs() -> None:
    slow = Point("slow", 0.9, 100, 2.0)
    assert not dominates(slow, Point("fast", 0.8, 100, 1.0))
    assert dominates(slow, Point("about as fast", 0.8, 100, 2.0 / LATENCY_MARGIN + 0.01))
    assert dominates(slow, Point("not measured", 0.8, 100, None))


def test_among_equals_the_smaller_and_then_the_simpler_wins() -> None:
    points = [Point("a full", 0.9, 100, None, 1), Point("probe", 0.9, 100, None, 0), Point("small", 0.9, 50, None, 2)]
    assert [point.name for point in front(points)[0]] == ["small"]
    assert [point.name for point in front(points[:2])[0]] == ["probe"]
    assert [point.name for point in few(points, 1)] == ["small"]


def test_of_two_equals_one_is_kept() -> None:
    twins = [Point("b", 0.9, 100, 1.0), Point("a", 0.9, 100, 1.0)]
    kept, beaten = front(twins)
    assert [point.name for point in kept] == ["a"]
    assert beaten == {"b": "a"}


@settings(deadline=None)
@given(points_of)
def test_nothing_dominates_itself_or_is_dominated_back(points: list[Point]) -> None:
    for one in points:
        for other in points:
            assert not (dominates(one, other) and dominates(other, one))


@settings(deadline=None)
@given(points_of)
def test_the_front_is_what_nothing_dominates(points: list[Point]) -> None:
    kept, beaten = front(points)
    assert kept
    assert {point.name for point in kept} | set(beaten) == {point.name for point in points}
    by_name = {point.name: point for point in points}
    for point in kept:
        assert point.name not in beaten
        assert not any(dominates(other, point) for other in kept)
    for name, by in beaten.items():
        assert dominates(by_name[by], by_name[name])
    assert [point.quality for point in kept] == sorted((point.quality for point in kept), reverse=True)
    assert kept[0].quality == max(point.quality for point in points)


@settings(deadline=None)
@given(points_of, st.randoms())
def test_the_order_of_the_points_does_not_matter(points: list[Point], random: object) -> None:
    shuffled = list(points)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert front(shuffled)[0] == front(points)[0]
    assert set(front(shuffled)[1]) == set(front(points)[1])


@settings(deadline=None)
@given(points_of, st.integers(0, 6), st.data())
def test_few_keeps_the_best_and_what_it_is_told_to(points: list[Point], count: int, data: st.DataObject) -> None:
    keep = data.draw(st.lists(st.sampled_from([point.name for point in points]), max_size=3, unique=True))
    chosen = few(points, count, keep)
    best = min(points, key=lambda point: (-point.quality, point.parameters, point.name))
    assert chosen[0] == best
    assert len(chosen) == min(len(points), max(count, 1))
    assert set(chosen) <= set(points)
    if len({best.name, *keep}) <= count:
        assert set(keep) <= {point.name for point in chosen}


def test_few_drops_what_is_closest_in_size_to_its_neighbours() -> None:
    sizes = [10**6, 900_000, 10**5, 10**4]
    points = [Point(f"m{size}", 0.9 - 0.1 * rank, size, None) for rank, size in enumerate(sizes)]
    assert [point.parameters for point in few(points, 3)] == [10**6, 10**5, 10**4]
    # The smallest is never the one to go while there is another.
    assert [point.parameters for point in few(points, 2)] == [10**6, 10**4]
    assert [point.parameters for point in few(points, 3, keep=["m900000"])] == [10**6, 900_000, 10**4]
