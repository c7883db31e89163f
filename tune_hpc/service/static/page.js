// Keeps the page fresh: a tick every two seconds while something on it runs, else every fifteen, none while nobody looks.
"use strict";
(() => {
  // Parts are put in place such that what did not change stays: the focus, a selection, what is being typed. The
  // extension that idiomorph brings for this evaluates text as a script, which this page does not allow.
  htmx.defineExtension("morph", {
    isInlineSwap: (style) => style === "morph:outerHTML" || style === "morph:innerHTML",
    handleSwap: (style, target, fragment) => {
      if (!style.startsWith("morph:")) return false;
      return Idiomorph.morph(target, [...fragment.children], { morphStyle: style.slice(6), ignoreActiveValue: true });
    },
  });

  const ACTIVE_MS = 2000, QUIET_MS = 15000, SLOW_EVERY = 3;
  let last = Date.now(), count = 0, failed = 0;

  const isActive = () => document.querySelector('[data-active="yes"]') !== null;

  function tick() {
    last = Date.now();
    document.body.dispatchEvent(new CustomEvent("tick"));
    if (count++ % SLOW_EVERY === 0) document.body.dispatchEvent(new CustomEvent("slow-tick"));
  }

  setInterval(() => {
    if (document.visibilityState !== "visible") return;
    if (Date.now() - last >= (isActive() ? ACTIVE_MS : QUIET_MS) - 50) tick();
  }, 500);
  document.addEventListener("visibilitychange", () => { if (document.visibilityState === "visible") tick(); });

  // A service that does not answer is told once; what is shown stays.
  const lost = (is) => { document.getElementById("lost").hidden = !is; };
  window.tuneHpc = { answered: () => { failed = 0; lost(false); }, unanswered: () => { if (++failed > 1) lost(true); } };
  document.body.addEventListener("htmx:afterOnLoad", window.tuneHpc.answered);
  document.body.addEventListener("htmx:sendError", window.tuneHpc.unanswered);
  document.body.addEventListener("htmx:timeout", window.tuneHpc.unanswered);

  // When a search ends, what is made at its end is there to be shown.
  let state = null;
  document.body.addEventListener("htmx:afterSettle", () => {
    const summary = document.getElementById("summary");
    if (!summary) return;
    const now = summary.dataset.state;
    if (state !== null && state !== now && summary.dataset.active === "no") location.reload();
    state = now;
  });

  document.querySelectorAll("[data-submits]").forEach((one) => one.addEventListener("change", () => one.form.submit()));
  document.body.addEventListener("click", (event) => {
    if (!event.target.matches("[data-clears]")) return;
    const field = document.getElementById("filter");
    field.value = "";
    field.form.requestSubmit();
    field.focus();
  });

  // A button that was pressed is not pressed twice.
  document.body.addEventListener("submit", (event) => {
    if (event.target.method !== "post") return;
    setTimeout(() => event.target.querySelectorAll("button").forEach((one) => { one.disabled = true; }));
  });
  window.addEventListener("pageshow", () => document.querySelectorAll("button:disabled").forEach((one) => { one.disabled = false; }));

  document.querySelectorAll("details[data-log]").forEach((one) => {
    const show = async () => {
      if (!one.open) return;
      const answer = await fetch(one.dataset.log, { cache: "no-cache" }).catch(() => null);
      if (!answer || !answer.ok) return;
      const box = one.querySelector("pre"), text = (await answer.text()) || "It has printed nothing yet.";
      if (box.textContent === text) return;
      const isAtEnd = box.scrollTop + box.clientHeight >= box.scrollHeight - 8;
      box.textContent = text;
      if (isAtEnd) box.scrollTop = box.scrollHeight;
    };
    one.addEventListener("toggle", show);
    document.body.addEventListener("tick", show);
  });

  // A link that carries the token after # logs in with it; a browser never sends that part anywhere.
  const login = document.getElementById("login");
  if (login && location.hash.startsWith("#token=")) {
    login.elements.token.value = decodeURIComponent(location.hash.slice(7));
    history.replaceState(null, "", location.pathname + location.search);
    login.requestSubmit();
  }
})();
