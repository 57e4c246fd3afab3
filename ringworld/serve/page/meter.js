// How full the context is.

import { $ } from "./elements.js";

// Shares of the context from which on it is nearly full, and full.
const NEARLY = 0.75;
const FULL = 0.9;

/** Show that so many of the tokens that fit are used; null shows nothing. */
export function showMeter(tokens, all) {
  $("context").hidden = tokens === null || !all;
  if ($("context").hidden) return;
  const share = Math.min(tokens / all, 1);
  const percent = Math.floor(share * 100);
  const [used, most] = [tokens, all].map((n) => n.toLocaleString("en"));
  $("used").textContent = `${used} of ${most} tokens · ${percent} %`;
  $("meter").dataset.level = share >= FULL ? "full" : share >= NEARLY ? "nearly" : "free";
  $("meter").firstElementChild.style.width = `${share * 100}%`;
  $("meter").setAttribute("aria-valuenow", String(percent));
  $("meter").setAttribute("aria-valuetext", `${used} of ${most} tokens`);
}
