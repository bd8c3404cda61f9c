// Keys. Without this script the pages are ordinary forms and links.
"use strict";

const form = document.querySelector("form.answers");
const inputs = form ? [...form.querySelectorAll('input[name="choice"]')] : [];
const next = document.getElementById("next");
const change = document.getElementById("change");
const video = document.querySelector("video");
let sent = false;

if (next) next.focus();
document.documentElement.dataset.keys = "ready";

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
  const number = "123456789".indexOf(event.key);
  if (form && event.key.length === 1 && number >= 0 && inputs[number]) {
    inputs[number].checked = true;
    form.requestSubmit(); // one key answers
  } else if (form && event.key === "Enter" && !event.target.matches("a, button, video")) form.requestSubmit();
  else if (video && event.key === " " && !event.target.matches("a, button, video")) {
    if (video.paused) video.play().catch(() => {});
    else video.pause();
  } else if (video && event.key.toLowerCase() === "r") video.currentTime = 0;
  else if (next && event.key === "Enter" && event.target !== change) next.click();
  else if (change && event.key.toLowerCase() === "c") change.click();
  else return;
  event.preventDefault();
});

// A second press must not send it again; coming back by the browser's own button finds the page as it was.
if (form) form.addEventListener("submit", (event) => (sent ? event.preventDefault() : (sent = true)));
addEventListener("pageshow", () => (sent = false));
