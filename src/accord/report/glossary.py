"""Every number of the report in words. Table headers link here."""

from __future__ import annotations

from dataclasses import dataclass

from accord.report.names import Names


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
        "the judge's own scale",
        "What a judge says of the completion. It trained nothing in this run, and what it knows taught nothing else. "
        "The first judge of a run chooses among snapshots, and these numbers are its. Read it beside the samples.",
    ),
    Term(
        "proxy",
        "Proxy score",
        "as it was optimised",
        "The score that {candidate} was asked to raise, a reward model's as a rule: texts written by people have mean "
        "0 and deviation 1 there. A proxy that rises while the judge does not is being gamed.",
    ),
    Term(
        "win_rate",
        "Win rate against {reference}",
        "share, 0 to 1",
        "Of all pairs (a completion of this policy, one of {reference} for the same prompt) the share in which the "
        "judge scores this policy's higher; a tie counts one half. 0.5 means no better than {reference}.",
    ),
    Term(
        "length_controlled",
        "Win rate at equal length",
        "share, 0 to 1",
        "The win rate a logistic model of the judge's choices predicts for two texts of equal length. It is fitted to "
        "the same pairs and to pairs within one policy, which show what length alone does to the judge.",
    ),
    Term(
        "enough",
        "Enough to say",
        "",
        "A judge says better or worse where its 95% interval is on one side of 0.5. Where it holds 0.5, and there are "
        "fewer prompts than show a true win rate of 0.65 with a chance of 80% (85 without ties), they are too few to "
        "say; with so many it has looked enough, and finds no difference of that size.",
    ),
    Term(
        "interval",
        "Interval in brackets",
        "95%",
        "Percentile bootstrap that draws whole topics, because texts on one topic are not independent. It holds "
        "this run fixed: how much another training seed would change stands in the report over seeds.",
    ),
    Term(
        "kl",
        "KL to {reference}",
        "nats per completion",
        "How far the policy has moved: the mean over its own completions of the sum over tokens of log policy - log "
        "{reference}. For best-of-n it is the upper bound log n - (n - 1) / n.",
    ),
    Term(
        "nll",
        "NLL under {reference}",
        "nats per token",
        "Minus the log-probability that {reference} gives the policy's tokens, over their number. Texts far above "
        "{reference}'s own value are texts that {reference} finds strange.",
    ),
    Term(
        "nll_excess",
        "NLL above {reference}'s own",
        "nats per token",
        "The policy's NLL under {reference} minus that of {reference}'s own completions.",
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
        "share of {reference}'s",
        "Mean length in tokens over {reference}'s. Far from 1 the policy has found that length pays.",
    ),
    Term(
        "entropy",
        "Entropy",
        "nats per token",
        "How open the policy leaves what comes next: the mean over its own tokens of the entropy of its distribution "
        "at the temperature of the evaluation. Far below {reference}'s it has settled on a few texts.",
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
        "Of held-out pairs of completions of one prompt that people ordered, the share that the score orders as they "
        "did. Ties count one half.",
    ),
    Term(
        "same_verdict",
        "Same verdict",
        "share",
        "The same accuracy on pairs of one coarse verdict (both good or both bad). The verdict alone settles most "
        "other pairs, so these show whether more than the verdict was learnt.",
    ),
    Term(
        "tfidf",
        "TF-IDF Bradley-Terry",
        "",
        "The baseline without a network: logistic regression on differences of TF-IDF rows, fitted to the same "
        "rankings by people, its penalty chosen on validation prompts. Longer-wins prefers the longer text.",
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
        "Pearson correlation of the score with log(1 + words) on the held-out texts.",
    ),
    Term(
        "probe",
        "Probes",
        "",
        "Fixed texts of known standing, written for this purpose: slogans, repetitions, noise, and full texts. A "
        "hack or a negative text that reaches the lowest good one is marked.",
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
        "floors on validation prompts; whether they hold is then reported on test prompts.",
    ),
)
TERMS = {term.key: term for term in GLOSSARY}


def glossary_of(names: Names) -> tuple[Term, ...]:
    """The glossary with the names of this page's policies in it."""
    return tuple(Term(one.key, names.fill(one.name), names.fill(one.unit), names.fill(one.meaning)) for one in GLOSSARY)
