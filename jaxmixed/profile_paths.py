r"""Along the profile likelihood of a parameter: how far to go, and where it crosses a level.

At a value of the held parameter, :math:`\zeta = \pm\sqrt{D - D_{\min}}` is the signed root of the rise of the
deviance: a straight line where the likelihood is a normal one. Profiles are followed outwards from the
estimate in steps of equal :math:`\zeta`, each search starting where the last ones lead to; limits are roots
of :math:`\zeta \mp z`, found by Newton's method on the profile itself and kept inside a bracket. All
parameters and both sides advance together.

References
----------
Bates & Watts (1988), Nonlinear Regression Analysis and its Applications, section 6.1. Venzon & Moolgavkar
(1988), Applied Statistics 37, 87-94.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from jaxmixed.profile_likelihood import Criterion, Lane
from jaxmixed.profile_search import Solved, solve

SIDES = (-1, 1)

CLOSE = 1e-7
"""How near a limit's zeta is to its level: a few 1e-8 of the interval's width."""

MAX_ROUNDS = 60

GROWTH = 3.0
"""How much longer than the last a step may be."""

MAX_HALVINGS = 6

GAP = 1.7
"""Distances of zeta between neighbours above so many steps are filled."""

SMALL = 0.3
"""Where a search begins in what is zero at the minimum, as a share of the rest."""

LOWER = 1e-7
"""A deviance found from another start is lower if it is so by more than this."""

FARTHEST = 1e6
"""Standard errors from the estimate beyond which a profile is taken to stay within its level."""

_CENTRED = 1e-6  # slope of the deviance at its minimum, per standard error
_MOST_CENTRING = 20
_MOST_BRANCHES = 4
_MOST_CROSSING = 40
_TOUCHING = 1e-10  # standard errors between points that cannot be told apart
_MOST_TURNED = 3
_SLOW = 6  # rounds that a crossing of a smooth profile does not take


class Point(NamedTuple):
    """A point of a profile.

    Attributes
    ----------
    c : float
        Held coordinate.
    deviance : float
    zeta : float
    rate : float
        Derivative of zeta along c; NaN at the minimum.
    y, z, tangent, direction : arrays
        As in :class:`jaxmixed.profile_search.Solved`.
    at_end : bool
        An end of the range, whose free numbers are not those of its neighbours.
    """

    c: float
    deviance: float
    zeta: float
    rate: float
    y: np.ndarray
    z: np.ndarray
    tangent: np.ndarray
    direction: np.ndarray
    at_end: bool


@dataclass(slots=True, eq=False)
class Track:
    """The profile of one parameter, as far as it is known.

    Attributes
    ----------
    lane : Lane
    c : float
        Coordinate of the estimate.
    start : (k + 1,) array
        Free numbers there.
    unit : float
        Standard error of the coordinate, or a guess.
    low, high : float
        Ends of its range.
    known_ends : bool
        Whether the likelihood at finite ends can be had directly.
    points : list of Point
        In the order of c.
    trust : list of float
        Share of the proposed steps that is taken, to either side.
    failed : list of bool
        The search failed on this side.
    """

    lane: Lane
    c: float
    start: np.ndarray
    unit: float
    low: float
    high: float
    known_ends: bool
    points: list[Point] = field(default_factory=list)
    trust: list[float] = field(default_factory=lambda: [1.0, 1.0])
    failed: list[bool] = field(default_factory=lambda: [False, False])

    @property
    def base(self) -> Point:
        """The minimum."""
        return next(point for point in self.points if point.zeta == 0)

    def end(self, side: int) -> float:
        """End of the range."""
        return self.low if side < 0 else self.high

    def outward(self, side: int) -> list[Point]:
        """Points of a side from the minimum outwards, which is the first."""
        base = self.base
        found = [point for point in self.points if side * (point.c - base.c) > 0]
        return [base, *(found if side > 0 else found[::-1])]

    def elsewhere(self, rows: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Other starts than the neighbours give: the minimum's free numbers, those near zero moved off.

        And, where there are such, with the correlations of one effect after the other turned round.
        """
        y = self.base.y
        size = max(float(np.abs(y[:-1]).max(initial=0.0)), SMALL)
        small = np.append(np.abs(y[:-1]) < 0.1 * size, False)
        if not small.any():
            return [y]
        found = [np.where(small, sign * SMALL * size, y) for sign in SIDES]
        for row in rows[:_MOST_TURNED]:
            found.append(found[1].copy())
            found[-1][row[:-1]] *= -1
        return found

    @property
    def ends_alike(self) -> bool:
        """Whether the free numbers at the ends of the range are what they are elsewhere."""
        return self.lane.map.at_end(self.start)[0] is self.start

    def is_apart(self, point: Point) -> bool:
        """Whether a point is an end that is unlike its neighbours."""
        return point.at_end and not self.ends_alike

    def beside(self, point: Point) -> list[Point]:
        """Its neighbours."""
        place = next(i for i, own in enumerate(self.points) if own is point)
        near = [self.points[i] for i in (place - 1, place + 1) if 0 <= i < len(self.points)]
        return [other for other in near if not self.is_apart(other)]

    @property
    def end_starts(self) -> list[np.ndarray]:
        """Free numbers at the ends of the range, where they are as elsewhere.

        If an effect has no variance there, its correlation may be anything.
        """
        return [point.y for point in self.points if point.at_end] if self.ends_alike else []

    def add(self, point: Point) -> None:
        """Insert a point in order."""
        place = next((i for i, other in enumerate(self.points) if other.c > point.c), len(self.points))
        self.points.insert(place, point)

    def predict(self, c: float) -> np.ndarray:
        """Where the free numbers are expected at a value of the coordinate."""
        near = sorted((p for p in self.points if not self.is_apart(p)), key=lambda p: abs(p.c - c))[:3]
        if not near:
            return self.lane.map.at_end(self.start)[0] if c in (self.low, self.high) else self.start
        first, step = near[0], c - near[0].c
        guess = first.y + first.tangent * step
        if len(near) == 1:
            return guess
        if first.tangent.any():
            apart = near[1].c - first.c
            if abs(step) > 2 * abs(apart):
                return guess
            bend = (near[1].y - first.y - first.tangent * apart) / apart**2
            return guess + bend * step**2
        order = near if abs(step) <= 2 * abs(near[1].c - first.c) else near[:1]
        return _interpolated([p.c for p in order], [p.y for p in order], c)


