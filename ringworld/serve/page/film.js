// The film beside the conversation: a player, and the frames that the model has seen with their times.

import { $, make, tell, walkWithArrows } from "./elements.js";
import { spellTime } from "./moments.js";
import { loadContent } from "./store.js";

const SIDE = 96; // pixels of a thumbnail
const MOST_THUMBNAILS = 400; // beyond it frames have times only
let shown = null; // the file, as a message has it
let shownUrl = null;
let shownTimes = ""; // of the frames that are shown of it
let drawing = 0; // counts what is shown, so that thumbnails of earlier frames stop

/** Make the timeline work with arrow keys. */
export function listenToFrames() {
  walkWithArrows($("frames"), "button");
}

/** Show a film or a picture, and the frames of it that were seen; null shows none. */
export async function showFilm(file) {
  const same = file && file.key === shown?.key;
  shown = file;
  if (same) return showFrames();
  const own = ++drawing;
  shownTimes = "";
  $("film").hidden = !file;
  $("frames").replaceChildren();
  $("player").hidden = $("still").hidden = true;
  $("player").removeAttribute("src");
  if (shownUrl) URL.revokeObjectURL(shownUrl);
  shownUrl = null;
  if (!file) return;
  $("film-name").textContent = file.name;
  $("about-film").textContent = "not read yet";
  try {
    const blob = await loadContent(file);
    if (own !== drawing) return;
    shownUrl = URL.createObjectURL(blob);
  } catch (error) {
    return tell(error.message, true);
  }
  const place = $(file.type === "video" ? "player" : "still");
  place.hidden = false;
  place.src = shownUrl;
  if (file.type === "image") place.alt = file.name;
  showFrames();
}

/** Show the frames that the server took of the film, once it has told them. */
export function showFrames() {
  const seen = shown?.seen;
  if (!seen || !shownUrl || `${seen.seconds}` === shownTimes) return;
  shownTimes = `${seen.seconds}`;
  const tokens = `${seen.tokens.toLocaleString("en")} tokens`;
  if (shown.type === "image") return void ($("about-film").textContent = tokens);
  const rate = seen.sampled_fps ? `, ${Number(seen.sampled_fps.toFixed(2))} a second` : "";
  const count = seen.seconds.length === 1 ? "1 frame" : `${seen.seconds.length} frames`;
  $("about-film").textContent = `${count}${rate} · ${tokens}`;
  const rows = seen.seconds.map((seconds) => {
    const canvas = make("canvas", { width: SIDE, height: SIDE });
    const button = make("button", { type: "button" }, canvas, spellTime(seconds));
    button.setAttribute("aria-label", `Frame at ${spellTime(seconds)}`);
    button.addEventListener("click", () => goTo(seconds));
    return make("li", {}, button);
  });
  $("frames").replaceChildren(...rows);
  drawThumbnails(++drawing, shownUrl, seen.seconds);
}

/** Move the player and the timeline to a time in seconds. */
export function goTo(seconds) {
  if (shown?.type !== "video" || !shownUrl) return;
  const times = shown.seen?.seconds ?? [];
  $("player").currentTime = seconds;
  let frame = times.findLastIndex((time) => time <= seconds + 1e-3);
  if (frame < 0 && times.length) frame = 0;
  const buttons = [...$("frames").querySelectorAll("button")];
  buttons.forEach((button, i) => button.setAttribute("aria-current", String(i === frame)));
  buttons[frame]?.scrollIntoView({ block: "nearest", inline: "nearest" });
}

/** Draw the frames one after another, from a second player that nobody sees. */
async function drawThumbnails(own, url, times) {
  const source = make("video", { muted: true, preload: "auto", src: url });
  const happens = (name) =>
    new Promise((resolve) => {
      source.addEventListener(name, () => resolve(true), { once: true });
      source.addEventListener("error", () => resolve(false), { once: true });
    });
  if (!(await happens("loadeddata"))) return; // a codec that this browser does not play
  const canvases = [...$("frames").querySelectorAll("canvas")].slice(0, MOST_THUMBNAILS);
  for (const [i, canvas] of canvases.entries()) {
    const sought = happens("seeked");
    source.currentTime = times[i] + 1e-3;
    if (!(await sought) || own !== drawing) return;
    const side = Math.min(source.videoWidth, source.videoHeight);
    const [x, y] = [(source.videoWidth - side) / 2, (source.videoHeight - side) / 2];
    canvas.getContext("2d").drawImage(source, x, y, side, side, 0, 0, SIDE, SIDE);
  }
}
