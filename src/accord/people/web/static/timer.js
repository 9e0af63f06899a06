// Seconds that the page was really in sight, and seconds that it was not.

export function timer(before) {
  let seconds = Number(before.seconds) || 0;
  let pauses_s = Number(before.pauses_s) || 0;
  let since = performance.now();
  let seen = !document.hidden;

  function settle() {
    const now = performance.now();
    if (seen) seconds += (now - since) / 1000;
    else pauses_s += (now - since) / 1000;
    since = now;
  }

  document.addEventListener("visibilitychange", () => {
    settle();
    seen = !document.hidden;
  });

  return () => {
    settle();
    return { seconds: Math.round(10 * seconds) / 10, pauses_s: Math.round(10 * pauses_s) / 10 };
  };
}