def _interpolated(x: Sequence[float], y: Sequence[np.ndarray], at: float) -> np.ndarray:
    """Lagrange's polynomial through a few points."""
    total = np.zeros_like(y[0])
    for i, own in enumerate(y):
        weight = 1.0
        for j, other in enumerate(x):
            weight *= (at - other) / (x[i] - other) if j != i else 1.0
        total = total + weight * own
    return total


Request = tuple[Track, float]


def visit(criterion: Criterion, requests: Sequence[Request]) -> list[bool]:
    """Maximise at many points, add those that are found, and tell which are."""
    found = _solve(criterion, requests, [track.predict(c) for track, c in requests])
    bad = np.flatnonzero(np.isnan(found.deviance))
    if bad.size:  # from the nearest point itself, if the prediction was no good
        again = [requests[i] for i in bad.tolist()]
        second = _solve(criterion, again, [_nearest(track, c) for track, c in again])
        for own, new in zip(found, second, strict=True):
            own[bad] = new
    good = ~np.isnan(found.deviance)
    for row in np.flatnonzero(good).tolist():
        track, c = requests[row]
        track.add(_point(track, c, found, row))
    return good.tolist()


def _solve(criterion: Criterion, requests: Sequence[Request], start: Sequence[np.ndarray]) -> Solved:
    lanes = [track.lane for track, _ in requests]
    return solve(criterion, lanes, np.array([c for _, c in requests]), np.stack(start))


def _nearest(track: Track, c: float) -> np.ndarray:
    near = sorted((p for p in track.points if not track.is_apart(p)), key=lambda p: abs(p.c - c))
    return near[0].y if near else track.start


def _point(track: Track, c: float, found: Solved, row: int) -> Point:
    """A point with its zeta, once the minimum is there."""
    deviance, slope = float(found.deviance[row]), float(found.slope[row])
    zeta, rate = 0.0, np.nan
    if track.points:
        base = track.base
        zeta = float(np.sign(c - base.c) * np.sqrt(max(deviance - base.deviance, 1e-300)))
        rate = slope / (2 * zeta)
    arrays = (found.y[row], found.z[row], found.tangent[row], found.direction[row])
    at_end = track.known_ends and c in (track.low, track.high) and bool(track.points)
    return Point(c, deviance, zeta, rate, *arrays, at_end=at_end)


