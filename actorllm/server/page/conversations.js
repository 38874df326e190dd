/**
 * Conversations as this page keeps them: trees of turns, stored in the browser. The server has them only as long as a socket lives.
 *
 * A turn is {id, parent, role, text, finish} as in the protocol, and for answers {usage, timings, error} beside it. Knows no DOM.
 */

import { forget, keysOf, readJson, writeJson } from "./storage.js";

const PREFIX = "actorllm.conversation.";
const ENDS = ["stop", "length", "cancel", "error"];
const LOST = { code: "ConnectionLost", message: "the connection ended before the answer did" };

export class Conversation {
  constructor({ name = newName(), system = null, sampling = {}, turns = [], leaf = null, changed = Date.now() } = {}) {
    this.name = name;
    this.key = name; // what it is stored under; another one from when another tab writes there while this one's answer runs
    this.system = system;
    this.sampling = sampling;
    this.turns = new Map(turns.map((turn) => [turn.id, turn]));
    this.leaf = leaf;
    this.changed = changed;
    this.answering = null;
  }

  get title() {
    const [first] = this.turns.values();
    return first ? first.text.trim().replace(/\s+/g, " ").slice(0, 60) : "New chat";
  }

  /** The turns of the branch on show, from its root on. */
  get path() {
    const path = [];
    for (let id = this.leaf; id !== null && id !== undefined; id = path[0].parent) path.unshift(this.turns.get(id));
    return path;
  }

  /** The turns that stand in the place of this one, itself among them. */
  siblings(turn) {
    return [...this.turns.values()].filter((each) => (each.parent ?? null) === (turn.parent ?? null));
  }

  add(turn) {
    this.turns.set(turn.id, turn);
    this.leaf = turn.id;
    this.changed = Date.now();
  }

  /** Shows the branch through this turn, down to its newest leaf, as the server's `select` does. */
  select(turn) {
    const children = [...this.turns.values()].filter((each) => each.parent === turn.id);
    if (children.length) this.select(children.at(-1));
    else this.leaf = turn.id;
  }

  /** Another tab has gone on with it, too: from now on there are two. */
  part() {
    if (this.key === this.name) this.key = newName();
  }

  /** The answer that was under way will not go on. */
  interrupt() {
    this.answering = null;
    for (const turn of this.turns.values()) {
      if (turn.role === "assistant" && !turn.finish) Object.assign(turn, { finish: "error", error: LOST });
    }
  }

  /** The `open` message that brings it to a new socket. */
  asOpen() {
    const turns = [...this.turns.values()].map(({ id, parent, role, text, finish }) => ({ id, parent: parent ?? null, role, text, finish }));
    return { type: "open", conversation: this.name, system: this.system, sampling: this.sampling, turns, leaf: this.leaf };
  }

  asStored() {
    const { key: name, system, sampling, leaf, changed } = this;
    return { name, system, sampling, turns: [...this.turns.values()], leaf, changed };
  }
}

/** Names only have to differ; `crypto.randomUUID` is there on secure pages alone. */
function newName() {
  const bytes = crypto.getRandomValues(new Uint8Array(12));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

const isObject = (value) => typeof value === "object" && value !== null && !Array.isArray(value);

/** {system, sampling} as far as a stored value has them. */
export function settingsIn(stored) {
  const { system, sampling } = isObject(stored) ? stored : {};
  return { system: typeof system === "string" ? system : null, sampling: isObject(sampling) ? sampling : {} };
}

/** The stored turns that make a tree as the protocol has it; whatever was stored besides, by an older page or by hand, is left out. */
function turnsIn(stored) {
  const kept = new Map();
  let last = 0;
  for (const turn of stored) {
    const before = (turn?.parent ?? null) === null ? { role: "assistant" } : kept.get(turn.parent);
    const isNext = isObject(turn) && Number.isInteger(turn.id) && turn.id > last && typeof turn.text === "string";
    if (!isNext || !before || turn.role !== (before.role === "user" ? "assistant" : "user")) continue;
    kept.set((last = turn.id), turn.role === "user" ? { id: turn.id, parent: turn.parent ?? null, role: "user", text: turn.text } : answerIn(turn));
  }
  return [...kept.values()];
}

/** One without an end that the protocol has was cut short. */
function answerIn({ id, parent, role, text, finish, usage, timings, error }) {
  const answer = { id, parent, role, text, ...(ENDS.includes(finish) ? { finish } : {}) };
  const isFigure = (value) => value === null || Number.isFinite(value);
  if ([usage, timings].every((figures) => isObject(figures) && Object.values(figures).every(isFigure))) Object.assign(answer, { usage, timings });
  if (typeof error?.code === "string") answer.error = error;
  return answer;
}

/** All conversations of this browser. */
export class Library {
  constructor() {
    this.conversations = new Map();
    for (const key of keysOf(PREFIX)) this.reload(key.slice(PREFIX.length));
  }

  /** Those in which something was said. */
  get newestFirst() {
    return [...this.conversations.values()].filter((each) => each.turns.size).sort((one, other) => other.changed - one.changed);
  }

  /** Knows one from now on. It is not written down, which would tell other tabs of a change. */
  keep(conversation) {
    this.conversations.set(conversation.name, conversation);
  }

  /** Writes one down; false if the browser has no room. One without turns is not worth keeping. */
  save(conversation) {
    this.keep(conversation);
    return !conversation.turns.size || writeJson(PREFIX + conversation.key, conversation.asStored());
  }

  /** One that has parted takes its own name; the other tab's is read again. */
  rename(conversation) {
    const { name } = conversation;
    conversation.name = conversation.key;
    this.keep(conversation);
    this.reload(name);
  }

  /** Reads one again, as it is stored now. */
  reload(name) {
    this.conversations.delete(name);
    const stored = readJson(PREFIX + name);
    if (!Array.isArray(stored?.turns)) return;
    const turns = turnsIn(stored.turns);
    const leaf = turns.some((turn) => turn.id === stored.leaf) ? stored.leaf : (turns.at(-1)?.id ?? null);
    const changed = Number.isFinite(stored.changed) ? stored.changed : 0;
    const conversation = new Conversation({ ...settingsIn(stored), name, turns, leaf, changed });
    conversation.interrupt();
    this.conversations.set(name, conversation);
  }

  remove(name) {
    this.conversations.delete(name);
    forget(PREFIX + name);
  }

  /** Calls `callback(name, isRemoved)` when another tab has written or removed a conversation. */
  onChangeElsewhere(callback) {
    addEventListener("storage", ({ key, newValue }) => key?.startsWith(PREFIX) && callback(key.slice(PREFIX.length), newValue === null));
  }
}
