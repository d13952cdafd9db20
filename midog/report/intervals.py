"""How sure a share and a count are: 95 % intervals."""

import math

Z_95 = 1.959964  # standard normal quantile of .975


def wilson_interval(count: int, total: int) -> tuple[float, float]:
    """95 % interval of a proportion (Wilson, J Am Stat Assoc 1927;22:209-212); total > 0.

    Returns:
        low, high, in [0, 1].
    """
    fraction, z2 = count / total, Z_95 * Z_95
    centre = (fraction + z2 / (2 * total)) / (1 + z2 / total)
    half = Z_95 / (1 + z2 / total) * math.sqrt(fraction * (1 - fraction) / total + z2 / (4 * total * total))
    return max(0.0, centre - half), min(1.0, centre + half)


def poisson_interval(count: int) -> tuple[float, float]:
    """Exact 95 % interval of the mean behind a count (Garwood, Biometrika 1936;28:437-442).

    It knows that another field of the same tumour has another count, not the errors of whoever counted.

    Returns:
        low, high; low is 0 of a count of 0.
    """
    from scipy.special import gammaincinv

    low = float(gammaincinv(count, 0.025)) if count else 0.0
    return low, float(gammaincinv(count + 1, 0.975))