def _centre(criterion: Criterion, tracks: Sequence[Track]) -> None:
    """Find the minimum of every profile, mostly where the estimate is."""
    left, before = list(tracks), {id(track): (np.nan, np.nan) for track in tracks}
    for _ in range(_MOST_CENTRING):
        found = _solve(criterion, [(track, track.c) for track in left], [track.start for track in left])
        off = []
        for row, track in enumerate(left):
            slope, (c, last) = float(found.slope[row]), before[id(track)]
            moves = criterion.method == "reml" and track.lane.regression.move.any()
            if np.isnan(found.deviance[row]):
                track.failed[:] = [True, True]
            elif not moves or abs(slope) * track.unit <= _CENTRED:
                track.points = [_point(track, track.c, found, row)]
            else:
                # By secants; a coefficient's deviance is nearly a parabola of curvature 2 / se^2.
                bend = (slope - last) / (track.c - c)
                bend = bend if bend > 0 else 2 / track.unit**2
                before[id(track)], track.start = (track.c, slope), found.y[row]
                track.c -= slope / bend
                off.append(track)
        left = off
        if not left:
            return
    for track in left:
        track.failed[:] = [True, True]


def begin(criterion: Criterion, tracks: Sequence[Track]) -> None:
    """Find the minimum of every profile, and the likelihood at the ends of the range that have one.

    Under REML the minimum over a coefficient is not exactly at its estimate.

    Parameters
    ----------
    criterion : Criterion
    tracks : sequence of Track
        Without points.
    """
    _centre(criterion, tracks)
    ends = [
        (track, end)
        for track in tracks
        if track.points and track.known_ends
        for end in (track.low, track.high)
        if np.isfinite(end) and end != track.base.c
    ]
    if not ends:
        return
    starts = [track.lane.map.at_end(track.base.y) for track, _ in ends]
    owner = np.repeat(np.arange(len(ends)), [len(own) for own in starts])
    found = _solve(criterion, [ends[row] for row in owner.tolist()], [y for own in starts for y in own])
    for row, (track, end) in enumerate(ends):
        own = np.flatnonzero((owner == row) & ~np.isnan(found.deviance))
        if own.size:
            track.add(_point(track, end, found, int(own[np.argmin(found.deviance[own])])))
        else:
            track.failed[int(end > track.base.c)] = True


def look_again(
    criterion: Criterion, chosen: Sequence[tuple[Track, Point]], others: Sequence[Sequence[Point]] = ()
) -> list[bool]:
    """Search again from the minimum and `others`, and tell where that led lower: there are two branches.

    With several variance parameters the likelihood may have several maxima, and following one of them misses
    where another becomes the higher one: a correlation that leaves +-1, or a variance that becomes zero.
    """
    if criterion.k < 2 or criterion.lanes == 1 or not chosen:
        return [False] * len(chosen)
    trials = [
        (row, start)
        for row, (track, point) in enumerate(chosen)
        for start in [
            *track.elsewhere(criterion.rows),
            *track.end_starts,
            *(other.y + other.tangent * (point.c - other.c) for other in (others[row] if others else ())),
        ]
    ]
    found = _solve(
        criterion, [(chosen[row][0], chosen[row][1].c) for row, _ in trials], [y for _, y in trials]
    )
    best: dict[int, int] = {}
    for trial, (row, _) in enumerate(trials):
        deviance = float(found.deviance[trial])
        usual = float(found.deviance[best[row]]) if row in best else chosen[row][1].deviance
        if usual - deviance > LOWER + 1e-12 * abs(usual):
            best[row] = trial
    for row, trial in best.items():
        track, point = chosen[row]
        place = next(i for i, own in enumerate(track.points) if own is point)
        track.points[place] = _point(track, point.c, found, trial)
    return [row in best for row in range(len(chosen))]


def _ordinary(track: Track, side: int = 0) -> list[tuple[Track, Point]]:
    """Points of a track, or of a side, that are neither the minimum nor an end unlike them."""
    base = track.base
    return [
        (track, point)
        for point in track.points
        if point is not base and not track.is_apart(point) and side * (point.c - base.c) >= 0
    ]


