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

// All videos go by one clock, as long as the longest: a shorter one waits at its end until all begin anew.
const scrub = document.querySelector('[data-do="scrub"]');
const shownTime = document.querySelector("[data-time]");
const shownSpeed = document.querySelector("[data-speed]");
const wide = document.querySelector('[data-do="wide"]');
const speeds = [[1, "full"], [0.5, "half"], [0.25, "quarter"]];
const APART = 0.15; // seconds that two videos may be apart before one is set right
let frame = 1 / 25; // seconds of a frame, until it is measured
let seen = -1; // when the last frame that was shown begins
let moving = false; // the rater has asked for the videos to play
let speed = 0;

const length = (video) => (Number.isFinite(video.duration) ? video.duration : 0);
const longest = () => videos.reduce((most, video) => (length(video) > length(most) ? video : most), videos[0]);
const now = () => Math.max(...videos.map((video) => video.currentTime));

function playing() {
  return moving && videos.some((video) => !video.paused);
}

function tell() {
  word.textContent = (moving ? "Pause" : "Play") + (videos.length > 1 ? " both" : "");
  scrub.max = length(longest()) || 1;
  scrub.value = now();
  shownTime.textContent = `${now().toFixed(1)} s`;
}

function play() {
  moving = true;
  for (const video of videos) if (!video.ended) video.play().catch(() => {});
  tell();
}

function pause() {
  moving = false;
  for (const video of videos) video.pause();
  tell();
}

function toggle() {
  if (playing()) pause();
  else if (videos.every((video) => video.ended)) again();
  else play();
}

function seek(time) {
  for (const video of videos) video.currentTime = Math.max(0, Math.min(time, length(video)));
  tell();
}

function again() {
  seek(0);
  play();
}

function step(frames) {
  pause();
  seek(now() + frames * frame);
}

function slower() {
  speed = (speed + 1) % speeds.length;
  for (const video of videos) video.playbackRate = speeds[speed][0];
  shownSpeed.textContent = speeds[speed][1];
  said.textContent = `${speeds[speed][1]} speed`;
}

function widen() {
  const on = document.querySelector(".videos").classList.toggle("wide");
  wide.setAttribute("aria-pressed", String(on));
}

function keepInStep() {
  const leader = longest();
  for (const video of videos) {
    const due = Math.min(leader.currentTime, length(video));
    if (video !== leader && !video.ended && !video.seeking && Math.abs(video.currentTime - due) > APART) video.currentTime = due;
  }
  tell();
}

function measureFrames(video) {
  if (!video.requestVideoFrameCallback) return;
  video.requestVideoFrameCallback((_, facts) => {
    const apart = facts.mediaTime - seen;
    if (seen >= 0 && apart > 0.005 && apart < 0.2) frame = Math.min(frame === 1 / 25 ? apart : frame, apart);
    seen = facts.mediaTime;
    measureFrames(video);
  });
}

for (const video of videos) {
  video.loop = false; // without this script each repeats by itself
  video.addEventListener("play", () => { moving = true; tell(); });
  video.addEventListener("pause", () => { if (!video.ended) { moving = videos.some((one) => !one.paused); tell(); } });
  video.addEventListener("loadedmetadata", tell);
  video.addEventListener("timeupdate", () => (moving ? keepInStep() : tell()));
  video.addEventListener("ended", () => { if (moving && videos.every((one) => one.ended || one.error)) again(); });
  video.addEventListener("error", () => (video.parentElement.querySelector(".wrong").hidden = false));
  if (video.error) video.parentElement.querySelector(".wrong").hidden = false;
}
measureFrames(videos[0]);
document.querySelector(".tools").hidden = false;
const tools = { toggle, again, back: () => step(-1), forth: () => step(1), speed: slower, wide: widen };
for (const [name, act] of Object.entries(tools)) document.querySelector(`[data-do="${name}"]`).addEventListener("click", act);
scrub.addEventListener("input", () => {
  const time = Number(scrub.value); // which pausing tells anew
  pause();
  seek(time);
});
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
  const control = at.matches("a, button, video, input[type=range]");
  if ("1234".includes(event.key) && event.key.length === 1) choose(Number(event.key) - 1);
  else if (event.key === "ArrowDown" && !at.matches("video, input[type=range]")) mark(current + 1, true);
  else if (event.key === "ArrowUp" && !at.matches("video, input[type=range]")) mark(current - 1, true);
  else if (event.key === " " && !control && !radio) toggle();
  else if (event.key === " " && radio && at.checked) toggle();
  else if (event.key.toLowerCase() === "r") again();
  else if (event.key === ",") step(-1);
  else if (event.key === ".") step(1);
  else if (event.key.toLowerCase() === "s") slower();
  else if (event.key.toLowerCase() === "f") widen();
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
