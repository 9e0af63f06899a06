// A text that somebody writes.

import { t } from "./words.js";

export default function demonstration({ form, changed }) {
  const text = form.querySelector("#text");
  const words = form.querySelector("#words");
  const count = () => {
    const found = text.value.trim().split(/\s+/).filter(Boolean).length;
    words.textContent = found === 1 ? t("1 word") : t("{n} words", { n: found });
  };
  text.addEventListener("input", () => (count(), changed()));
  return {
    best: () => null,
    keys: { w: () => text.focus() },
    missing: () => (text.value.trim() ? "" : (text.focus(), t("Write something first."))),
    read: () => ({ text: text.value }),
    restore({ text: held }) {
      text.value = held ?? "";
      count();
    },
  };
}
