"use strict";
// Where a review is kept: in the browser with every change and, where `midog view` serves the page, on the disk beside
// the result. Whoever finds that another tab or program changed it stops saving, so that nothing is overwritten.
const Saving = (() => {
  const WAIT = 500, RETRY = 10_000;  // ms

  // page: banner(id, text, ...[name, action]), status(text), download(); taken() is called when the review is another.
  function create(state, data, page) {
    const key = "midog review " + data.key;
    const {url, start} = data.review;
    const download = ["Download the review", page.download], reload = ["Reload", () => location.reload()];
    let revision = data.review.revision, isStopped = false, isUnsaved = false;
    let timer = null, sending = Promise.resolve();

    function keep() {
      try {
        localStorage.setItem(key, JSON.stringify({revision, state}));
        return true;
      } catch {
        page.banner("not-kept", "This browser keeps nothing of this page: its storage is full or forbidden. Download "
          + "the review before you close it.", download);
        return false;
      }
    }

    function save() {
      isUnsaved = isStopped || !keep();
      if (isStopped) return;
      page.status(isUnsaved ? "not saved" : url ? "kept in this browser, being saved" : "kept in this browser");
      if (url) sendIn(WAIT);
    }

    function stop(id, text) {
      isStopped = true;
      clearTimeout(timer);
      page.status("no longer saved");
      page.banner(id, text, download, reload);
    }

    function sendIn(delay) {
      clearTimeout(timer);
      timer = setTimeout(() => { sending = sending.then(send); }, delay);
    }

    async function send() {
      if (isStopped) return;
      const sent = JSON.stringify(state);
      let refused = "midog view does not answer; is it still running?";
      try {
        const answer = await fetch(url, {
          method: "PUT",
          headers: {"Content-Type": "application/geo+json", "If-Match": revision},
          body: JSON.stringify(state.toGeoJSON()),
        });
        if (answer.status === 412)
          return stop("conflict", "Another review of this result was saved meanwhile, and is left as it is. Yours is "
            + "in this page only: download it, then reload.");
        refused = answer.ok ? "" : await answer.text();
        if (answer.ok) revision = answer.headers.get("ETag");
      } catch { /* told below */ }
      if (refused) {
        page.status("not saved beside the result");
        page.banner("refused", "The browser keeps the review and tries again, for it was not saved beside the result: "
          + refused, download);
        return sendIn(RETRY);
      }
      document.getElementById("refused")?.remove();
      if (sent !== JSON.stringify(state)) return keep();  // with the new revision; what changed meanwhile is sent next
      isUnsaved = false;
      page.status("saved beside the result");
      try {
        localStorage.removeItem(key);
      } catch { /* forbidden: nothing was kept */ }
    }

    function startOver() {
      if (!start || !state.load(start)) state.restore({...state.toJSON(), threshold: null, rows: []});
      page.taken();
      save();
    }

    function open() {
      page.status(url ? "saved beside the result" : "kept in this browser");
      if (start && !state.load(start))
        stop("other", `The review beside the result is not taken over: ${state.reason}.`);
      let kept = null;
      try {
        kept = JSON.parse(localStorage.getItem(key));
      } catch { /* forbidden or damaged: nothing was kept */ }
      const before = JSON.stringify(state);
      if (kept && state.restore(kept.state)) {
        if (JSON.stringify(state) === before) return;
        revision = kept.revision;
        page.banner("restored", `What was changed here last time is back, ${state.edits} reviewed.`,
          ["Discard", startOver]);
        if (url) sendIn(WAIT);
      } else if (kept) page.banner("other", `What this browser kept is not taken over: ${state.reason}.`);
    }

    window.addEventListener("storage", event => {
      if (event.key === key && event.newValue !== null && !isStopped)
        stop("elsewhere", "This review was changed in another tab or window; this one no longer saves it.");
    });
    window.addEventListener("beforeunload", event => { if (isUnsaved) event.preventDefault(); });
    return {save, open, startOver};
  }

  return {create};
})();
