// j and k walk over things on the page.
export function walker(things, reached = () => {}) {
  let at = -1;
  const go = (step) => {
    at = Math.min(Math.max(at + step, 0), things.length - 1);
    const thing = things[at];
    thing.focus({ preventScroll: true });
    thing.scrollIntoView({ block: "nearest" });
    reached(thing, at);
  };
  return { go, at: () => at, to: (place) => { at = place; go(0); }, keys: { j: () => go(1), k: () => go(-1) } };
}