def _advance(criterion: Criterion, proposals: Sequence[tuple[Track, int, float]]) -> None:
    """Visit a point for each track and side; where that fails, go less far the next time, then give up."""
    good = visit(criterion, [(track, c) for track, _, c in proposals])
    for (track, side, _), found in zip(proposals, good, strict=True):
        place = int(side > 0)
        track.trust[place] = min(1.0, 2 * track.trust[place]) if found else track.trust[place] / 4
        track.failed[place] = track.trust[place] < 4.0**-MAX_HALVINGS


def _step(track: Track, side: int, wanted: float) -> float | None:
    """Next coordinate outwards at which zeta should have grown by `wanted`; None where there is none."""
    known = track.outward(side)
    inner = [point for point in known if not point.at_end]
    last, end = inner[-1], track.end(side)
    if side * (end - last.c) <= 0 or (len(known) > len(inner) and last.c == end):
        return None
    before = abs(last.c - inner[-2].c) if len(inner) > 1 else None
    length = track.unit * wanted if before is None else GROWTH * before
    if before is not None and last.rate > 0:
        length = min(length, wanted / last.rate)
    c = last.c + side * track.trust[int(side > 0)] * length
    if side * (c - end) >= 0:
        return None if track.known_ends else end
    return c


def follow(criterion: Criterion, tracks: Sequence[Track], cutoff: float, step: float) -> None:
    """Add points outwards until zeta exceeds a cutoff, at distances of about `step` of zeta.

    Parameters
    ----------
    criterion : Criterion
    tracks : sequence of Track
        That begun.
    cutoff, step : float
    """
    usable = [track for track in tracks if track.points]
    for _ in range(MAX_ROUNDS):
        proposals = []
        for track in usable:
            for side in SIDES:
                outer = [point for point in track.outward(side) if not point.at_end][-1]
                if track.failed[int(side > 0)] or abs(outer.zeta) >= cutoff:
                    continue
                c = _step(track, side, step)
                if c is not None:
                    proposals.append((track, side, c))
        if not proposals:
            break
        _advance(criterion, proposals)
    gaps = []
    for track in usable:
        for one, other in zip(track.points[:-1], track.points[1:], strict=True):
            parts = int(min(np.ceil(abs(other.zeta - one.zeta) / (GAP * step)), 12))
            if min(abs(one.zeta), abs(other.zeta)) < cutoff and parts > 1:
                gaps += [(track, one.c + (other.c - one.c) * i / parts) for i in range(1, parts)]
    if gaps:
        visit(criterion, gaps)
    ordinary = [pair for track in usable for pair in _ordinary(track)]
    lower = look_again(criterion, ordinary)
    for track in usable:
        if any(own is track and better for (own, _), better in zip(ordinary, lower, strict=True)):
            _look_around(criterion, track)


def limits(criterion: Criterion, tracks: Sequence[Track], level: float) -> np.ndarray:
    """Where each profile crosses ``-level`` and ``+level``.

    Parameters
    ----------
    criterion : Criterion
    tracks : sequence of Track
        That begun; they gain the points on the way.
    level : float
        Of zeta.

    Returns
    -------
    (n, 2) array
        Coordinates: an end of the range, or infinity, where the profile stays within the level; NaN where
        the search failed.
    """
    found = np.full((len(tracks), 2), np.nan)
    sides = [(row, side) for row, track in enumerate(tracks) if track.points for side in SIDES]
    for _ in range(_MOST_BRANCHES):
        _cross(criterion, tracks, sides, level, found)
        reached = [own for own in sides if np.isfinite(found[own[0], int(own[1] > 0)])]
        nearest = [(tracks[row], _nearest_to(tracks[row], side, level)) for row, side in reached]
        lower = look_again(criterion, nearest)
        again = [own for own, better in zip(reached, lower, strict=True) if better]
        # A jump from one branch to another has no crossing.
        again += [(row, side) for row, side in sides if _is_open(tracks[row], side, found[row])]
        sides = [(row, side) for row, side in again if _look_around(criterion, tracks[row], side, level)]
        sides += [own for own in again if own not in sides and own in reached]
        if not sides:
            break
    return found


def _is_open(track: Track, side: int, found: np.ndarray) -> bool:
    place = int(side > 0)
    return bool(np.isnan(found[place])) and not track.failed[place]


