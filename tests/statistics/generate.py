#!/usr/bin/env python3
"""Write `gold.json`: statistics of random scores by scikit-learn and scipy, for tests/statistics.rs.

    pip install scikit-learn==1.9.1 scipy==1.17.1
    python tests/statistics/generate.py

AUC and ROC curve are scikit-learn's. DeLong's variance is scipy's sample variance of the placement values, which are normalized
Mann-Whitney counts. Newcombe's interval is where scipy finds the roots of his formula. The bootstrap is scipy's, of each class for itself, percentiles.
"""

import json
import pathlib

import numpy as np
import scipy
import sklearn
from scipy import optimize, stats
from sklearn.metrics import roc_auc_score, roc_curve

HERE = pathlib.Path(__file__).resolve().parent


def auc(negative, positive):
    labels = np.r_[np.zeros(len(negative)), np.ones(len(positive))]
    return roc_auc_score(labels, np.r_[negative, positive])


def delong(negative, positive):
    of_positive = [stats.mannwhitneyu([one], negative).statistic / len(negative) for one in positive]
    of_negative = [stats.mannwhitneyu(positive, [one]).statistic / len(positive) for one in negative]
    error = np.sqrt(stats.sem(of_positive) ** 2 + stats.sem(of_negative) ** 2)
    low, high = stats.norm.interval(0.95, loc=auc(negative, positive), scale=error)
    return [max(low, 0.0), min(high, 1.0)]


def newcombe(negative, positive):
    """Method 5 of Newcombe 2006 (Statistics in Medicine 25:559)."""
    m, n, found = len(negative), len(positive), auc(negative, positive)
    mean, z = (m + n) / 2, stats.norm.ppf(0.975)

    def excess(theta):
        variance = theta * (1 - theta) / (m * n) * (2 * mean - 1 - (3 * mean - 3) / ((2 - theta) * (1 + theta)))
        return (found - theta) ** 2 - z * z * variance

    return [optimize.brentq(excess, *ends, xtol=1e-15) if ends[0] < ends[1] else found for ends in ((0, found), (found, 1))]


def measure(negative, positive):
    labels = np.r_[np.zeros(len(negative)), np.ones(len(positive))]
    fpr, tpr, _ = roc_curve(labels, np.r_[negative, positive], drop_intermediate=False)
    boot = stats.bootstrap(
        (negative, positive), auc, vectorized=False, n_resamples=4000, method="percentile", rng=np.random.default_rng(1)
    ).confidence_interval
    return {
        "negative": negative.tolist(),
        "positive": positive.tolist(),
        "auc": auc(negative, positive),
        "delong": delong(negative, positive),
        "newcombe": newcombe(negative, positive),
        "bootstrap": [boot.low, boot.high],
        "tpr_at_5_percent": tpr[fpr <= 0.05].max(),
        "tpr_at_20_percent": tpr[fpr <= 0.2].max(),
    }


def correlate(a, b):
    low, high = stats.t.interval(0.95, len(a) - 1, loc=a.mean(), scale=stats.sem(a))
    return {
        "a": a.tolist(),
        "b": b.tolist(),
        "mean": [a.mean(), low, high],
        "pearson": stats.pearsonr(a, b).statistic,
        "spearman": stats.spearmanr(a, b).statistic,
    }


def share(count, of):
    found = stats.binomtest(count, of)
    one, of_nine = (found.proportion_ci(confidence, method="wilson") for confidence in (0.95, 1 - 0.05 / 9))
    return {"count": count, "of": of, "wilson": [one.low, one.high], "wilson_of_nine": [of_nine.low, of_nine.high]}


def main():
    rng = np.random.default_rng(7)
    shapes = [(40, 30, 0.8), (25, 60, 0.1), (100, 20, 2.5), (7, 5, 0.5)]
    cases = [measure(rng.normal(size=n).round(2), rng.normal(shift, 1.2, size=m).round(2)) for n, m, shift in shapes]
    # Many ties.
    cases.append(measure(rng.integers(0, 5, 50) / 4, rng.integers(1, 6, 40) / 4))
    # With ties, and with few values.
    pairs = [(rng.integers(0, 6, 30) / 4, rng.integers(0, 6, 30) / 4), (rng.normal(size=3), rng.normal(size=3))]
    correlations = [correlate(a, b) for a, b in pairs]
    shares = [share(count, of) for count, of in [(12, 32), (32, 32), (0, 5), (1, 1)]]
    found = {"cases": cases, "correlations": correlations, "shares": shares}
    versions = {"scipy": scipy.__version__, "scikit-learn": sklearn.__version__}
    (HERE / "gold.json").write_text(json.dumps(versions | found) + "\n")


if __name__ == "__main__":
    main()
