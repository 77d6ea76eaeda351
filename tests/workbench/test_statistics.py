"""The statistics against scipy, against their definitions, and exactly under the null hypothesis."""

import numpy as np
import pytest
from scipy import stats

from wellposed.workbench.statistics import (
    ALPHA,
    all_signs,
    equivalent,
    needed_seeds,
    paired_interval,
    signflip_maxt,
)


def draws(rows: int, seeds: int, mean: float = 0.0, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(mean, 1.5, (rows, seeds))


@pytest.mark.parametrize("seeds", [2, 5, 10, 30])
@pytest.mark.parametrize("level", [0.8, 0.95])
def test_interval_is_scipys(seeds: int, level: float) -> None:
    d = draws(1, seeds, 0.7)[0]
    theirs = stats.ttest_1samp(d, 0).confidence_interval(level)
    assert paired_interval(d, level) == pytest.approx((theirs.low, theirs.high), rel=1e-12)


def test_corrected_interval_has_the_width_of_nadeau_and_bengio() -> None:
    d, ratio = draws(1, 10)[0], 0.25
    low, high = paired_interval(d)
    wide_low, wide_high = paired_interval(d, corrected=ratio)
    assert (wide_high - wide_low) / (high - low) == pytest.approx(np.sqrt((1 / 10 + ratio) / (1 / 10)))
    assert wide_high + wide_low == pytest.approx(high + low)


@pytest.mark.parametrize("bad", [[], [1.0], [1.0, np.nan], [1.0, np.inf], [[1.0, 2.0]]])
def test_interval_refuses(bad: list) -> None:
    with pytest.raises(ValueError, match="at least 2 finite"):
        paired_interval(bad)


def test_interval_of_a_constant_has_no_width() -> None:
    assert paired_interval([0.1] * 10) == pytest.approx((0.1, 0.1), abs=1e-15)
    low, high = paired_interval([0.1] * 10)
    assert low == high


@pytest.mark.parametrize("seeds", [3, 6, 10])
@pytest.mark.parametrize("tail", ["better", "worse"])
def test_one_row_is_scipys_permutation_test(seeds: int, tail: str) -> None:
    for seed in range(5):
        d = draws(1, seeds, 0.5, seed)[0]
        theirs = stats.permutation_test(
            (d,),
            lambda x, axis: np.mean(x, axis=axis),
            permutation_type="samples",
            vectorized=True,
            n_resamples=np.inf,
            alternative="greater" if tail == "better" else "less",
        )
        assert signflip_maxt(d[None], tail) == pytest.approx([theirs.pvalue], abs=1e-12)


def test_joint_p_is_the_definition_with_t_statistics() -> None:
    d = draws(4, 7, 0.6, seed=3)
    t = np.array([stats.ttest_1samp(s * d, 0, axis=1).statistic for s in all_signs(7)])
    expected = (t.max(axis=1)[:, None] >= t[0] - 1e-9).mean(axis=0)
    assert signflip_maxt(d) == pytest.approx(expected, abs=1e-12)
    assert (signflip_maxt(d) >= signflip_maxt(d[:1])[0]).any()  # jointness costs something


def test_level_is_exact_over_all_flips_of_any_data() -> None:
    """Given |d|, every flip is equally likely under the null: the share of flips with any p <= .05 must be <= .05."""
    rng = np.random.default_rng(5)
    for d in (
        rng.normal(size=(6, 8)),
        rng.standard_cauchy((6, 8)),
        rng.integers(-2, 3, (6, 8)).astype(float),
    ):
        smallest = np.array([signflip_maxt(signs * d).min() for signs in all_signs(8)])
        assert np.mean(smallest <= ALPHA) <= ALPHA
    continuous = np.array([signflip_maxt(signs * rng.normal(size=(6, 8))).min() for signs in all_signs(8)])
    assert np.mean(continuous <= ALPHA) > 0.02  # and it is not merely never significant


def test_constant_zero_and_failed_rows() -> None:
    up, zero, nan, inf = (np.full(10, v) for v in (0.1, 0.0, np.nan, np.inf))
    assert signflip_maxt(np.vstack([up, zero, nan, inf])) == pytest.approx([2**-10, 1, 1, 1])
    assert signflip_maxt(np.vstack([zero, -up]), "worse") == pytest.approx([1, 2**-10])
    assert signflip_maxt(np.vstack([up, -up]))[0] == 2 * 2**-10  # flipping every sign makes the other row extreme
    assert signflip_maxt(np.zeros((2, 6))).tolist() == [1, 1]


def test_scale_of_a_row_is_irrelevant_even_at_the_ends_of_float() -> None:
    d = draws(3, 8, 1.0)
    p = signflip_maxt(d)
    for scale in (1e-300, 1e-9, 1e300):
        assert signflip_maxt(d * np.array([[1.0], [scale], [1.0]])) == pytest.approx(p, abs=1e-12)


def test_four_seeds_can_never_be_significant_and_five_can() -> None:
    assert signflip_maxt(np.full((1, 4), 9.0))[0] == 1 / 16 > ALPHA
    assert signflip_maxt(np.full((1, 5), 9.0))[0] == 1 / 32 <= ALPHA


def test_many_seeds_use_fixed_random_flips_near_the_exact_p() -> None:
    d = draws(3, 16, 0.45, seed=1)
    p = signflip_maxt(d)
    assert p.tolist() == signflip_maxt(d).tolist()
    cosines = (all_signs(16) @ d.T) / np.sqrt(16 * (d**2).sum(axis=1))
    exact = (cosines.max(axis=1)[:, None] >= cosines[0] - 1e-9).mean(axis=0)
    assert np.abs(p - exact).max() < 4 * np.sqrt(0.25 / 20_000)
    assert p.min() > 0


@pytest.mark.parametrize("bad", [np.zeros(3), np.zeros((2, 0))])
def test_signflip_refuses(bad: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"\(rows, seeds\)"):
        signflip_maxt(bad)


def test_equivalence_is_two_one_sided_tests() -> None:
    for seed in range(40):
        d = np.random.default_rng(seed).normal(0.2, 0.5, 10)
        p = max(
            stats.ttest_1samp(d, -0.6, alternative="greater").pvalue,
            stats.ttest_1samp(d, 0.6, alternative="less").pvalue,
        )
        assert equivalent(d, 0.6) == (p < 0.05)


def test_needed_seeds_is_the_first_at_which_the_bound_clears_zero() -> None:
    d = draws(1, 10, 0.6, seed=2)[0]
    n = needed_seeds(d)
    assert n is not None
    assert 2 < n < 1000

    def bound(seeds: int) -> float:
        return d.mean() - stats.t.ppf(0.95, seeds - 1) * d.std(ddof=1) / np.sqrt(seeds)

    assert bound(n) > 0 >= bound(n - 1)
    stricter = needed_seeds(d, alpha=0.05 / 24)
    assert stricter is not None
    assert stricter > n
    assert needed_seeds(-np.abs(d)) is None
    assert needed_seeds([0.0, 0.0]) is None
    assert needed_seeds([1.0, 1.0]) == 2
    assert needed_seeds([1.0, -0.999], cap=200) == 200
