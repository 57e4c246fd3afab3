// A conversation as a tree: every message knows the one before it, and of several that follow the
// same one, one is chosen.
//
//     conversation   {id, title, updated, messages, chosen, shared}
//     message        {id, parent, role, text, files, tokens, failed}
//     file           {type, name, key, size, seen}, whose content the store keeps under its key
//
// `shared` counts the first messages that came from another conversation.
// `chosen` has the id of the follower of each message that has one; "" stands before the first.

/** A name that nothing else has. */
export function newId() {
  return `${Date.now().toString(36)}${Math.random().toString(36).slice(2, 10)}`;
}

/** A conversation without messages. */
export function newConversation() {
  return { id: newId(), title: "", updated: Date.now(), messages: [], chosen: {}, shared: 0 };
}

function followers(conversation, parent) {
  return conversation.messages.filter((message) => message.parent === parent);
}

/** The messages from the first to the last that is chosen. */
export function path(conversation) {
  const found = [];
  for (let parent = ""; ; parent = found.at(-1).id) {
    const next = followers(conversation, parent);
    if (!next.length) return found;
    found.push(next.find((message) => message.id === conversation.chosen[parent]) ?? next.at(-1));
  }
}

/** Add a message behind `parent` (null: as a first one), choose it, and return it. */
export function append(conversation, parent, settings) {
  const message = { id: newId(), parent: parent?.id ?? "", text: "", files: [], ...settings };
  conversation.messages.push(message);
  conversation.updated = Date.now();
  choose(conversation, message);
  return message;
}

/** Choose a message among those that follow the same one. */
export function choose(conversation, message) {
  conversation.chosen[message.parent] = message.id;
}

/** Take a message without followers out. */
export function remove(conversation, message) {
  conversation.messages = conversation.messages.filter((other) => other !== message);
  const others = followers(conversation, message.parent);
  if (others.length) choose(conversation, others.at(-1));
  else delete conversation.chosen[message.parent];
}

/** The messages that follow the same one as `message` does, itself among them. */
export function branches(conversation, message) {
  return followers(conversation, message.parent);
}

/** The message before another, null before the first. */
export function before(conversation, message) {
  return conversation.messages.find((other) => other.id === message.parent) ?? null;
}

/** A new conversation that begins with the same messages, up to and with `message`. */
export function fork(conversation, message) {
  const own = newConversation();
  const all = path(conversation);
  let last = null;
  for (const { id, parent, ...settings } of all.slice(0, all.indexOf(message) + 1)) {
    last = append(own, last, structuredClone(settings));
  }
  own.shared = own.messages.length;
  return own;
}

/** What a conversation is called: its own title, or the words that its own messages begin with. */
export function titleOf(conversation) {
  const messages = path(conversation);
  const first = messages[conversation.shared] ?? messages[0];
  const words = conversation.title || first?.text || first?.files[0]?.name || "New conversation";
  return words.length > 80 ? `${words.slice(0, 79)}…` : words;
}

/** The films and pictures of messages, in order. */
export function mediaOf(messages) {
  return messages.flatMap((message) => message.files).filter((file) => file.type !== "text");
}
