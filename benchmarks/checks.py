"""How long a student waits for `check(...)`: each exercise, solved and not, against the limit.

The bound is 0.5 s for an answer. A wrong solution takes longest: every misconception is tried.
"""

import time

from autograder.check import Check
from autograder.course import CHAPTERS, checks_of
from autograder.practice import practise

LIMIT = 0.5  # seconds


def seconds(check: Check, function, repeats: int = 5) -> float:
    """The best of some runs: the machine's other work only ever adds."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        practise(check, function)
        times.append(time.perf_counter() - start)
    return min(times)


def unknown_mistake(*args, **kwargs) -> str:
    return "no misconception gives this"


def main() -> None:
    checks = [e for c in CHAPTERS for e in checks_of(c.slug).values() if isinstance(e, Check)]
    rows = [(seconds(c, c.reference), seconds(c, unknown_mistake), c.name) for c in checks]
    for right, wrong, name in sorted(rows, key=lambda row: -max(row[:2])):
        print(f"{name:36} right {right * 1e3:7.1f} ms   wrong {wrong * 1e3:7.1f} ms")
    worst = max(max(right, wrong) for right, wrong, _ in rows)
    print(f"slowest answer: {worst * 1e3:.1f} ms, {worst / LIMIT:.1%} of the limit of {LIMIT} s")
