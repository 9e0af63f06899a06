// Talking to the server: one door for calls, and patience where the connection is gone.

const csrf = document.querySelector('meta[name="csrf"]')?.content ?? "";

export class Refused extends Error {
  constructor(status, message, waitS) {
    super(message);
    this.status = status;
    this.waitS = waitS;
  }
}

export async function call(method, path, body, headers = {}) {
  const sent = { "X-CSRF-Token": csrf, ...headers };
  if (body !== undefined) sent["Content-Type"] = "application/json";
  const small = body !== undefined && JSON.stringify(body).length < 60000; // browsers let only small bodies outlive a page
  const response = await fetch(path, {
    method,
    headers: sent,
    body: body === undefined ? undefined : JSON.stringify(body),
    credentials: "same-origin",
    redirect: "error",
    keepalive: small,
  });
  const text = await response.text();
  let value = null;
  try {
    value = text ? JSON.parse(text) : null;
  } catch {
    value = text;
  }
  if (!response.ok) {
    throw new Refused(response.status, value?.error ?? response.statusText, Number(response.headers.get("Retry-After")) || 0);
  }
  return value;
}

// Send again and again until the server has answered. A refusal is an answer; silence, 429 and 5xx are not.
// The pauses are drawn, so that the browsers of a server that comes back do not all knock at once.
export async function persist(send, waiting) {
  for (let pause = 1000; ; pause = Math.min(2 * pause, 10000)) {
    try {
      return await send();
    } catch (error) {
      const final = error instanceof Refused && error.status < 500 && error.status !== 429;
      if (final) throw error;
      waiting(error);
      await Promise.race([sleep(Math.max(pause * (0.5 + Math.random()), 1000 * (error.waitS || 0))), again()]);
    }
  }
}

const sleep = (ms) => new Promise((done) => setTimeout(done, ms));
const again = () => new Promise((done) => addEventListener("online", done, { once: true }));

// What this browser remembers by itself. Private windows may refuse; then it is not remembered.
export const memory = {
  read(store, key) {
    try {
      return JSON.parse(store.getItem(`accord:${key}`));
    } catch {
      return null;
    }
  },
  write(store, key, value) {
    try {
      if (value === null) store.removeItem(`accord:${key}`);
      else store.setItem(`accord:${key}`, JSON.stringify(value));
    } catch {
      // full or forbidden: the server's draft remains
    }
  },
};
