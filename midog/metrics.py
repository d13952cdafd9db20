"""The organisers' metrics. Track 2: counts from the class, ROC AUC from the confidence."""

import numpy as np


def classification_metrics(labels, probabilities):
    """Track 2's metrics; atypical is the positive class and .5 the operating point.

    Args:
        labels: int (N,), 0 normal, 1 atypical.
        probabilities: float (N,), P(atypical).

    Returns:
        dict of floats: balanced_accuracy, roc_auc, sensitivity, specificity, accuracy;
        nan where a class that a figure needs is absent.
    """
    from sklearn.metrics import roc_auc_score

    labels = np.asarray(labels).astype(bool)
    called = np.asarray(probabilities) >= 0.5
    sensitivity = float(called[labels].mean()) if labels.any() else float("nan")
    specificity = float((~called[~labels]).mean()) if (~labels).any() else float("nan")
    both = labels.any() and (~labels).any()
    return {
        "balanced_accuracy": (sensitivity + specificity) / 2,
        "roc_auc": float(roc_auc_score(labels, probabilities)) if both else float("nan"),
        "sensitivity": sensitivity,
        "specificity": specificity,
        "accuracy": float((called == labels).mean()),
    }


def bootstrap_by_case(labels, probabilities, cases, metric, draws=1000, seed=0):
    """95 % interval of a metric when whole cases are drawn with replacement.

    Args:
        labels, probabilities, cases: (N,).
        metric: a key of `classification_metrics`.
        draws: number of resamples.
        seed: of the draws.

    Returns:
        (low, high) floats.
    """
    rows = [np.flatnonzero(cases == case) for case in np.unique(cases)]
    generator = np.random.default_rng(seed)
    figures = []
    for _ in range(draws):
        drawn = np.concatenate([rows[i] for i in generator.integers(len(rows), size=len(rows))])
        figures.append(classification_metrics(labels[drawn], probabilities[drawn])[metric])
    return tuple(float(figure) for figure in np.nanpercentile(figures, [2.5, 97.5]))
