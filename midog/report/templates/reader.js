"use strict";
// The reader's page: goes from cell to cell, corrects, counts, keeps the review and gives it out.
window.reader = (() => {
  const byId = id => document.getElementById(id);
  const data = JSON.parse(byId("data").textContent);
  const pixels = byId("pixels") ? JSON.parse(byId("pixels").textContent) : null;
  const state = State.create(data);
  const bySystem = state.summary();
  const viewer = Viewer.create(byId("viewer"), byId("scale-bar"), data, pixels);
  const FIELD_UM = 24, CROP = 96;  // side of a card's picture, um and px
  const ON_STRIP = 10, CARDS = 400, ROWS = 100;  // that are shown at once
  const LATER = 250;  // ms after the last change until what lies further down follows
  const RETRY = 1000;  // ms, while the slide is being read

  let current = -1, withSubtypes = false;
  let shownKey = "hotspot";  // of the protocol whose window is drawn
  let cardsShown = CARDS, rowsShown = ROWS;

  const short = number => Number(number.toPrecision(3)).toLocaleString("en");
  const whole = number => number.toLocaleString("en");
  const plural = (number, one, more) => `${whole(number)} ${number === 1 ? one : more}`;

  function make(tag, content = [], attributes = {}) {
    const element = document.createElement(tag);
    element.append(...[content].flat());
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    return element;
  }

  // --- which cells ---

  const isOnImage = (x, y) => x >= -.5 && y >= -.5 && x <= data.size[0] - .5 && y <= data.size[1] - .5;
  const isRemoved = i => state.origin[i] === "reader" && state.verdict[i] === "rejected";
  const lists = {
    figures: i => state.isFigure(i) || state.touched[i],
    open: i => state.isFigure(i) && !state.touched[i],
    unsure: i => state.verdict[i] === "unsure",
    rejected: i => state.verdict[i] === "rejected",
    threshold: i => state.isForThreshold(i),
    all: () => true,
  };
  const chosen = isChosen => state.x.flatMap((_, i) => isChosen(i) && !isRemoved(i) ? [i] : []);
  const listed = () => chosen(lists[byId("list").value]);

  function kindOf(i) {
    if (isRemoved(i)) return null;
    if (state.isFigure(i) && !state.isCounted(i)) return "outside";
    if (state.isFigure(i)) return state.subtype[i] === "atypical" ? "atypical" : "accepted";
    if (state.verdict[i] === "unsure") return "unsure";
    if (state.touched[i]) return "refused";
    return byId("rejected").checked ? "rejected" : null;
  }

  const verdictOf = i => state.isFigure(i) ? state.subtype[i] ?? "accepted"
    : state.verdict[i] === "unsure" ? "not sure" : "rejected";
  const isMoved = i => i < data.x.length && (state.x[i] !== data.x[i] || state.y[i] !== data.y[i]);

  function reviewOf(i) {
    if (state.origin[i] === "reader") return "added by the reader";
    const isOther = state.verdict[i] !== (state.system[i] ? "accepted" : "rejected");
    if (!state.touched[i]) return isOther ? `${verdictOf(i)} by the threshold` : "";
    const said = [isOther ? verdictOf(i) : "confirmed", ...isMoved(i) ? ["moved"] : []];
    return `${said.join(" and ")} by the reader`;
  }

  function select(i, go = true) {
    current = i;
    setMode("look");
    say("");
    if (go && i >= 0) viewer.goTo(state.x[i], state.y[i], Math.max(viewer.map.getZoom(), viewer.cellZoom));
    refresh(false);
  }

  function step(forward) {
    const items = listed();
    const next = forward ? items.find(i => i > current) : items.findLast(i => i < current);
    if (next !== undefined) select(next);
    else say(items.length ? `That was the ${forward ? "last" : "first"} of this list.` : "This list is empty.");
  }

  // --- what the reader does ---

  function change(edit) {
    edit();
    saving.save();
    refresh();
  }

  const act = edit => { if (current >= 0) change(() => edit(current)); };
  const actions = {
    next: () => step(true),
    previous: () => step(false),
    accept: () => act(i => state.setVerdict(i, "accepted")),
    reject: () => act(i => state.setVerdict(i, "rejected")),
    unsure: () => act(i => state.setVerdict(i, "unsure")),
    subtype: () => {
      if (withSubtypes) act(i => state.setSubtype(i, state.subtype[i] === "atypical" ? "normal" : "atypical"));
    },
    move: () => { if (current >= 0) setMode(viewer.mode === "move" ? "look" : "move"); },
    add: () => setMode(viewer.mode === "add" ? "look" : "add"),
    undo: () => {
      if (!state.undo()) return say("Nothing is left to undo.");
      if (current >= state.x.length || current >= 0 && isRemoved(current)) current = -1;
      saving.save();
      refresh();
    },
    hotspot: () => show("hotspot"),
    whole: () => viewer.goToWhole(),
    closer: () => viewer.map.zoomIn(),
    further: () => viewer.map.zoomOut(),
    look: () => setMode("look"),
    keys: () => byId("help").showModal(),
  };
  const KEYS = {
    n: "next", ArrowRight: "next", p: "previous", ArrowLeft: "previous", a: "accept", r: "reject", u: "unsure",
    t: "subtype", m: "move", "+": "add", z: "undo", h: "hotspot", 0: "whole", i: "closer", o: "further",
    Escape: "look", "?": "keys",
  };
  const HINTS = {
    look: "",
    add: "Click the centre of the figure that is missing. Esc ends.",
    move: "Click, or drag to, the centre of the cell. Esc ends.",
  };

  function setMode(mode) {
    viewer.setMode(mode);
    byId("hint").textContent = HINTS[mode];
    for (const each of ["add", "move"]) byId(each).setAttribute("aria-pressed", mode === each);
  }

  viewer.onSelect = i => select(i, false);
  viewer.onAdd = (x, y) => {
    setMode("look");
    if (isOnImage(x, y)) change(() => { current = state.add(x, y); });
  };
  viewer.onMove = (i, x, y) => {
    setMode("look");
    if (isOnImage(x, y)) change(() => state.move(i, x, y));
    else showMarks();
  };
  viewer.onHover = (i, event) => {
    byId("tip").hidden = i < 0;
    if (i < 0) return;
    byId("tip").textContent = describe(i).join("\n");
    byId("tip").style.left = Math.min(event.clientX + 14, window.innerWidth - byId("tip").offsetWidth - 8) + "px";
    byId("tip").style.top = event.clientY + 14 + "px";
  };

  // --- what is shown ---

  const say = text => { byId("said").textContent = text; };

  function describe(i) {
    const score = state.p[i] === null ? "" : `, ${data.scoreName.toLowerCase()} ${state.p[i].toFixed(3)}`;
    const lines = [`No. ${state.name(i)}${score}`];
    if (state.pAtypical[i] !== null) lines.push(`P(atypical) ${state.pAtypical[i].toFixed(3)}`);
    lines.push(`${state.x[i].toFixed(0)}, ${state.y[i].toFixed(0)} px`);
    return lines;
  }

  let painting = Promise.resolve();

  // The gallery's, one after the other; those of the strip do not wait.
  function cropOf(i, waits) {
    const canvas = make("canvas", [], {width: CROP, height: CROP, "aria-hidden": true});
    const paint = () => viewer.crop(canvas, state.x[i], state.y[i], FIELD_UM).catch(() => {});
    if (waits) painting = painting.then(paint);
    else paint();
    return canvas;
  }

  function cellButton(i, className, ...more) {
    const button = make("button", [cropOf(i, className === "card"), make("b", state.name(i)), ...more], {
      type: "button", class: `${className} ${verdictOf(i).replace(" ", "-")}`, "data-number": i,
      "aria-label": `${describe(i).join(", ")}, ${verdictOf(i)}`,
    });
    button.addEventListener("click", () => {
      select(i);
      byId("viewer").scrollIntoView({block: "nearest"});
    });
    return button;
  }

  function fillStrip() {
    const items = listed();
    const before = items.filter(i => i < current).length;
    const last = Math.max(items.length - ON_STRIP, 0), first = Math.min(Math.floor(before / ON_STRIP) * ON_STRIP, last);
    byId("strip").replaceChildren(...items.slice(first, first + ON_STRIP).map(i => {
      const button = cellButton(i, "thumb");
      if (i === current) button.setAttribute("aria-current", "true");
      return button;
    }));
    byId("position").textContent = items.length === 0 ? "none"
      : items.includes(current) ? `${whole(before + 1)} of ${whole(items.length)}` : whole(items.length);
  }

  function fillCurrent() {
    const here = current >= 0;
    for (const id of ["accept", "reject", "unsure", "subtype", "move", "note"]) byId(id).disabled = !here;
    for (const [id, verdict] of [["accept", "accepted"], ["reject", "rejected"], ["unsure", "unsure"]])
      byId(id).setAttribute("aria-pressed", here && state.verdict[current] === verdict);
    byId("subtype").setAttribute("aria-pressed", here && state.subtype[current] === "atypical");
    byId("note").value = here ? state.note[current] : "";
    byId("current").textContent = here ? describe(current)[0] : "No cell is chosen";
    const facts = [];
    if (here) {
      if (state.origin[current] === "system")
        facts.push(`${state.system[current] ? "accepted" : "rejected"} by the system`);
      if (reviewOf(current)) facts.push(reviewOf(current));
      if (withSubtypes && state.isFigure(current) && state.subtype[current])
        facts.push(state.subtype[current] + (state.pAtypical[current] === null ? ""
          : `, P(atypical) ${state.pAtypical[current].toFixed(2)}`));
      if (state.summary().inHotspot[current]) facts.push("in the hotspot");
      if (!state.isCounted(current)) facts.push("not counted here");
      const sentence = data.sentences[Math.min(Math.floor(state.p[current] * 10), 9)];
      if (state.p[current] !== null && sentence) facts.push(sentence);
      if (pixels && !viewer.isSharp(state.x[current], state.y[current])) facts.push("coarse here: see midog view");
    }
    byId("about").textContent = facts.join(" · ") || "Click one on the slide or in the list, or press n.";
  }

  function share({atypical, classified}) {
    const said = `Atypical: ${whole(atypical)} of ${whole(classified)}`;
    if (classified === 0) return "";
    if (classified < data.leastFigures) return `${said}; a share is not given below ${data.leastFigures} figures`;
    const ends = Counts.wilsonInterval(atypical, classified).map(end => (100 * end).toFixed(0));
    return `${said}, ${(100 * atypical / classified).toFixed(0)} %; 95 % interval ${ends.join(" to ")} %`;
  }

  function corrected({atypical, classified, reviewed}) {
    if (classified < data.leastFigures || reviewed === classified) return "";
    const known = Counts.correctedShare(atypical, classified, reviewed, data.subtypeErrors);
    if (!known) return "Not corrected: the system's errors are unknown, or too many";
    const [share, low, high] = known.map(end => (100 * end).toFixed(0));
    return `Corrected for the system's errors: ${share} %, ${low} to ${high} %`;
  }

  // --- what is counted ---

  const rows = new Map(data.protocols.map(({key, name}) => {
    const [system, reader, interval, rate] = ["", "by-reader", "", ""].map(name => make("td", [], {class: name}));
    reader.id = `by-reader-${key}`;
    const detail = make("td", [], {class: "detail", colspan: 5}), button = make("button", name, {type: "button"});
    const numbers = make("tr", [make("th", button, {scope: "row"}), system, reader, interval, rate]);
    const body = make("tbody", [numbers, make("tr", detail)]);
    body.addEventListener("click", () => show(key));
    byId("protocols").append(body);
    return [key, {body, button, detail, system, reader, interval, rate}];
  }));

  function detailsOf({areaMm2, askedMm2, isReached, tissueMm2, boxes}) {
    const area = isReached ? short(areaMm2) : `area not reached: ${short(areaMm2)} of ${short(askedMm2)}`;
    const tissue = tissueMm2 === null ? "…" : short(tissueMm2);
    const place = boxes.map(([left, top]) => ` · from ${left.toFixed(0)},\u00a0${top.toFixed(0)}\u00a0px`).join("");
    return `${area} mm², tissue ${tissue}${place}`;
  }

  const rounded = end => end < 10 ? short(Number(end.toFixed(1))) : whole(Math.round(end));

  function fillProtocols() {
    state.summary().protocols.forEach((found, i) => {
      const {body, button, detail, system, reader, interval, rate} = rows.get(found.key);
      const before = bySystem.protocols[i].figures, isShown = found.key === shownKey;
      const known = text => found.areaMm2 ? text : "–";  // no field fits on the image
      system.textContent = known(whole(before));
      reader.textContent = known(whole(found.figures));
      reader.classList.toggle("changed", found.figures !== before);
      interval.textContent = known(found.interval.map(rounded).join("–"));
      rate.textContent = found.perMm2Tissue === null ? "–" : short(found.perMm2Tissue);
      detail.textContent = detailsOf(found);
      detail.classList.toggle("short-of", !found.isReached);
      body.classList.toggle("shown", isShown);
      button.setAttribute("aria-pressed", isShown);
    });
    const {name, boxes, circles} = protocolOf(state.summary());
    byId("window-name").textContent = `${name}; dashed: the system's`;
    byId("window-key").hidden = boxes.length + circles.length === 0;
  }

  const rateOf = ({perMm2Tissue}) => perMm2Tissue === null ? "" : ` (${short(perMm2Tissue)} per mm² of tissue)`;

  function fillCounts() {
    const {figures, hotspot, protocols, unsure} = state.summary();
    fillProtocols();
    byId("share").textContent = share(state.summary());
    byId("corrected").textContent = corrected(state.summary());
    const those = isChosen => whole(chosen(isChosen).length);
    byId("changes").textContent = [
      `${those(i => state.isFigure(i) && state.touched[i])} of ${whole(figures)} confirmed`,
      `${those(i => state.system[i] && state.verdict[i] === "rejected")} rejected`,
      `${those(i => state.isFigure(i) && !state.system[i])} added`,
      `${those(isMoved)} moved`,
      ...unsure ? [`${whole(unsure)} not sure`] : [],
    ].join(" · ");
    const everywhere = protocols.find(({key}) => key === "whole");
    const all = plural(figures, "mitotic figure", "mitotic figures") + rateOf(everywhere);
    const most = hotspot ? `${whole(hotspot.figures)} in the hotspot${rateOf(hotspot)}`
      : "no hotspot: no mitotic figure was accepted";
    byId("recount").textContent = byId("recounted").textContent = `${all} · ${most}`;
    byId("value").textContent = (state.threshold ?? data.threshold).toFixed(2);
    byId("threshold").value = state.threshold ?? data.threshold;
    byId("as-result").disabled = state.threshold === null;
  }

  // --- where it is counted ---

  const inPx = rings => rings.map(ring => ring.map(place => place.map((nm, axis) => nm / (1000 * data.umPerPx[axis]))));
  const areas = data.areas.counted.map(inPx), excluded = inPx(data.areas.excluded);
  const outlines = [...areas.map(rings => ({rings, colour: data.colours.area})),
    {rings: excluded, colour: data.colours.excluded}];
  const protocolOf = ({protocols}) => protocols.find(({key}) => key === shownKey);

  // Draws a protocol's window or fields and goes there.
  function show(key) {
    shownKey = key;
    refresh(false);
    const {boxes, circles} = protocolOf(state.summary());
    const named = data.protocols.filter(each => each.key.startsWith("area:")).findIndex(each => each.key === key);
    const places = [...boxes.flatMap(([left, top, right, bottom]) => [[left, top], [right, bottom]]),
      ...circles.flatMap(([x, y, across, down]) => [[x - across, y - down], [x + across, y + down]]),
      ...(key === "areas" ? areas : areas.slice(named, named + 1)).flat(2)];
    if (key === "whole" || places.length === 0) return viewer.goToWhole();
    const [xs, ys] = [0, 1].map(axis => places.map(place => place[axis]));
    viewer.goToBox([Math.min(...xs), Math.min(...ys), Math.max(...xs), Math.max(...ys)]);
  }

  async function readTissue() {
    for (;;) {
      const answer = await fetch(data.tissueUrl);
      if (answer.ok) {
        const read = await answer.json();
        state.setTissue(read);
        data.tissue = read.tissue;
        break;
      }
      if (answer.status !== 503) return byId("tissue").replaceChildren("not known: ", await answer.text());
      await new Promise(resolve => setTimeout(resolve, RETRY));
    }
    byId("tissue").textContent = `${short(data.tissue.mm2)} mm²`;
    refresh();
  }

  function showMarks() {
    const windows = [...outlines];
    if (byId("show-window").checked) {
      const ofProtocol = ({boxes, circles}) => [...boxes.map(box => ({box})), ...circles.map(circle => ({circle}))];
      const [systems, readers] = [bySystem, state.summary()].map(summary => ofProtocol(protocolOf(summary)));
      const colour = data.colours.hotspot;
      if (JSON.stringify(systems) !== JSON.stringify(readers))
        windows.push(...systems.map(each => ({...each, colour, dash: [7, 6]})));
      windows.push(...readers.map(each => ({...each, colour})));
    }
    const shown = byId("show-points").checked;
    const kinds = state.x.map((_, i) => i === current ? kindOf(i) ?? "rejected" : shown ? kindOf(i) : null);
    viewer.show({x: state.x, y: state.y, kinds, current, windows,
      added: chosen(i => shown && state.origin[i] === "reader")});
  }

  const cards = new Map();  // by candidate and what it looks like: their pictures are drawn once

  function fillGallery() {
    const items = chosen(i => kindOf(i) !== null);
    byId("gallery").replaceChildren(...items.slice(0, cardsShown).map(i => {
      const key = [i, verdictOf(i), reviewOf(i), state.x[i], state.y[i]].join();
      if (!cards.has(key)) {
        const lines = [make("span", state.p[i] === null ? "added" : state.p[i].toFixed(3), {class: "p"})];
        if (state.pAtypical[i] !== null)
          lines.push(make("span", `P(atypical) ${state.pAtypical[i].toFixed(2)}`, {class: "wide"}));
        const outside = ", not counted".repeat(!state.isCounted(i));
        lines.push(make("span", verdictOf(i) + outside, {class: "verdict wide"}));
        lines.push(make("span", `${state.x[i].toFixed(0)}, ${state.y[i].toFixed(0)} px`, {class: "soft wide"}));
        cards.set(key, cellButton(i, "card", ...lines));
      }
      return cards.get(key);
    }));
    byId("no-cards").hidden = items.length > 0;
    byId("more-cards").hidden = items.length <= cardsShown;
  }

  function fillTable() {
    const items = chosen(i => kindOf(i) !== null), {inHotspot} = state.summary();
    byId("rows").replaceChildren(...items.slice(0, rowsShown).map(i => {
      const mm = [state.x[i], state.y[i]].map((px, axis) => px * data.umPerPx[axis] / 1000 + data.originMm[axis]);
      const cells = [state.name(i), state.label(i), state.p[i]?.toFixed(4) ?? "",
        ...withSubtypes ? [state.pAtypical[i]?.toFixed(3) ?? ""] : [], state.x[i].toFixed(1), state.y[i].toFixed(1),
        mm[0].toFixed(4), mm[1].toFixed(4), inHotspot[i] ? "yes" : "",
        [state.isCounted(i) ? "" : "not counted", reviewOf(i), state.note[i]].filter(Boolean).join(": ")];
      return make("tr", cells.map(text => make("td", text)), {"data-number": i});
    }));
    byId("no-rows").hidden = items.length > 0;
    byId("more").hidden = items.length <= rowsShown;
  }

  function fillDensity() {
    const figures = chosen(i => state.isFigure(i) && state.isCounted(i)), frame = byId("density-window");
    const {hotspot} = state.summary();
    const top = Density.paint(byId("density"), figures.map(i => state.x[i]), figures.map(i => state.y[i]), data);
    byId("density-top").textContent = whole(top);
    frame.hidden = !hotspot;
    hotspot?.boxes[0].forEach((px, side) => {
      const percent = 100 * px / data.size[side % 2];
      frame.style[["left", "top", "right", "bottom"][side]] = `${side < 2 ? percent : 100 - percent}%`;
    });
  }

  let waiting = null;

  function fillRest() {
    clearTimeout(waiting);
    waiting = null;
    fillGallery();
    fillTable();
    fillDensity();
  }

  function refresh(isChange = true) {
    showMarks();
    fillCurrent();
    fillStrip();
    fillCounts();
    byId("saved-changes").textContent = plural(state.edits, "cell", "cells") + " reviewed";
    if (!isChange) return;
    clearTimeout(waiting);
    waiting = setTimeout(fillRest, LATER);
  }

  // --- where it is kept ---

  function banner(id, text, ...buttons) {
    byId(id)?.remove();
    const line = make("p", [text, " ", ...[...buttons, ["Close", () => {}]].map(([name, action]) => {
      const button = make("button", name, {type: "button"});
      button.addEventListener("click", () => { line.remove(); action(); });
      return button;
    })], {id, role: "alert"});
    byId("banners").append(line);
  }

  const saving = Saving.create(state, data, {
    banner,
    status: text => { byId("saved").textContent = text; },
    download: () => downloadReview(),
    taken: () => { current = -1; refresh(); },
  });

  function download(name, text, type) {
    const link = make("a", [], {href: URL.createObjectURL(new Blob([text], {type})), download: name});
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
  }

  const downloadReview = () =>
    download("reviewed.geojson", JSON.stringify(state.toGeoJSON(), null, 1), "application/geo+json");

  // --- the page's controls ---

  for (const name of Object.keys(actions)) byId(name)?.addEventListener("click", actions[name]);
  document.addEventListener("keydown", event => {
    const isTyping = event.target.closest("textarea, dialog")
      || event.key.startsWith("Arrow") && event.target.closest("input, select");
    const action = actions[KEYS[event.key]];
    const isUndo = (event.ctrlKey || event.metaKey) && event.key === "z";
    if (isTyping && event.key === "Escape") event.target.blur();
    if (isTyping || !action || (event.ctrlKey || event.metaKey || event.altKey) && !isUndo) return;
    event.preventDefault();
    action();
  });
  byId("note").addEventListener("change", () => {
    const text = byId("note").value.trim();
    if (current >= 0 && text !== state.note[current]) change(() => state.setNote(current, text));
  });
  byId("threshold").addEventListener("input", () => change(() => state.setThreshold(Number(byId("threshold").value))));
  byId("as-result").addEventListener("click", () => change(() => state.setThreshold(null)));
  byId("list").addEventListener("change", () => refresh(false));
  for (const id of ["show-points", "show-window"]) byId(id).addEventListener("change", showMarks);
  byId("rejected").addEventListener("change", () => refresh());
  byId("more").addEventListener("click", () => { rowsShown += 500; fillTable(); });
  byId("more-cards").addEventListener("click", () => { cardsShown += CARDS; fillGallery(); });
  byId("rows").addEventListener("click", event => {
    select(Number(event.target.closest("tr").dataset.number));
    byId("viewer").scrollIntoView({block: "nearest"});
  });
  byId("download").addEventListener("click", downloadReview);
  byId("download-table").addEventListener("click", () => download("reviewed.csv", state.toCSV(), "text/csv"));
  byId("start-over").addEventListener("click", () => {
    if (window.confirm("Take all your changes back? This cannot be undone.")) saving.startOver();
  });

  for (const swatch of document.querySelectorAll("[data-colour]"))
    swatch.style.borderColor = data.colours[swatch.dataset.colour];
  saving.open();
  withSubtypes = [...data.atypical, ...state.subtype].some(each => each !== null);
  for (const element of document.querySelectorAll(".of-subtypes")) element.hidden = !withSubtypes;
  viewer.overview(byId("grey"));
  setMode("look");
  refresh();
  fillRest();
  if (data.tissueUrl) readTissue().catch(() => { byId("tissue").textContent = "not known"; });
  document.body.dataset.readyMs = Math.round(performance.now());
  return {state, viewer};
})();
