// The messages of a conversation that are shown, and what can be done with each.

import { make, render } from "./markdown.js";
import { lineOf } from "./sight.js";

const NEAR = 80; // pixels from the end within which a reader is taken along

export class Messages {
  // act: called with what a reader wants of a message ("back", "on", "retry", "fork", "edit" with
  // the new text) and its number.
  constructor(element, act) {
    this.element = element;
    this.act = act;
    this.drawn = new Map(); // answers to what draws them anew
  }

  // isRunning: whether an answer is being written.
  draw(conversation, isRunning) {
    const focus = this.#focus();
    const { path } = conversation;
    this.drawn.clear();
    this.element.replaceChildren(
      ...path.map((at) => this.#article(conversation, at, isRunning(at))),
    );
    if (!path.length) {
      this.element.append(make("p", { class: "empty" }, "Write a message. Outside the input, ? shows the keys."));
    }
    this.#refocus(focus);
  }

  // More of a message has come.
  update(message) {
    const isAtEnd = this.isAtEnd;
    this.drawn.get(message)?.(true);
    if (isAtEnd) this.toEnd();
  }

  // An answer has ended. Nothing but it is drawn anew: a reader may be writing in another.
  end(conversation, at) {
    const message = conversation.messages[at];
    const isAtEnd = this.isAtEnd;
    const article = this.element.querySelector(`article[data-at="${at}"]`);
    if (!article || !this.drawn.has(message)) return;
    this.drawn.get(message)(false);
    article.lastChild.replaceWith(this.#tools(conversation, at, article));
    if (isAtEnd) this.toEnd();
  }

  get isAtEnd() {
    const { scrollHeight, scrollTop, clientHeight } = this.element;
    return scrollHeight - scrollTop - clientHeight < NEAR;
  }

  toEnd() {
    this.element.scrollTop = this.element.scrollHeight;
  }

  // The number of the message that has the focus.
  get focused() {
    const article = document.activeElement?.closest("article");
    return article ? Number(article.dataset.at) : null;
  }

  #article(conversation, at, isRunning) {
    const message = conversation.messages[at];
    const who = message.role === "user" ? "You" : message.model || "Answer";
    const article = make("article", { class: message.role, "data-at": at, "aria-label": who });
    const head = make("h2", {}, who);
    const body = message.role === "user" ? this.#asked(message) : this.#answer(message, isRunning);
    article.append(head, ...body);
    article.append(this.#tools(conversation, at, article, isRunning));
    return article;
  }

  #asked(message) {
    return [make("div", { class: "text plain" }, message.content)];
  }

  #answer(message, isRunning) {
    const thought = make("div", { class: "plain" });
    const label = make("summary");
    const reasoning = make("details", {}, label, thought);
    const text = make("div", { class: "text", "aria-live": "polite" });
    const error = make("p", { class: "error", role: "alert" });
    const figures = make("p", { class: "figures" });
    const draw = (isRunning) => {
      reasoning.hidden = !message.reasoning;
      label.textContent = message.content || !isRunning ? "Reasoning" : "Reasoning …";
      thought.textContent = message.reasoning ?? "";
      render(text, message.content);
      text.classList.toggle("running", isRunning);
      text.setAttribute("aria-busy", isRunning);
      error.hidden = !message.error;
      error.textContent = message.error ?? "";
      const end = message.end ? [message.end] : [];
      figures.textContent = [...lineOf(message.figures), ...end].join(" · ");
    };
    draw(isRunning);
    this.drawn.set(message, draw);
    return [reasoning, text, error, figures];
  }

  #branches(conversation, at) {
    const siblings = conversation.siblings(at);
    const place = siblings.indexOf(at) + 1;
    const group = make("span", { class: "branches", role: "group", "aria-label": "Branches" });
    if (siblings.length < 2) return group;
    const back = this.#button("back", "‹", at, "Branch before");
    const on = this.#button("on", "›", at, "Next branch");
    back.disabled = place === 1;
    on.disabled = place === siblings.length;
    const count = make("span", {}, `${place}/${siblings.length}`);
    group.append(back, count, on);
    return group;
  }

  #tools(conversation, at, article, isRunning = false) {
    const message = conversation.messages[at];
    const tools = make("div", { class: "tools" }, this.#branches(conversation, at));
    if (isRunning) return tools;
    if (message.role === "user") {
      const edit = make("button", { class: "quiet", "data-act": "edit" }, "Edit");
      edit.addEventListener("click", () => this.#edit(message, at, article));
      tools.append(edit);
    } else {
      tools.append(this.#button("retry", "Retry", at));
    }
    tools.append(this.#button("fork", "Fork", at));
    if (navigator.clipboard) tools.append(this.#button("copy", "Copy", at));
    return tools;
  }

  #button(what, text, at, label = "") {
    const button = make("button", { class: "quiet", "data-act": what }, text);
    if (label) button.setAttribute("aria-label", label);
    button.addEventListener("click", () => this.act(what, at));
    return button;
  }

  // Has the reader write the message otherwise, in its place.
  #edit(message, at, article) {
    const input = make("textarea", { "aria-label": "Message", rows: "3" });
    input.value = message.content;
    const before = [...article.childNodes];
    const cancel = () => {
      article.replaceChildren(...before);
      article.querySelector("[data-act=edit]").focus();
    };
    const send = () => (input.value.trim() ? this.act("edit", at, input.value) : cancel());
    const buttons = make("div", { class: "tools" });
    for (const [text, act] of [["Send as a branch", send], ["Cancel", cancel]]) {
      const button = make("button", { class: "quiet" }, text);
      button.addEventListener("click", act);
      buttons.append(button);
    }
    input.addEventListener("keydown", (event) => {
      if (event.isComposing) return;
      if (event.key === "Escape") cancel();
      else if (event.key === "Enter" && !event.shiftKey) send();
      else return;
      event.preventDefault();
      event.stopPropagation();
    });
    article.replaceChildren(before[0], input, buttons);
    input.focus();
  }

  // Where the focus is, so that it can be there again in what is drawn anew.
  #focus() {
    const articles = [...this.element.querySelectorAll("article")];
    const place = articles.findIndex((one) => one.contains(document.activeElement));
    return place < 0 ? null : { place, act: document.activeElement.dataset.act };
  }

  #refocus(focus) {
    if (!focus) return;
    const article = this.element.querySelectorAll("article")[focus.place];
    const same = article?.querySelector(`[data-act="${focus.act}"]:enabled`);
    (same ?? article?.querySelector("button:enabled") ?? this.element).focus();
  }
}