def _look_around(criterion: Criterion, track: Track, side: int = 0, level: float = np.inf) -> bool:
    """Look again at the points of a side until none is lower; tell whether any was.

    From their neighbours, and from the points on either side of a level, between which a branch may end.
    """
    found = False
    for _ in range(_MOST_BRANCHES):
        chosen = _ordinary(track, side)
        edge = [point for _, point in _edge(track, side, level)] if side else []
        if not any(look_again(criterion, chosen, [[*track.beside(point), *edge] for _, point in chosen])):
            break
        found = True
    return found


def _cross(
    criterion: Criterion,
    tracks: Sequence[Track],
    sides: list[tuple[int, int]],
    level: float,
    found: np.ndarray,
) -> None:
    """Fill in the crossings of some tracks and sides, (n, 2), as the points now are."""
    for number in range(_MOST_CROSSING):
        proposals, waiting = [], []
        for row, side in sides:
            track, place = tracks[row], int(side > 0)
            answer, c = _toward(track, side, level, halve=number > 8 and number % 2 == 1)
            found[row, place] = np.nan if answer is None else answer
            if answer is None and c is not None and not track.failed[place]:
                proposals.append((track, side, c))
                waiting.append((row, side))
        if not proposals:
            break
        _advance(criterion, proposals)
        sides = waiting
        if number >= _SLOW:
            edges = [pair for row, side in sides for pair in _edge(tracks[row], side, level)]
            look_again(criterion, edges, [track.beside(point) for track, point in edges])


def _edge(track: Track, side: int, level: float) -> list[tuple[Track, Point]]:
    """The ordinary points on either side of a level: where a search is slow, a branch may end between."""
    known = track.outward(side)
    beyond = [i for i in range(1, len(known)) if abs(known[i].zeta) >= level][:1]
    return [
        (track, point)
        for i in beyond
        for point in known[i - 1 : i + 1]
        if point is not known[0] and not track.is_apart(point)
    ]


def _nearest_to(track: Track, side: int, level: float) -> Point:
    """The point of a side where zeta is nearest to a level."""
    return min(track.outward(side), key=lambda point: abs(abs(point.zeta) - level))


def _toward(track: Track, side: int, level: float, halve: bool) -> tuple[float | None, float | None]:
    """The crossing of a level on one side, or the next coordinate on the way to it."""
    known = track.outward(side)
    best = _nearest_to(track, side, level)
    if abs(abs(best.zeta) - level) <= CLOSE:
        return best.c + (side * level - best.zeta) / best.rate if best.rate > 0 else best.c, None
    beyond = next((i for i, point in enumerate(known) if abs(point.zeta) >= level), None)
    if beyond is not None:
        inside, outside = known[beyond - 1], known[beyond]
        if abs(outside.c - inside.c) < _TOUCHING * track.unit:
            return None, None  # a jump from one branch to another
        return None, (inside.c + outside.c) / 2 if halve else _between(inside, outside, level)
    last = known[-1]
    if last.c == track.end(side):
        return last.c, None
    wanted = 1.02 * (level - abs(last.zeta))
    c = _step(track, side, wanted)
    if c is not None and abs(c - track.base.c) > FARTHEST * track.unit:
        return side * np.inf, None
    return None, c


def _between(inside: Point, outside: Point, level: float) -> float:
    """Where a level is expected between two points: by cubic interpolation of c as a function of zeta."""
    low, high = abs(inside.zeta), abs(outside.zeta)
    width, gap = outside.c - inside.c, high - low
    share = (level - low) / gap
    rates = [inside.rate, outside.rate]
    if inside.zeta == 0:
        rates[0] = np.nan
    if all(rate > 0 for rate in rates) and not outside.at_end:
        m = [gap / rate / abs(width) for rate in rates]
        if max(m) < 3:  # monotone
            t = share
            share = (t**3 - 2 * t**2 + t) * m[0] + (3 * t**2 - 2 * t**3) + (t**3 - t**2) * m[1]
    elif rates[0] > 0:
        share = (level - low) / rates[0] / abs(width)
        if not share < 0.9:
            share = 0.5
    elif rates[1] > 0:
        share = 1 - (high - level) / rates[1] / abs(width)
    share = share if 0 < share < 1 else 0.5
    margin = 1e-3 if gap > 1e-3 else 0.0
    return inside.c + width * min(max(share, margin), 1 - margin)
