/* What plain pages and htmx leave to a script: keys of the composer, the draft, following the end
   of the log, and saying that openbr does not answer. Pages work without it. No text lives here. */
(() => {
  "use strict";
  const byId = (id) => document.getElementById(id);
  const NEAR_END_PX = 80;

  // A browser may forbid its storage: then a draft does not survive a reload, and that is all.
  const kept = {
    get(key) { try { return sessionStorage.getItem(key) || ""; } catch { return ""; } },
    set(key, value) { try { sessionStorage.setItem(key, value); } catch { /* forbidden, or full */ } },
  };

  // The composer. Enter sends, Shift+Enter breaks the line, a composing input method keeps its Enter.
  const text = byId("text");
  const form = byId("composer");
  const draft = form && "draft " + form.getAttribute("action");

  if (form && text) {
    if (!text.value) text.value = kept.get(draft);
    text.addEventListener("input", () => kept.set(draft, text.value));
    text.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing || event.keyCode === 229) return;
      event.preventDefault();
      const send = byId("send");
      if (send && text.value.trim()) form.requestSubmit(send);
    });
    form.addEventListener("submit", () => kept.set(draft, ""));
    document.addEventListener("htmx:after:request", (event) => {
      const ctx = event.detail.ctx;
      if (ctx.sourceElement !== form || !ctx.response || ctx.response.status >= 400) return;
      if (text.value === ctx.request.body.get("text")) text.value = "";
      const welcome = byId("welcome");
      if (welcome) welcome.remove();
      kept.set(draft, text.value);
      follow = true;
      text.focus();
    });
    document.addEventListener("htmx:before:request", (event) => {
      // Kept until the answer says that it arrived.
      if (event.detail.ctx.sourceElement === form) kept.set(draft, text.value);
    });
  }

  // The log follows its end while the reader is near it.
  const log = byId("log");
  const toEnd = byId("to-end");
  let follow = true;

  if (log && toEnd) {
    const isNearEnd = () => log.scrollHeight - log.scrollTop - log.clientHeight < NEAR_END_PX;
    const goToEnd = () => { log.scrollTop = log.scrollHeight; };
    const settle = () => {
      if (follow) goToEnd();
      toEnd.hidden = follow;
    };
    if (!location.hash) goToEnd();
    log.addEventListener("scroll", () => {
      follow = isNearEnd();
      toEnd.hidden = follow;
    }, { passive: true });
    new MutationObserver(settle).observe(byId("turns"), { childList: true, subtree: true, characterData: true });
    new ResizeObserver(settle).observe(log);
    toEnd.addEventListener("click", () => { follow = true; settle(); log.focus({ preventScroll: true }); });
  }

  // htmx joins a broken stream again by itself, but not one that it could not join at first.
  const RETRY_MS = 2000;
  const joinAgain = (event) => {
    const ctx = event.detail.ctx;
    const live = ctx && ctx.sourceElement;
    if (!live || !live.hasAttribute("hx-sse:connect")) return;
    if (ctx.response && ctx.response.status < 500) return;
    setTimeout(() => { if (live.isConnected) htmx.process(live, true); }, RETRY_MS);
  };
  document.addEventListener("htmx:error", joinAgain);
  document.addEventListener("htmx:response:error", joinAgain);

  // The end of an answer: its stream has closed, the turn is at rest.
  document.addEventListener("done", (event) => {
    const turn = event.target.closest("[aria-busy]");
    if (turn) turn.removeAttribute("aria-busy");
    event.target.remove();
  });

  // A mark that was not sent yet survives a poll; an answer to a choice is the new truth.
  let marked = null;
  if (byId("model-list")) {
    document.addEventListener("htmx:before:swap", () => {
      marked = document.querySelector("#model-list input:checked:not([checked])");
    });
    document.addEventListener("htmx:after:swap", (event) => {
      if (event.detail.ctx.request.method === "POST") byId("model-list").reset();
      else if (marked && marked.isConnected) marked.checked = true;
    });
  }

  // openbr itself does not answer: say so once, take it back with the first answer.
  const lost = byId("lost");
  if (lost) {
    document.addEventListener("htmx:error", (event) => {
      if (event.detail.ctx) lost.hidden = false;
    });
    document.addEventListener("htmx:sse:error", () => { lost.hidden = false; });
    document.addEventListener("htmx:after:request", () => { lost.hidden = true; });
    document.addEventListener("htmx:sse:after:connection", () => { lost.hidden = true; });
  }
})();
