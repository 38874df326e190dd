/** Joins the connection, the conversations of this browser, and what is seen of them. */

import { Composer } from "./composer.js";
import { Connection } from "./connection.js";
import { Conversation, Library, settingsIn } from "./conversations.js";
import { element, tell } from "./dom.js";
import { Settings } from "./settings.js";
import { Sidebar } from "./sidebar.js";
import { readJson, writeJson } from "./storage.js";
import { Transcript } from "./transcript.js";
import { endOf, whyNoSocket, wordsFor } from "./words.js";

const PROTOCOL = 1;
const CURRENT = "actorllm.current";
const LAST_SETTINGS = "actorllm.settings";
const SUGGESTIONS = ["What is ActorLLM?", "What is 17 plus 25?", "Tell me a short story."];
const TOO_LONG = "This is longer than the server takes at once. Start a new chat, or shorten the message.";
const NO_CONNECTION = "There is no connection to the server now. Save again once it is back.";
const PARTED = "Another tab went on with this chat, too. What was said here is a chat of its own now; the other one is in the list.";
const byId = (id) => document.getElementById(id);

class Chat {
  #library = new Library();
  #opened = new Set(); // names that this socket has
  #pending = new Map(); // ref -> what to do if the message is refused, and when it is done
  #numSent = 0;
  #hello = null;
  #selecting = null; // the version that the server is told of; its button gets the focus back
  #held = null; // {go, drop}: what the user did while the connection was on its way

  constructor() {
    const actions = {
      edit: (turn, text) => this.#edit(turn, text),
      regenerate: (turn) => this.#regenerate(turn),
      select: (turn, direction) => this.#select(turn, direction),
    };
    this.transcript = new Transcript(byId("turns"), { scroller: byId("scroller"), jump: byId("jump"), actions });
    this.composer = new Composer(byId("composer"), {
      onSend: (text) => this.#say({ type: "send", text }, () => this.composer.giveBack(text)),
      onStop: () => this.#stop(),
      onEditLast: () => this.#editLast(),
    });
    this.sidebar = new Sidebar(byId("sidebar"), {
      toggle: byId("toggle-sidebar"),
      scrim: byId("scrim"),
      actions: { pick: (name) => this.#pick(name), remove: (name) => this.#remove(name), start: () => this.#start() },
    });
    this.settings = new Settings(byId("settings"), { onSave: (settings) => this.#configure(settings) });
    this.connection = new Connection({
      onMessage: (message) => this.#receive(message),
      onState: (state) => this.#showState(state),
      onRefused: (error) => this.#showLost(whyNoSocket(error)),
    });
    this.#listen();
    this.current = this.#library.conversations.get(readJson(CURRENT)) ?? this.#fresh();
    this.#show();
    this.connection.connect();
  }

  #listen() {
    byId("open-settings").addEventListener("click", () => this.settings.open(this.current, this.#hello));
    byId("try-now").addEventListener("click", () => this.connection.retryNow());
    byId("close-notice").addEventListener("click", () => this.#notice(""));
    byId("suggestions").append(
      ...SUGGESTIONS.map((text) =>
        element("button", { type: "button", onclick: () => this.#say({ type: "send", text }) && this.composer.focus() }, text),
      ),
    );
    addEventListener("keydown", (event) => {
      this.connection.wake();
      if (event.key === "Escape" && !document.querySelector("dialog[open]")) this.#stop();
    });
    addEventListener("pointerdown", () => this.connection.wake(), { passive: true });
    addEventListener("pagehide", () => this.#saveBusy());
    document.addEventListener("visibilitychange", () => document.hidden && this.#saveBusy());
    this.#library.onChangeElsewhere((name, isRemoved) => this.#takeOver(name, isRemoved));
  }

  // --- what the user does ---

  /** A turn of the user's; false if it can neither be sent now nor wait for the connection. */
  #say(message, onRefused = () => {}) {
    if (!this.#canAct()) return false;
    if (this.connection.isComing) return this.#hold(() => this.#say(message, onRefused), onRefused);
    const isSent = this.#ensureOpen() && this.#send(message, onRefused);
    if (isSent) this.transcript.follow();
    this.#show();
    return isSent;
  }

  #edit(turn, text) {
    const isSent = this.#say({ type: "edit", turn: turn.id, text }, () => this.transcript.edit(turn, text));
    if (isSent) this.composer.focus();
    return isSent;
  }

  #editLast() {
    const last = this.current.path.findLast((turn) => turn.role === "user");
    if (last && this.#canAct()) this.transcript.edit(last);
  }

  #regenerate(turn) {
    this.#say({ type: "regenerate", turn: turn.id });
    this.composer.focus();
  }

  /** Branches can be looked at without a server; one that has the conversation is told. */
  #select(turn, direction) {
    const { name } = this.current;
    this.current.select(turn);
    this.#save(this.current);
    const isTold = this.#opened.has(name) && this.#send({ type: "select", turn: turn.id }, () => this.#forget(name));
    this.#show();
    if (isTold) this.#selecting = { turn, direction };
    else this.transcript.focusBranch(turn, direction);
  }

  #stop() {
    if (this.current.answering !== null) this.#send({ type: "cancel" });
  }

  /** Settings hold, and are kept, once the server has taken them. */
  #configure(settings) {
    const { name } = this.current;
    const isNew = !this.#opened.has(name);
    const onRefused = (_, error) => {
      if (isNew) this.#opened.delete(name);
      this.settings.refuse(error ? wordsFor(error) : NO_CONNECTION);
      return true;
    };
    const onDone = (conversation) => {
      Object.assign(conversation, settings);
      writeJson(LAST_SETTINGS, settings);
      this.#save(conversation);
      this.settings.accept();
    };
    if (this.connection.isComing && !this.#held) {
      const later = () => {
        this.#configure(settings);
        return true;
      };
      return void this.#hold(later, () => this.settings.refuse(NO_CONNECTION));
    }
    const message = isNew ? { ...this.current.asOpen(), ...settings } : { type: "configure", ...settings };
    if (!this.#send(message, onRefused, onDone)) return this.settings.refuse(this.connection.isOpen ? TOO_LONG : NO_CONNECTION);
    this.#opened.add(name);
    this.#library.keep(this.current);
  }

  #pick(name) {
    this.#bringToFront(this.#library.conversations.get(name));
  }

  #start() {
    this.#bringToFront(this.#fresh());
  }

  #remove(name) {
    this.#forget(name);
    this.#library.remove(name);
    if (this.current.name === name) this.#start();
    else this.#show();
  }

  #bringToFront(conversation) {
    if (this.current.answering === null) this.#forget(this.current.name);
    this.#drop();
    this.current = conversation;
    this.transcript.clear();
    this.#show();
    this.composer.focus();
  }

  /** Another tab has written or removed a conversation. */
  #takeOver(name, isRemoved) {
    if (this.#isBusy(name) || (this.current.name === name && !this.#canLook())) {
      if (!isRemoved) this.#library.conversations.get(name)?.part();
      return;
    }
    this.#forget(name);
    this.#library.reload(name);
    if (this.current.name === name) this.#bringToFront(this.#library.conversations.get(name) ?? this.#fresh());
    else this.#show();
  }

