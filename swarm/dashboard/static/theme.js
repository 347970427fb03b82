"use strict";
/* The theme that was chosen here before, set before anything is drawn; without one the style sheet follows the system. */
const theme = {
  choose(name) {
    document.documentElement.dataset.theme = name;
    try { localStorage.setItem("theme", name); } catch { /* a private window: not remembered */ }
  },
  now() { return document.documentElement.dataset.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light"); },
};
try {
  const chosen = localStorage.getItem("theme");
  if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
} catch { /* nothing is remembered in a private window */ }
