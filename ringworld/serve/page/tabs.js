// The views, as tabs: arrow keys walk among those that are there.

import { $, walkWithArrows } from "./elements.js";

const NAMES = ["talk", "draw", "play", "reports"];
const opened = {};

/** Show one view and hide the others. */
export function openTab(name) {
  for (const each of NAMES) {
    const chosen = each === name;
    $(`tab-${each}`).setAttribute("aria-selected", String(chosen));
    $(`tab-${each}`).tabIndex = chosen ? 0 : -1;
    $(`view-${each}`).hidden = !chosen;
  }
  $("menu").hidden = name !== "talk";
  opened[name]?.();
}

/** Make the tabs work; `onOpen` has a function for names of views that are filled when opened. */
export function listenToTabs(onOpen) {
  Object.assign(opened, onOpen);
  for (const name of NAMES) {
    $(`tab-${name}`).addEventListener("click", () => openTab(name));
    $(`tab-${name}`).addEventListener("focus", () => openTab(name));
  }
  walkWithArrows($("tabs"), "[role=tab]:not([hidden])");
}
