// What the scripts say, in the language of the page: the server sends the words where it is not English.

const words = JSON.parse(document.querySelector('meta[name="words"]')?.content ?? "{}");

export const t = (text, values = {}) => (words[text] ?? text).replace(/\{(\w+)\}/g, (_, name) => values[name]);
