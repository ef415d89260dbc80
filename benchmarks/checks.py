"""How long a student waits for `check(...)`: each exercise, solved and not.

The bound is 0.5 s for an answer. A wrong solution takes longest: every misconception is tried.
"""

from collections.abc import Iterator

from autograder.check import Check
from autograder.course import CHAPTERS, checks_of
from autograder.practice import practise
from benchmarks.figure import Figure, in_turn, seconds

LIMIT = 0.5  # seconds
SLOWEST = 5  # exercises that are shown
ROUNDS = 3


def unknown_mistake(*args, **kwargs) -> str:
    return "no misconception gives this"


def figures() -> Iterator[Figure]:
    """The slowest of all answers; prints the exercises that take longest."""
    checks = [e for c in CHAPTERS for e in checks_of(c.slug).values() if isinstance(e, Check)]
    times = {}
    for check in checks:
        times[check.name] = in_turn(
            ROUNDS,
            lambda check=check: seconds(lambda: practise(check, check.reference)),
            lambda check=check: seconds(lambda: practise(check, unknown_mistake)),
        )
    ranked = sorted(times.items(), key=lambda item: -max(item[1]))
    for name, (right, wrong) in ranked[:SLOWEST]:
        print(f"{name:36} right {right * 1e3:7.1f} ms   wrong {wrong * 1e3:7.1f} ms")
    name, slowest = ranked[0]
    yield Figure(f"slowest check ({name})", "s", max(slowest), goal=LIMIT)
