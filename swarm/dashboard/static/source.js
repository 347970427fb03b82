"use strict";
/* The live feed of a run, which comes back by itself. */
const source = {
  /* RFC 7396: null removes, objects are merged, everything else replaces. */
  merge(target, patch) {
    for (const [key, value] of Object.entries(patch)) {
      if (value === null) delete target[key];
      else if (typeof value === "object" && !Array.isArray(value)) {
        const inner = target[key];
        target[key] = source.merge(inner && typeof inner === "object" && !Array.isArray(inner) ? inner : {}, value);
      } else target[key] = value;
    }
    return target;
  },

  /* `show(document, changed)`: the names of what has changed in it, none for everything. */
  live(show, connected) {
    let doc = null;
    const feed = new EventSource("/api/events");
    feed.addEventListener("open", () => connected(true));
    feed.addEventListener("snapshot", (event) => { doc = JSON.parse(event.data); show(doc); });
    feed.addEventListener("patch", (event) => {
      if (!doc) return;
      const patch = JSON.parse(event.data);
      source.merge(doc, patch);
      show(doc, Object.keys(patch));
    });
    feed.addEventListener("error", () => {
      connected(false);
      // A browser gives up for good after an answer that is no feed; we do not.
      if (feed.readyState === EventSource.CLOSED) setTimeout(() => source.live(show, connected), 3000);
    });
  },
};
