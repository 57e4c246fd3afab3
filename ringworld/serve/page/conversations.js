// The conversations of this browser: which there are, which is open, and the list beside it.

import { $, button, confirmDeed, icon, make, tell } from "./elements.js";
import { forgetConversation, keepConversation, loadConversations, openStore } from "./store.js";
import { fork, newConversation, titleOf } from "./tree.js";

let all = [];
let current = newConversation();
let onOpen = () => {};
let isBusy = () => false;

/** The conversation that is open. */
export function openOne() {
  return current;
}

/** Open a conversation. */
export function open(conversation) {
  current = conversation;
  $("view-talk").classList.remove("listing");
  $("menu").setAttribute("aria-expanded", "false");
  onOpen(conversation);
  showList();
}

/** Keep what has changed in a conversation; one without messages is not kept. */
export async function keep(conversation) {
  if (!conversation.messages.length) return;
  if (!all.includes(conversation)) all.push(conversation);
  all.sort((a, b) => b.updated - a.updated);
  showList();
  try {
    await keepConversation(conversation);
  } catch (error) {
    tell(error.message, true);
  }
}

/** Begin a conversation with the messages of another, up to and with `message`, and open it. */
export function openFork(conversation, message) {
  const own = fork(conversation, message);
  keep(own);
  open(own);
}

/** Load the conversations and open the latest; `busy` says whether one is being answered. */
export async function startConversations(opened, busy) {
  [onOpen, isBusy] = [opened, busy];
  $("new").addEventListener("click", () => {
    open(newConversation());
    $("question").focus();
  });
  $("menu").addEventListener("click", () => {
    const listing = $("view-talk").classList.toggle("listing");
    $("menu").setAttribute("aria-expanded", String(listing));
    if (listing) $("new").focus();
  });
  if (!(await openStore())) tell("this browser keeps no conversations: export what you need");
  all = await loadConversations();
  open(all[0] ?? current);
}

/** Show the list anew; it also tells which conversation is being answered. */
export function showList() {
  $("conversations").replaceChildren(...all.map(showEntry));
  $("no-conversations").hidden = all.length > 0;
}

function showEntry(conversation) {
  const title = titleOf(conversation);
  const opener = button(title, () => open(conversation), { className: "title" });
  if (conversation.messages.some((message) => message.files.length)) opener.prepend(icon("film"));
  if (conversation === current) opener.setAttribute("aria-current", "page");
  const busy = isBusy(conversation);
  if (busy) opener.append(make("span", { className: "busy" }, "answering"));
  const rename = button(`Rename ${title}`, () => startRename(conversation, row), { icon: "edit" });
  const erase = button(`Delete ${title}`, () => erasing(conversation), { icon: "delete" });
  erase.disabled = busy;
  const row = make("li", {}, opener, rename, erase);
  return row;
}

function startRename(conversation, row) {
  const field = make("input", { value: titleOf(conversation), maxLength: 200 });
  field.setAttribute("aria-label", "Name of the conversation");
  let ended = false;
  const end = (keeps) => {
    if (ended) return;
    ended = true;
    if (keeps) conversation.title = field.value.trim();
    showList();
    if (keeps) keep(conversation);
    $("conversations").children[all.indexOf(conversation)]?.children[1].focus();
  };
  field.addEventListener("keydown", (event) => {
    if (event.isComposing || !["Enter", "Escape"].includes(event.key)) return;
    event.preventDefault(); // the key would press the button that gets the focus
    event.stopPropagation();
    end(event.key === "Enter");
  });
  field.addEventListener("blur", () => end(true));
  row.replaceChildren(field);
  field.focus();
  field.select();
}

async function erasing(conversation) {
  const question = `“${titleOf(conversation)}” is kept in this browser only.`;
  if (!(await confirmDeed(question, "Delete it"))) return;
  all = all.filter((other) => other !== conversation);
  await forgetConversation(conversation);
  if (conversation === current) open(all[0] ?? newConversation());
  else showList();
  $("new").focus();
}
