"""How often each training sample is drawn: evenly over datasets, over their slides, and over classes.

After Marzahl and Napora, "A bag of tricks for real-time Mitotic Figure detection", equations 1 to 4.
"""

import numpy as np

ROUNDS = 10_000
TOLERANCE = 1e-9


def sampling_weights(datasets, slides, classes):
    """The probability of each sample to be drawn, with replacement.

    As printed, the sums of equations 2 and 3 run over all datasets and all images, so the weights depend on neither
    and balance nothing. The text asks for as many patches from each dataset, from each of its slides, and from each
    class, which is what inverse counts are for. Their product, though, balances the three levels only where the levels
    are independent: a dataset without figures, say, shifts the classes, and correcting those shifts the datasets.

    So equation 1 is kept, w = w_D(dataset) x w_I(slide) x w_C(class), and its factors are fitted by iterative
    proportional fitting (Deming and Stephan, Ann Math Stat 1940;11:427), which begins at the inverse counts:

    - every dataset has 1 / D of the draws and every slide an even part of its dataset's, always;
    - every class has an even part, 1/2 of two, where that can be had together with the former. Where datasets or
      slides of one class alone forbid it, the classes are as near to it as they get. Then samples of the class that is
      drawn too often vanish from the slides that hold both.

    Args:
        datasets, slides, classes: sequences of length N, strings or ints; a slide belongs to its dataset, so that
            slides of one name in two datasets are two.

    Returns:
        float64 (N,), sums to 1.

    Raises:
        ValueError: no samples, or sequences of several lengths.
    """
    if not len(datasets) == len(slides) == len(classes) > 0:
        raise ValueError(f"one length above 0 expected, got {len(datasets)}, {len(slides)} and {len(classes)}")
    datasets, slides, classes = (np.unique(each, return_inverse=True)[1] for each in (datasets, slides, classes))
    _, first, slides = np.unique(datasets * len(slides) + slides, return_index=True, return_inverse=True)
    dataset_of = datasets[first]
    slides_of, samples_of = np.bincount(dataset_of), np.bincount(datasets)

    counts = np.zeros((len(first), classes.max() + 1))
    np.add.at(counts, (slides, classes), 1)
    wanted = 1 / (len(slides_of) * slides_of[dataset_of])
    # Equations 2 to 4 as meant, summed over the samples of each slide and class.
    shares = counts / (samples_of[dataset_of, None] * counts.sum(1, keepdims=True) * counts.sum(0))
    for _ in range(ROUNDS):
        before = shares
        shares = shares / (counts.shape[1] * shares.sum(0))
        shares = shares * (wanted / shares.sum(1))[:, None]  # last, and datasets with it: these can always be had
        if np.abs(shares - before).max() <= TOLERANCE:
            break
    return (shares / counts.clip(1))[slides, classes]
