"""The distributions that tests and intervals stand on: normal, Student's t, noncentral t.

Accurate to about 1e-10, which is far beyond what a p-value is read to.
"""

from __future__ import annotations

import itertools
from functools import lru_cache
from math import erfc, exp, inf, lgamma, log, log1p, sqrt
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

_SQRT_HALF = sqrt(0.5)
_TINY = 1e-300
_PRECISION = 1e-15
_MOST_TERMS = 10_000
_REACH = 9.0
"""Standard deviations beyond which a normal distribution is taken to be over: 1e-19 is left."""
_NODES, _NODE_WEIGHTS = np.polynomial.legendre.leggauss(64)


def normal_below(value: float) -> float:
    """Returns the probability that a standard normal variable is below a value."""
    return 0.5 * erfc(-value * _SQRT_HALF)


def normal_two_sided(distance: float) -> float:
    """Returns the probability that a standard normal variable is at least so far from 0."""
    return erfc(abs(distance) * _SQRT_HALF)


def student_two_sided(distance: float, freedom: float) -> float:
    """Returns the probability that Student's t is at least so far from 0; `freedom` above 0, whole or not."""
    square = distance * distance
    if square == inf:
        return 0.0
    return incomplete_beta(freedom / 2.0, 0.5, freedom / (freedom + square), square / (freedom + square))


@lru_cache(maxsize=1024)
def student_reach(level: float, freedom: float) -> float:
    """Returns the distance from 0 within which Student's t lies with the probability `level`, below 1."""
    far = 1.0
    while student_two_sided(far, freedom) > 1.0 - level:
        far *= 2.0
    return root(lambda distance: student_two_sided(distance, freedom) - (1.0 - level), 0.0, far)


def incomplete_beta(a: float, b: float, x: float, rest: float) -> float:
    """Returns the regularized incomplete beta function; `rest` is 1 - x, which the caller may know better.

    By its continued fraction (NIST Digital Library of Mathematical Functions, 8.17.22), on the side on which that
    converges fast, evaluated by the method of Lentz.
    """
    if x <= 0.0:
        return 0.0
    if rest <= 0.0:
        return 1.0
    logs = (log(x) if x < 0.5 else log1p(-rest)), (log(rest) if rest < 0.5 else log1p(-x))
    front = exp(lgamma(a + b) - lgamma(a) - lgamma(b) + a * logs[0] + b * logs[1])
    if x < (a + 1.0) / (a + b + 2.0):
        return front * _beta_fraction(a, b, x) / a
    return 1.0 - front * _beta_fraction(b, a, rest) / b


def _beta_fraction(a: float, b: float, x: float) -> float:
    numerator, denominator = 1.0, 1.0 / _off_zero(1.0 - (a + b) * x / (a + 1.0))
    value = denominator
    for m in range(1, _MOST_TERMS):
        even = m * (b - m) * x / ((a + 2 * m - 1.0) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1.0))
        for term in (even, odd):
            denominator = 1.0 / _off_zero(1.0 + term * denominator)
            numerator = _off_zero(1.0 + term / numerator)
            step = numerator * denominator
            value *= step
        if abs(step - 1.0) < _PRECISION:
            break
    return value


def _off_zero(value: float) -> float:
    return value if abs(value) > _TINY else _TINY


def noncentral_t_below(value: float, freedom: float, shift: float) -> float:
    """Returns the probability that noncentral t with the noncentrality `shift` is below a value.

    T = (Z + shift) / S with Z standard normal and S a chi variable over the root of its degrees of freedom, so it
    is the mean of P(Z < value * S - shift) over S: an integral of a smooth function, cut where it steps from 0 to
    1. Unlike the usual series, this loses nothing where the shift is large. `freedom` is a whole number from 2 on:
    between 2 and 3 the density of S bends too sharply at zero, and only seven digits are right.
    """
    if value < 0.0:
        return 1.0 - noncentral_t_below(-value, freedom, -shift)
    spread = 1.0 / sqrt(2.0 * freedom)
    low, high = max(0.0, 1.0 - 12.0 * spread), 1.0 + 12.0 * spread
    cuts = [low, high]
    if value > 0.0:
        step = (shift - _REACH) / value, (shift + _REACH) / value
        cuts = sorted({low, high, *(min(max(cut, low), high) for cut in step)})
    total = 0.0
    for start, end in itertools.pairwise(cuts):
        half = (end - start) / 2.0
        places = start + half * (1.0 + _NODES)
        density = np.exp(_log_chi_density(places, freedom))
        below = np.array([normal_below(distance) for distance in (value * places - shift).tolist()])
        total += half * float((_NODE_WEIGHTS * density * below).sum())
    return min(max(total, 0.0), 1.0)


def _log_chi_density(places: NDArray[np.float64], freedom: float) -> NDArray[np.float64]:
    half = freedom / 2.0
    constant = log(2.0) + half * log(half) - lgamma(half)
    log_density: NDArray[np.float64] = constant + (freedom - 1.0) * np.log(places) - half * places**2
    return log_density


def root(function: Callable[[float], float], low: float, high: float) -> float:
    """Returns where a monotonic function crosses zero between two places on either side of that.

    By the method of Ridders (1979): an exponential is taken out so that what is left is nearly straight.
    """
    at_low, at_high = function(low), function(high)
    for _ in range(200):
        if at_low == 0.0 or at_high == 0.0:
            break
        middle = (low + high) / 2.0
        if high - low <= 1e-13 * max(1.0, abs(middle)) or middle in (low, high):
            return middle
        at_middle = function(middle)
        bend = sqrt(at_middle * at_middle - at_low * at_high)
        if bend == 0.0:
            return middle
        sign = 1.0 if at_low > at_high else -1.0
        guess = middle + (middle - low) * sign * at_middle / bend
        at_guess = function(guess)
        for place, at_place in ((middle, at_middle), (guess, at_guess)):
            if low < place < high:
                if (at_place > 0.0) == (at_low > 0.0):
                    low, at_low = place, at_place
                else:
                    high, at_high = place, at_place
    return low if at_low == 0.0 else high
