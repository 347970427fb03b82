"use strict";
/* Where the document comes from: the live feed, which comes back by itself, or a past run at some moment. */
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

  live(show, connected) {
    let doc = null;
    const feed = new EventSource("/api/events");
    feed.addEventListener("open", () => connected(true));
    feed.addEventListener("snapshot", (event) => { doc = JSON.parse(event.data); show(doc); });
    feed.addEventListener("patch", (event) => { if (doc) { source.merge(doc, JSON.parse(event.data)); show(doc); } });
    feed.addEventListener("error", () => {
      connected(false);
      // A browser gives up for good after an answer that is no feed; we do not.
      if (feed.readyState === EventSource.CLOSED) setTimeout(() => source.live(show, connected), 3000);
    });
  },

  async replay(show) {
    const about = await (await fetch("/api/replay")).json();
    const slider = nodes.byId("slider"), play = nodes.byId("play"), stops = nodes.byId("stops"), moment = nodes.byId("moment");
    nodes.byId("replay").hidden = false;
    nodes.set(slider, { min: about.first, max: about.last });
    for (const [sequence, at, text] of about.stops) stops.append(nodes.make("option", { value: sequence, text: `${format.clock(at)}  ${text}` }));
    let asked = 0, timer = null;
    const go = async (sequence) => {
      const ask = ++asked;
      slider.value = sequence;
      const doc = await (await fetch(`/api/state?sequence=${sequence}`)).json();
      if (ask !== asked) return;
      nodes.set(moment, { text: `${format.clock(doc.at)}, event ${doc.sequence} of ${about.last}` });
      nodes.set(slider, { "aria-valuetext": `${format.clock(doc.at)}: ${doc.sentence}` });
      show(doc);
    };
    const stop = () => { clearInterval(timer); timer = null; nodes.set(play, { text: "Play", "aria-pressed": "false" }); };
    slider.addEventListener("input", () => { stop(); go(Number(slider.value)); });
    stops.addEventListener("change", () => { stop(); go(Number(stops.value)); });
    play.addEventListener("click", () => {
      if (timer) { stop(); return; }
      if (Number(slider.value) >= about.last) slider.value = about.first;
      const stride = Math.max(1, Math.round((about.last - about.first) / 120));
      nodes.set(play, { text: "Pause", "aria-pressed": "true" });
      timer = setInterval(() => {
        const next = Math.min(about.last, Number(slider.value) + stride);
        go(next);
        if (next >= about.last) stop();
      }, 250);
    });
    await go(about.last);
  },
};
