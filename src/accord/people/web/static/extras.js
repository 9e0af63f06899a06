// What any kind of task may carry besides its answer: flags, one edit, a note, and the comparison word by word.

import { call } from "./net.js";
import { show, viewOf } from "./texts.js";
import { t } from "./words.js";

export function extras({ form, cards, changed, say, current, path, listed }, kind) {
  const note = form.querySelector("#note");
  const noteBox = form.querySelector("#note-box");
  const cardOf = (i) => cards.find((card) => Number(card.dataset.position) === i);
  const here = () => current() ?? kind.best() ?? 0;

  // ---- note ----
  function openNote() {
    noteBox.hidden = false;
    form.querySelector("[data-do=note]").setAttribute("aria-expanded", true);
    note.focus();
  }
  note.addEventListener("input", changed);

  // ---- flags ----
  const flagged = (i) => [...form.querySelectorAll(`input[name=flag-${i}]:checked`)].map((box) => box.value);
  function countFlags(i) {
    const place = cardOf(i)?.querySelector(".flags .count");
    if (place) place.textContent = flagged(i).length || "";
  }
  form.addEventListener("change", (event) => {
    if (!event.target.name?.startsWith("flag-")) return;
    countFlags(Number(event.target.name.slice(5)));
    changed();
  });
  function openFlags() {
    const menu = cardOf(here())?.querySelector(".flags");
    if (!menu) return;
    menu.open = !menu.open;
    if (menu.open) menu.querySelector("input").focus();
    else cardOf(here()).focus();
  }

  // ---- the edit: of one completion, the best one unless another is chosen ----
  const field = (i) => cardOf(i).querySelector(".editing textarea");
  const original = new Map(cards.map((card, i) => [Number(card.dataset.position), card.querySelector(".editing textarea").value]));
  let editing = null;
  function openEdit(i, focus = true) {
    if (!cardOf(i)) return;
    if (editing !== null && editing !== i) closeEdit(false);
    editing = i;
    cardOf(i).classList.add("open");
    cardOf(i).querySelector(".editing").hidden = false;
    cardOf(i).querySelector("[data-do=edit]").setAttribute("aria-expanded", true);
    if (focus) field(i).focus();
  }
  function closeEdit(focus = true) {
    if (editing === null) return;
    const card = cardOf(editing);
    field(editing).value = original.get(editing);
    card.classList.remove("open");
    card.querySelector(".editing").hidden = true;
    card.querySelector("[data-do=edit]").setAttribute("aria-expanded", false);
    editing = null;
    if (focus) card.focus();
    changed();
  }
  form.addEventListener("input", (event) => event.target.closest(".editing") && changed());
  const best = () => kind.best() ?? current() ?? 0;

  // ---- words that differ ----
  let comparing = false;
  async function compare() {
    const button = form.querySelector("[data-do=diff]");
    if (!button) return;
    comparing = !comparing;
    button.setAttribute("aria-pressed", comparing);
    if (!comparing) return showTexts();
    const order = [...form.querySelectorAll(".card")].map((card) => Number(card.dataset.position));
    const at = Math.max(order.indexOf(current() ?? order[0]), 0);
    const [a, b] = at === 0 ? [order[0], order[1]] : [order[at - 1], order[at]];
    try {
      const parts = await call("GET", `${path}/diff?a=${a}&b=${b}&listed=${listed}`);
      for (const [i, html] of [[a, parts.a], [b, parts.b]]) {
        cardOf(i).querySelector(".diff").innerHTML = html; // made and escaped by the server
        show(cardOf(i), "diff");
      }
      say(t("Words that differ are marked: {removed} only in one, {added} only in the other.", parts));
    } catch (error) {
      comparing = false;
      button.setAttribute("aria-pressed", false);
      say(error.message);
    }
  }
  function showTexts() {
    for (const card of cards) show(card, viewOf(card));
  }

  return {
    actions: {
      note: openNote,
      diff: compare,
      edit: (button) => (editing === Number(button.dataset.of) ? closeEdit() : openEdit(Number(button.dataset.of))),
      discard: () => closeEdit(),
    },
    keys: { n: openNote, d: compare, f: openFlags, e: () => form.querySelector("[data-do=edit]") && openEdit(best()) },
    read() {
      const found = { note: note.value };
      const flags = cards.map((_, i) => flagged(i));
      if (flags.some((one) => one.length)) found.flags = flags;
      const text = editing === null ? "" : field(editing).value;
      if (text.trim() && text !== original.get(editing)) found.edit = { of: editing, text };
      return found;
    },
    restore({ note: words, flags, edit }) {
      note.value = words ?? "";
      noteBox.hidden = !words;
      flags?.forEach((names, i) => {
        for (const box of form.querySelectorAll(`input[name=flag-${i}]`)) box.checked = names.includes(box.value);
        countFlags(i);
      });
      if (edit && cardOf(edit.of)) {
        openEdit(edit.of, false);
        field(edit.of).value = edit.text;
      }
    },
  };
}
