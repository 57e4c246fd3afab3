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
async function toApi({ role, text, files }) {
  const read = async (file) => ({ type: file.type, content: await readContent(file) });
  const contents = await Promise.all(files.map(read));
  const texts = contents.filter(({ type }) => type === "text").map(({ content }) => content);
  const words = [...texts, text].filter(Boolean).join("\n\n");
  const parts = contents
    .filter(({ type }) => type !== "text")
    .map(({ type, content }) => ({ type: `${type}_url`, [`${type}_url`]: { url: content } }));
  return { role, content: parts.length ? [{ type: "text", text: words }, ...parts] : words };
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
    const messages = await Promise.all(known.map(toApi));
    const take = (event) => {
      event.media?.forEach((seen, i) => (mediaOf(known)[i].seen = seen));
      if (event.usage) last.tokens = event.usage.total_tokens;
      const piece = event.choices[0]?.delta?.content ?? "";
      if (piece) tell("answering");
      last.text += piece;
      if (piece || event.media) onChange(conversation, event.media ? null : last);
    };
    const body = { model: model.id, ...readSettings(), messages };
    await ask(body, running.abort.signal, take, tell);
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
