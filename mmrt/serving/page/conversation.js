// A conversation as a tree: what may follow a message are branches, of which one is shown. Messages
// are named by their place in `messages`, where parents stand before their children.

const PREFIX = "mmrt.conversation.";
const NEW = "New conversation";
const TITLE = 60; // characters

export class Conversation {
  constructor({ id, changed, model, system, settings, first, messages } = {}) {
    this.id = id ?? Date.now().toString(36) + Math.random().toString(36).slice(2, 8);
    this.changed = changed ?? Date.now();
    this.model = model ?? "";
    this.system = system ?? "";
    this.settings = settings ?? {};
    this.first = first ?? null; // the beginning that is shown
    this.messages = messages ?? []; // {role, content, parent, next: the child that is shown, ...}
  }

  get title() {
    const text = this.first === null ? "" : this.messages[this.first].content.trim();
    return text.slice(0, TITLE).replace(/\s+/g, " ") || NEW;
  }

  // The numbers of the messages that are shown.
  get path() {
    const found = [];
    for (let at = this.first; at !== null; at = this.messages[at].next) found.push(at);
    return found;
  }

  get leaf() {
    return this.path.at(-1) ?? null;
  }

  // The number of a new message, which is shown after `parent`.
  add(parent, role, content) {
    this.messages.push({ role, content, parent, next: null });
    const at = this.messages.length - 1;
    this.#show(at);
    return at;
  }

  // The messages that may stand where this one does, itself among them.
  siblings(at) {
    const { parent } = this.messages[at];
    return [...this.messages.keys()].filter((other) => this.messages[other].parent === parent);
  }

  // Shows the branch that is `by` further on; whether there is one.
  step(at, by) {
    const siblings = this.siblings(at);
    const other = siblings[siblings.indexOf(at) + by];
    if (other === undefined) return false;
    this.#show(other);
    return true;
  }

  // What a model reads before it writes the message.
  before(at) {
    const found = [];
    for (let one = this.messages[at].parent; one !== null; one = this.messages[one].parent) {
      const { role, content } = this.messages[one];
      found.unshift({ role, content });
    }
    if (this.system) found.unshift({ role: "system", content: this.system });
    return found;
  }

  // A conversation of its own that begins like this one, up to the message.
  fork(at) {
    const shown = this.path.slice(0, this.path.indexOf(at) + 1);
    const messages = shown.map((one, i) => ({
      ...structuredClone(this.messages[one]),
      parent: i ? i - 1 : null,
      next: i + 1 < shown.length ? i + 1 : null,
    }));
    const { model, system } = this;
    return new Conversation({ model, system, settings: { ...this.settings }, first: 0, messages });
  }

  // Keeps it in this browser; whether there was room.
  save() {
    this.changed = Date.now();
    try {
      localStorage.setItem(PREFIX + this.id, JSON.stringify(this));
      return true;
    } catch {
      return false;
    }
  }

  remove() {
    localStorage.removeItem(PREFIX + this.id);
  }

  #show(at) {
    const { parent } = this.messages[at];
    if (parent === null) this.first = at;
    else this.messages[parent].next = at;
  }
}

// Those that this browser keeps, the newest first.
export function kept() {
  const found = [];
  for (const name of Object.keys(localStorage)) {
    if (!name.startsWith(PREFIX)) continue;
    try {
      const data = JSON.parse(localStorage.getItem(name));
      if (isWhole(data)) found.push(new Conversation(data));
    } catch {
      // it is none of ours
    }
  }
  return found.sort((a, b) => b.changed - a.changed);
}

function isWhole({ first, messages }) {
  const isBelow = (number, end) => Number.isInteger(number) && number >= 0 && number < end;
  return (
    (first === null
      ? !messages.length
      : isBelow(first, messages.length) && messages[first].parent === null) &&
    messages.every(
      ({ role, content, parent, next }, at) =>
        ["user", "assistant"].includes(role) &&
        typeof content === "string" &&
        (parent === null || isBelow(parent, at)) &&
        (next === null || (isBelow(next, messages.length) && messages[next].parent === at)),
    )
  );
}
