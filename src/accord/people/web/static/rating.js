// Each completion on every axis.

import { t } from "./words.js";

export default function rating({ form, cards, changed, say, walker }) {
  const rows = [...form.querySelectorAll(".axis")];
  const radios = (row) => [...row.querySelectorAll("input")];
  const value = (row) => radios(row).find((radio) => radio.checked)?.value;
  const mark = (here) => rows.forEach((row) => row.classList.toggle("current", row === here));
  rows.forEach((row) => (row.tabIndex = -1));
  const walk = walker(rows, mark);
  form.addEventListener("focusin", (event) => {
    const row = event.target.closest(".axis");
    if (row) mark(row);
  });
  form.addEventListener("change", (event) => event.target.closest(".axis") && changed());
  const give = (number) => {
    const place = walk.at() < 0 ? rows.findIndex((row) => !value(row)) : walk.at();
    const row = rows[place < 0 ? 0 : place];
    const values = radios(row);
    const radio = values.find((one) => one.value === String(number)) ?? (number === 0 && values.find((one) => one.value === "10"));
    if (!radio) return say(t("This scale goes from {low} to {high}", { low: values[0].value, high: values.at(-1).value }));
    radio.checked = true;
    say(`${row.dataset.title}: ${number}`);
    changed();
    walk.to(Math.min(rows.indexOf(row) + 1, rows.length - 1));
  };
  const digits = Object.fromEntries([...Array(10).keys()].map((digit) => [String(digit), () => give(digit)]));
  return {
    best: () => best(cards, rows, value),
    keys: { ...digits, ...walk.keys },
    missing() {
      const empty = rows.find((row) => !value(row));
      if (!empty) return "";
      walk.to(rows.indexOf(empty));
      return t("Rate {axis} too.", { axis: empty.dataset.title });
    },
    read() {
      const ratings = cards.map(() => ({}));
      for (const row of rows) if (value(row)) ratings[row.dataset.of][row.dataset.axis] = Number(value(row));
      return { ratings };
    },
    restore({ ratings }) {
      for (const row of rows) {
        const held = ratings?.[row.dataset.of]?.[row.dataset.axis];
        radios(row).forEach((radio) => (radio.checked = radio.value === String(held)));
      }
    },
  };
}

// The completion with the highest sum so far.
function best(cards, rows, value) {
  const sums = cards.map((_, i) => rows.filter((row) => Number(row.dataset.of) === i).reduce((sum, row) => sum + Number(value(row) ?? 0), 0));
  return sums.some(Boolean) ? sums.indexOf(Math.max(...sums)) : null;
}
