"use strict";
// Shows one question at a time. Texts enter the page as text nodes alone, never as HTML.

const KEYS = {
  ArrowLeft: "left", 1: "left", ArrowRight: "right", 2: "right", ArrowDown: "tie", t: "tie", b: "bad", s: "skip", u: "undo",
};
const RETRY_MILLISECONDS = 1000;
const UNREAD_MILLISECONDS = 300; // Nobody has read a question so soon: a second press meant the one before.

const main = document.querySelector("main[data-voter]");
const voter = main.dataset.voter;
const buttons = [...document.querySelectorAll("button[data-choice]")];
const element = (id) => document.getElementById(id);

let place = null; // What the server said last.
let busy = true;
let viewed = 0; // Milliseconds for which this question was in view before `since`.
let since = null;
let shown = 0;

function say(text) {
  element("status").textContent = text;
}

function secondsInView() {
  return (viewed + (since === null ? 0 : performance.now() - since)) / 1000;
}

function startClock() {
  viewed = 0;
  since = document.hidden ? null : performance.now();
}

document.addEventListener("visibilitychange", () => {
  if (document.hidden && since !== null) {
    viewed += performance.now() - since;
    since = null;
  } else if (!document.hidden && since === null) {
    since = performance.now();
  }
});

function made(tag, className, text) {
  const node = document.createElement(tag);
  node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
}

function withHiddenNames(parts) {
  return parts.map((part) => (part === null ? made("span", "hidden-name", "name hidden") : document.createTextNode(part)));
}

function turnNode(turn, alone) {
  const node = made("div", `turn ${turn.role}`);
  if (!alone) node.append(made("div", "role", turn.role));
  node.append(made("div", "text-block", turn.text));
  return node;
}

function show(next) {
  place = next;
  const { question, done, total } = place;
  element("count").textContent = question ? `${done + 1} of ${total}` : `${done} of ${total} done`;
  element("progress").max = total;
  element("progress").value = done;
  element("question").hidden = !question;
  element("end").hidden = Boolean(question);
  if (question) {
    element("prompt").replaceChildren(...question.prompt.map((turn) => turnNode(turn, question.prompt.length === 1)));
    element("left").replaceChildren(...withHiddenNames(question.left));
    element("right").replaceChildren(...withHiddenNames(question.right));
    element("hidden-names").hidden = ![...question.left, ...question.right].includes(null);
    element("prompt").scrollTop = 0;
    // A long dialogue ends with what was asked.
    if (question.prompt.length > 1) element("prompt").scrollTop = element("prompt").scrollHeight;
  }
  window.scrollTo(0, 0);
  shown = performance.now();
  startClock();
  setBusy(false);
}

function setBusy(value) {
  busy = value;
  for (const button of buttons) {
    const possible = button.dataset.choice === "undo" ? place && place.done > 0 : place && place.question;
    button.disabled = busy || !possible;
  }
}

async function ask(address, options) {
  // The same request again is harmless: the server counts one choice a turn.
  for (;;) {
    try {
      const response = await fetch(address, options);
      if (response.ok) return await response.json();
      if (response.status < 500) {
        say(`The server refused: ${await response.text()}`);
        return null;
      }
    } catch (error) {
      if (!(error instanceof TypeError)) throw error; // What fetch throws when there is no answer.
    }
    say("The server does not answer. This page keeps trying; your votes so far are kept.");
    await new Promise((resolve) => setTimeout(resolve, RETRY_MILLISECONDS));
  }
}

async function choose(choice) {
  const possible = choice === "undo" ? place && place.done > 0 : place && place.question;
  if (busy || !possible || performance.now() - shown < UNREAD_MILLISECONDS) return;
  const body = { voter, turn: place.turn, choice, seconds: secondsInView() };
  setBusy(true);
  const next = await ask("vote", {
    method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body),
  });
  if (next === null) return;
  say(next.counted ? (choice === "undo" ? "Taken back: choose again." : "") : "This question was already answered.");
  show(next);
}

document.addEventListener("keydown", (event) => {
  const choice = KEYS[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  if (!choice || event.repeat || event.ctrlKey || event.altKey || event.metaKey) return;
  event.preventDefault(); // The arrows would scroll.
  choose(choice);
});
for (const button of buttons) {
  button.addEventListener("click", (event) => {
    if (event.detail < 2) choose(button.dataset.choice); // 2 and more: a double click.
  });
}

setBusy(true);
ask(`question?voter=${encodeURIComponent(voter)}`).then((first) => {
  if (first === null) return;
  say("");
  show(first);
});
