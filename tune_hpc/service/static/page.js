// Updates the page: every two seconds while a search on it runs, else every fifteen; not while the page is hidden.
"use strict";
(() => {
  // Swap fragments by morphing, so that focus, selection and input stay. The htmx extension of idiomorph evaluates text
  // as a script, which the Content-Security-Policy of this page forbids.
  htmx.defineExtension("morph", {
    isInlineSwap: (style) => style === "morph:outerHTML" || style === "morph:innerHTML",
    handleSwap: (style, target, fragment) => {
      if (!style.startsWith("morph:")) return false;
      return Idiomorph.morph(target, [...fragment.children], { morphStyle: style.slice(6), ignoreActiveValue: true,
        callbacks: { beforeAttributeUpdated: (name) => name !== "open" } });
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

  // Show a banner while the service does not answer.
  const lost = (is) => { document.getElementById("lost").hidden = !is; };
  window.tuneHpc = { answered: () => { failed = 0; lost(false); }, unanswered: () => { if (++failed > 1) lost(true); } };
  document.body.addEventListener("htmx:afterOnLoad", window.tuneHpc.answered);
  document.body.addEventListener("htmx:sendError", window.tuneHpc.unanswered);
  document.body.addEventListener("htmx:timeout", window.tuneHpc.unanswered);

  // Reload when a search ends: the report and the final frames are there.
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

  // Disable buttons after a submit, so that a double click sends one request.
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
      const box = one.querySelector("pre"), text = (await answer.text()) || "No output yet.";
      if (box.textContent === text) return;
      const isAtEnd = box.scrollTop + box.clientHeight >= box.scrollHeight - 8;
      box.textContent = text;
      if (isAtEnd) box.scrollTop = box.scrollHeight;
    };
    one.addEventListener("toggle", show);
    document.body.addEventListener("tick", show);
  });

  // Log in with the token of a link; browsers do not send the part of an address after #.
  const login = document.getElementById("login");
  if (login && location.hash.startsWith("#token=")) {
    login.elements.token.value = decodeURIComponent(location.hash.slice(7));
    history.replaceState(null, "", location.pathname + location.search);
    login.requestSubmit();
  }
})();
