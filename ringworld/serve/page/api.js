// The server's HTTP API, as the page uses it.

import { readKey } from "./settings.js";

/** An Error with the server's sentence, and the field that it names as `param`. */
function toError({ message, param }) {
  return Object.assign(new Error(message), { param });
}

/** The answer to a request. Throws an Error with the server's sentence. */
async function request(path, body, signal) {
  const key = readKey();
  const headers = key ? { Authorization: `Bearer ${key}` } : {};
  const asked = { headers, signal };
  if (body) {
    headers["Content-Type"] = "application/json";
    Object.assign(asked, { method: "POST", body: JSON.stringify(body) });
  }
  const answer = await fetch(path, asked);
  if (answer.ok) return answer;
  if (answer.status === 401) throw new Error("this server needs its key: give it in the settings");
  const told = await answer.json().catch(() => null);
  throw toError(told?.error ?? { message: `the server answered with status ${answer.status}` });
}

/** The model that is served: its id, `max_model_len`, `vision` and `actions`. */
export async function findModel() {
  return (await (await request("/v1/models")).json()).data[0];
}

/** What the model says of itself, and its reports: {about, reports: [{name, kind, modified}]}. */
export async function findReports() {
  return (await request("/reports")).json();
}

/** The text of a report. */
export async function loadReport(name) {
  return (await request(`/reports/${name.split("/").map(encodeURIComponent).join("/")}`)).text();
}

/** The pictures of a prompt, as base64 of PNG. */
export async function drawPictures(body, signal) {
  const drawn = await (await request("/v1/images/generations", body, signal)).json();
  return drawn.data.map((each) => each.b64_json);
}

/** Draw a clip: `onEvent` gets each frame, and the whole clip at the end; `onNote` the progress. */
export function drawClip(body, signal, onEvent, onNote) {
  return readEvents("/draw", body, signal, onEvent, onNote);
}

/** Begin a level of the world that the model dreams; `body` has the `seed` of the level. */
export async function beginGame(body) {
  return (await request("/v1/play", body)).json();
}

/** Do an action in a game. */
export async function playAction(game, action) {
  return (await request(`/v1/play/${game}`, { action })).json();
}

/** Ask a question: `onEvent` gets each event of the answer, and `onNote` each word on progress. */
export function ask(body, signal, onEvent, onNote) {
  const whole = { ...body, stream: true, stream_options: { include_usage: true } };
  return readEvents("/v1/chat/completions", whole, signal, onEvent, onNote);
}

/** Throws an Error with the server's sentence, and an AbortError when `signal` stops it. */
async function readEvents(path, body, signal, onEvent, onNote) {
  const answer = await request(path, body, signal);
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) throw new Error("the connection ended before the answer did");
    held += value;
    const parts = held.split("\n\n");
    held = parts.pop();
    for (const part of parts) {
      if (part.startsWith(": ")) onNote(part.slice(2));
      if (!part.startsWith("data: ")) continue;
      if (part === "data: [DONE]") return;
      const event = JSON.parse(part.slice(6));
      if (event.error) throw toError(event.error);
      onEvent(event);
    }
  }
}
