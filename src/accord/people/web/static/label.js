// A kind of feedback on the page: its script's default export is a function of the task ({ form, cards, changed, say, walker,
// ... }) that returns how it reads its part of the answer off the page (read), says what is missing (missing), puts an
// earlier answer back (restore), and names its keys and which completion is best so far (keys, best).

import { t } from "./words.js";

export default function label({ form, cards, changed, walker }) {
  const value = (i) => form.querySelector(`input[name=good-${i}]:checked`)?.value;
  const walk = walker(cards);
  const firstEmpty = () => cards.findIndex((_, i) => !value(i));
  const give = (word) => {
    const at = walk.at() >= 0 ? walk.at() : Math.max(firstEmpty(), 0);
    form.querySelector(`input[name=good-${at}][value=${word}]`).checked = true;
    changed();
    walk.to(Math.min(at + 1, cards.length - 1));
  };
  form.addEventListener("change", (event) => event.target.name?.startsWith("good-") && changed());
  return {
    best: () => { const good = cards.findIndex((_, i) => value(i) === "good"); return good < 0 ? null : good; },
    keys: { g: () => give("good"), b: () => give("bad"), ...walk.keys },
    missing: () => (firstEmpty() < 0 ? "" : (walk.to(firstEmpty()), t("Say good or bad."))),
    read: () => (firstEmpty() < 0 ? { good: cards.map((_, i) => value(i) === "good") } : {}),
    restore({ good }) {
      good?.forEach((is, i) => (form.querySelector(`input[name=good-${i}][value=${is ? "good" : "bad"}]`).checked = true));
    },
  };
}
