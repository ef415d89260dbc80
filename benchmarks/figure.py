"""A measured figure beside its peer's and the machine's limit, and the table of them all."""

import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table


@dataclass(frozen=True)
class Figure:
    """One line of the table.

    unit:     "tokens/s" or the like, of which more is better; "s", "CPU-s" or "%", of which less is
    goal:     the ratio to the peer that we want at least; for "%", the most that we allow
    ceiling:  what this machine could reach at best, in the same unit, and `limit`, what it is
    """

    name: str
    unit: str
    ours: float
    peer: str = ""
    theirs: float | None = None
    goal: float | None = None
    ceiling: float | None = None
    limit: str = ""

    @property
    def less_is_better(self) -> bool:
        return self.unit in ("s", "CPU-s", "%")

    @property
    def ratio(self) -> float | None:
        """How many times better than the peer: 2 is twice the rate, or half the time."""
        if self.theirs is None:
            return None
        return self.theirs / self.ours if self.less_is_better else self.ours / self.theirs

    @property
    def fraction(self) -> float | None:
        """The part of the machine's limit that is reached."""
        if self.ceiling is None:
            return None
        return self.ceiling / self.ours if self.less_is_better else self.ours / self.ceiling

    @property
    def holds(self) -> bool | None:
        """Whether the goal is reached; None without one."""
        if self.goal is None:
            return None
        return self.ours <= self.goal if self.ratio is None else self.ratio >= self.goal

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {
            "ratio": self.ratio,
            "fraction": self.fraction,
            "holds": self.holds,
        }


def in_turn(rounds: int, *runs: Callable[[], float]) -> list[float]:
    """The least seconds of each of several runs, which take turns, so that none has a better hour.

    Each run gives its own seconds, and has warmed up before if it needs to.
    """
    times = [[run() for run in runs] for _ in range(rounds)]
    return [min(column) for column in zip(*times, strict=True)]


def seconds(function: Callable[[], Any]) -> float:
    """The wall-clock seconds that a call takes."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def number(value: float | None) -> str:
    """Three digits that matter, and no exponent."""
    if value is None:
        return ""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}" if value >= 0.1 else f"{value:.3f}"


HEADINGS = ("figure", "ours", "", "peer", "theirs", "ratio", "goal", "", "ceiling", "of it")


def row(one: Figure) -> tuple[str, ...]:
    return (
        one.name,
        number(one.ours),
        one.unit,
        one.peer,
        number(one.theirs),
        "" if one.ratio is None else f"{number(one.ratio)} ×",
        "" if one.goal is None else f"{'≤' if one.ratio is None else '≥'} {number(one.goal)}",
        {True: "✓", False: "✗", None: ""}[one.holds],
        "" if one.ceiling is None else f"{number(one.ceiling)} ({one.limit})",
        "" if one.fraction is None else f"{one.fraction:.0%}",
    )


def table(figures: Iterable[Figure]) -> Table:
    """For the terminal."""
    made = Table(
        title="side by side, in one run", caption="ratio: how many times better than the peer"
    )
    for name in HEADINGS:
        made.add_column(name, justify="left" if name in ("figure", "", "peer") else "right")
    for one in figures:
        made.add_row(*row(one))
    return made


def markdown(figures: Iterable[Figure]) -> str:
    """The same, for a page."""
    aligned = ("---" if name in ("figure", "", "peer") else "---:" for name in HEADINGS)
    lines = (HEADINGS, aligned, *map(row, figures))
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
