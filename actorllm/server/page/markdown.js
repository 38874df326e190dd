/**
 * The Markdown that answers use, as DOM nodes: headings, paragraphs, code, lists, quotes, tables, emphasis and links.
 *
 * Text of a model is never parsed as HTML, links lead to http, https and mailto alone, and pictures are links, since loading one
 * would tell its server that the answer was read. Knows no chat.
 */

import { copyFrom, element } from "./dom.js";

const MAX_DEPTH = 8;
/** Characters within which emphasis, code or a link has to end: unclosed markers stay cheap. */
const MAX_SPAN = 2000;
const FENCE = /^ {0,3}(`{3,}|~{3,})\s*([\w+#.-]*)[^`]*$/;
const HEADING = /^ {0,3}(#{1,6})\s+(.*)$/;
const RULE = /^ {0,3}([-*_])( *\1){2,} *$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^( *)([-*+]|\d{1,9}[.)])( +|$)/;
const DELIMITERS = /^ {0,3}\|?( *:?-+:? *\|)+( *:?-+:? *)?$/;
const sources = new WeakMap();

/** Shows `text` in `container`; blocks that are as they were stay the same nodes, so a selection in them survives. */
export function renderMarkdown(container, text) {
  const blocks = blocksOf(text.replaceAll("\t", "    ").split("\n"));
  const present = [...container.children];
  blocks.forEach((block, number) => {
    const node = present[number];
    if (node && sources.get(node) === block.source) return;
    const fresh = block.build(0);
    sources.set(fresh, block.source);
    if (node) node.replaceWith(fresh);
    else container.append(fresh);
  });
  present.slice(blocks.length).forEach((node) => node.remove());
}

// --- blocks -----------------------------------------------------------------------------------

/** Every kind takes lines from `start` on and gives {end, build}, or null if none of its kind begins there. */
const KINDS = [fence, heading, rule, quote, list, table];

function blocksOf(lines) {
  const blocks = [];
  for (let at = 0; at < lines.length; ) {
    if (!lines[at].trim()) {
      at += 1;
      continue;
    }
    const block = firstOf(lines, at) ?? paragraph(lines, at);
    blocks.push({ build: block.build, source: lines.slice(at, block.end).join("\n") });
    at = block.end;
  }
  return blocks;
}

function firstOf(lines, start) {
  for (const kind of KINDS) {
    const block = kind(lines, start);
    if (block) return block;
  }
  return null;
}

function fence(lines, start) {
  const found = FENCE.exec(lines[start]);
  if (!found) return null;
  const closing = new RegExp(`^ {0,3}${found[1][0]}{${found[1].length},} *$`);
  let end = start + 1;
  while (end < lines.length && !closing.test(lines[end])) end += 1;
  const code = lines.slice(start + 1, end).join("\n");
  return { end: end + 1, build: () => codeBlock(code, found[2]) };
}

function codeBlock(code, language) {
  const copy = element("button", { type: "button", class: "copy", "aria-label": "Copy code" }, "Copy");
  copy.addEventListener("click", () => copyFrom(copy, code));
  const name = language || "code";
  const text = element("pre", { tabindex: "0", role: "region", "aria-label": name }, element("code", {}, code));
  return element("figure", { class: "code" }, element("figcaption", {}, element("span", {}, name), copy), text);
}

