"""Who is next: everybody in turn."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from accord.serve.fair_queue import FairQueue

WHO = st.tuples(st.sampled_from("ab"), st.sampled_from("xyz"))


def test_one_who_asks_much_waits_behind_one_who_asks_little() -> None:
    queue: FairQueue[str] = FairQueue()
    for i in range(3):
        queue.put(("flood", ""), f"flood {i}")
    queue.put(("quiet", "ann"), "ann")
    queue.put(("quiet", "bob"), "bob 0")
    queue.put(("quiet", "bob"), "bob 1")
    assert [queue.pop() for _ in range(6)] == ["flood 0", "ann", "flood 1", "bob 0", "flood 2", "bob 1"]


def test_users_of_a_key_share_the_turns_of_the_key() -> None:
    """Naming many users wins nothing over the other keys."""
    queue: FairQueue[str] = FairQueue()
    for i in range(6):
        queue.put(("many", f"user {i}"), "many")
        queue.put(("one", ""), "one")
    assert [queue.pop() for _ in range(12)] == ["many", "one"] * 6


def test_who_gives_up_leaves() -> None:
    queue: FairQueue[int] = FairQueue()
    for i in range(3):
        queue.put(("a", ""), i)
    assert queue.remove(1) and not queue.remove(1) and not queue.remove(9)
    assert [*queue] == [0, 2] and queue.waiting_of("a") == 2 and queue.waiting_of("b") == 0
    assert queue.remove(0) and queue.remove(2) and len(queue) == 0
    with pytest.raises(KeyError):
        queue.pop()


@given(st.lists(WHO, max_size=20))
def test_all_come_out_first_come_first_served_for_each_and_nobody_twice_before_another(
    who: list[tuple[str, str]],
) -> None:
    queue: FairQueue[tuple[tuple[str, str], int]] = FairQueue()
    for i, one in enumerate(who):
        queue.put(one, (one, i))
    assert len(queue) == len(who)
    out = [queue.pop() for _ in who]
    for one in set(who):
        assert [i for of, i in out if of == one] == [i for i, of in enumerate(who) if of == one]
    # while both keys wait, their numbers of turns differ by one at most
    left = Counter(key for key, _ in who)
    for n, ((key, _), _) in enumerate(out):
        turns = Counter(of[0] for of, _ in out[: n + 1])
        left[key] -= 1
        if min(left["a"], left["b"]) > 0:
            assert abs(turns["a"] - turns["b"]) <= 1
