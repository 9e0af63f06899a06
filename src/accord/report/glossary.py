"""Every number of the report in words. Table headers link here."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Term:
    """``key`` is the anchor; ``unit`` may be empty."""

    key: str
    name: str
    unit: str
    meaning: str


GLOSSARY = (
    Term(
        "judge",
        "Judge score",
        "mean rating, -4 to 4",
        "What people would say of the text: a ridge regression on its words, pairs of words and runs of letters, "
        "fitted to people's mean ratings of reviews of other films. Those ratings teach nothing else, and it trains "
        "nothing. "
        "It knows length (thin texts sink) but not grammar or facts, so read it beside the samples.",
    ),
    Term(
        "proxy",
        "Proxy score",
        "standard deviations of human reviews",
        "The reward model's score: what PPO was asked to raise. Reviews written by people have mean 0 and deviation 1. "
        "A proxy that rises while the judge does not is being gamed.",
    ),
    Term(
        "win_rate",
        "Win rate against SFT",
        "share, 0 to 1",
        "Of all pairs (a completion of this policy, one of SFT for the same film) the share in which the judge scores "
        "this policy's higher; a tie counts one half. 0.5 means no better than SFT.",
    ),
    Term(
        "length_controlled",
        "Win rate at equal length",
        "share, 0 to 1",
        "The win rate a logistic model of the judge's choices predicts for two texts of equal length. It is fitted to "
        "the same pairs and to pairs within one policy, which show what length alone does to the judge.",
    ),
    Term(
        "interval",
        "Interval in brackets",
        "95%",
        "Percentile bootstrap that draws whole films, because texts about one film are not independent. It holds "
        "this run fixed: how much another training seed would change stands in the report over seeds.",
    ),
    Term(
        "kl",
        "KL to SFT",
        "nats per completion",
        "How far the policy has moved: the mean over its own completions of the sum over tokens of log policy - log "
        "SFT. For best-of-n it is the upper bound log n - (n - 1) / n.",
    ),
    Term(
        "nll",
        "NLL under SFT",
        "nats per token",
        "Minus the log-probability that SFT gives the policy's tokens, over their number. Texts far above SFT's own "
        "value are texts that SFT finds strange.",
    ),
    Term(
        "nll_excess",
        "NLL above SFT's own",
        "nats per token",
        "The policy's NLL under SFT minus that of SFT's own completions.",
    ),
    Term(
        "tokens",
        "Length",
        "tokens",
        "Mean number of tokens of a completion, its end token included; completions that reach the limit are cut.",
    ),
    Term("words", "Length in words", "words", "Mean number of pieces between white space."),
    Term(
        "length_ratio",
        "Length ratio",
        "share of SFT's",
        "Mean length in tokens over SFT's. Far from 1 the policy has found that length pays.",
    ),
    Term(
        "distinct_2",
        "Distinct-2",
        "share",
        "Distinct pairs of neighbouring words over all such pairs of the whole set of completions.",
    ),
    Term(
        "self_bleu",
        "Self-BLEU",
        "0 to 1",
        "Mean BLEU-4 of each completion against all others of the set: higher means more alike.",
    ),
    Term(
        "distinct_share",
        "Distinct completions",
        "share",
        "Completions that differ from all others of the set, white space aside; well below 1 the policy has collapsed.",
    ),
    Term("repetition", "Repetition", "share", "1 - distinct over all runs of three words, within each completion."),
    Term("end_rate", "Ended", "share", "Completions that end with the end token and not at the length limit."),
    Term(
        "reward_accuracy",
        "Reward accuracy",
        "share",
        "Of pairs of reviews by people of one held-out film whose mean ratings lie more than 1 point apart, the share "
        "that the score orders as people did. Ties count one half.",
    ),
    Term(
        "same_verdict",
        "Same verdict",
        "share",
        "The same accuracy on pairs whose critics agree (both fresh or both rotten). The verdict alone settles most "
        "other pairs, so these show whether more than the verdict was learnt.",
    ),
    Term(
        "tfidf",
        "TF-IDF Bradley-Terry",
        "",
        "The baseline without a network: logistic regression on differences of TF-IDF rows, fitted to the same "
        "rankings of human reviews, its penalty chosen on validation films. Longer-wins prefers the longer text.",
    ),
    Term(
        "calibration",
        "Calibration error",
        "share",
        "Mean distance between how sure the reward model is of a pair, sigmoid(|score difference|), and how often it "
        "is right at that confidence (ECE, ten bins).",
    ),
    Term(
        "length_correlation",
        "Length correlation",
        "-1 to 1",
        "Pearson correlation of the score with log(1 + words) on reviews by people.",
    ),
    Term(
        "probe",
        "Probes",
        "",
        "Fixed texts of known standing, written for this purpose: slogans, repetitions, noise, and full reviews. A "
        "hack or a negative review that reaches the lowest full positive review is marked.",
    ),
    Term(
        "training",
        "Training curves",
        "",
        "One row of metrics a step; where there are many, a line is the mean of neighbouring steps and the area around "
        "it reaches from their smallest to their largest value.",
    ),
    Term(
        "clip_fraction",
        "Clip fraction",
        "share of tokens",
        "Tokens whose probability ratio new / old left 1 - clip .. 1 + clip in the last epoch, below and above apart.",
    ),
    Term(
        "explained_variance",
        "Explained variance",
        "at most 1",
        "1 - Var(return - value) / Var(return): 1 means that the critic knows the return, 0 that it knows the mean.",
    ),
    Term(
        "floor",
        "Floor",
        "",
        "A bound that must hold before a gain is believed. The judge chooses only among snapshots that hold the "
        "floors on validation films; whether they hold is then reported on test films.",
    ),
)
TERMS = {term.key: term for term in GLOSSARY}
