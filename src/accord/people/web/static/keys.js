// Keys of one's own. They belong to the keyboard at hand (another desk, another layout), so this browser keeps them,
// apart for each person. Digits, Enter, Escape and ? stay what they are.

import { memory } from "./net.js";
import { t } from "./words.js";

// A letter or a sign that Shift leaves one key: that of ß would be SS, which no key sends.
const fits = (key) => typeof key === "string" && /^[^\s\d?]$/u.test(key) && [...key.toUpperCase()].length === 1;

export function ownKeys(person) {
  const place = `keys:${person}`;
  const kept = Object.entries(memory.read(localStorage, place) ?? {}); // by whichever version, or by hand
  let own = Object.fromEntries(kept.filter(([, key]) => fits(key))); // usual key -> own key; Shift goes along

  const shown = (key) => own[key] ?? own[key.toLowerCase()]?.toUpperCase() ?? key;

  function label(root = document) {
    for (const kbd of root.querySelectorAll("kbd")) {
      kbd.dataset.usual ??= kbd.textContent;
      kbd.textContent = kbd.dataset.usual.replace(/^(⇧?)(.)$/u, (_, shift, key) => shift + shown(key));
    }
    for (const button of root.querySelectorAll("[data-move]")) {
      button.dataset.usual ??= button.title;
      button.title = button.dataset.usual.replace(/(.)\)$/u, (_, key) => `${shown(key)})`);
    }
  }

  // The dialog that shows the keys: press the button of one, then the key it shall be. `data-keys` names those of every
  // kind of task, so that no key means two things on any page.
  function offer(dialog) {
    const every = [...dialog.dataset.keys];
    const message = dialog.querySelector("[role=status]");
    const reset = dialog.querySelector("[data-do=usual]");
    let asking = null;

    function ask(button) {
      asking?.removeAttribute("aria-pressed");
      asking = button;
      asking?.setAttribute("aria-pressed", true);
      message.textContent = asking ? t("Press the key that shall stand for {key}.", { key: shown(asking.dataset.key) }) : "";
    }

    function keep(next, words) {
      own = next;
      memory.write(localStorage, place, Object.keys(own).length ? own : null);
      ask(null);
      label();
      reset.hidden = !Object.keys(own).length;
      message.textContent = words;
    }

    function take(key, wanted) {
      const other = every.find((one) => one !== key && shown(one) === wanted);
      const isPaired = key !== key.toUpperCase() && every.includes(key.toUpperCase()); // j and J
      if (!fits(wanted)) message.textContent = t("Take a letter or a sign.");
      else if (other) message.textContent = t("{key} means something else already.", { key: wanted });
      else if (isPaired && wanted === wanted.toUpperCase()) message.textContent = t("Take a letter: it is used with Shift too.");
      else keep(Object.fromEntries(Object.entries({ ...own, [key]: wanted }).filter(([usual, one]) => usual !== one)), t("Kept in this browser."));
    }

    dialog.addEventListener("click", (event) => {
      const button = event.target.closest("[data-key]");
      if (button) ask(button === asking ? null : button);
    });
    dialog.addEventListener("keydown", (event) => {
      if (!asking || ["Tab", "Shift", "Enter"].includes(event.key)) return;
      event.preventDefault();
      event.stopPropagation();
      if (event.key === "Escape") ask(null);
      else take(asking.dataset.key, event.key.toLowerCase());
    });
    dialog.addEventListener("close", () => ask(null));
    reset.addEventListener("click", () => keep({}, t("As they were.")));
    reset.hidden = !Object.keys(own).length;
  }

  label();
  return { label, offer, usual: (keys, pressed) => keys.find((key) => shown(key) === pressed) };
}
