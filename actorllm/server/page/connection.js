/**
 * The WebSocket to the server: connects, and connects again by itself when the server or the network was gone.
 *
 * `onMessage(message)` gets each message, `hello` first. `onState(state)` is told "connecting", "open", "lost" (the next try comes by
 * itself) or "resting" (closed by the server because nothing was said; `wake` connects again). `onRefused(error)` gets the server's reason
 * where it is there but has opened no socket, else null. Knows no conversations.
 */

const IDLE = 4408;
const FIRST_DELAY = 500;
const LONGEST_DELAY = 10_000;
/** Milliseconds after which an attempt that nobody answers is given up. */
const ATTEMPT = 10_000;

/** Half of a surrogate pair, which a cut text may end with, is no Unicode, and no server takes it. */
const wellFormed = (text) => (text.toWellFormed ? text.toWellFormed() : text.replace(/\p{Surrogate}/gu, "\ufffd"));

export class Connection {
  #socket = null;
  #timer = null;
  #delay = FIRST_DELAY;
  #state = "connecting";
  #maxFrame = Infinity;

  constructor({ onMessage, onState, onRefused }) {
    this.onMessage = onMessage;
    this.onState = onState;
    this.onRefused = onRefused;
    this.url = new URL("v1/chat/ws", document.baseURI);
    this.url.protocol = this.url.protocol.replace("http", "ws");
    addEventListener("online", () => this.retryNow());
    document.addEventListener("visibilitychange", () => document.hidden || this.retryNow());
  }

  get isOpen() {
    return this.#state === "open";
  }

  /** Whether it is not open now, but nothing speaks against it: what is to be sent can wait for it. */
  get isComing() {
    return this.#state === "connecting" || this.#state === "resting";
  }

  /** Tries at once. */
  connect() {
    clearTimeout(this.#timer);
    this.#abandon();
    if (this.#state !== "lost") this.#change("connecting");
    const socket = (this.#socket = new WebSocket(this.url));
    this.#timer = setTimeout(() => this.#lose(), ATTEMPT);
    socket.onmessage = (event) => this.#receive(JSON.parse(event.data));
    socket.onclose = (event) => {
      const wasOpen = this.isOpen;
      if (event.code === IDLE) return this.#rest();
      this.#lose();
      if (!wasOpen) this.#askWhy();
    };
  }

  /** Somebody is there: a connection that rests is opened again. */
  wake() {
    if (this.#state === "resting") this.connect();
  }

  /** Tries now if there is no connection. */
  retryNow() {
    if (this.#state === "lost" || this.#state === "resting") this.connect();
  }

  /** Sends a message; false if it cannot be sent: no connection, or longer than the server takes. */
  send(message) {
    const frame = JSON.stringify(message, (_, value) => (typeof value === "string" ? wellFormed(value) : value));
    if (!this.isOpen || new TextEncoder().encode(frame).length > this.#maxFrame) return false;
    this.#socket.send(frame);
    return true;
  }

  #receive(message) {
    if (message.type === "hello") {
      clearTimeout(this.#timer);
      this.#delay = FIRST_DELAY;
      this.#maxFrame = message.max_frame;
      this.#change("open");
    }
    this.onMessage(message);
  }

  #lose() {
    this.#abandon();
    this.#change("lost");
    this.#timer = setTimeout(() => this.connect(), this.#delay * (0.75 + Math.random() / 2));
    this.#delay = Math.min(this.#delay * 2, LONGEST_DELAY);
  }

  /** Browsers do not tell a page why it got no socket, but the server does. */
  async #askWhy() {
    let error = null;
    try {
      const reply = await fetch(new URL("v1/chat/ws", document.baseURI), { method: "POST" });
      error = (await reply.json()).error;
    } catch {
      // nobody is there, or somebody else
    }
    if (this.#state === "lost") this.onRefused(error);
  }

  #rest() {
    this.#abandon();
    this.#change("resting");
  }

  #abandon() {
    clearTimeout(this.#timer);
    if (!this.#socket) return;
    this.#socket.onmessage = this.#socket.onclose = null;
    this.#socket.close();
    this.#socket = null;
  }

  #change(state) {
    if (this.#state === state && state !== "connecting") return;
    this.#state = state;
    this.onState(state);
  }
}
