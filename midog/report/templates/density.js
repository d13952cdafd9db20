"use strict";
// How many mitotic figures a round field around each place has, as midog/report/density.py counts them, in the colours
// of density.png.
const Density = (() => {
  const ROUND = [1, 1.5, 2, 3, 4, 5, 6, 8, 10];

  /**
  The number for the middle of each cell of a grid; places and sizes are mm from the outer corner of the first pixel,
  `cells` are those of the grid's longer side. {columns, rows, values}, an Int32Array row by row.
  */
  function field(xsMm, ysMm, widthMm, heightMm, diameterMm, cells) {
    const cell = Math.max(widthMm, heightMm) / cells, radius = diameterMm / 2;
    const [columns, rows] = [widthMm, heightMm].map(side => Math.max(1, Math.floor(side / cell + 0.5)));
    const across = widthMm / columns, down = heightMm / rows;
    const changes = new Int32Array(rows * (columns + 1)), values = new Int32Array(rows * columns);
    for (let i = 0; i < xsMm.length; i++) {
      const x = xsMm[i], y = ysMm[i];
      if (!(x >= 0 && y >= 0 && x <= widthMm && y <= heightMm)) continue;
      const lastRow = Math.min(Math.ceil((y + radius) / down), rows - 1);
      for (let row = Math.max(Math.floor((y - radius) / down) - 1, 0); row <= lastRow; row++) {
        const away = (row + 0.5) * down - y, rest = radius * radius - away * away;
        if (rest < 0) continue;
        const reach = Math.sqrt(rest);
        changes[row * (columns + 1) + Math.max(Math.ceil((x - reach) / across - 0.5), 0)]++;
        changes[row * (columns + 1) + Math.min(Math.floor((x + reach) / across - 0.5), columns - 1) + 1]--;
      }
    }
    for (let row = 0; row < rows; row++)
      for (let column = 0, count = 0; column < columns; column++)
        values[row * columns + column] = count += changes[row * (columns + 1) + column];
    return {columns, rows, values};
  }

  /** The round number at which the colour scale ends; 1 where there are no figures. */
  function scaleTop(values) {
    const highest = values.reduce((most, value) => Math.max(most, value), 1);
    const power = 10 ** (String(highest).length - 1);
    return power * ROUND.find(factor => factor * power >= highest);
  }

  /** The cell of another grid's axis that the middle of a cell lies in. */
  const below = (cell, count, others) => Math.floor((cell + 0.5) / count * others);

  // Fills a canvas, a px for each cell of the grid, clear where the middle of the cell is glass, as far as that is
  // known; places are px of the slide. Gives the number where the colours end.
  function paint(canvas, x, y, {size, umPerPx, tissue, density: {diameterMm, cells, colours}}) {
    const mm = numbers => numbers.map(nm => nm / Hotspot.NM_PER_MM);
    const [xs, ys] = Hotspot.places(x, y, umPerPx).map(mm), sides = mm(Hotspot.extent(size, umPerPx));
    const {columns, rows, values} = field(xs, ys, ...sides, diameterMm, cells);
    const top = scaleTop(values), last = colours.length - 1, mask = tissue && Counts.unpacked(tissue.runs);
    const stops = colours.map(colour => [1, 3, 5].map(start => parseInt(colour.slice(start, start + 2), 16)));
    const shades = new Uint32Array(Uint8ClampedArray.from(Array.from({length: top + 1}, (_, value) => {
      const place = value / top * last, stop = Math.min(Math.floor(place), last - 1);
      return [...stops[stop].map((low, channel) => low + (place - stop) * (stops[stop + 1][channel] - low)), 255];
    }).flat()).buffer);
    [canvas.width, canvas.height] = [columns, rows];
    const context = canvas.getContext("2d"), picture = context.createImageData(columns, rows);
    const pixels = new Uint32Array(picture.data.buffer);
    for (let row = 0, cell = 0; row < rows; row++) {
      for (let column = 0; column < columns; column++, cell++) {
        if (!mask || mask[below(row, rows, tissue.rows) * tissue.columns + below(column, columns, tissue.columns)])
          pixels[cell] = shades[values[cell]];
      }
    }
    context.putImageData(picture, 0, 0);
    return top;
  }

  return {field, scaleTop, paint};
})();
