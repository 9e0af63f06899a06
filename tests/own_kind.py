"""A kind of feedback outside the package, as a user writes one: which text would you send, with how much doubt?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

NAME = "sending:SEND"

MODULE = """
from pathlib import Path
from pydantic import BaseModel, Field
from accord.people.desk.kinds import FeedbackKind
from accord.people.desk.answers import wrong
from accord.records import Label

class Send(BaseModel):
    pick: int = Field(ge=0)
    doubt: int = Field(ge=0, le=3)

def check(settings, num_completions, answer):
    if answer.values["pick"] >= num_completions:
        raise wrong("values.pick", f"there is no text {answer.values['pick']}")

def judgements(settings, prompt, shown, answer, by):
    flags = (*by["flags"], f"doubt {answer.values['doubt']}")
    return [
        Label(completion_id=one.id, good=i == answer.values["pick"], **{**by, "flags": flags})
        for i, one in enumerate(shown)
    ]

HERE = Path(__file__).parent
SEND = FeedbackKind(
    title="Which one would you send?", fewest=2, most=4, fields=("values",), schema=Send, check=check,
    judgements=judgements, template=HERE / "send.html.j2", script=HERE / "send.js",
    keys=(("1 2 3 4", "send that one"),), width="middle",
)
NOT_A_KIND = 3
"""
TEMPLATE = """\
<div class="cards">
{% for completion in completions %}
<article class="card" data-position="{{ loop.index0 }}" tabindex="-1">
  {{ parts.tools(completion.letter, loop.index0, settings) }}
  {{ parts.body(completion.letter, loop.index0, completion) }}
  <label><input type="radio" name="send" value="{{ loop.index0 }}"> Send {{ completion.letter }}</label>
</article>
{% endfor %}
</div>
<label for="doubt">Doubt</label> <input id="doubt" type="number" min="0" max="3" value="0">
"""
SCRIPT = """\
export default function ({ form, changed, walker, cards }) {
  const radios = [...form.querySelectorAll("input[name=send]")];
  const doubt = form.querySelector("#doubt");
  const pick = () => radios.findIndex((radio) => radio.checked);
  form.addEventListener("change", changed);
  const digits = radios.map((radio, i) => [String(i + 1), () => { radio.checked = true; changed(); }]);
  return {
    best: () => (pick() < 0 ? null : pick()),
    keys: { ...Object.fromEntries(digits), ...walker(cards).keys },
    missing: () => (pick() < 0 ? "Say which one you would send." : ""),
    read: () => (pick() < 0 ? {} : { values: { pick: pick(), doubt: Number(doubt.value) } }),
    restore({ values }) {
      if (values) { radios[values.pick].checked = true; doubt.value = values.doubt; }
    },
  };
}
"""


def write_kind(folder: Path) -> None:
    """The user's three files: the row, its template, its script."""
    (folder / "sending.py").write_text(MODULE)
    (folder / "send.html.j2").write_text(TEMPLATE)
    (folder / "send.js").write_text(SCRIPT)


def sent(labels: Sequence[Any], text_of: Mapping[str, str]) -> dict[str, bool]:
    """What the labels of one answer say, by text."""
    return {text_of[label.completion_id]: label.good for label in labels}
