/*
The window with the most mitotic figures, as midog/report/hotspot.py finds it, to the nanometre: what the page counts
after a correction is what the program would write. Nothing here knows the page.
*/
const Hotspot = (() => {
  "use strict";

  const NM_PER_MM = 1_000_000;

  /** To the nearest whole number and, as numpy does, from the middle to the even one. */
  function roundHalfEven(value) {
    const nearest = Math.round(value);
    return Math.abs(value % 1) === 0.5 && nearest % 2 !== 0 ? nearest - 1 : nearest;
  }

  /** Level-0 px, a pixel's centre at integers -> [x, y], whole nm from the outer corner of the first pixel. */
  function places(x, y, umPerPx) {
    return [x, y].map((column, axis) => Array.from(column, px => roundHalfEven((px + 0.5) * umPerPx[axis] * 1000)));
  }

  /** (width, height) of the image, px -> whole nm. */
  function extent(size, umPerPx) {
    return size.map((side, axis) => roundHalfEven(side * umPerPx[axis] * 1000));
  }

  /**
  The window with the most figures; of equal ones the larger, then the lying one, then the one furthest left.
  All are whole nm; places outside the image do not count. Null without figures, else {left, top, width, height, count}.
  */
  function find(xs, ys, widthNm, heightNm, longNm, shortNm) {
    const inside = [];
    for (let i = 0; i < xs.length; i++)
      if (xs[i] >= 0 && ys[i] >= 0 && xs[i] <= widthNm && ys[i] <= heightNm) inside.push(i);
    if (inside.length === 0) return null;
    inside.sort((a, b) => xs[a] - xs[b] || ys[a] - ys[b]);
    const x = Float64Array.from(inside, i => xs[i]), y = Float64Array.from(inside, i => ys[i]);
    const [lying, upright] = [[longNm, shortNm], [shortNm, longNm]].map(([width, height]) =>
      fullest(x, y, [widthNm, heightNm], [Math.min(width, widthNm), Math.min(height, heightNm)]));
    const better = upright.count - lying.count || areaMm2(upright) - areaMm2(lying);
    return better > 0 ? upright : lying;
  }

  const areaMm2 = window => window.width * window.height / NM_PER_MM ** 2;

  /** Whether a place, nm, lies in the window, edges included. */
  const holds = (window, x, y) => x >= window.left && x <= window.left + window.width
    && y >= window.top && y <= window.top + window.height;

  /** The window of one shape, with its figures in the middle as far as the image's edges allow; x and y sorted. */
  function fullest(x, y, [widthNm, heightNm], [width, height]) {
    const [right, bottom] = fullestCorner(x, y, width, height);
    const corner = {left: right - width, top: bottom - height, width, height};
    let [firstX, lastX, firstY, lastY] = [Infinity, -Infinity, Infinity, -Infinity];
    for (let i = 0; i < x.length; i++) {
      if (!holds(corner, x[i], y[i])) continue;
      firstX = Math.min(firstX, x[i]);
      lastX = Math.max(lastX, x[i]);
      firstY = Math.min(firstY, y[i]);
      lastY = Math.max(lastY, y[i]);
    }
    const start = (first, last, side, limit) =>
      Math.min(Math.max(Math.floor((first + last - side) / 2), 0), limit - side);
    const window = {
      left: start(firstX, lastX, width, widthNm), top: start(firstY, lastY, height, heightNm), width, height, count: 0,
    };
    for (let i = 0; i < x.length; i++) window.count += holds(window, x[i], y[i]);
    return window;
  }

  /**
  The right and lower edge of a window with the most places. Any window can be pushed left and up until a figure lies on
  its right and one on its lower edge, without losing one. So the right edge goes from figure to figure, and for each
  of its places the tree knows the lower edge with most figures above: O(n log n) in all.
  */
  function fullestCorner(x, y, width, height) {
    const edges = Float64Array.from(new Set(y)).sort();
    const first = Int32Array.from(y, place => countBelow(edges, place)); // the lower edges with this in their window
    const end = Int32Array.from(y, place => countBelow(edges, place + height + 1));
    const tree = new PrefixTree(edges.length + 1);
    let oldest = 0, most = 0, corner = [0, 0];
    for (let i = 0; i < x.length; i++) {
      for (; x[oldest] < x[i] - width; oldest++) {
        tree.add(first[oldest], -1);
        tree.add(end[oldest], 1);
      }
      tree.add(first[i], 1);
      tree.add(end[i], -1);
      if (tree.most[1] > most) {
        most = tree.most[1];
        corner = [x[i], edges[tree.placeOfMost()]];
      }
    }
    return corner;
  }

  /** How many of rising numbers lie below a value. */
  function countBelow(rising, value) {
    let low = 0, high = rising.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (rising[middle] < value) low = middle + 1;
      else high = middle;
    }
    return low;
  }

  /**
  Numbers in a row, and the largest sum of a beginning of the row; a change costs O(log n). A figure that counts from
  slot a to slot b is +1 at a and -1 behind b: the sum up to a slot is what counts there.
  */
  class PrefixTree {
    constructor(length) {
      this.leaves = 2;
      while (this.leaves < length) this.leaves *= 2;
      this.total = new Int32Array(2 * this.leaves); // node 1 is the root, 2 n and 2 n + 1 are below node n
      this.most = new Int32Array(2 * this.leaves);
    }

    add(place, amount) {
      const {total, most} = this;
      let node = place + this.leaves;
      total[node] += amount;
      most[node] += amount;
      for (node >>= 1; node; node >>= 1) {
        const left = 2 * node;
        total[node] += amount;
        most[node] = Math.max(most[left], total[left] + most[left + 1]);
      }
    }

    /** The first place where the sum from the beginning is `most[1]`. */
    placeOfMost() {
      const {total, most, leaves} = this;
      let node = 1;
      while (node < leaves) {
        const left = 2 * node;
        node = most[left] >= total[left] + most[left + 1] ? left : left + 1;
      }
      return node - leaves;
    }
  }

  return {NM_PER_MM, places, extent, find, areaMm2, holds};
})();
