"""A quality curve that is drawn: points of second and score, moved by mouse, finger or keyboard.

The value of the component is JSON: a list of `[share of the clip, score]`, from 0 to 1 and from 1 to 5.
"""

from __future__ import annotations

import json


NUM_POINTS = 6
START = [[number / (NUM_POINTS - 1), score] for number, score in enumerate((2.0, 2.0, 3.0, 4.0, 4.5, 4.5))]

TEMPLATE = """
<svg viewBox="0 0 600 190" role="group" aria-label="Quality over the clip, in points from left to right">
  <g class="grid"></g><polyline class="line"></polyline><g class="points"></g>
</svg>
<p class="hint">Drag the points, or go to one with Tab and move it with the arrow keys.</p>
"""
STYLE = """
svg { width: 100%; touch-action: none; display: block; }
.grid line { stroke: var(--border-color-primary); }
.grid text { fill: var(--body-text-color-subdued); font-size: 13px; }
.line { fill: none; stroke: var(--color-accent); stroke-width: 3; }
.points circle { fill: var(--color-accent); cursor: ns-resize; stroke: transparent; stroke-width: 22; }
.points circle:focus-visible { outline: 3px solid var(--body-text-color); outline-offset: 2px; }
.hint { margin: 0; font-size: 13px; color: var(--body-text-color-subdued); }
"""
# What the template holds is drawn anew from `points` at every move; `props.value` follows when the move has ended, so
# that the component is not rendered again under the pointer.
SCRIPT = """
const NS = 'http://www.w3.org/2000/svg', LEFT = 74, RIGHT = 585, TOP = 15, BOTTOM = 165;
const x = share => LEFT + share * (RIGHT - LEFT), y = score => BOTTOM - (score - 1) / 4 * (BOTTOM - TOP);
let points = JSON.parse(props.value);
const make = (name, attributes, text) => {
  const node = document.createElementNS(NS, name);
  for (const key in attributes) node.setAttribute(key, attributes[key]);
  if (text) node.textContent = text;
  return node;
};
const describe = index => `Quality at ${Math.round(points[index][0] * 100)} percent of the clip`;
function place() {
  element.querySelector('.line').setAttribute('points', points.map(p => `${x(p[0])},${y(p[1])}`).join(' '));
  element.querySelectorAll('.points circle').forEach((dot, index) => {
    dot.setAttribute('cx', x(points[index][0]));
    dot.setAttribute('cy', y(points[index][1]));
    dot.setAttribute('aria-valuenow', points[index][1]);
    dot.setAttribute('aria-valuetext', points[index][1].toFixed(1) + ' of 5');
  });
}
function move(index, score) {
  points[index][1] = Math.round(Math.min(5, Math.max(1, score)) * 10) / 10;
  place();
}
function draw() {
  const grid = element.querySelector('.grid'), dots = element.querySelector('.points');
  if (!grid || dots.children.length) return;
  [[1, '1 bad'], [3, '3'], [5, '5 clean']].forEach(([score, label]) => {
    grid.append(make('line', { x1: LEFT, x2: RIGHT, y1: y(score), y2: y(score) }));
    grid.append(make('text', { x: 4, y: y(score) + 4 }, label));
  });
  grid.append(make('text', { x: LEFT, y: 185 }, 'start'));
  grid.append(make('text', { x: RIGHT, y: 185, 'text-anchor': 'end' }, 'end'));
  points.forEach((point, index) => {
    const dot = make('circle', { r: 9, tabindex: 0, role: 'slider', 'aria-orientation': 'vertical',
      'aria-valuemin': 1, 'aria-valuemax': 5, 'aria-label': describe(index) });
    dot.addEventListener('pointerdown', event => { dot.setPointerCapture(event.pointerId); event.preventDefault(); dot.focus(); });
    dot.addEventListener('pointermove', event => {
      if (!dot.hasPointerCapture(event.pointerId)) return;
      const box = element.querySelector('svg').getBoundingClientRect();
      move(index, 1 + 4 * (BOTTOM - (event.clientY - box.top) * 190 / box.height) / (BOTTOM - TOP));
    });
    dot.addEventListener('pointerup', () => keep(index));
    dot.addEventListener('keydown', event => {
      const steps = { ArrowUp: 0.1, ArrowRight: 0.1, ArrowDown: -0.1, ArrowLeft: -0.1, PageUp: 0.5, PageDown: -0.5 };
      const ends = { Home: 1, End: 5 };
      if (!(event.key in steps) && !(event.key in ends)) return;
      event.preventDefault();
      move(index, event.key in ends ? ends[event.key] : points[index][1] + steps[event.key]);
      keep(index);
    });
    dots.append(dot);
  });
  place();
}
function keep(index) {
  props.value = JSON.stringify(points);
  setTimeout(() => { draw(); element.querySelectorAll('.points circle')[index]?.focus(); }, 0);
}
draw();
watch('value', () => { points = JSON.parse(props.value); draw(); place(); });
"""


def to_quality(drawn: str, seconds: float) -> list[tuple[float, float]]:
    """Reads the component's value as a curve of `(second, score)` pairs for a clip of so many seconds.

    Raises:
        ValueError: It is none.
    """
    try:
        return [(round(float(share) * seconds, 3), float(score)) for share, score in json.loads(drawn)]
    except (TypeError, ValueError) as error:
        raise ValueError(f"The drawn curve cannot be read: {error}") from error


def from_quality(curve: list, seconds: float) -> str:
    """Writes a curve of a request as the component's value, on the points that it draws."""
    import numpy as np

    if isinstance(curve[0], list | tuple):
        times, scores = zip(*curve, strict=True)
    else:
        times, scores = np.linspace(0, seconds, len(curve)), curve
    shares = [share for share, _ in START]
    drawn = np.interp(np.array(shares) * seconds, times, scores)
    return json.dumps([[share, round(float(score), 1)] for share, score in zip(shares, drawn, strict=True)])