  // --- to the server ---

  #canAct() {
    return this.#canLook() && (this.connection.isOpen || this.connection.isComing);
  }

  /** Nothing is under way in the conversation in front. */
  #canLook() {
    return this.current.answering === null && !this.#pending.size && !this.#held;
  }

  /** Does it once the connection is open: `go` returns whether it could; else, and where no connection comes, `drop` is called. */
  #hold(go, drop) {
    this.#held = { go, drop };
    this.connection.wake();
    this.#show();
    return true;
  }

  #drop() {
    const held = this.#held;
    this.#held = null;
    held?.drop();
  }

  /** Conversations whose answers are under way. */
  get #busy() {
    return this.#library.newestFirst.filter((each) => each.answering !== null);
  }

  #isBusy(name) {
    return this.#busy.some((each) => each.name === name);
  }

  /** Sees to it that the socket has the conversation in front; false if it cannot be brought. */
  #ensureOpen() {
    const { name } = this.current;
    if (this.#opened.has(name)) return true;
    this.#library.keep(this.current);
    if (!this.#send(this.current.asOpen(), () => void this.#opened.delete(name))) return false;
    this.#opened.add(name);
    return true;
  }

  /**
   * Sends about the conversation in front; `onRefused(conversation, error)` is called if the server does not do it, and returns true
   * if it has told why; else `onDone(conversation)` is called.
   */
  #send(message, onRefused = () => {}, onDone = () => {}) {
    const ref = String((this.#numSent += 1));
    const conversation = this.current;
    const isSent = this.connection.send({ ...message, conversation: conversation.name, ref });
    if (isSent) this.#pending.set(ref, { onRefused: (error) => onRefused(conversation, error), onDone: () => onDone(conversation) });
    else if (this.connection.isOpen) this.#notice(TOO_LONG);
    return isSent;
  }

  /** The socket need not hold it any longer; an answer under way is cancelled, and its end closes the conversation. */
  #forget(name) {
    if (this.#opened.delete(name)) this.connection.send({ type: this.#isBusy(name) ? "cancel" : "close", conversation: name });
  }

  // --- from the server ---

  #receive(message) {
    const waiting = this.#answered(message);
    if (message.type === "hello") return this.#greet(message);
    if (message.type === "error") {
      const isTold = waiting?.onRefused(message.error) === true;
      // an unknown conversation is one whose `open` was refused just before, and the reason for that is to be read
      if (!isTold && message.error.code !== "UnknownConversation") this.#notice(wordsFor(message.error));
    } else waiting?.onDone();
    const conversation = this.#library.conversations.get(message.conversation);
    if (conversation) this.#apply(message, conversation);
    if (message.type === "finished" && conversation !== this.current) {
      this.#forget(message.conversation);
    }
    if (message.type !== "delta") this.#show();
    if (message.type === "selected") this.#restoreFocus();
  }

  /** What waited for this reply. The server answers in order: an error that names no message is about the oldest. */
  #answered(message) {
    const ref = message.type === "error" && message.ref === undefined ? this.#pending.keys().next().value : message.ref;
    const waiting = this.#pending.get(ref);
    this.#pending.delete(ref);
    return waiting;
  }

  #apply(message, conversation) {
    switch (message.type) {
      case "turn":
        conversation.add(message.turn);
        break;
      case "started":
        conversation.add({ id: message.turn, parent: message.parent, role: "assistant", text: "" });
        conversation.answering = message.turn;
        if (conversation === this.current) tell("Answering");
        break;
      case "delta":
        return this.#grow(conversation, message);
      case "finished":
        this.#finish(conversation, message);
        break;
      default:
        return;
    }
    if (conversation.answering === null) this.#save(conversation); // not before: other tabs would take it for an answer cut short
  }

  /** A new socket knows nothing: what ran on the last one is over. */
  #greet(hello) {
    this.#hello = hello;
    this.#opened.clear();
    this.#pending.clear();
    byId("model").textContent = hello.model;
    document.title = `${hello.model} – ActorLLM`;
    this.#notice(hello.protocol === PROTOCOL ? "" : "The server was updated. Reload the page.");
    const held = this.#held;
    this.#held = null;
    this.#show();
    if (held && !held.go()) held.drop();
  }

  #grow(conversation, { turn: id, text }) {
    const turn = conversation.turns.get(id);
    if (!turn) return;
    turn.text += text;
    if (conversation === this.current) this.transcript.grow(turn);
  }

  #finish(conversation, { turn: id, reason, usage, timings, error }) {
    const turn = conversation.turns.get(id);
    conversation.answering = null;
    Object.assign(turn, { finish: reason, usage, timings, ...(error ? { error } : {}) });
    if (conversation === this.current) tell(`${turn.text} ${endOf(turn)}`);
  }

  // --- what is seen ---

  #fresh() {
    return new Conversation(settingsIn(readJson(LAST_SETTINGS)));
  }

  #save(conversation) {
    if (conversation.answering === null && conversation.key !== conversation.name) {
      this.#forget(conversation.name);
      this.#library.rename(conversation);
      this.#notice(PARTED);
    }
    if (!this.#library.save(conversation)) {
      this.#notice("This browser cannot keep the chat: there is no more room, or it is not allowed to. It is lost when the page is closed.");
    }
  }

  /** The page may be gone before the answers under way have ended. */
  #saveBusy() {
    for (const conversation of this.#busy) this.#save(conversation);
  }

  #show() {
    const canAct = this.#canAct();
    byId("open-settings").disabled = this.#hello === null;
    byId("empty").hidden = this.current.turns.size > 0;
    for (const button of byId("suggestions").children) button.disabled = !canAct;
    this.transcript.show(this.current, { canAct, canLook: this.#canLook() });
    this.composer.show({ isAnswering: this.current.answering !== null, canSend: canAct });
    this.sidebar.show(this.#library.newestFirst, { current: this.current, busy: this.#busy });
    writeJson(CURRENT, this.current.name);
  }

  #restoreFocus() {
    if (this.#selecting) this.transcript.focusBranch(this.#selecting.turn, this.#selecting.direction);
    this.#selecting = null;
  }

  #showState(state) {
    const words = { connecting: "Connecting", open: "Connected", lost: "No connection", resting: "Resting" };
    byId("state").textContent = words[state];
    byId("state").dataset.state = state;
    byId("lost").hidden = state !== "lost";
    this.#showLost("");
    if (state !== "open") {
      for (const conversation of this.#busy) {
        conversation.interrupt();
        this.#save(conversation);
      }
      this.#pending.forEach(({ onRefused }) => onRefused());
      this.#pending.clear();
    }
    if (state === "lost") this.#drop();
    this.#show();
  }

  /** Why there is no connection, if the server has said so. */
  #showLost(reason) {
    byId("lost-reason").textContent = reason;
    byId("lost-reason").hidden = !reason;
    byId("lost-silent").hidden = Boolean(reason);
  }

  #notice(text) {
    byId("notice-text").textContent = text;
    byId("notice").hidden = !text;
  }
}

new Chat();
