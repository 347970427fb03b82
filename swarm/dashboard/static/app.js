"use strict";
/* Puts the parts together: draws the newest document, at most once a frame. */
(() => {
  let current = null, waiting = false;

  const peerInAddress = () => { const found = /^#peer=([0-9A-Za-z]+)$/.exec(location.hash); return found ? found[1] : ""; };

  const draw = () => {
    waiting = false;
    if (!current) return;
    run.strip(current);
    charts.loss(nodes.byId("loss"), current);
    run.stages(current);
    run.needs(current);
    run.faults(current);
    run.links(current);
    run.notes(current);
    run.kept(current);
    people.board(current);
    people.page(current, peerInAddress());
  };
  const redraw = () => { if (!waiting) { waiting = true; requestAnimationFrame(draw); } };
  const show = (doc) => { current = doc; redraw(); };

  const connection = nodes.byId("connection");
  let lostAt = null;
  const connected = (isIt) => {
    lostAt = isIt ? null : lostAt || new Date();
    nodes.set(connection, isIt ? { text: "live", "data-tone": "good" } : { text: `reconnecting since ${lostAt.toLocaleTimeString("en-GB")}`, "data-tone": "warn" });
  };

  const theme = () => document.documentElement.dataset.theme;
  const setTheme = (name) => { document.documentElement.dataset.theme = name; };
  const remembered = (() => { try { return localStorage.getItem("theme"); } catch { return null; } })();
  setTheme(remembered || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light"));
  nodes.byId("theme").addEventListener("click", () => {
    setTheme(theme() === "dark" ? "light" : "dark");
    try { localStorage.setItem("theme", theme()); } catch { /* a private window: not remembered */ }
  });

  people.head(redraw);
  nodes.byId("search").addEventListener("input", redraw);
  addEventListener("hashchange", () => {
    draw();
    if (peerInAddress()) { nodes.byId("peer").scrollIntoView({ block: "start" }); nodes.byId("peer-title").focus({ preventScroll: true }); }
  });

  fetch("/api/state").then((answer) => answer.json()).then((doc) => {
    show(doc);
    if (doc.live) source.live(show, connected);
    else { nodes.set(connection, { text: "replay" }); source.replay(show); }
  }).catch(() => source.live(show, connected));
})();
