// Keys, all videos at once, and how long an answer took. Without this script the page is an ordinary form.
"use strict";

const form = document.querySelector("form.answers");
const videos = [...document.querySelectorAll("video")];
const questions = [...document.querySelectorAll("fieldset.question")];
const comment = document.getElementById("comment");
const submit = form.querySelector("button.button");
const said = document.getElementById("said");
const word = document.querySelector("[data-word]");
const opened = performance.now();
let current = 0;

const answered = (question) => question.querySelector("input:checked") !== null;

function mark(index, focus) {
  current = Math.max(0, Math.min(index, questions.length - 1));
  questions.forEach((question, at) => question.classList.toggle("current", at === current));
  if (focus) {
    const inputs = [...questions[current].querySelectorAll("input")];
    (inputs.find((input) => input.checked) || inputs[0]).focus({ preventScroll: true });
    questions[current].scrollIntoView({ block: "nearest" });
  }
}

function choose(number) {
  const question = questions[current];
  const input = question.querySelectorAll("input")[number];
  if (!input) return;
  input.checked = true;
  question.classList.remove("open");
  said.textContent = `${question.querySelector("legend").textContent}: ${input.nextElementSibling.firstChild.textContent}`;
  const next = questions.findIndex((other) => !answered(other));
  if (next === -1) submit.focus({ preventScroll: true });
  else mark(next, true);
}

function playing() {
  return videos.some((video) => !video.paused);
}

function tell() {
  word.textContent = (playing() ? "Pause" : "Play") + (videos.length > 1 ? " both" : "");
}

function play() {
  for (const video of videos) video.play().catch(() => {});
}

function toggle() {
  if (playing()) videos.forEach((video) => video.pause());
  else play();
}

function again() {
  for (const video of videos) video.currentTime = 0;
  play();
}

for (const video of videos) {
  video.addEventListener("play", tell);
  video.addEventListener("pause", tell);
  video.addEventListener("error", () => (video.parentElement.querySelector(".wrong").hidden = false));
  if (video.error) video.parentElement.querySelector(".wrong").hidden = false;
}
document.querySelector(".tools").hidden = false;
document.querySelector('[data-do="toggle"]').addEventListener("click", toggle);
document.querySelector('[data-do="again"]').addEventListener("click", again);
if (!matchMedia("(prefers-reduced-motion: reduce)").matches) play();
tell();

questions.forEach((question, at) => {
  question.addEventListener("focusin", () => mark(at, false));
  question.addEventListener("change", () => question.classList.remove("open"));
});
mark(Math.max(0, questions.findIndex((question) => !answered(question))), false);

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const at = event.target;
  if (at === comment) {
    if (event.key === "Escape") mark(current, true);
    return;
  }
  const radio = at.matches('input[type="radio"]');
  const control = at.matches("a, button, video");
  if ("1234".includes(event.key) && event.key.length === 1) choose(Number(event.key) - 1);
  else if (event.key === "ArrowDown" && at.tagName !== "VIDEO") mark(current + 1, true);
  else if (event.key === "ArrowUp" && at.tagName !== "VIDEO") mark(current - 1, true);
  else if (event.key === " " && !control && !radio) toggle();
  else if (event.key === " " && radio && at.checked) toggle();
  else if (event.key.toLowerCase() === "r") again();
  else if (event.key.toLowerCase() === "c") comment.focus();
  else if (event.key === "Enter" && !control) form.requestSubmit();
  else return;
  event.preventDefault();
});

form.addEventListener("submit", (event) => {
  if (submit.disabled) event.preventDefault();
  form.elements.seconds.value = ((performance.now() - opened) / 1000).toFixed(1);
  submit.disabled = true; // the form is on its way; a second press must not send it again
});
// Coming back by the browser's own button finds the page as it was left.
addEventListener("pageshow", () => (submit.disabled = false));
