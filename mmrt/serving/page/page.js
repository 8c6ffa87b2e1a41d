// The page: what its reader does, and the answers that are under way.

import { Conversation, kept } from "./conversation.js";
import { make } from "./markdown.js";
import { Messages } from "./messages.js";
import { Server } from "./server.js";
import { drawFigures, drawModel } from "./sight.js";

const LOOK = 2000; // milliseconds between two looks at the server while answers are written
const NARROW = 1100; // pixels of width below which the sides begin folded

// Settings of sampling: their fields in requests, least, most, step.
const SAMPLING = [
  ["temperature", "Temperature", 0, 100, "any"],
  ["top_p", "Top p", 0, 1, "any"],
  ["top_k", "Top k", 0, 1000000, 1],
  ["min_p", "Min p", 0, 1, "any"],
  ["repeat_penalty", "Repeat penalty", 0.01, 100, "any"],
  ["max_tokens", "Most tokens", 1, 2147483647, 1],
  ["seed", "Seed", 0, Number.MAX_SAFE_INTEGER, 1],
];

const at = (id) => document.getElementById(id);
const input = at("input");
const server = new Server(askKey);
const messages = new Messages(at("messages"), act);
const running = new Map(); // answers that are being written, to {conversation, ending}
let conversations = kept();
let current = conversations[0] ?? new Conversation();
let models = [];
let isLooking = false;

// ---- what is shown ----

const isRunning = (number) => running.has(current.messages[number]);

function draw() {
  messages.draw(current, isRunning);
  drawFigures(current.messages[current.leaf]?.figures);
  drawList();
  drawSend();
  document.title = current.first === null ? "mmrt" : `${current.title} - mmrt`;
}

function drawList() {
  const items = conversations.map((one) => {
    const button = make("button", { class: "quiet" }, one.title);
    if (one === current) button.setAttribute("aria-current", "true");
    button.addEventListener("click", () => open(one));
    return make("li", {}, button);
  });
  at("conversations").replaceChildren(...items);
}

function drawSend() {
  at("send").textContent = current.leaf !== null && isRunning(current.leaf) ? "Stop" : "Send";
}

function say(text) {
  at("status").textContent = text;
}

function open(conversation) {
  current = conversation;
  if (models.some(({ name }) => name === current.model)) at("model").value = current.model;
  draw();
  messages.toEnd();
  drawServer();
  input.focus();
}

function keep(conversation) {
  if (!conversations.includes(conversation)) conversations.unshift(conversation);
  if (!conversation.save()) say("This browser has no room to keep it: export it.");
}

// ---- answers ----

function send() {
  const content = input.value;
  if (!content.trim() || (current.leaf !== null && isRunning(current.leaf))) return;
  input.value = "";
  fit();
  answer(current.add(current.leaf, "user", content));
}

// Has the answer to a message written, as one more branch.
async function answer(asked) {
  const conversation = current;
  const number = conversation.add(asked, "assistant", "");
  const message = conversation.messages[number];
  const ending = new AbortController();
  message.model = conversation.model = at("model").value;
  running.set(message, { conversation, ending });
  keep(conversation);
  draw();
  messages.toEnd();
  say("Answering");
  look();
  try {
    await write(conversation, number, ending.signal);
    say("The answer is there");
  } catch (error) {
    if (ending.signal.aborted) message.end = "stopped";
    else message.error = error.message;
    say(ending.signal.aborted ? "Stopped" : "The answer failed");
  }
  running.delete(message);
  keep(conversation);
  if (conversation !== current) return;
  messages.end(current, number);
  drawFigures(current.messages[current.leaf]?.figures);
  drawSend();
}

