"use strict";
/* A past run: a slider of its time, played or moved from one notable event to the next. */
class Replay {
  constructor(about, show) {
    this.marks = about.marks.length ? about.marks : [[about.first, 0]];
    this.stops = about.stops;
    this.show = show;
    this.asked = 0;
    this.timer = null;
    this.begin = this.marks[0][1];
    this.span = Math.max(0.001, this.marks[this.marks.length - 1][1] - this.begin);
    this.last = about.last;
    for (const name of ["slider", "play", "moment", "speed", "before", "after"]) this[name] = nodes.byId(name);
    this.jump = nodes.byId("stops");
    nodes.byId("replay").hidden = false;
    document.body.classList.add("replaying");
    nodes.set(this.slider, { max: this.span });
    this.jump.append(nodes.make("option", { value: "", text: "Jump to …" }));
    for (const [sequence, at, text] of this.stops) this.jump.append(nodes.make("option", { value: sequence, text: `${format.clock(at)}  ${text}` }));
    this.draw();
    this.speeds();
    this.listen();
  }

  draw() {
    const grave = this.stops.filter(([, , text]) => text.includes(" is lost ") || text.includes("has stopped") || text.includes("no replica"));
    for (const [, at] of grave.slice(0, 100)) {
      const mark = nodes.make("span");
      mark.style.left = `${(100 * (at - this.begin)) / this.span}%`;
      nodes.byId("marks").append(mark);
    }
  }

  /* As fast as it was, and so much faster that the whole run takes about a minute, or a quarter of one. */
  speeds() {
    const whole = Math.max(1, Math.round(this.span / 60));
    for (const times of [...new Set([1, whole, 4 * whole])]) this.speed.append(nodes.make("option", { value: times, text: `${format.number(times)} ×` }));
    this.speed.value = String(whole);
  }

  listen() {
    this.slider.addEventListener("input", () => { this.stop(); this.goTime(Number(this.slider.value)); });
    this.jump.addEventListener("change", () => { if (this.jump.value) { this.stop(); this.goSequence(Number(this.jump.value)); } });
    this.play.addEventListener("click", () => this.toggle());
    this.before.addEventListener("click", () => this.neighbour(-1));
    this.after.addEventListener("click", () => this.neighbour(1));
    addEventListener("keydown", (event) => this.key(event));
  }

  key(event) {
    const isSlider = event.target === this.slider;
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (!isSlider && event.target.closest("input, select, textarea, button, a, summary, .scroll")) return;
    const step = this.span / 200, does = { " ": () => this.toggle(), Home: () => this.goTime(0), End: () => this.goTime(this.span) };
    does.ArrowRight = does.ArrowUp = () => (event.shiftKey ? this.neighbour(1) : this.goTime(this.time + step));
    does.ArrowLeft = does.ArrowDown = () => (event.shiftKey ? this.neighbour(-1) : this.goTime(this.time - step));
    if (!isSlider) for (const key of ["Home", "End", "ArrowUp", "ArrowDown"]) delete does[key];
    if (!does[event.key]) return;
    event.preventDefault();
    if (event.key !== " ") this.stop();
    does[event.key]();
  }

  get time() { return Number(this.slider.value); }

  /* The last event at or before a time; between two marks events are taken to lie evenly. */
  sequenceAt(time) {
    const at = this.begin + time, next = this.marks.findIndex((mark) => mark[1] > at);
    if (next < 0) return this.last;
    if (next === 0) return this.marks[0][0];
    const [[from, since], [to, until]] = [this.marks[next - 1], this.marks[next]];
    return Math.floor(from + ((to - from) * (at - since)) / (until - since));
  }

  goTime(time) {
    const wanted = Math.min(this.span, Math.max(0, time));
    this.slider.value = wanted;
    return this.look(this.sequenceAt(wanted));
  }

  async goSequence(sequence) {
    const doc = await this.look(sequence);
    if (doc) this.slider.value = doc.at - this.begin;
  }

  /* Where the slider stands still, the notable event before or after what is shown. */
  neighbour(way) {
    this.stop();
    const now = this.sequence ?? this.last;
    const stop = way > 0 ? this.stops.find(([sequence]) => sequence > now) : [...this.stops].reverse().find(([sequence]) => sequence < now);
    return stop ? this.goSequence(stop[0]) : this.goTime(way > 0 ? this.span : 0);
  }

  async look(sequence) {
    const ask = (this.asked += 1);
    const doc = await (await fetch(`/api/state?sequence=${sequence}`)).json();
    if (ask !== this.asked) return null;
    this.sequence = doc.sequence;
    const passed = `${format.seconds(Math.max(0, doc.at - this.begin))} of ${format.seconds(this.span)}`;
    nodes.set(this.moment, { text: doc.at < 1e8 ? passed : `${format.clock(doc.at)} · ${passed}` });
    nodes.set(this.slider, { "aria-valuetext": `${passed}: ${doc.sentence}` });
    const here = this.stops.filter(([stop]) => stop <= doc.sequence).pop();
    this.jump.value = here && here[0] === doc.sequence ? String(here[0]) : "";
    this.show(doc);
    return doc;
  }

  stop() {
    clearTimeout(this.timer);
    this.timer = null;
    nodes.set(this.play, { "aria-label": "Play" });
    nodes.set(this.play.querySelector("use"), { href: "#i-play" });
  }

  toggle() {
    if (this.timer) { this.stop(); return; }
    if (this.time >= this.span) this.slider.value = 0;
    nodes.set(this.play, { "aria-label": "Pause" });
    nodes.set(this.play.querySelector("use"), { href: "#i-paused" });
    let before = performance.now();
    const tick = async () => {
      const now = performance.now(), next = this.time + ((now - before) / 1000) * Number(this.speed.value);
      before = now;
      await this.goTime(next);
      if (!this.timer) return;
      if (next >= this.span) this.stop();
      else this.timer = setTimeout(tick, 200);
    };
    this.timer = setTimeout(tick, 0);
  }

  static async open(show) {
    const replay = new Replay(await (await fetch("/api/replay")).json(), show);
    await replay.goTime(replay.span);
  }
}
