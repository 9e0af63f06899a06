"""What numbers mean: intervals by cluster, win rates, strengths, best-of-n, agreement and annotators.

Torch-free: labelling and reports read these on machines without an accelerator stack. Every estimate comes as an
``Interval`` so that no number travels without its uncertainty, or as an ``Unknown`` that says why there is none.
"""

from __future__ import annotations

from accord.stats.agreement import (
    DEFINITIONS,
    JudgedItems,
    Metric,
    cohen_kappa,
    fleiss_kappa,
    judged_items,
    krippendorff_alpha,
    pairwise_agreement,
    raw_agreement,
)
from accord.stats.annotator_strengths import AnnotatorStrengths, bradley_terry_with_annotators
from accord.stats.best_of_n import best_of_n_curve, best_of_n_kl_bound, best_of_n_scores
from accord.stats.calibration import Calibration, CalibrationBin, Mended, margin_calibration, mending_temperature
from accord.stats.dawid_skene import DawidSkene, dawid_skene
from accord.stats.intervals import (
    MAX_CELLS,
    Estimate,
    FloatArray,
    IntArray,
    Interval,
    Labels,
    Unknown,
    bootstrap_by_cluster,
    cluster_draws,
    paired_difference,
    percentile_interval,
    share_by_cluster,
    share_of_pairs,
    wilson,
)
from accord.stats.over_optimisation import GOLD_LAWS, GoldLaw, fit_gold_law
from accord.stats.power import WORTH_SEEING, clusters_needed, pairs_needed
from accord.stats.ranking import Ranked, prompt_wins, ranked_policies
from accord.stats.sequential import SequentialLook, arms_in_order, sequential_look
from accord.stats.strengths import Strengths, bradley_terry
from accord.stats.win_rates import length_controlled_win_rate, win_rate

__all__ = [
    "DEFINITIONS",
    "GOLD_LAWS",
    "MAX_CELLS",
    "WORTH_SEEING",
    "AnnotatorStrengths",
    "Calibration",
    "CalibrationBin",
    "DawidSkene",
    "Estimate",
    "FloatArray",
    "GoldLaw",
    "IntArray",
    "Interval",
    "JudgedItems",
    "Labels",
    "Mended",
    "Metric",
    "Ranked",
    "SequentialLook",
    "Strengths",
    "Unknown",
    "arms_in_order",
    "best_of_n_curve",
    "best_of_n_kl_bound",
    "best_of_n_scores",
    "bootstrap_by_cluster",
    "bradley_terry",
    "bradley_terry_with_annotators",
    "cluster_draws",
    "clusters_needed",
    "cohen_kappa",
    "dawid_skene",
    "fit_gold_law",
    "fleiss_kappa",
    "judged_items",
    "krippendorff_alpha",
    "length_controlled_win_rate",
    "margin_calibration",
    "mending_temperature",
    "paired_difference",
    "pairs_needed",
    "pairwise_agreement",
    "percentile_interval",
    "prompt_wins",
    "ranked_policies",
    "raw_agreement",
    "sequential_look",
    "share_by_cluster",
    "share_of_pairs",
    "wilson",
    "win_rate",
]