async function write(conversation, number, signal) {
  const message = conversation.messages[number];
  const { model, settings } = conversation;
  const body = { ...settings, model, messages: conversation.before(number) };
  const began = performance.now();
  let first = null;
  let pieces = 0;
  let awaited = false;
  const show = () => {
    awaited = false;
    if (conversation !== current || !running.has(message)) return;
    messages.update(message);
    if (current.messages[current.leaf] === message) drawFigures(message.figures);
  };
  for await (const { choices, usage } of server.chat(body, signal)) {
    const delta = choices[0]?.delta ?? {};
    if (delta.content || delta.reasoning_content) {
      const now = performance.now();
      first ??= now;
      pieces += 1;
      message.content += delta.content ?? "";
      if (delta.reasoning_content) {
        message.reasoning = (message.reasoning ?? "") + delta.reasoning_content;
      }
      message.figures = { first: (first - began) / 1000, ...rate(pieces, now - first) };
    }
    if (choices[0]?.finish_reason === "length") message.end = "ended for its length";
    if (usage) message.figures = figures(usage, began, first);
    if (!awaited) requestAnimationFrame(show);
    awaited = true;
  }
}

function figures(usage, began, first) {
  const found = {
    tokens: usage.completion_tokens,
    prompt: usage.prompt_tokens,
    cached: usage.prompt_tokens_details.cached_tokens,
  };
  if (first === null) return found;
  const spent = performance.now() - first;
  return { first: (first - began) / 1000, ...rate(found.tokens, spent), ...found };
}

// The first token does not count: what came before it was reading the prompt.
function rate(tokens, milliseconds) {
  return tokens > 1 && milliseconds > 0 ? { rate: ((tokens - 1) * 1000) / milliseconds } : {};
}

function stop() {
  const found = running.get(current.messages[current.leaf]);
  found?.ending.abort();
  return found !== undefined;
}

// ---- branches ----

function act(what, number, text) {
  const message = current.messages[number];
  if (what === "back") step(number, -1);
  else if (what === "on") step(number, 1);
  else if (what === "edit") {
    answer(current.add(message.parent, "user", text));
    input.focus();
  } else if (what === "retry") answer(message.parent);
  else if (what === "fork") {
    const forked = current.fork(number);
    keep(forked);
    open(forked);
    say("This is a copy: what you write here leaves the other conversation as it is");
  } else {
    navigator.clipboard.writeText(message.content).then(() => say("Copied"));
  }
}

function step(number, by) {
  const siblings = current.siblings(number);
  if (!current.step(number, by)) return;
  keep(current);
  draw();
  say(`Branch ${siblings.indexOf(number) + by + 1} of ${siblings.length}`);
}

// By keys: the branches of the message in focus, or else of the last one that has some.
function stepByKey(by) {
  const { path } = current;
  const last = path.findLast((number) => current.siblings(number).length > 1);
  const number = messages.focused ?? last;
  if (number !== undefined) step(number, by);
}

// ---- the server ----

// Looks at the server while answers are written, and once more when the last one has ended.
async function look() {
  if (isLooking) return;
  isLooking = true;
  try {
    for (let goOn = true; goOn; ) {
      goOn = running.size > 0;
      await meet();
      drawServer();
      const until = performance.now() + LOOK;
      while (goOn && running.size && performance.now() < until) await pause();
    }
  } catch (error) {
    say(error.message);
  } finally {
    isLooking = false;
  }
}

const pause = () => new Promise((done) => setTimeout(done, 100));

async function meet() {
  models = (await server.sight((message) => say(message))).models;
  if (at("model").options.length) return;
  at("model").append(...models.map(({ name }) => make("option", { value: name }, name)));
}

function drawServer() {
  const model = models.find(({ name }) => name === at("model").value);
  if (model) drawModel(model);
}

async function begin() {
  await meet();
  say("");
  open(current);
}

// isAnother: a key was given, which the server does not know.
function askKey(isAnother) {
  const dialog = at("ask-key");
  at("key").value = dialog.returnValue = "";
  const hint = "It is kept until you close this tab.";
  at("key-hint").textContent = isAnother ? `The server does not know this key. ${hint}` : hint;
  dialog.showModal();
  return new Promise((done) => {
    const close = () => done(dialog.returnValue === "given" ? at("key").value : null);
    dialog.addEventListener("close", close, { once: true });
  });
}

