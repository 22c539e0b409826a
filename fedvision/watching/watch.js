// Takes the sections of the page that have changed from the server and puts them in place.
"use strict";
(() => {
  const QUIET_MS = 10000; // between two sentences that are read aloud
  const AGAIN_MS = 3000;
  const byId = (id) => document.getElementById(id);
  const connection = byId("connection"), said = byId("said"), text = byId("text"), found = byId("found");
  let version = document.body.dataset.version;
  let waiting = 0, lastSaid = -QUIET_MS, sentence = "";

  // Whoever hears the page gets the newest sentence, and no more than one in ten seconds.
  function say(next) {
    sentence = next;
    if (waiting) return;
    const wait = Math.max(0, lastSaid + QUIET_MS - performance.now());
    waiting = setTimeout(() => {
      waiting = 0;
      lastSaid = performance.now();
      said.textContent = sentence;
    }, wait);
  }

  // A section keeps what a person has done in it: where tables are scrolled to, and the focus.
  function replace(id, html) {
    const section = byId(id);
    if (!section) return;
    const regions = () => [...section.querySelectorAll("[role=region]")];
    const before = regions().map((one) => [one.getAttribute("aria-label"), one.scrollLeft, one === document.activeElement]);
    section.innerHTML = html;
    regions().forEach((one, place) => {
      const kept = before[place];
      if (!kept) return;
      one.scrollLeft = kept[1];
      if (kept[2]) one.focus({ preventScroll: true });
    });
  }

  function show(message) {
    const { sections, say: next } = JSON.parse(message.data);
    for (const [id, html] of Object.entries(sections)) replace(id, html);
    const title = document.querySelector("[data-title]");
    if (title) document.title = title.dataset.title;
    if ("clients" in sections && text.value) find();
    version = message.lastEventId;
    if (next) say(next);
  }

  function connect() {
    const source = new EventSource("events?since=" + encodeURIComponent(version));
    source.addEventListener("sections", show);
    source.onopen = () => { connection.textContent = "live"; };
    source.onerror = () => {
      connection.textContent = "connection lost, trying again; what is shown may be old";
      if (source.readyState === EventSource.CLOSED) setTimeout(connect, AGAIN_MS);
    };
  }

  let asked = 0, timer = 0;
  async function find() {
    const number = ++asked;
    const answer = text.value.trim() ? await fetch("clients?text=" + encodeURIComponent(text.value)).catch(() => null) : null;
    const html = answer && answer.ok ? await answer.text() : "";
    if (number !== asked || found.innerHTML === html) return;
    found.innerHTML = html;
    byId("count").textContent = found.querySelector("p")?.textContent ?? "";
  }
  byId("search").addEventListener("submit", (event) => { event.preventDefault(); find(); });
  text.addEventListener("input", () => { clearTimeout(timer); timer = setTimeout(find, 250); });
  connect();
})();
