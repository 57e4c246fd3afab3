// How answers are written: the dialog of settings, and the key of the server.

import { $ } from "./elements.js";

const KEY = "ringworld-key";

/** The key of the server, "" where it needs none. It is kept until the tab is closed. */
export function readKey() {
  return sessionStorage.getItem(KEY) ?? "";
}

/** What the person has set, as fields of a request; what is not set is left to the server. */
export function readSettings() {
  const number = (id) => ($(id).value === "" || !$(id).validity.valid ? null : Number($(id).value));
  const body = {};
  if (number("temperature") !== null) body.temperature = number("temperature");
  if (number("longest") !== null) body.max_tokens = number("longest");
  if (number("answer-seed") !== null) body.seed = number("answer-seed");
  const film = { fps: number("fps"), video_start: number("film-start"), video_end: number("film-end") };
  const set = Object.entries(film).filter(([, value]) => value !== null);
  if (set.length) body.mm_processor_kwargs = Object.fromEntries(set);
  return body;
}

/** Make the dialog work; `onKey` is called when the key was changed. */
export function listenToSettings(onKey) {
  $("key").value = readKey();
  $("open-settings").addEventListener("click", () => $("settings").showModal());
  $("settings").addEventListener("close", () => {
    if ($("key").value === readKey()) return;
    sessionStorage.setItem(KEY, $("key").value);
    onKey();
  });
  for (const dialog of document.querySelectorAll("dialog")) {
    dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
  }
}
