// Which of two is better, and by how much.

import { t } from "./words.js";

// As the sheet has it: on a narrow page keys are not shown.
const hasKeys = () => matchMedia("(min-width: 901px)").matches;

export default function pair({ form, cards, changed, walker }) {
  const choices = [...form.querySelectorAll("input[name=choice]")];
  const chosen = () => choices.find((choice) => choice.checked)?.value;
  const best = () => (/^[01]/.test(chosen() ?? "") ? Number(chosen()[0]) : null);
  const show = () => cards.forEach((card, i) => card.classList.toggle("best", best() === i));
  const pick = (choice) => {
    choice.checked = true;
    show();
    changed();
  };
  form.addEventListener("change", (event) => event.target.name === "choice" && (show(), changed()));
  return {
    best,
    keys: { ...Object.fromEntries(choices.map((choice) => [choice.dataset.key, () => pick(choice)])), ...walker(cards).keys },
    missing: () => (chosen() ? "" : hasKeys() ? t("Choose first: 1 to 4 for A, 6 to 9 for B, 5 for a tie, 0 if both are bad.") : t("Choose first: which is better, and by how much.")),
    read() {
      const choice = chosen();
      if (!choice) return {};
      if (choice === "tie" || choice === "bad") {
        return { ranks: [1, 1], unacceptable: [choice === "bad", choice === "bad"], strength: null };
      }
      const [better, strength] = choice.split(" ");
      return { ranks: better === "0" ? [1, 2] : [2, 1], unacceptable: [false, false], strength };
    },
    restore({ ranks, unacceptable, strength }) {
      if (!ranks) return;
      const tie = unacceptable?.every(Boolean) ? "bad" : "tie";
      const value = ranks[0] === ranks[1] ? tie : `${ranks[0] < ranks[1] ? 0 : 1} ${strength ?? "better"}`;
      choices.forEach((choice) => (choice.checked = choice.value === value));
      show();
    },
  };
}
