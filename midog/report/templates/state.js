/*
A reader's review of one result: what was corrected, what that makes the counts and the hotspot, and how it is saved.
Nothing here knows the page or its storage. Candidates are numbered from 0 in the order of the page's data, best first,
and the figures that the reader adds follow; px are those of level 0, a pixel's centre at integers.
*/
const State = (() => {
  "use strict";

  const FORMAT = 1; // of reviewed.geojson and of what is kept in the browser; no other is read
  const NAMES = {
    accepted: "mitotic figure",
    atypical: "atypical mitotic figure",
    normal: "normal mitotic figure",
    rejected: "non-mitotic figure",
    unsure: "not sure",
  };
  const KINDS = Object.fromEntries(Object.entries(NAMES).map(([kind, name]) => [name, kind]));
  const EDITED = ["x", "y", "verdict", "subtype", "note", "touched"]; // columns that a reader changes
  const FIXED = ["p", "pAtypical", "system", "origin"];
  const SAMPLE = 40; // verdicts that fit a local threshold: midog/evaluation/local_threshold.py asks for 30 to 50
  const SAME_PX = 1e-6; // adding and subtracting the corner moves a place by no more

  /** Why a file is not taken over, in words for the reader. */
  class Refusal extends Error {}

  /**
  The columns have an entry a candidate:
    x, y: px.
    p, pAtypical: the system's score and P(atypical); null for added ones, and where the system was not asked.
    system: whether the system accepted it.
    origin: "system" or "reader".
    verdict: "accepted", "rejected" or "unsure"; an added one is removed by "rejected".
    subtype: "atypical", "normal" or null.
    note: text.
    touched: whether the reader had a say in it.
  `threshold` is the score from which untouched candidates are accepted, or null: as the result says. `reason`
  tells why `load` or `restore` gave false.
  */
  class Review {
    #data;
    #start; // the columns that a reader changes, of the system's candidates
    #history = []; // functions that take a change back, the latest last
    #lastIsThreshold = false;
    #extent; // nm
    #sample; // of the ranks around the operating point
    #nm; // [x, y] of every candidate
    #held; // where each counts, as `Counts` has it
    #counter;
    #summary = null;

    constructor(data) {
      this.#data = data;
      this.#extent = Hotspot.extent(data.size, data.umPerPx);
      this.#counter = Counts.create(data, this.#extent);
      this.#sample = new Set(spread(data.accepted));
      this.#start = {
        x: data.x,
        y: data.y,
        verdict: data.accepted.map(accepted => accepted ? "accepted" : "rejected"),
        subtype: data.atypical.map(p => p === null ? null : p >= 0.5 ? "atypical" : "normal"),
        note: data.x.map(() => ""),
        touched: data.x.map(() => false),
      };
      this.threshold = null;
      this.reason = "";
      this.#reset();
    }

    // --- what a reader does ---

    setVerdict(i, verdict) {
      this.#edit(i, {verdict});
    }

    setSubtype(i, subtype) {
      this.#edit(i, {subtype});
    }

    move(i, x, y) {
      this.#edit(i, {x, y});
    }

    setNote(i, note) {
      this.#edit(i, {note});
    }

    /** Add a figure; gives its number. */
    add(x, y) {
      const i = this.#append({x, y, verdict: "accepted", subtype: null, note: ""});
      this.#changed(() => {
        for (const column of [...EDITED, ...FIXED]) this[column].pop();
        for (const column of [...this.#nm, this.#held]) column.pop();
      });
      return i;
    }

    /** Accept candidates from this score on, but for those that the reader touched; null: as the result says. */
    setThreshold(threshold) {
      const before = this.threshold;
      this.#setThreshold(threshold);
      if (this.#lastIsThreshold) this.#summary = null; // a slider's way is one change
      else this.#changed(() => this.#setThreshold(before));
      this.#lastIsThreshold = true;
    }

    /** Take the last change back; false where nothing is left. */
    undo() {
      this.#summary = null;
      this.#lastIsThreshold = false;
      const back = this.#history.pop();
      back?.();
      return back !== undefined;
    }

    // --- what that makes ---

    isFigure(i) {
      return this.verdict[i] === "accepted";
    }

    /** The name of its class, as in every file of a report. */
    label(i) {
      return NAMES[this.isFigure(i) && this.subtype[i] || this.verdict[i]];
    }

    /** Whether its verdict helps to fit a local threshold, and is not known yet. */
    isForThreshold(i) {
      return this.#sample.has(i) && !this.touched[i];
    }

    /** Its number in every file of a report. */
    name(i) {
      const count = this.#data.x.length;
      return i < count ? `${i + 1}` : `a${i - count + 1}`;
    }

    /** How many the reader had a say in. */
    get edits() {
      return this.touched.reduce((sum, touched, i) => sum + (touched && !this.#isRemoved(i)), 0);
    }

    /** Whether it lies where it is counted. */
    isCounted(i) {
      return Counts.isCounted(this.#held[i]);
    }

    /** Take over what is known of the tissue, and of the protocols by it, now that the slide was read. */
    setTissue({tissue, protocols}) {
      this.#counter = Counts.create({...this.#data, tissue, protocols}, this.#extent);
      this.#summary = null;
    }

    /**
    {figures, unsure, atypical, classified, reviewed, inHotspot: a bool a candidate, protocols: of `Counts`, each with
    `boxes` and `circles` in px from the outer corner of the first pixel: left, top, right, bottom; x, y and the radii
    along both, hotspot: the first of them, or null without figures}; figures are all, atypical and classified those that
    count, reviewed those of the latter that the reader touched.
    */
    summary() {
      return this.#summary ??= this.#summarize();
    }

    #summarize() {
      const [xs, ys] = this.#nm;
      const figures = this.verdict.flatMap((verdict, i) => verdict === "accepted" ? [i] : []);
      const columns = [xs, ys, this.#held].map(column => figures.map(i => column[i]));
      const protocols = this.#counter.count(...columns).map(found => this.#inPx(found));
      const hotspot = protocols[0].window && protocols[0], {window} = protocols[0];
      const classified = figures.filter(i => this.subtype[i] !== null && this.isCounted(i));
      return {
        figures: figures.length,
        unsure: this.verdict.reduce((sum, verdict) => sum + (verdict === "unsure"), 0),
        atypical: classified.reduce((sum, i) => sum + (this.subtype[i] === "atypical"), 0),
        classified: classified.length,
        reviewed: classified.filter(i => this.touched[i]).length,
        inHotspot: xs.map((x, i) => window !== null && this.isCounted(i) && Hotspot.holds(window, x, ys[i])),
        protocols,
        hotspot,
      };
    }

    #inPx(found) {
      const {window, circles} = found, nm = this.#data.umPerPx.map(um => um * 1000);
      const corners = window && [window.left, window.top, window.left + window.width, window.top + window.height];
      return {
        ...found,
        boxes: corners ? [corners.map((place, side) => place / nm[side % 2])] : [],
        circles: circles.map(([x, y, radius]) => [x / nm[0], y / nm[1], radius / nm[0], radius / nm[1]]),
      };
    }

    // --- files ---

    /** reviewed.geojson as an object: all that are accepted, and what the reader or the threshold refused. */
    toGeoJSON() {
      const {program, image, result, corner} = this.#data;
      const features = [];
      for (let i = 0; i < this.x.length; i++) {
        const isOfReview = this.touched[i] || this.system[i] || this.verdict[i] !== "rejected";
        if (isOfReview && !this.#isRemoved(i)) features.push(this.#feature(i));
      }
      const {hotspot} = this.summary();
      if (hotspot) features.push(this.#hotspotFeature(hotspot));
      return {
        type: "FeatureCollection",
        midog_review: {format: FORMAT, program, image, result, counted_from_px: corner, threshold: this.threshold},
        features,
      };
    }

    #feature(i) {
      const {colours} = this.#data;
      const isAtypical = this.isFigure(i) && this.subtype[i] === "atypical";
      const metadata = {origin: this.origin[i]};
      const properties = {
        objectType: "detection",
        name: this.name(i),
        classification: {name: this.label(i), color: rgb(colours[isAtypical ? "atypical" : this.verdict[i]])},
        measurements: {},
        metadata, // texts, because QuPath keeps nothing else there
      };
      if (this.origin[i] === "system") {
        properties.measurements.score = this.p[i];
        metadata.system = NAMES[this.system[i] ? "accepted" : "rejected"];
        if (this.#isMoved(i))
          metadata.moved_from = this.#fromCorner(this.#start.x[i], this.#start.y[i]).join(", ");
      }
      if (this.pAtypical[i] !== null) properties.measurements["P(atypical)"] = this.pAtypical[i];
      if (this.touched[i]) metadata.reviewed = "yes";
      if (this.note[i]) metadata.note = this.note[i];
      const coordinates = this.#fromCorner(this.x[i], this.y[i]);
      return {type: "Feature", geometry: {type: "Point", coordinates}, properties};
    }

    #hotspotFeature({window, boxes: [box]}) {
      const {corner, colours} = this.#data;
      const [left, top, right, bottom] = box.map((px, side) => round(px - corner[side % 2], 2));
      return {
        type: "Feature",
        geometry: {
          type: "Polygon",
          coordinates: [[[left, top], [right, top], [right, bottom], [left, bottom], [left, top]]],
        },
        properties: {
          objectType: "annotation",
          name: "hotspot",
          classification: {name: "hotspot", color: rgb(colours.hotspot)},
          measurements: {figures: window.count, "figures per mm2": round(window.count / Hotspot.areaMm2(window), 4)},
        },
      };
    }

    /** Go on with a reviewed.geojson of this result, as an object; false, with `reason`, where it is none. */
    load(collection) {
      return this.#take(() => this.#readGeoJSON(collection));
    }

    #readGeoJSON({type, midog_review: head, features}) {
      if (type !== "FeatureCollection" || !head) throw new Refusal("it is no review that was saved here");
      this.#check(head);
      const [cornerX, cornerY] = head.counted_from_px;
      const missing = new Set(this.#data.x.keys());
      const rows = [];
      for (const {geometry, properties} of features) {
        const {name, classification, metadata = {}} = properties;
        if (classification.name === "hotspot") continue;
        const kind = KINDS[classification.name];
        if (geometry.type !== "Point") throw new Refusal(`it holds a ${geometry.type}, which is no figure`);
        if (!kind) throw new Refusal(`it holds the class "${classification.name}", which is none of a review`);
        const isFigure = ["accepted", "atypical", "normal"].includes(kind);
        const [x, y] = geometry.coordinates;
        const row = {
          i: metadata.origin === "reader" ? null : Number(name) - 1,
          x: x - 0.5 + cornerX,
          y: y - 0.5 + cornerY,
          verdict: isFigure ? "accepted" : kind,
          subtype: kind === "atypical" || kind === "normal" ? kind : null,
          note: metadata.note ?? "",
        };
        if (row.i === null) {
          rows.push(row);
          continue;
        }
        if (!missing.delete(row.i)) throw new Refusal(`candidate "${name}" is not in the result, or twice in it`);
        if (!isFigure) row.subtype = this.#start.subtype[row.i]; // the class of others does not tell it
        if (Math.hypot(row.x - this.#start.x[row.i], row.y - this.#start.y[row.i]) < SAME_PX)
          [row.x, row.y] = [this.#start.x[row.i], this.#start.y[row.i]];
        const said = this.#untouched(row.i, head.threshold ?? null);
        const isChanged = EDITED.some(column => column !== "touched" && row[column] !== said[column]);
        if (metadata.reviewed === "yes" || isChanged) rows.push(row);
      }
      for (const i of missing) { // deleted in another program
        const said = this.#untouched(i, head.threshold ?? null);
        if (said.verdict !== "rejected") rows.push({...said, i, verdict: "rejected"});
      }
      return {rows, threshold: head.threshold ?? null};
    }

    /** What the browser keeps of the review between two visits, an object; `JSON.stringify` of a review calls this. */
    toJSON() {
      const {program, image, result} = this.#data;
      const rows = this.x.flatMap((x, i) => this.touched[i] ? [{
        i: this.origin[i] === "system" ? i : null,
        x,
        y: this.y[i],
        verdict: this.verdict[i],
        subtype: this.subtype[i],
        note: this.note[i],
      }] : []);
      return {format: FORMAT, program, image, result, threshold: this.threshold, rows};
    }

    /** Go on with what `toJSON` gave; false, with `reason`, where it is of another result. */
    restore(saved) {
      return this.#take(() => {
        this.#check(saved);
        return saved;
      });
    }

    /** All but removed ones as CSV text, with columns for who reviewed and when, which are the reader's to fill. */
    toCSV() {
      const {umPerPx, originMm} = this.#data;
      const {inHotspot} = this.summary();
      const columns = {
        number: i => this.name(i),
        name: i => this.label(i),
        score: i => this.p[i]?.toFixed(6) ?? "",
        p_atypical: i => this.pAtypical[i]?.toFixed(6) ?? "",
        x_px: i => this.x[i].toFixed(2),
        y_px: i => this.y[i].toFixed(2),
        x_mm: i => (this.x[i] * (umPerPx[0] / 1000) + originMm[0]).toFixed(6),
        y_mm: i => (this.y[i] * (umPerPx[1] / 1000) + originMm[1]).toFixed(6),
        in_hotspot: i => `${Number(inHotspot[i])}`,
        origin: i => this.origin[i],
        note: i => quoted(this.note[i]),
        reviewed_by: () => "",
        reviewed_at: () => "",
      };
      const rows = this.x.flatMap((_, i) => this.#isRemoved(i) ? [] : [Object.values(columns).map(cell => cell(i))]);
      return [Object.keys(columns), ...rows].map(cells => `${cells.join(",")}\n`).join("");
    }

    // --- inside ---

    /** What a candidate of the system's is before the reader has a say in it. */
    #untouched(i, threshold) {
      const row = Object.fromEntries(EDITED.map(column => [column, this.#start[column][i]]));
      return {...row, verdict: this.#said(i, threshold)};
    }

    #said(i, threshold) {
      if (threshold === null) return this.#start.verdict[i];
      return this.#data.p[i] >= threshold ? "accepted" : "rejected";
    }

    #edit(i, change) {
      const before = this.#row(i);
      this.#write(i, {...change, touched: true});
      this.#changed(() => this.#write(i, before));
    }

    #row(i) {
      return Object.fromEntries(EDITED.map(column => [column, this[column][i]]));
    }

    #write(i, row) {
      for (const [column, value] of Object.entries(row)) this[column][i] = value;
      const [x, y] = Hotspot.places([this.x[i]], [this.y[i]], this.#data.umPerPx);
      [this.#nm[0][i], this.#nm[1][i], this.#held[i]] = [x[0], y[0], this.#counter.held(x[0], y[0])];
    }

    #changed(back) {
      this.#history.push(back);
      this.#lastIsThreshold = false;
      this.#summary = null;
    }

    #setThreshold(threshold) {
      this.threshold = threshold;
      for (let i = 0; i < this.x.length; i++)
        if (!this.touched[i]) this.verdict[i] = this.#said(i, threshold);
    }

    /** The system's candidates alone, as it left them. */
    #reset() {
      const {p, atypical, accepted, umPerPx} = this.#data;
      for (const column of EDITED) this[column] = [...this.#start[column]];
      this.p = [...p];
      this.pAtypical = [...atypical];
      this.system = accepted.map(Boolean);
      this.origin = p.map(() => "system");
      this.#nm = Hotspot.places(this.x, this.y, umPerPx);
      this.#held = this.#nm[0].map((x, i) => this.#counter.held(x, this.#nm[1][i]));
      this.#summary = null;
    }

    #append(row) {
      const i = this.x.length;
      [this.p[i], this.pAtypical[i], this.system[i], this.origin[i]] = [null, null, false, "reader"];
      this.#write(i, {...row, touched: true});
      return i;
    }

    /** Take a saved review over, all of it or nothing. */
    #take(read) {
      try {
        const {rows, threshold} = read();
        if (threshold !== null && typeof threshold !== "number") throw new Error(`threshold ${threshold}`);
        rows.forEach(row => this.#checkRow(row));
        this.#reset();
        this.#setThreshold(threshold);
        for (const {i, ...row} of rows)
          if (i === null) this.#append(row);
          else this.#write(i, {...row, touched: true});
        [this.#history, this.#lastIsThreshold, this.reason] = [[], false, ""];
        return true;
      } catch (error) {
        this.reason = error instanceof Refusal ? error.message : `it is damaged (${error.message})`;
        return false;
      }
    }

    #check({format, image, result}) {
      const own = this.#data;
      if (format !== FORMAT) throw new Refusal("another version of the program wrote it");
      if (image && own.image && (image.sha256 !== own.image.sha256 || image.bytes !== own.image.bytes))
        throw new Refusal(`it is a review of another image, ${image.name}`);
      if ((result ?? null) !== own.result) throw new Refusal("it is a review of another result of this image");
    }

    #checkRow({i, x, y, verdict, subtype, note}) {
      const [width, height] = this.#data.size;
      const isSystems = i !== null && x === this.#start.x[i] && y === this.#start.y[i]; // the edge may cut a cell
      if (!isSystems && !(x >= -0.5 && y >= -0.5 && x <= width - 0.5 && y <= height - 0.5))
        throw new Refusal(`it has a place outside the image, ${x}, ${y} px`);
      if (i !== null && !(i in this.#data.x)) throw new Refusal(`the result has no candidate ${i + 1}`);
      if (!["accepted", "rejected", "unsure"].includes(verdict) || !["atypical", "normal", null].includes(subtype)
        || typeof note !== "string") throw new Error(`${verdict}, ${subtype}, ${note}`);
    }

    #isRemoved(i) {
      return this.origin[i] === "reader" && this.verdict[i] === "rejected";
    }

    #isMoved(i) {
      return this.x[i] !== this.#start.x[i] || this.y[i] !== this.#start.y[i];
    }

    /** px -> px as QuPath counts: from the corner of the scanned area, a pixel's centre at .5. */
    #fromCorner(x, y) {
      const [cornerX, cornerY] = this.#data.corner;
      return [x + 0.5 - cornerX, y + 0.5 - cornerY];
    }
  }

  /** Numbers of at most `SAMPLE` candidates, spread evenly over as many ranks below the last accepted as above. */
  function spread(accepted) {
    const ranks = Math.min(accepted.length, Math.max(2 * accepted.filter(Boolean).length, 2 * SAMPLE));
    const count = Math.min(SAMPLE, ranks);
    return Array.from({length: count}, (_, place) => Math.floor((place + 0.5) * ranks / count));
  }

  const rgb = colour => [1, 3, 5].map(start => parseInt(colour.slice(start, start + 2), 16));

  const round = (value, digits) => Number(value.toFixed(digits));

  /** A cell of CSV by RFC 4180; a text that a spreadsheet would compute gets an apostrophe in front. */
  function quoted(text) {
    const plain = /^[=+\-@\t\r]/.test(text) ? `'${text}` : text;
    return /[",\r\n]/.test(plain) ? `"${plain.replaceAll('"', '""')}"` : plain;
  }

  return {create: data => new Review(data)};
})();
