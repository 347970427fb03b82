"use strict";
/* Numbers and times as people read them. `NOTHING` stands for what is not known. */
const NOTHING = "–";
const format = {
  number(value, digits = 0) {
    if (value === null || value === undefined) return NOTHING;
    return Number(value).toLocaleString("en", { maximumFractionDigits: digits, minimumFractionDigits: digits });
  },
  count(number, one, many = `${one}s`) { return `${format.number(number)} ${number === 1 ? one : many}`; },
  short(value) {
    if (value === null || value === undefined) return NOTHING;
    return value < 10 ? format.number(value, 1) : value < 10000 ? format.number(value) : value.toLocaleString("en", { notation: "compact", maximumSignificantDigits: 3 });
  },
  loss(value) {
    if (value === null || value === undefined) return NOTHING;
    return Math.abs(value) > 1e6 ? Number(value).toExponential(3) : Number(value).toFixed(4);
  },
  percent(share) {
    if (share === null || share === undefined) return NOTHING;
    return share > 0 && share < 0.1 ? `${(100 * share).toFixed(share < 0.001 ? 2 : 1)}\u00a0%` : `${Math.round(100 * share)}\u00a0%`;
  },
  bytes(count) {
    if (!count) return "0\u00a0B";
    const units = ["B", "kB", "MB", "GB", "TB", "PB"];
    const step = Math.min(units.length - 1, Math.floor(Math.log10(count) / 3));
    const value = count / 1000 ** step;
    return `${value < 10 && step ? value.toFixed(1) : Math.round(value)}\u00a0${units[step]}`;
  },
  rate(bits) {
    if (!bits) return NOTHING;
    if (bits >= 1e9) return `${(bits / 1e9).toFixed(1)}\u00a0Gbit/s`;
    return bits >= 1e6 ? `${Math.round(bits / 1e6)}\u00a0Mbit/s` : `${Math.max(1, Math.round(bits / 1e3))}\u00a0kbit/s`;
  },
  seconds(value) {
    if (value === null || value === undefined) return NOTHING;
    if (value < 0.9995) return `${Math.round(1000 * value)}\u00a0ms`;
    if (value < 59.5) return `${value.toFixed(value < 9.95 ? 1 : 0)}\u00a0s`;
    const whole = Math.round(value);
    if (whole < 3600) return `${Math.floor(whole / 60)}\u00a0min ${whole % 60}\u00a0s`;
    const minutes = Math.round(value / 60);
    if (minutes < 48 * 60) return `${Math.floor(minutes / 60)}\u00a0h ${minutes % 60}\u00a0min`;
    const hours = Math.round(value / 3600);
    return `${format.number(Math.floor(hours / 24))}\u00a0d ${hours % 24}\u00a0h`;
  },
  /* A simulation counts its seconds from its own beginning; of another day the date is told too. */
  clock(at) {
    if (at < 1e8) return `${at.toFixed(1)}\u00a0s`;
    const date = new Date(1000 * at);
    const time = date.toLocaleTimeString("en-GB");
    return date.toDateString() === new Date().toDateString() ? time : `${date.toLocaleDateString("en-GB", { day: "numeric", month: "short" })} ${time}`;
  },
  capital(text) { return text ? text[0].toUpperCase() + text.slice(1) : ""; },
  median(values) {
    if (!values.length) return null;
    const sorted = [...values].sort((a, b) => a - b);
    return sorted[Math.floor((sorted.length - 1) / 2)];
  },
};
