"use strict";
// How densely the mitotic figures lie, in the colours of density.png.
const Density = (() => {
  // Fills a canvas, a px for each cell of the grid; places are px of the slide. Gives the number where the colours end.
  function paint(canvas, x, y, {size, umPerPx, density: {kernelMm, cells, colours}}) {
    const mm = numbers => numbers.map(nm => nm / Hotspot.NM_PER_MM);
    const [xs, ys] = Hotspot.places(x, y, umPerPx).map(mm), sides = mm(Hotspot.extent(size, umPerPx));
    const {columns, rows, values} = Hotspot.density(xs, ys, ...sides, kernelMm, cells);
    const top = Hotspot.scaleTop(values), last = colours.length - 1;
    const stops = colours.map(colour => [1, 3, 5].map(start => parseInt(colour.slice(start, start + 2), 16)));
    [canvas.width, canvas.height] = [columns, rows];
    const context = canvas.getContext("2d"), picture = context.createImageData(columns, rows);
    values.forEach((value, cell) => {
      const place = value / top * last, stop = Math.min(Math.floor(place), last - 1);
      const colour = stops[stop].map((low, channel) => low + (place - stop) * (stops[stop + 1][channel] - low));
      picture.data.set([...colour, 255], 4 * cell);
    });
    context.putImageData(picture, 0, 0);
    return top;
  }

  return {paint};
})();
