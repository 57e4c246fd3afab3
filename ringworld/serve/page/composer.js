// The next message: its words and files, by keyboard, paste, drop and choice.

import { isAnswering, stop } from "./asking.js";
import { keep, open, openOne } from "./conversations.js";
import { $, button, icon, make, tell } from "./elements.js";
import { packConversation, saveBlob, takeFile, unpackConversation } from "./files.js";
import { append, before, path } from "./tree.js";

const LONGEST_PASTE = 2000; // letters, beyond which a pasted text becomes a file
let attached = []; // files of the next message
let edited = null; // the message that the next one stands beside
let pasted = 0;

/** Put nothing into the next message, as at the start of a conversation. */
export function clearComposer() {
  [attached, edited] = [[], null];
  showAttached();
}

/** Put files into the next message. */
export async function attach(files) {
  for (const file of files) {
    try {
      attached.push(await takeFile(file));
      tell("");
    } catch (error) {
      tell(error.message, true);
    }
  }
  showAttached();
  $("question").focus();
}

/** Begin a message that will stand beside an earlier one, as another branch. */
export function startEdit(message) {
  [attached, edited] = [message.files.map((file) => ({ ...file })), message];
  $("question").value = message.text;
  showAttached();
  $("question").focus();
}

function showAttached() {
  $("attached").replaceChildren(
    ...attached.map((file) => {
      const remove = button(`Take ${file.name} off`, () => {
        attached = attached.filter((other) => other !== file);
        showAttached();
        $("question").focus();
      }, { icon: "close" });
      return make("li", { className: "chip" }, icon(file.type === "text" ? "text" : "film"), file.name, remove);
    }),
  );
  $("editing").hidden = !edited;
}

/** Hand the message over to `ask` with its conversation, unless there is none. */
function send(ask) {
  const text = $("question").value.trim();
  if (isAnswering() || !(text || attached.length)) return;
  const conversation = openOne();
  const last = edited ? before(conversation, edited) : (path(conversation).at(-1) ?? null);
  const question = append(conversation, last, { role: "user", text, files: attached });
  $("question").value = "";
  clearComposer();
  ask(conversation, question);
}

function paste(event) {
  const files = [...(event.clipboardData?.files ?? [])];
  const text = event.clipboardData?.getData("text/plain") ?? "";
  if (!files.length && text.length <= LONGEST_PASTE) return;
  event.preventDefault();
  if (files.length) return attach(files);
  pasted += 1;
  attach([new File([text], `pasted ${pasted}.txt`, { type: "text/plain" })]);
}

async function restore(file) {
  try {
    const conversation = await unpackConversation(file);
    await keep(conversation);
    open(conversation);
    tell("");
  } catch (error) {
    tell(error.message, true);
  }
}

/** Make the composer work; `ask(conversation, question)` is called with what is sent. */
export function listenToComposer(ask, modelName) {
  $("composer").addEventListener("submit", (event) => {
    event.preventDefault();
    send(ask);
  });
  $("question").addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    send(ask);
  });
  $("question").addEventListener("paste", paste);
  $("stop").addEventListener("click", stop);
  $("stop-editing").addEventListener("click", () => {
    $("question").value = "";
    clearComposer();
    $("question").focus();
  });
  $("export").addEventListener("click", async () => {
    try {
      saveBlob("conversation.json", await packConversation(openOne(), modelName()));
    } catch (error) {
      tell(error.message, true);
    }
  });
  for (const [id, field, work] of [["add", "files", attach], ["import", "imported", ([file]) => restore(file)]]) {
    $(id).addEventListener("click", () => $(field).click());
    $(field).addEventListener("change", async () => {
      const chosen = [...$(field).files];
      $(field).value = "";
      if (chosen.length) await work(chosen);
    });
  }
}

/** Take files that are dropped anywhere; `onDrop` is called before they are read. */
export function listenToDrops(onDrop) {
  let depth = 0;
  const holds = (event) => event.dataTransfer?.types.includes("Files");
  document.addEventListener("dragenter", (event) => holds(event) && ($("drop").hidden = !++depth));
  document.addEventListener("dragleave", (event) => holds(event) && ($("drop").hidden = !--depth));
  document.addEventListener("dragover", (event) => holds(event) && event.preventDefault());
  document.addEventListener("drop", (event) => {
    if (!holds(event)) return;
    event.preventDefault();
    depth = 0;
    $("drop").hidden = true;
    onDrop();
    attach([...event.dataTransfer.files]);
  });
}