function heading(lines, start) {
  const found = HEADING.exec(lines[start]);
  if (!found) return null;
  const level = Math.min(found[1].length + 3, 6); // the page itself has the first three
  return { end: start + 1, build: () => inlineIn(element(`h${level}`), found[2].replace(/ +#+ *$/, "")) };
}

function rule(lines, start) {
  return RULE.test(lines[start]) ? { end: start + 1, build: () => element("hr") } : null;
}

function quote(lines, start) {
  let end = start;
  while (end < lines.length && QUOTE.test(lines[end])) end += 1;
  if (end === start) return null;
  const inner = lines.slice(start, end).map((line) => line.replace(QUOTE, ""));
  return { end, build: (depth) => nested(element("blockquote"), inner, depth) };
}

/** Blocks within a block; too deep ones stay text. */
function nested(parent, lines, depth) {
  if (depth >= MAX_DEPTH) parent.append(lines.join("\n"));
  else parent.append(...blocksOf(lines).map((block) => block.build(depth + 1)));
  return parent;
}

function list(lines, start) {
  const first = ITEM.exec(lines[start]);
  if (!first || first[1].length > 3) return null;
  const isOrdered = /\d/.test(first[2]);
  const items = [];
  let at = start;
  while (at < lines.length) {
    const marker = ITEM.exec(lines[at]);
    if (!marker || marker[1].length > 3 || /\d/.test(marker[2]) !== isOrdered || RULE.test(lines[at])) break;
    const indent = marker[1].length + marker[2].length + 1;
    const item = [lines[at].slice(marker[0].length)];
    at += 1;
    while (at < lines.length && belongsToItem(lines, at, indent)) {
      item.push(lines[at].replace(new RegExp(`^ {0,${indent}}`), ""));
      at += 1;
    }
    items.push(item);
    if (at + 1 < lines.length && !lines[at].trim() && ITEM.test(lines[at + 1])) at += 1;
  }
  return { end: at, build: (depth) => listOf(items, isOrdered ? Number.parseInt(first[2], 10) : null, depth) };
}

/** Indented lines, and blank ones before such a line. */
function belongsToItem(lines, at, indent) {
  const isIndented = (line) => line.search(/\S/) >= Math.min(indent, 2);
  if (lines[at].trim()) return isIndented(lines[at]);
  return at + 1 < lines.length && lines[at + 1].trim() !== "" && isIndented(lines[at + 1]);
}

function listOf(items, start, depth) {
  const parent = start === null ? element("ul") : element("ol", { start });
  for (const item of items) {
    const entry = nested(element("li"), item, depth);
    const only = entry.firstElementChild;
    if (only?.tagName === "P") only.replaceWith(...only.childNodes); // no gap between a marker and its text
    parent.append(entry);
  }
  return parent;
}

function table(lines, start) {
  if (!lines[start].includes("|") || !DELIMITERS.test(lines[start + 1] ?? "")) return null;
  let end = start + 2;
  while (end < lines.length && lines[end].includes("|")) end += 1;
  const rows = [lines[start], ...lines.slice(start + 2, end)].map(cellsOf);
  return { end, build: () => tableOf(rows) };
}

function cellsOf(line) {
  return line.trim().replace(/^\||\|$/g, "").split("|").map((cell) => cell.trim());
}

function tableOf([head, ...rows]) {
  const header = element("tr", {}, ...head.map((cell) => inlineIn(element("th", { scope: "col" }), cell)));
  const body = rows.map((row) => element("tr", {}, ...head.map((_, number) => inlineIn(element("td"), row[number] ?? ""))));
  const whole = element("table", {}, element("thead", {}, header), element("tbody", {}, ...body));
  return element("div", { class: "table", tabindex: "0", role: "region", "aria-label": "table" }, whole);
}

function paragraph(lines, start) {
  let end = start + 1;
  while (end < lines.length && lines[end].trim() && !firstOf(lines, end)) end += 1;
  const text = lines.slice(start, end).map((line) => line.trim()).join("\n");
  return { end, build: () => inlineIn(element("p"), text) };
}

// --- within a line ----------------------------------------------------------------------------

/** Appends text with its emphasis, code and links to `parent`. */
function inlineIn(parent, text, depth = 0) {
  const searched = new Map();
  let plain = "";
  for (let at = 0; at < text.length; ) {
    const span = depth < MAX_DEPTH ? spanAt(text, at, depth, searched) : null;
    if (span) {
      parent.append(plain, span.node);
      plain = "";
      at = span.end;
    } else {
      plain += text[at];
      at += 1;
    }
  }
  parent.append(plain);
  parent.normalize();
  return parent;
}

/** What begins at `at` as {node, end}, or null. `searched` is `closer`'s, one for a text. */
function spanAt(text, at, depth, searched) {
  switch (text[at]) {
    case "\\":
      return /[!-/:-@[-`{-~]/.test(text[at + 1] ?? "") ? { node: text[at + 1], end: at + 2 } : null;
    case "\n":
      return { node: element("br"), end: at + 1 };
    case "`":
      return codeSpan(text, at, searched);
    case "*":
    case "_":
    case "~":
      return emphasis(text, at, depth, searched);
    case "!":
      return text[at + 1] === "[" ? link(text, at + 1, depth) : null;
    case "[":
      return link(text, at, depth);
    case "h":
      return address(text, at);
    default:
      return null;
  }
}

function runLength(text, at) {
  let end = at;
  while (text[end] === text[at]) end += 1;
  return end - at;
}

/**
 * Where the next run of exactly `length` of `marker` begins that `closes(at)`; -1 without one.
 *
 * `searched` keeps for each kind of run up to where there is none: what one opener has looked through in vain, the next one skips.
 */
function closer(text, from, { marker, length, searched, closes = () => true }) {
  const kind = marker + length;
  const limit = Math.min(text.length, from + MAX_SPAN);
  const nextRun = (start) => (start < limit ? text.indexOf(marker, start) : start);
  let at = nextRun(Math.max(from, searched.get(kind) ?? 0));
  while (at >= 0 && at < limit) {
    const found = runLength(text, at);
    if (found === length && closes(at)) return at;
    at = nextRun(at + found);
  }
  searched.set(kind, at < 0 ? text.length : at);
  return -1;
}

function codeSpan(text, at, searched) {
  const length = runLength(text, at);
  const end = closer(text, at + length, { marker: "`", length, searched });
  if (end < 0) return { node: "`".repeat(length), end: at + length };
  const code = text.slice(at + length, end).replaceAll("\n", " ");
  return { node: element("code", {}, code.trim() || code), end: end + length };
}

function emphasis(text, at, depth, searched) {
  const [marker, length] = [text[at], runLength(text, at)];
  const isWord = (character) => /[\p{L}\p{N}]/u.test(character ?? "");
  const asIs = { node: marker.repeat(length), end: at + length };
  if (length > 3 || (marker === "~" && length !== 2) || /\s|^$/.test(text[at + length] ?? "")) return asIs;
  if (marker === "_" && isWord(text[at - 1])) return asIs;
  const closes = (end) => !/\s/.test(text[end - 1]) && !(marker === "_" && isWord(text[end + length]));
  const end = closer(text, at + length, { marker, length, searched, closes });
  if (end < 0) return asIs;
  const tags = marker === "~" ? ["del"] : [["em"], ["strong"], ["em", "strong"]][length - 1];
  const inner = inlineIn(element(tags.at(-1)), text.slice(at + length, end), depth + 1);
  return { node: tags.length === 2 ? element(tags[0], {}, inner) : inner, end: end + length };
}

/** [text](address), and the same after the "!" of a picture. */
function link(text, at, depth) {
  const found = /^\[((?:[^\[\]\\]|\\.){0,500})\]\(<?([^\s()<>]{1,1000}(?:\([^\s()<>]{0,200}\)[^\s()<>]{0,200})?)>?(?: +"[^"]{0,200}")?\)/.exec(text.slice(at, at + MAX_SPAN));
  const href = found && safeAddress(found[2]);
  if (!href) return null;
  return { node: inlineIn(anchor(href), found[1] || found[2], depth + 1), end: at + found[0].length };
}

/** A bare address in the text. */
function address(text, at) {
  if (/[\w/]/.test(text[at - 1] ?? "")) return null;
  const found = /^https?:\/\/[^\s<>"'`|*]{1,1000}/.exec(text.slice(at, at + MAX_SPAN));
  if (!found) return null;
  let shown = found[0].replace(/[.,;:!?]+$/, "");
  if (shown.endsWith(")") && !shown.includes("(")) shown = shown.slice(0, -1);
  const href = safeAddress(shown);
  return href ? { node: element("a", anchorAttributes(href), shown), end: at + shown.length } : null;
}

const anchorAttributes = (href) => ({ href, target: "_blank", rel: "noopener noreferrer nofollow" });
const anchor = (href) => element("a", anchorAttributes(href));

function safeAddress(text) {
  try {
    const url = new URL(text);
    return ["http:", "https:", "mailto:"].includes(url.protocol) ? url.href : null;
  } catch {
    return null;
  }
}
