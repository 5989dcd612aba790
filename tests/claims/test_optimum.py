"""What a sweep of learning rates says, on curves made up."""

import math

import numpy as np
import pytest

from minilora.claims.optimum import optimum

RATES = [2.0 ** (k / 2) for k in range(-14, -3)]  # 2^-7 to 2^-2, in steps of √2


def old_estimate(rates, losses):
    """What was used before: a parabola through the best cell and its neighbours, whatever these are."""
    i = int(np.clip(np.argmin(losses), 1, len(rates) - 2))
    left, middle, right = losses[i - 1 : i + 2]
    bend = left - 2 * middle + right
    shift = 0.5 * (left - right) / bend if bend > 0 else float(np.argmin(losses) - i)
    return 2 ** (math.log2(rates[i]) + float(np.clip(shift, -1, 1)) / 2)


def test_of_a_parabola_the_bottom_is_found():
    bottom = 2**-4.3
    losses = [0.5 * (math.log2(lr) - math.log2(bottom)) ** 2 for lr in RATES]
    found = optimum(RATES, losses)
    assert found.best == pytest.approx(bottom) and old_estimate(RATES, losses) == pytest.approx(bottom)
    assert found.low == found.high == 2**-4.5 and not found.at_end  # 0.02 bits are 0.2 doublings here
    assert found.stable == 2**-3.5  # 0.32 bits above the bottom, but not above the best cell


def test_before_a_cliff_the_best_cell_is_the_answer():
    losses = [0.8, 0.6, 0.45, 0.3, 0.2, 0.15, 0.14, 6.0, 8.0, 9.0, 10.0]
    found = optimum(RATES, losses)
    assert found.best == RATES[6] and (found.low, found.high, found.stable) == (RATES[5], RATES[6], RATES[6])
    steeper = [*losses[:7], 60.0, 80.0, 90.0, 100.0]
    for of in (losses, steeper):  # always half a step to the left, whatever the losses are
        assert old_estimate(RATES, of) == pytest.approx(RATES[6] / 2**0.25, rel=2e-3)


def test_a_plateau_is_an_interval_and_not_a_point():
    losses = [1.0, 0.6, 0.31, 0.302, 0.3, 0.309, 0.305, 0.315, 0.5, 0.7, 3.0]
    found = optimum(RATES, losses)
    assert (found.low, found.high) == (RATES[2], RATES[7]) and found.stable == RATES[8]
    assert found.low < found.best < found.high
    other = [*losses[:4], 0.306, 0.309, 0.299, 0.315, 0.5, 0.7, 3.0]  # the same but for 0.006 bits
    assert optimum(RATES, other).low == found.low and optimum(RATES, other).high == found.high
    assert old_estimate(RATES, other) > 1.3 * old_estimate(RATES, losses)  # one number jumps, the interval stays


def test_a_dip_beyond_a_worse_cell_is_not_of_the_plateau():
    losses = [1.0, 0.3, 0.35, 0.31, 0.9, 2.0]
    found = optimum(RATES[:6], losses)
    assert (found.low, found.high, found.stable) == (RATES[1], RATES[1], RATES[3])


def test_an_optimum_at_an_end_says_so():
    falling = [1.0 - 0.1 * k for k in range(11)]
    found = optimum(RATES, falling)
    assert found.at_end and found.best == RATES[-1] == found.stable
    assert optimum(RATES, falling[::-1]).at_end and optimum(RATES, falling[::-1]).best == RATES[0]


def test_a_sweep_that_is_none_is_refused():
    with pytest.raises(ValueError, match="a loss for each of its rising rates, not 2 for"):
        optimum([1.0, 2.0, 4.0], [1.0, 2.0])
    with pytest.raises(ValueError, match="rising rates"):
        optimum([2.0, 1.0], [1.0, 2.0])
