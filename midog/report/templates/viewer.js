"use strict";
// The slide down to the cell: Leaflet with the page's tiles, and all marks on one canvas. Places are px of the full
// resolution as a result counts them, the centre of the first pixel at 0. Leaflet counts from that pixel's corner: its
// latitude is y + .5, its longitude x + .5, and at zoom 0 a px of the slide is one of the screen.
const Viewer = (() => {
  const KEPT = 200;  // decoded tiles
  const ATTEMPTS = 60, RETRY = 1000;  // of a tile that does not come, and ms between them
  const MAX_ZOOM = 3;
  // By kind, px of the screen; "refused" ones are the reader's, "rejected" ones the system's, and figures that
  // do not count are "outside". Later ones lie on top.
  const LEAST_RADIUS = {rejected: 3.5, refused: 5.5, outside: 7, unsure: 6, accepted: 7, atypical: 7};
  const CROWDED = 400;  // of more figures the rings are smaller
  const CELL_SEEN = 14;  // px of the screen, from this radius on
  const MARGIN = .3;  // of the view's width and height, by which the marks' canvas is larger on each side
  const CLICK_REACH = 14;  // px of the screen
  const CURRENT_COLOUR = "#d6006c";
  const BAR_LENGTH = 140;  // px of the screen, at most

  // What a canvas can be painted with: tile (k, x, y) has 1 / 2^k of the full resolution.
  function tilePainter({tiles, size}, pixels) {
    const images = new Map();  // key -> promise, the latest last
    const isThere = key => tiles.urls !== null || key in pixels;

    async function read(key) {
      const [k, x, y] = key.split("/");
      for (let attempt = 1; ; attempt++) {
        const image = new Image();
        image.src = tiles.urls === null ? "data:image/jpeg;base64," + pixels[key]
          : tiles.urls.replace("{z}", k).replace("{x}", x).replace("{y}", y);
        try {
          await image.decode();
          return image;
        } catch (error) {
          if (tiles.urls === null || attempt === ATTEMPTS) throw error;
          await new Promise(resolve => setTimeout(resolve, RETRY));  // the server may still be reading the slide
        }
      }
    }

    function load(key) {
      if (!images.has(key)) {
        images.set(key, read(key));
        images.get(key).catch(() => images.delete(key));
        if (images.size > KEPT) images.delete(images.keys().next().value);
      }
      return images.get(key);
    }

    // Fills a canvas with the box [left, top, width, height] px of the slide, at level k as far as that is there, else
    // from the next coarser one; resolves when all of it is painted.
    function paint(canvas, [left, top, width, height], k) {
      const context = canvas.getContext("2d");
      const side = tiles.size * 2 ** k, across = canvas.width / width, down = canvas.height / height;
      const painted = [];
      for (let y = Math.max(0, Math.floor(top / side)); y * side < Math.min(top + height, size[1]); y++)
        for (let x = Math.max(0, Math.floor(left / side)); x * side < Math.min(left + width, size[0]); x++) {
          let level = k;
          const key = () => `${level}/${x >> level - k}/${y >> level - k}`;
          while (!isThere(key())) level++;
          const from = [Math.max(left, x * side), Math.max(top, y * side)];
          const to = [Math.min(left + width, (x + 1) * side, size[0]), Math.min(top + height, (y + 1) * side, size[1])];
          const step = 2 ** level, corner = [x >> level - k, y >> level - k].map(n => n * tiles.size * step);
          painted.push(load(key()).then(image => context.drawImage(image,
            (from[0] - corner[0]) / step, (from[1] - corner[1]) / step, (to[0] - from[0]) / step,
            (to[1] - from[1]) / step, (from[0] - left) * across, (from[1] - top) * down,
            (to[0] - from[0]) * across, (to[1] - from[1]) * down)));
        }
      return Promise.all(painted);
    }

    return {paint, isSharp: (x, y) => isThere(`0/${Math.floor(x / tiles.size)}/${Math.floor(y / tiles.size)}`)};
  }

  // One picture of a mark for each kind, as drawing thousands of circles takes too long for a frame.
  function sprite(kind, radius, colour, ratio) {
    const canvas = document.createElement("canvas"), middle = Math.ceil(radius + 4);
    canvas.width = canvas.height = 2 * middle * ratio;
    const context = canvas.getContext("2d");
    context.scale(ratio, ratio);
    const strokes = {
      rejected: [[1.8, colour]], refused: [[3.6, "#fff"], [1.8, colour]], outside: [[2.6, "#000b"], [1.2, colour]],
    };
    for (const [width, style] of strokes[kind] ?? [[4.6, "#000b"], [2.4, colour]]) {
      context.lineWidth = width;
      context.strokeStyle = style;
      context.beginPath();
      context.arc(middle, middle, radius, 0, 2 * Math.PI);
      if (kind === "refused")
        for (const side of [-1, 1]) {  // a stroke through the ring, which leaves a cell free that can be seen
          const outer = side * radius * Math.SQRT1_2, inner = radius > CELL_SEEN ? outer * .7 : 0;
          context.moveTo(middle + outer, middle - outer);
          context.lineTo(middle + inner, middle - inner);
        }
      context.stroke();
    }
    return {canvas, middle, side: 2 * middle};
  }

  function create(element, bar, data, pixels) {
    const [width, height] = data.size, tiles = data.tiles;
    const umPerPx = (data.umPerPx[0] + data.umPerPx[1]) / 2;
    const whole = L.latLngBounds([0, 0], [height, width]);
    const painter = tilePainter(data, pixels);
    const map = L.map(element, {
      crs: L.extend({}, L.CRS.Simple, {transformation: new L.Transformation(1, 0, 1, 0)}),
      minZoom: -tiles.levels, maxZoom: MAX_ZOOM, maxBounds: whole.pad(.6), zoomSnap: .25, zoomDelta: .5,
      wheelPxPerZoomLevel: 90, attributionControl: false, keyboard: false, doubleClickZoom: false,
      bounceAtZoomLimits: false,
    });
    const Tiles = L.GridLayer.extend({
      createTile({x, y, z}, done) {
        const tile = document.createElement("canvas"), side = tiles.size / 2 ** z;
        tile.width = tile.height = tiles.size;
        painter.paint(tile, [x * side, y * side, side, side], -z).then(() => done(null, tile), done);
        return tile;
      },
    });
    new Tiles({
      tileSize: tiles.size, bounds: whole, minZoom: -tiles.levels, maxZoom: MAX_ZOOM, minNativeZoom: 1 - tiles.levels,
      maxNativeZoom: 0, keepBuffer: 1,
    }).addTo(map);

    const canvas = L.DomUtil.create("canvas", "leaflet-zoom-animated marks", map.getPanes().overlayPane);
    const context = canvas.getContext("2d");
    let marks = {x: [], y: [], kinds: [], current: -1, added: [], windows: []};
    let groups = {}, sprites = {}, spritesFor = "", dragged = null, drawn = null;

    const scale = () => 2 ** map.getZoom();
    const radiusOf = kind => data.radii[kind === "rejected" || kind === "refused" ? "rejected" : "accepted"];

    function makeSprites(crowded, ratio) {
      const key = [scale(), crowded, ratio].join();
      if (key === spritesFor) return;
      spritesFor = key;
      for (const [kind, least] of Object.entries(LEAST_RADIUS)) {
        const radius = Math.max(radiusOf(kind) * scale(), crowded ? least / 2 : least);
        sprites[kind] = {...sprite(kind, radius, data.colours[kind], ratio), radius};
      }
    }

    function strokeTwice(path, colour, widths, dash = []) {
      context.setLineDash(dash);
      widths.forEach((lineWidth, number) => {
        context.lineWidth = lineWidth;
        context.strokeStyle = number ? colour : "#fff";
        context.beginPath();
        path();
        context.stroke();
      });
      context.setLineDash([]);
    }

    function drawWindow({box, circle, rings, colour, dash}, origin) {
      const onScreen = ([x, y]) => [origin.x + x * scale(), origin.y + y * scale()];
      strokeTwice(() => {
        if (box) {
          const [left, top] = onScreen(box.slice(0, 2)), [right, bottom] = onScreen(box.slice(2));
          context.rect(left, top, right - left, bottom - top);
        }
        if (circle) context.ellipse(...onScreen(circle), circle[2] * scale(), circle[3] * scale(), 0, 0, 2 * Math.PI);
        for (const ring of rings ?? [])
          ring.forEach((place, i) => context[i ? "lineTo" : "moveTo"](...onScreen(place)));
      }, colour, dash ? [4, 2] : [6, 3], dash);
    }

    function drawCurrent(x, y, radius) {
      const inner = radius + 7, outer = radius + 22;
      strokeTwice(() => {
        for (const [across, down] of [[1, 0], [-1, 0], [0, 1], [0, -1]]) {
          context.moveTo(x + across * inner, y + down * inner);
          context.lineTo(x + across * outer, y + down * outer);
        }
      }, CURRENT_COLOUR, [6, 3]);
    }

    function draw() {
      const ratio = window.devicePixelRatio || 1, margin = map.getSize().multiplyBy(MARGIN).round();
      const start = map.containerPointToLayerPoint(margin.multiplyBy(-1));
      const {x: shownWidth, y: shownHeight} = map.getSize().add(margin.multiplyBy(2));
      if (canvas.width !== Math.round(shownWidth * ratio) || canvas.height !== Math.round(shownHeight * ratio)) {
        canvas.width = Math.round(shownWidth * ratio);
        canvas.height = Math.round(shownHeight * ratio);
        canvas.style.width = shownWidth + "px";
        canvas.style.height = shownHeight + "px";
      }
      L.DomUtil.setPosition(canvas, start);
      drawn = {zoom: map.getZoom(), corner: map.layerPointToLatLng(start),
        bounds: L.bounds(start, start.add([shownWidth, shownHeight]))};
      context.setTransform(ratio, 0, 0, ratio, 0, 0);
      context.clearRect(0, 0, shownWidth, shownHeight);
      const origin = map.latLngToLayerPoint([0, 0]).subtract(start), zoomed = scale();
      const placeOf = i => i === marks.current && dragged ? dragged : [marks.x[i] + .5, marks.y[i] + .5];
      const onScreen = ([x, y]) => [origin.x + x * zoomed, origin.y + y * zoomed];
      makeSprites((groups.accepted?.length ?? 0) + (groups.atypical?.length ?? 0) > CROWDED, ratio);
      for (const [kind, {canvas: picture, middle, side}] of Object.entries(sprites))
        for (const i of groups[kind] ?? []) {
          const [x, y] = onScreen(placeOf(i));
          if (x > -side && y > -side && x < shownWidth + side && y < shownHeight + side)
            context.drawImage(picture, Math.round(x - middle), Math.round(y - middle), side, side);
        }
      context.font = "bold 15px system-ui, sans-serif";
      for (const i of marks.added) {
        const [x, y] = onScreen(placeOf(i)), reach = sprites[marks.kinds[i]].radius + 3;
        context.lineWidth = 4;
        context.strokeStyle = "#000c";
        context.strokeText("+", x + reach, y - reach + 8);
        context.fillStyle = data.colours.accepted;
        context.fillText("+", x + reach, y - reach + 8);
      }
      for (const each of marks.windows) drawWindow(each, origin);
      if (marks.current >= 0)
        drawCurrent(...onScreen(placeOf(marks.current)), sprites[marks.kinds[marks.current]].radius);
    }

    // The canvas moves with the tiles; it is drawn anew where the view leaves it.
    function follow() {
      const view = L.bounds(map.containerPointToLayerPoint([0, 0]), map.containerPointToLayerPoint(map.getSize()));
      if (map.getZoom() !== drawn?.zoom || !drawn.bounds.contains(view)) draw();
      drawBar();
    }

    function drawBar() {
      const umPerScreenPx = data.umPerPx[0] / scale(), longest = BAR_LENGTH * umPerScreenPx;
      const power = 10 ** Math.floor(Math.log10(longest));
      const length = power * [5, 2, 1].find(factor => factor * power <= longest);
      bar.style.width = length / umPerScreenPx + "px";
      bar.textContent = length < 1000 ? `${Number(length.toPrecision(1))} µm` : `${length / 1000} mm`;
      bar.dataset.um = length;
    }

    function nearest({x, y}) {
      const origin = map.latLngToContainerPoint([0, 0]);
      let best = -1, least = Infinity;
      marks.kinds.forEach((kind, i) => {
        if (kind === null) return;
        const distance = Math.hypot(origin.x + (marks.x[i] + .5) * scale() - x,
          origin.y + (marks.y[i] + .5) * scale() - y);
        if (distance < least && distance <= Math.max(CLICK_REACH, sprites[kind].radius)) {
          best = i;
          least = distance;
        }
      });
      return best;
    }

    map.on("move zoom", follow);
    map.on("viewreset resize", draw);
    map.on("zoomanim", ({zoom, center}) => L.DomUtil.setTransform(canvas,
      map._latLngToNewLayerPoint(drawn.corner, zoom, center), map.getZoomScale(zoom, map.getZoom())));
    new ResizeObserver(() => map.invalidateSize({animate: false})).observe(element);

    const viewer = {
      map,
      mode: "look",  // "add": a click is a new figure; "move": the current one goes where the pointer is let go
      onSelect: () => {}, onAdd: () => {}, onMove: () => {}, onHover: () => {},
      isSharp: (x, y) => painter.isSharp(x + .5, y + .5),
      cellZoom: Math.min(MAX_ZOOM, Math.max(0, Math.round(2 * Math.log2(umPerPx / .125)) / 2)),
      setMode(mode) {
        viewer.mode = mode;
        element.dataset.mode = mode;
        map.dragging[mode === "move" ? "disable" : "enable"]();
      },
      // x, y, kinds (keys of LEAST_RADIUS; null: not shown), current (-1: none), a list of the added ones, and windows
      // of {colour, dash} and a box (left, top, right, bottom), a circle (x, y, the radii along both) or closed rings,
      // in px from the corner.
      show(shown) {
        marks = shown;
        groups = {};
        marks.kinds.forEach((kind, i) => { if (kind) (groups[kind] ??= []).push(i); });
        draw();
      },
      goTo(x, y, zoom) { map.setView([y + .5, x + .5], zoom, {animate: false}); },
      goToBox([left, top, right, bottom]) { map.fitBounds([[top, left], [bottom, right]], {animate: false}); },
      goToWhole() { map.fitBounds(whole, {animate: false}); },
      place(x, y) { return map.latLngToContainerPoint([y + .5, x + .5]); },
      // A square of um around a place.
      crop(target, x, y, um) {
        const [across, down] = data.umPerPx.map(step => um / step);
        return painter.paint(target, [x + .5 - across / 2, y + .5 - down / 2, across, down], 0);
      },
      overview(target) {
        let level = 0;
        while (Math.max(width, height) / 2 ** (level + 1) >= Math.max(target.width, target.height)) level++;
        return painter.paint(target, [0, 0, width, height], Math.min(level, tiles.levels - 1));
      },
    };

    const placeUnder = event => {
      const {lat, lng} = map.mouseEventToLatLng(event);
      return [lng, lat];
    };
    const isOnSlide = event => !event.target.closest(".leaflet-control");
    element.addEventListener("pointerdown", event => {
      if (viewer.mode !== "move" || marks.current < 0 || !isOnSlide(event)) return;
      element.setPointerCapture(event.pointerId);
      dragged = placeUnder(event);
      draw();
    });
    element.addEventListener("pointermove", event => {
      if (!dragged) return;
      dragged = placeUnder(event);
      draw();
    });
    element.addEventListener("pointercancel", () => { dragged = null; draw(); });
    element.addEventListener("pointerup", event => {
      if (!dragged) return;
      const [x, y] = placeUnder(event);
      dragged = null;
      viewer.onMove(marks.current, x - .5, y - .5);
    });
    map.on("click", event => {
      if (viewer.mode === "add") viewer.onAdd(event.latlng.lng - .5, event.latlng.lat - .5);
      else if (viewer.mode === "look") viewer.onSelect(nearest(event.containerPoint));
    });
    map.on("mousemove", event => viewer.onHover(nearest(event.containerPoint), event.originalEvent));
    map.on("mouseout", () => viewer.onHover(-1));
    viewer.goToWhole();
    return viewer;
  }

  return {create};
})();
