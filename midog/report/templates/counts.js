/*
The mitotic count by each protocol and how sure it is, as midog/report/protocols.py, areas.py, intervals.py,
misclassification.py and midog/images/tissue.py have it: what the page counts after a correction is what the program
would write. Places are whole nm from the outer corner of the first pixel. Nothing here knows the page.
*/
const Counts = (() => {
  "use strict";

  const Z_95 = 1.959964; // standard normal quantile of .975
  const TAIL = 0.025;
  const TELLS_NOTHING = 1.1; // sensitivity + specificity at most
  const NM_PER_UM = 1000;
  const NEGLIGIBLE = 1e-9; // part of an area that may be missing by rounding
  const STEPS = 16; // of the fields' lattice in a field's diameter

  /** 95 % interval of a proportion (Wilson, J Am Stat Assoc 1927;22:209-212); total > 0. */
  function wilsonInterval(count, total) {
    const fraction = count / total, squared = Z_95 ** 2, middle = fraction + squared / (2 * total);
    const half = Z_95 * Math.sqrt(fraction * (1 - fraction) / total + squared / (4 * total ** 2));
    const [low, high] = [middle - half, middle + half].map(end => end / (1 + squared / total));
    return [Math.max(0, low), Math.min(1, high)];
  }

  /** The share behind an observed one (Rogan and Gladen, Am J Epidemiol 1978;107:71-76), or null: it is not known. */
  function trueShare(observed, [sensitivity, specificity]) {
    if (sensitivity + specificity <= TELLS_NOTHING) return null;
    return Math.min(Math.max((observed + specificity - 1) / (sensitivity + specificity - 1), 0), 1);
  }

  /**
  The share of atypical figures without the errors of the system that told them, by domain [name, sensitivity,
  specificity], but for what a reader reviewed: [share, low, high], or null where they are not known, or too many.
  */
  function correctedShare(atypical, of, reviewed, errors) {
    const bySystem = 1 - reviewed / of;
    const rates = errors.map(([, ...each]) => each.map(rate => 1 - bySystem * (1 - rate)));
    const mean = [0, 1].map(kind => rates.reduce((sum, each) => sum + each[kind], 0) / rates.length);
    const share = rates.length ? trueShare(atypical / of, mean) : null;
    if (share === null) return null;
    const [low, high] = wilsonInterval(atypical, of);
    return [
      share,
      Math.min(...rates.map(each => trueShare(low, each) ?? 0)),
      Math.max(...rates.map(each => trueShare(high, each) ?? 1)),
    ];
  }

  /** 95 % interval of the expected number behind a count, exact (Garwood, Biometrika 1936;28:437-442). */
  function poissonInterval(count) {
    let logFactorial = 0;
    for (let factor = 2; factor <= count; factor++) logFactorial += Math.log(factor);
    const chance = expected => Math.exp(count * Math.log(expected) - expected - logFactorial);
    const orMore = expected => sumOf(chance(expected), place => expected / (count + place));
    const orFewer = expected => sumOf(chance(expected), place => (count + 1 - place) / expected);
    return [
      count === 0 ? 0 : lastWhere(expected => orMore(expected) <= TAIL, 0, count),
      lastWhere(expected => orFewer(expected) >= TAIL, count, count + 4 * Math.sqrt(count) + 4),
    ];
  }

  /** Falling terms, each from the one before by a ratio, until they change nothing. */
  function sumOf(first, ratio) {
    let sum = 0;
    for (let term = first, place = 1; sum + term > sum; term *= ratio(place++)) sum += term;
    return sum;
  }

  /** Where a condition that holds at the lower end stops holding, by bisection to the last bit. */
  function lastWhere(holds, low, high) {
    for (let middle = (low + high) / 2; middle > low && middle < high; middle = (low + high) / 2)
      if (holds(middle)) low = middle;
      else high = middle;
    return low;
  }

  /** 1 for a place in a polygon, 0 on its edge, -1 outside; of closed rings, [[x, y], ...] each, those of holes too. */
  function placeIn(rings, x, y) {
    let place = -1;
    for (const ring of rings)
      for (let i = 1; i < ring.length; i++) {
        const [fromX, fromY] = ring[i - 1], [toX, toY] = ring[i];
        if (Math.min(fromY, toY) > y || Math.max(fromY, toY) < y) continue;
        const side = sideOf(toX - fromX, toY - fromY, x - fromX, y - fromY);
        if (side === 0 && x >= Math.min(fromX, toX) && x <= Math.max(fromX, toX)) return 0;
        if ((fromY > y) !== (toY > y) && (side > 0) === (toY > fromY)) place = -place;
      }
    return place;
  }

  /** On which side of a direction a place lies, by the sign; exact, as products of nm may have more than 53 bits. */
  function sideOf(acrossTo, downTo, across, down) {
    const one = acrossTo * down, other = downTo * across, side = one - other;
    if (Math.abs(side) > (Math.abs(one) + Math.abs(other)) * Number.EPSILON) return side;
    return Number(BigInt(acrossTo) * BigInt(down) - BigInt(downTo) * BigInt(across));
  }

  /** Of polygons, each of an outer ring and its holes, the sum of what is given of each ring. */
  const ofPolygons = (polygons, ofRing) => polygons.reduce((sum, [outer, ...holes]) =>
    sum + ofRing(outer) - holes.reduce((less, hole) => less + ofRing(hole), 0), 0);

  /** mm2 of polygons within a window: each ring is cut by one side after the other (Sutherland and Hodgman, 1974). */
  function areaInWindow({left, top, width, height}, polygons) {
    const sides = [[0, left, 1], [0, left + width, -1], [1, top, 1], [1, top + height, -1]];
    return ofPolygons(polygons, ring => {
      let places = ring.slice(1);
      for (const [axis, edge, sign] of sides) {
        const before = places;
        places = [];
        before.forEach((place, i) => {
          const last = before.at(i - 1), inside = sign * (place[axis] - edge), lastInside = sign * (last[axis] - edge);
          const part = lastInside / (lastInside - inside);
          if (inside * lastInside < 0) places.push(place.map((nm, each) => last[each] + part * (nm - last[each])));
          if (inside >= 0) places.push(place);
        });
      }
      const mm = places.map(([x, y]) => [(x - left) / Hotspot.NM_PER_MM, (y - top) / Hotspot.NM_PER_MM]);
      return Math.abs(mm.reduce((sum, place, i) => sum + cross(mm.at(i - 1), place), 0)) / 2;
    });
  }

  const cross = ([x, y], [otherX, otherY]) => x * otherY - y * otherX;

  /** The part of a circle that lies in polygons: triangles to its centre within it, sectors beyond. */
  function partOfCircle([x, y, radius], polygons) {
    const sector = (from, to) => Math.atan2(cross(from, to), from[0] * to[0] + from[1] * to[1]);
    const ofEdge = (from, to) => {
      const way = [to[0] - from[0], to[1] - from[1]], squared = way[0] ** 2 + way[1] ** 2;
      const towards = -(from[0] * way[0] + from[1] * way[1]) / squared;
      const reach = Math.sqrt(towards ** 2 - (from[0] ** 2 + from[1] ** 2 - 1) / squared); // NaN where it passes by
      const [enters, leaves] = [Math.max(0, towards - reach), Math.min(1, towards + reach)];
      if (!(enters < leaves)) return sector(from, to);
      const [first, last] = [enters, leaves].map(part => from.map((place, axis) => place + part * way[axis]));
      return sector(from, first) + cross(first, last) + sector(last, to);
    };
    return ofPolygons(polygons, ring => {
      const places = ring.map(place => [(place[0] - x) / radius, (place[1] - y) / radius]);
      return Math.abs(places.slice(1).reduce((sum, place, i) => sum + ofEdge(places[i], place), 0)) / (2 * Math.PI);
    });
  }

  /**
  Round fields on a lattice that do not overlap, each with the most figures that are left; of equal ones the nearest to
  the first, then the uppermost, then the one furthest left. `centres` are bytes, 1 where the lattice may be taken, or
  null: everywhere. {figures, circles: [x, y, radius] each}
  */
  function fields(xs, ys, extent, {diameter, number, centres}) {
    const radius = Math.floor(diameter / 2), step = Math.floor(diameter / STEPS);
    const [columns, rows] = extent.map(side => Math.max(0, Math.floor((side - 2 * radius) / step) + 1));
    const counts = new Int32Array(columns * rows), isFree = centres?.slice() ?? new Uint8Array(columns * rows).fill(1);

    // Calls with each centre of which `isNear` takes the squared distance from a place.
    function around(x, y, reach, isNear, call) {
      const [firstColumn, firstRow] = [x, y].map(place => Math.max(0, Math.ceil((place - reach - radius) / step)));
      const lastColumn = Math.min(columns - 1, Math.floor((x + reach - radius) / step));
      const lastRow = Math.min(rows - 1, Math.floor((y + reach - radius) / step));
      for (let row = firstRow; row <= lastRow; row++)
        for (let column = firstColumn; column <= lastColumn; column++)
          if (isNear((radius + column * step - x) ** 2 + (radius + row * step - y) ** 2)) call(row * columns + column);
    }

    const isHeld = squared => squared <= radius ** 2, overlaps = squared => squared < 4 * radius ** 2;
    for (let i = 0; i < xs.length; i++) around(xs[i], ys[i], radius, isHeld, cell => counts[cell]++);
    let left = Array.from(xs, (_, i) => i), first = null;
    const circles = [];
    while (circles.length < number) {
      const best = fullest(counts, isFree, columns, first);
      if (best === null) break;
      first ??= best;
      const [x, y] = best.map(place => radius + place * step);
      circles.push([x, y, radius]);
      around(x, y, 2 * radius, overlaps, cell => { isFree[cell] = 0; });
      left = left.filter(i => {
        const isOutside = !isHeld((xs[i] - x) ** 2 + (ys[i] - y) ** 2);
        if (!isOutside) around(xs[i], ys[i], radius, isHeld, cell => counts[cell]--);
        return isOutside;
      });
    }
    return {figures: xs.length - left.length, circles};
  }

  /** [column, row] of the free centre with the most figures, or null without one. */
  function fullest(counts, isFree, columns, first) {
    let best = null, most = -1, nearest = 0;
    for (let cell = 0; cell < counts.length; cell++) {
      if (!isFree[cell] || counts[cell] < most) continue;
      const column = cell % columns, row = (cell - column) / columns;
      const distance = first === null ? 0 : (column - first[0]) ** 2 + (row - first[1]) ** 2;
      if (counts[cell] === most && distance >= nearest) continue;
      [best, most, nearest] = [[column, row], counts[cell], distance];
    }
    return best;
  }

  /** A byte a cell, row by row, from the lengths of runs of 0 and 1 by turns. */
  function unpacked(runs) {
    const values = new Uint8Array(runs.reduce((sum, length) => sum + length, 0));
    let start = 0;
    runs.forEach((length, turn) => values.fill(turn % 2, start, start += length));
    return values;
  }

  /** Where tissue is; `counted` are the runs of the tissue whose cells' centres lie where it is counted, or null. */
  class Tissue {
    constructor({columns, rows, runs, counted, sizeUm}) {
      Object.assign(this, {columns, rows});
      this.cell = [sizeUm[0] * NM_PER_UM / columns, sizeUm[1] * NM_PER_UM / rows];
      this.cellMm2 = this.cell[0] * this.cell[1] / Hotspot.NM_PER_MM ** 2;
      this.values = unpacked(runs);
      this.counted = counted && unpacked(counted);
    }

    /** mm2 in a window, which cuts cells; in one that areas cut, of the cells with their centres in both. */
    inWindow(window) {
      const {left, top, width, height} = window;
      if (this.counted)
        return this.#sum(this.counted, window, (x, y) => Number(Hotspot.holds(window, x, y)));
      const [columnSide, rowSide] = this.cell;
      const part = (start, end, place) => Math.min(end, place + 1) - Math.max(start, place);
      return this.#sum(this.values, window, (x, y) =>
        part(left / columnSide, (left + width) / columnSide, Math.floor(x / columnSide))
        * part(top / rowSide, (top + height) / rowSide, Math.floor(y / rowSide)));
    }

    /** mm2 of the cells with their centres in a circle. */
    inCircle([x, y, radius]) {
      const around = {left: x - radius, top: y - radius, width: 2 * radius, height: 2 * radius};
      return this.#sum(this.counted ?? this.values, around, (cellX, cellY) =>
        Number((cellX - x) ** 2 + (cellY - y) ** 2 <= radius ** 2));
    }

    /** Of the cells that a window touches, each weighted by its centre. */
    #sum(values, {left, top, width, height}, weight) {
      const {columns, rows, cell: [columnSide, rowSide]} = this;
      const range = (start, length, side, count) =>
        [Math.max(0, Math.floor(start / side)), Math.min(count, Math.ceil((start + length) / side))];
      const [firstColumn, endColumn] = range(left, width, columnSide, columns);
      const [firstRow, endRow] = range(top, height, rowSide, rows);
      let sum = 0;
      for (let row = firstRow; row < endRow; row++)
        for (let column = firstColumn; column < endColumn; column++)
          if (values[row * columns + column]) sum += weight((column + 0.5) * columnSide, (row + 0.5) * rowSide);
      return sum * this.cellMm2;
    }
  }

  /** Whether a place with these bools of `held` counts at all. */
  const isCounted = held => held[1] ?? held[0];

  /**
  Counts by every protocol of the page's data, each {key, name, askedMm2} with areaMm2 and tissueMm2 of it without a
  figure, and what it is of:
    sides: a window's, nm;
    diameter, number, centres: of fields;
    none of these: an area, in the order of `held`.
  `areas` has closed rings, nm: `excluded`; `counted`, a list an area; `union`, polygons of all that counts, a list of
  rings each, or null: all of the image. `tissue` is null until the slide was read.
  */
  class Counter {
    #protocols;
    #areas;
    #extent;
    #tissue;

    constructor({protocols, areas, tissue}, extent) {
      this.#protocols = protocols.map(each => ({...each, centres: each.centres && unpacked(each.centres)}));
      this.#areas = areas;
      this.#extent = extent;
      this.#tissue = tissue && new Tissue(tissue);
    }

    /** A bool an area, whether a place counts there: the image without what is excluded; all areas, if any; each. */
    held(x, y) {
      const {excluded, counted} = this.#areas, [width, height] = this.#extent;
      const isKept = x >= 0 && y >= 0 && x <= width && y <= height && placeIn(excluded, x, y) < 1;
      const inEach = counted.map(area => isKept && placeIn(area, x, y) > -1);
      return counted.length ? [isKept, inEach.includes(true), ...inEach] : [isKept];
    }

    /**
    Of figures' places and what `held` gave for each, by protocol: {key, name, askedMm2, figures, areaMm2, isReached,
    tissueMm2, perMm2Tissue, interval, window: null or {left, top, width, height, count}, circles: [x, y, radius] each}
    */
    count(xs, ys, held) {
      const places = [xs, ys].map(axis => axis.filter((_, i) => isCounted(held[i])));
      let area = 0;
      return this.#protocols.map(protocol => {
        const {key, name, askedMm2, sides, diameter} = protocol;
        const found = sides ? this.#ofWindow(protocol, places)
          : diameter ? this.#ofFields(protocol, places) : this.#ofArea(protocol, held, area++);
        return {
          key, name, askedMm2, window: null, circles: [], ...found,
          isReached: askedMm2 === null || found.areaMm2 >= askedMm2 * (1 - NEGLIGIBLE),
          perMm2Tissue: found.tissueMm2 ? found.figures / found.tissueMm2 : null,
          interval: poissonInterval(found.figures),
        };
      });
    }

    #ofArea({areaMm2, tissueMm2}, held, area) {
      const figures = held.reduce((sum, isHeld) => sum + isHeld[area], 0);
      return {figures, areaMm2, tissueMm2: this.#tissue && tissueMm2};
    }

    #ofWindow({sides, areaMm2, tissueMm2}, places) {
      const window = Hotspot.find(...places, ...this.#extent, ...sides);
      if (!window) return {figures: 0, areaMm2, tissueMm2: this.#tissue && tissueMm2};
      const {union} = this.#areas;
      return {
        figures: window.count,
        areaMm2: union ? areaInWindow(window, union) : Hotspot.areaMm2(window),
        tissueMm2: this.#tissue && this.#tissue.inWindow(window),
        window,
      };
    }

    #ofFields(protocol, places) {
      const found = fields(...places, this.#extent, protocol), {union} = this.#areas;
      const fieldMm2 = protocol.askedMm2 / protocol.number;
      const parts = found.circles.map(circle => union ? partOfCircle(circle, union) : 1);
      const sum = numbers => numbers.reduce((total, number) => total + number, 0);
      return {
        ...found,
        areaMm2: sum(parts) * fieldMm2,
        tissueMm2: this.#tissue && sum(found.circles.map(circle => this.#tissue.inCircle(circle))),
      };
    }
  }

  const create = (data, extent) => new Counter(data, extent);
  return {wilsonInterval, poissonInterval, correctedShare, isCounted, unpacked, create};
})();