// ---- settings ----

for (const [field, label, min, max, step] of SAMPLING) {
  const id = `set-${field}`;
  const number = make("input", { id, type: "number", min, max, step, "data-field": field });
  number.addEventListener("change", () => {
    if (number.value === "") delete current.settings[field];
    else if (number.validity.valid) current.settings[field] = number.valueAsNumber;
    else number.reportValidity();
  });
  at("sampling").append(make("label", { for: id }, label), number);
}

function showSettings() {
  const own = models.find(({ name }) => name === at("model").value)?.sampling ?? {};
  at("system").value = current.system;
  for (const number of at("sampling").querySelectorAll("input")) {
    const { field } = number.dataset;
    number.value = current.settings[field] ?? "";
    number.placeholder = own[field] ?? "";
  }
  at("settings").showModal();
}

at("settings").addEventListener("close", () => {
  current.system = at("system").value;
  if (conversations.includes(current)) keep(current);
});

function forget() {
  if (!confirm("Delete this conversation with all its branches?")) return;
  for (const message of current.messages) running.get(message)?.ending.abort();
  const gone = current;
  at("settings").close();
  gone.remove();
  conversations = conversations.filter((one) => one !== gone);
  open(conversations[0] ?? new Conversation());
}

function exportJson() {
  const file = new Blob([JSON.stringify(current, null, 2)], { type: "application/json" });
  const link = make("a", { download: "conversation.json", href: URL.createObjectURL(file) });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), LOOK);
}

// ---- keys and buttons ----

function fit() {
  input.style.height = "auto";
  input.style.height = `${Math.min(input.scrollHeight + 2, window.innerHeight / 3)}px`;
}

function fold(button, side, isOpen = at(side).hidden) {
  at(side).hidden = !isOpen;
  at(button).setAttribute("aria-expanded", String(isOpen));
}

input.addEventListener("input", fit);
input.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  send();
});
at("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  if (!stop()) send();
});
document.addEventListener("keydown", (event) => {
  if (event.isComposing || document.querySelector("dialog[open]")) return;
  const writes = event.target.matches("textarea, input, select");
  const isByWords = event.target.matches("textarea, input") && event.target.value !== "";
  if (event.key === "Escape") stop() || document.activeElement.blur();
  else if (event.ctrlKey && event.key === "ArrowLeft" && !isByWords) stepByKey(-1);
  else if (event.ctrlKey && event.key === "ArrowRight" && !isByWords) stepByKey(1);
  else if (event.key === "/" && !writes) input.focus();
  else if (event.key === "?" && !writes) at("keys").showModal();
  else return;
  event.preventDefault();
});
at("new").addEventListener("click", () => {
  const { system, settings } = current;
  open(new Conversation({ model: at("model").value, system, settings: { ...settings } }));
});
at("model").addEventListener("change", drawServer);
at("show-settings").addEventListener("click", showSettings);
at("forget").addEventListener("click", forget);
at("export").addEventListener("click", exportJson);
at("show-keys").addEventListener("click", () => at("keys").showModal());
at("show-list").addEventListener("click", () => fold("show-list", "list"));
at("show-sight").addEventListener("click", () => fold("show-sight", "sight"));

window.addEventListener("pagehide", () => {
  for (const { conversation } of running.values()) conversation.save();
});
window.addEventListener("storage", () => {
  // Another tab has written. What is open or being answered here stays as it is here.
  const own = [current, ...[...running.values()].map(({ conversation }) => conversation)];
  conversations = kept().map((one) => own.find(({ id }) => id === one.id) ?? one);
  drawList();
});

if (window.innerWidth < NARROW) fold("show-sight", "sight", false);
if (window.innerWidth < NARROW * 0.75) fold("show-list", "list", false);
draw();
begin().catch((error) => say(error.message));
