// A text that somebody writes.

export default function demonstration({ form, changed }) {
  const text = form.querySelector("#text");
  const words = form.querySelector("#words");
  const count = () => {
    const found = text.value.trim().split(/\s+/).filter(Boolean).length;
    words.textContent = `${found} ${found === 1 ? "word" : "words"}`;
  };
  text.addEventListener("input", () => (count(), changed()));
  return {
    best: () => null,
    keys: { w: () => text.focus() },
    missing: () => (text.value.trim() ? "" : (text.focus(), "Write something first.")),
    read: () => ({ text: text.value }),
    restore({ text: held }) {
      text.value = held ?? "";
      count();
    },
  };
}
