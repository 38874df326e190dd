/** What the page says in words: errors with what to do, how answers ended, and how fast they were. */

const ADVICE = {
  PromptTooLong: "The conversation no longer fits what the model can read at once. Start a new chat, edit an earlier message, or lower the longest answer in the settings.",
  NoChatTemplate: "This model was not made for conversations: it has no chat template. Serve a chat model.",
  QueueFull: "The server is busy with other requests. Wait a moment, then try again.",
  QueueTimeout: "The server was busy for too long. Try again in a moment.",
  RequestTimeout: "The answer took longer than the server allows. Ask for a shorter one.",
  ChatTooLarge: "This is as much as the server keeps for one page. Start a new chat, or delete old ones and reload.",
  DeviceLost: "The server has lost its device and is going to stop. Once it is restarted, this page goes on by itself.",
  DeviceHung: "The server's device does not answer. Once the server is restarted, this page goes on by itself.",
  EngineFailed: "The model has failed. Once the server is restarted, this page goes on by itself.",
  EngineStopped: "The server is stopping. Once it is back, this page goes on by itself.",
  MalformedFrame: "This page and the server do not understand each other. Reload the page.",
  AnswerRunning: "An answer is still being written. Stop it first, or wait for its end.",
  ConnectionLost: "The connection was lost before the answer was complete. Try again.",
  UnknownTurn: "The server does not know this message any more. Reload the page.",
};

const NO_ROOM =
  "The longest answer of the settings and this conversation do not fit what the model can read at once. Lower it, or leave it empty for as much as fits.";

/** One sentence or two about an error of the protocol. */
export function wordsFor(error) {
  if (error.code === "PromptTooLong" && error.param === "max_tokens") return NO_ROOM;
  return ADVICE[error.code] ?? `The server says: ${error.message}.`;
}

/** Why a server that is there opens no socket for this page; "" if it has not said so. */
export function whyNoSocket(error) {
  if (error?.code === "ForeignOrigin") {
    return `The server is there, but does not know this page's address as its own. Start it with --allow-origin ${location.origin}, or let the proxy before it pass the header Host.`;
  }
  if (error?.code === "InvalidRequest") {
    return "The server is there, but no WebSocket gets through to it: the proxy before it has to pass the headers Upgrade and Connection.";
  }
  return "";
}

/** Why an answer ended, where it says something; "" after an ordinary end. */
export function endOf(turn) {
  if (turn.finish === "length") return "Cut off at the longest answer allowed; the settings can raise it.";
  if (turn.finish === "cancel") return "You stopped this answer.";
  return turn.error ? wordsFor(turn.error) : "";
}

/** Tokens, speed and times of an answer. */
export function figuresOf({ usage, timings }) {
  if (!usage?.completion_tokens || !timings) return "";
  const figures = [`${usage.completion_tokens} ${usage.completion_tokens === 1 ? "token" : "tokens"}`];
  if (timings.tokens_per_second) figures.push(`${timings.tokens_per_second.toFixed(1)} tokens/s`);
  if (timings.ttft_seconds !== null) figures.push(`first token after ${duration(timings.ttft_seconds)}`);
  if (timings.queue_seconds > 0.1) figures.push(`waited ${duration(timings.queue_seconds)}`);
  return figures.join(" · ");
}

function duration(seconds) {
  return seconds < 1 ? `${Math.round(seconds * 1000)} ms` : `${seconds.toFixed(1)} s`;
}
