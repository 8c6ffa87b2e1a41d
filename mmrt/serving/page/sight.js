// The tools of sight: figures of an answer, and what the server holds in memory.

import { make } from "./markdown.js";

const UNITS = ["B", "KiB", "MiB", "GiB", "TiB"];

function size(bytes) {
  let unit = 0;
  for (; bytes >= 1024 && unit < UNITS.length - 1; unit++) bytes /= 1024;
  return `${bytes >= 100 || !unit ? Math.round(bytes) : bytes.toFixed(1)} ${UNITS[unit]}`;
}

function seconds(value) {
  return value < 1 ? `${Math.round(value * 1000)} ms` : `${value.toFixed(value < 10 ? 2 : 1)} s`;
}

// [what, how much] of an answer's figures; those that have come.
function figuresOf({ first, rate, tokens, prompt, cached } = {}) {
  const found = [];
  if (rate !== undefined) found.push(["tokens a second", rate.toFixed(1)]);
  if (first !== undefined) found.push(["to the first token", seconds(first)]);
  if (tokens !== undefined) found.push(["tokens written", String(tokens)]);
  if (prompt !== undefined) found.push(["tokens of the prompt", String(prompt)]);
  if (cached !== undefined) found.push(["of these, found in memory", String(cached)]);
  return found;
}

// The same in a line.
export function lineOf({ first, rate, tokens, prompt, cached } = {}) {
  const found = [];
  if (tokens !== undefined) found.push(`${tokens} tokens`);
  if (rate !== undefined) found.push(`${rate.toFixed(1)} tokens/s`);
  if (first !== undefined) found.push(`first after ${seconds(first)}`);
  if (prompt !== undefined) found.push(`prompt ${prompt}, ${cached} from memory`);
  return found;
}

export function drawFigures(figures) {
  const list = document.getElementById("figures");
  fill(list, figuresOf(figures));
  if (figures?.prompt) list.append(bar([["found in memory", figures.cached]], figures.prompt));
}

// One model of what /sight tells.
export function drawModel({ memory, texts }) {
  const kinds = [
    ["weights in memory", memory.kept, "mapped pages of the file, shared between processes"],
    ["weights streamed", Math.max(memory.weights - memory.kept, 0), "read anew for each step"],
    ["keys and values", memory.kv],
    ["scratch", memory.scratch, "what a step needs"],
    ["buffers", memory.ring + memory.cache + memory.columns, "for streamed weights and experts"],
  ].filter(([, bytes]) => bytes > 0);
  const sum = kinds.reduce((whole, [, bytes]) => whole + bytes, 0);
  const list = make("dl", { class: "key" });
  fill(list, kinds.map(([name, bytes, why]) => [name, size(bytes), why]));
  if (memory.budget) fill(list, [["budget", size(memory.budget)]], true);
  document.getElementById("memory").replaceChildren(bar(kinds, sum), list);

  const pages = (bytes) => Math.round(bytes / memory.kv_page);
  const [held, alone] = [pages(memory.kv), pages(memory.kv_logical)];
  const shared = make("dl");
  fill(shared, [
    ["in memory", String(held)],
    ["if texts shared none", String(alone)],
    ["saved by sharing", size(Math.max(memory.kv_logical - memory.kv, 0))],
    ["copied on writing", String(memory.kv_copies)],
  ]);
  const bars = bar([["in memory", held]], Math.max(held, alone));
  document.getElementById("pages").replaceChildren(bars, shared);

  const counts = [["running", String(texts.running)], ["waiting", String(texts.waiting)]];
  fill(document.getElementById("texts"), counts);
}

function fill(list, rows, more = false) {
  if (!more) list.replaceChildren();
  for (const [name, value, why] of rows) {
    const term = make("dt", why ? { title: why } : {}, name);
    list.append(make("div", {}, term, make("dd", {}, value)));
  }
}

// Parts of a whole, side by side. What they are is told in words beside it.
function bar(parts, whole) {
  const drawn = parts.filter(([, part]) => part > 0).map(([name, part]) => {
    const one = make("span", { title: name });
    one.style.width = `${whole ? (100 * part) / whole : 0}%`;
    return one;
  });
  return make("div", { class: "bar", "aria-hidden": "true" }, ...drawn);
}
