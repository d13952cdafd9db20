"""What a system's own errors do to the share of atypical figures that it tells, and the share behind it.

How often it errs was measured domain by domain (hospital, scanner, tumour), each time at an operating point that was
chosen without the domain (`made.domains` of model.yaml). Which of them a slide is like is not known: the range holds
for each.
"""

from collections.abc import Sequence

from midog.report.intervals import wilson_interval

Errors = Sequence[tuple[str, float, float]]  # of each domain: its name, sensitivity, specificity; atypical is positive

TELLS_NOTHING = 1.1  # sensitivity + specificity at most; those of a guess are 1


def true_share(observed: float, sensitivity: float, specificity: float) -> float | None:
    """The share behind an observed one (Rogan and Gladen, Am J Epidemiol 1978;107:71-76), cut to [0, 1].

    Returns:
        None where the errors are so many that nothing is known of it.
    """
    if sensitivity + specificity <= TELLS_NOTHING:
        return None
    return min(max((observed + specificity - 1) / (sensitivity + specificity - 1), 0.0), 1.0)


def corrected_share(atypical: int, of: int, reviewed: int, errors: Errors) -> tuple[float, float, float] | None:
    """The share of atypical figures without the errors of the system that told them.

    Args:
        atypical: how many it is of.
        of: all figures with a subtype; > 0.
        reviewed: how many of these a reader had a say in, whose subtype is taken as right.
        errors: of the system, by domain.

    Returns:
        The share at the mean sensitivity and specificity of the domains; the lowest and the highest end over the
        domains of the observed share's 95 % interval, corrected. None where the errors are not known, or too many.
    """
    if not errors:
        return None
    by_system = 1 - reviewed / of
    rates = [[1 - by_system * (1 - rate) for rate in each] for _, *each in errors]
    sensitivity, specificity = (sum(column) / len(rates) for column in zip(*rates, strict=True))
    share = true_share(atypical / of, sensitivity, specificity)
    if share is None:
        return None
    ends = [[true_share(end, *each) for end in wilson_interval(atypical, of)] for each in rates]
    return (
        share,
        min(0.0 if low is None else low for low, _ in ends),
        max(1.0 if high is None else high for _, high in ends),
    )
