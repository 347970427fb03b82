"use strict";
/* Puts the parts together: draws what has changed, at most once a frame, and says what must be heard. */
(() => {
  const PARTS = [
    [["phase", "sentence", "run", "progress", "ledger", "members", "at"], run.strip],
    [["steps", "heldout", "faults"], charts.loss],
    [["steps", "progress", "faults"], charts.pace],
    [["stages", "members", "peers", "run", "phase"], stages.map],
    [["needs", "phase"], run.needs],
    [["faults"], faults.list],
    [["links", "wire", "peers", "run"], links.list],
    [["notes"], run.notes],
    [["kept", "live"], run.kept],
    [["peers", "at"], board.list],
  ];
  const SPOKEN_MS = 30000;
  let current = null, changed = new Set(), isAll = false, isWaiting = false;

  const peerInAddress = () => { const found = /^#peer=([0-9A-Za-z]+)$/.exec(location.hash); return found ? found[1] : ""; };

  const draw = () => {
    isWaiting = false;
    if (!current) return;
    const id = peerInAddress();
    for (const [keys, part] of PARTS) if (isAll || keys.some((key) => changed.has(key))) part(current);
    person.page(current, id);
    changed = new Set();
    isAll = false;
    const done = (current.progress || {}).step, peer = id && (current.peers || {})[id];
    document.title = `${peer ? `${peer.name} – ` : ""}${current.phase}${done >= 0 ? `, step ${format.number(done + 1)}` : ""} – swarm-peer`;
    speak(current);
  };
  const redraw = () => { if (!isWaiting) { isWaiting = true; requestAnimationFrame(draw); } };
  const redrawAll = () => { isAll = true; redraw(); };
  const show = (doc, keys) => {
    current = doc;
    if (keys) keys.forEach((key) => changed.add(key)); else isAll = true;
    redraw();
  };

  // The sentence changes with every step: it is read out when the phase does, and otherwise now and then.
  let spokenPhase = "", spokenAt = 0;
  const speak = (doc) => {
    if (doc.phase === spokenPhase && performance.now() - spokenAt < SPOKEN_MS) return;
    spokenPhase = doc.phase;
    spokenAt = performance.now();
    nodes.set(nodes.byId("spoken"), { text: `${format.capital(doc.phase)}: ${doc.sentence}.` });
  };

  let lostAt = null;
  const connection = (words, tone) => {
    nodes.set(nodes.byId("connection"), { "data-tone": tone });
    nodes.set(nodes.byId("connection-words"), { text: words });
  };
  const connected = (isIt) => {
    lostAt = isIt ? null : lostAt || new Date();
    document.body.classList.toggle("stale", !isIt);
    if (isIt) connection("live", "good"); else connection(`reconnecting since ${lostAt.toLocaleTimeString("en-GB")}`, "warn");
  };

  const toggle = nodes.byId("theme");
  const name = () => nodes.set(toggle, { "aria-label": `Use the ${theme.now() === "dark" ? "light" : "dark"} theme`, title: `Use the ${theme.now() === "dark" ? "light" : "dark"} theme` });
  toggle.addEventListener("click", () => { theme.choose(theme.now() === "dark" ? "light" : "dark"); name(); });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", name);
  name();

  board.head(redrawAll);
  person.begin();
  addEventListener("more", redrawAll);
  nodes.byId("links-summary").parentNode.addEventListener("toggle", redrawAll);
  let cameFrom = 0;
  addEventListener("hashchange", (event) => {
    const wasPeer = event.oldURL.includes("#peer="), isPeer = Boolean(peerInAddress());
    if (isPeer && !wasPeer) cameFrom = scrollY;
    draw();
    if (isPeer) { scrollTo(0, 0); nodes.byId("peer-title").focus({ preventScroll: true }); }
    else if (wasPeer && location.hash === "#run") scrollTo(0, cameFrom);
    else if (wasPeer) { const there = nodes.byId(location.hash.slice(1)); if (there) there.scrollIntoView(); }
  });

  const begin = async () => {
    let doc = null;
    try { doc = await (await fetch("/api/state")).json(); } catch { /* the feed tries again and again */ }
    if (doc) show(doc);
    if (!doc || doc.live) { source.live(show, connected); return; }
    nodes.set(nodes.byId("foot-live"), { hidden: true });
    connection("a past run", "accent");
    await Replay.open(show);
  };
  begin();
})();
