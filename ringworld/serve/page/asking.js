// Asking the model: the one answer that is being written, and what becomes of it.

import { ask } from "./api.js";
import { keep, showList } from "./conversations.js";
import { tell } from "./elements.js";
import { readContent } from "./files.js";
import { readSettings } from "./settings.js";
import { append, before, mediaOf, path, remove } from "./tree.js";

let running = null; // {conversation, abort} while an answer is written
let onChange = () => {};

/** Call `changed` with the conversation whenever an answer has grown or ended. */
export function onAnswer(changed) {
  onChange = changed;
}

/** Whether an answer is being written: in this conversation, or in any. */
export function isAnswering(conversation = running?.conversation) {
  return running !== null && running.conversation === conversation;
}

/** Stop the answer that is being written. */
export function stop() {
  running?.abort.abort();
}

/** A message as the API has it: texts before the question, films and pictures behind it. */
async function toApi({ role, text, files }, whole) {
  const texts = await Promise.all(files.filter(({ type }) => type === "text").map(readContent));
  const words = [...texts, text].filter(Boolean).join("\n\n");
  const parts = await Promise.all(mediaOf([{ files }]).map((file) => toPart(file, whole)));
  return { role, content: parts.length ? [{ type: "text", text: words }, ...parts] : words };
}

/** A film or a picture, by the name that it was sent with before unless it is wanted `whole`. */
async function toPart(file, whole) {
  const part = { type: `${file.type}_url`, uuid: file.key };
  if (whole || !file.seen) part[part.type] = { url: await readContent(file) };
  return part;
}

/** Ask about messages; with the films' bytes again when the server no longer knows their names. */
async function askAbout(known, settings, take) {
  const send = async (whole) => {
    const messages = await Promise.all(known.map((message) => toApi(message, whole)));
    await ask({ ...settings, messages }, running.abort.signal, take, tell);
  };
  try {
    await send(false);
  } catch (error) {
    if (error.param !== "uuid") throw error;
    await send(true);
  }
}

/** Answer a question, in a new branch where it has answers already. */
export async function answer(conversation, question, model) {
  if (running) return;
  const last = append(conversation, question, { role: "assistant" });
  const shown = path(conversation);
  const known = shown.slice(0, shown.indexOf(last)).filter((message) => !message.failed);
  running = { conversation, abort: new AbortController() };
  tell("waiting");
  onChange(conversation, null);
  keep(conversation);
  let said = "";
  try {
    if (!model) throw new Error("the server has not told its model yet: reload the page");
    const take = (event) => {
      event.media?.forEach((seen, i) => (mediaOf(known)[i].seen = seen));
      if (event.usage) last.tokens = event.usage.total_tokens;
      const piece = event.choices[0]?.delta?.content ?? "";
      if (piece) tell("answering");
      last.text += piece;
      if (piece || event.media) onChange(conversation, event.media ? null : last);
    };
    await askAbout(known, { model: model.id, ...readSettings() }, take);
    if (!last.text) said = "the model answered with nothing";
  } catch (error) {
    const stopped = error.name === "AbortError";
    said = stopped ? "stopped" : error.message;
    if (!stopped && !last.text) Object.assign(last, { text: said, failed: true });
  }
  running = null;
  if (!last.text) remove(conversation, last);
  tell(said, Boolean(last.failed));
  await keep(conversation);
  showList();
  onChange(conversation, null);
}

/** Answer the question before an answer once more. */
export function regenerate(conversation, message, model) {
  return answer(conversation, before(conversation, message), model);
}
