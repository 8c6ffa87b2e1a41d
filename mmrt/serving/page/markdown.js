// The little of Markdown that models write most, as nodes: headings, paragraphs, lists, quotes,
// code, bold and italics. All else stays as it is written, and nothing is ever read as HTML.

export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

const FENCE = /^\s*(`{3,}(?=[^`]*$)|~{3,})\s*([\w+#.-]*)/;
const HEADING = /^ {0,3}(#{1,6})\s+(.*)$/;
const ITEM = /^(\s*)([-*+]|\d{1,9}[.)])\s+(.*)$/;
const QUOTE = /^ {0,3}> ?/;
const MARK = /`+|\*{1,2}/g;
const DEEPEST = 8; // lists in lists

const drawn = new WeakMap(); // elements to the blocks that are drawn in them

// Draws `text` in `element`. While more of it comes, blocks that stay as they were keep their
// nodes, and with them what a reader has selected there.
export function render(element, text) {
  const before = drawn.get(element) ?? [];
  const blocks = split(text);
  const same = blocks.findIndex((block, i) => block !== before[i]);
  const kept = same < 0 ? blocks.length : same;
  while (element.childNodes.length > kept) element.lastChild.remove();
  element.append(...blocks.slice(kept).map(drawBlock));
  drawn.set(element, blocks);
}

// Its blocks, each with its lines.
function split(text) {
  const blocks = [];
  let block = [];
  let fence = "";
  const end = () => {
    if (block.length) blocks.push(block.join("\n"));
    block = [];
  };
  for (const line of text.split("\n")) {
    if (fence) {
      block.push(line);
      if (line.trim().startsWith(fence) && !line.trim().replaceAll(fence[0], "")) {
        fence = "";
        end();
      }
    } else if (FENCE.test(line)) {
      end();
      fence = FENCE.exec(line)[1];
      block.push(line);
    } else if (HEADING.test(line)) {
      end();
      block.push(line);
      end();
    } else if (!line.trim()) {
      end();
    } else {
      if (block.length && kindOf(line) && kindOf(line) !== kindOf(block[0])) end();
      block.push(line);
    }
  }
  end();
  return blocks;
}

function kindOf(line) {
  return ITEM.test(line) ? "list" : QUOTE.test(line) ? "quote" : "";
}

function drawBlock(block) {
  const lines = block.split("\n");
  const fence = FENCE.exec(lines[0]);
  if (fence) return drawCode(lines, fence);
  const heading = HEADING.exec(lines[0]);
  if (heading) return withInline(make(`h${Math.min(heading[1].length + 2, 6)}`), heading[2]);
  if (ITEM.test(lines[0])) return drawList(lines);
  if (QUOTE.test(lines[0])) {
    const quoted = lines.map((line) => line.replace(QUOTE, "")).join("\n");
    return withInline(make("blockquote"), quoted);
  }
  return withInline(make("p"), block);
}

function drawCode(lines, [, fence, language]) {
  const last = lines.length > 1 && lines.at(-1).trim().startsWith(fence) ? -1 : undefined;
  const code = make("code", {}, lines.slice(1, last).join("\n"));
  const pre = make("pre", { tabindex: "0", "aria-label": `Code ${language}`.trim() }, code);
  return make("figure", {}, make("figcaption", {}, language || "code"), pre);
}

// Deeper items become lists in the item before them.
function drawList(lines) {
  const open = []; // {indent, list}, the outermost first
  for (const line of lines) {
    const found = ITEM.exec(line);
    if (!found) {
      withInline(open.at(-1).list.lastChild, `\n${line.trim()}`);
      continue;
    }
    const [, { length: indent }, mark, text] = found;
    while (open.length > 1 && indent < open.at(-1).indent) open.pop();
    const isDeeper = open.length && indent > open.at(-1).indent + 1 && open.length < DEEPEST;
    if (!open.length || isDeeper) {
      const number = Number.parseInt(mark, 10);
      const list = Number.isNaN(number) ? make("ul") : make("ol", { start: number });
      open.at(-1)?.list.lastChild.append(list);
      open.push({ indent, list });
    }
    open.at(-1).list.append(withInline(make("li"), text));
  }
  return open[0].list;
}

// Adds text, in which `code`, **bold** and *italics* may stand.
function withInline(element, text) {
  const unclosed = new Set(); // marks that do not come again
  let done = 0;
  let at = 0;
  for (;;) {
    MARK.lastIndex = at;
    const found = MARK.exec(text);
    if (!found) break;
    const [mark] = found;
    const from = found.index + mark.length;
    const to = unclosed.has(mark) ? -1 : text.indexOf(mark, from);
    if (to < 0) unclosed.add(mark);
    at = from;
    if (to <= from || !isMark(text, found.index, from, to, mark)) continue;
    const inner = text.slice(from, to);
    element.append(text.slice(done, found.index));
    if (mark[0] === "`") element.append(make("code", {}, inner));
    else element.append(withInline(make(mark === "*" ? "em" : "strong"), inner));
    done = at = to + mark.length;
  }
  element.append(text.slice(done));
  return element;
}

// Whether what stands from `from` to `to` is within marks; stars may also multiply.
function isMark(text, start, from, to, mark) {
  const after = text[to + mark.length] ?? "";
  if (mark[0] === "`") return after !== "`";
  if (/\s/.test(text[from]) || /\s/.test(text[to - 1])) return false;
  return mark !== "*" || !(/\w/.test(text[start - 1] ?? "") || /[\w*]/.test(after));
}
