"use strict";
/* Numbers as people read them. */
const format = {
  number(value, digits = 0) {
    return value === null || value === undefined ? "–" : Number(value).toLocaleString("en", { maximumFractionDigits: digits, minimumFractionDigits: digits });
  },
  loss(value) {
    if (value === null || value === undefined) return "–";
    return Math.abs(value) > 1e6 ? Number(value).toExponential(3) : Number(value).toFixed(4);
  },
  percent(share) { return share === null || share === undefined ? "–" : `${Math.round(100 * share)} %`; },
  bytes(count) {
    if (!count) return "0 B";
    const units = ["B", "kB", "MB", "GB", "TB", "PB"];
    const step = Math.min(units.length - 1, Math.floor(Math.log10(count) / 3));
    const value = count / 1000 ** step;
    return `${value < 10 && step ? value.toFixed(1) : Math.round(value)} ${units[step]}`;
  },
  rate(bits) {
    if (!bits) return "–";
    return bits >= 1e9 ? `${(bits / 1e9).toFixed(1)} Gbit/s` : bits >= 1e6 ? `${Math.round(bits / 1e6)} Mbit/s` : `${Math.max(1, Math.round(bits / 1e3))} kbit/s`;
  },
  seconds(value) {
    if (value === null || value === undefined) return "–";
    if (value < 1) return `${Math.round(1000 * value)} ms`;
    if (value < 60) return `${value.toFixed(1)} s`;
    if (value < 3600) return `${Math.floor(value / 60)} min ${Math.round(value % 60)} s`;
    const hours = value / 3600;
    return hours < 48 ? `${Math.floor(hours)} h ${Math.round((value % 3600) / 60)} min` : `${Math.floor(hours / 24)} d ${Math.round(hours % 24)} h`;
  },
  clock(at) {
    // A simulation counts its seconds from its own beginning.
    return at < 1e8 ? `${at.toFixed(1)} s` : new Date(1000 * at).toLocaleTimeString("en-GB");
  },
};
