"use strict";
const REACH = 24; // pixels between the pointer and a mark
const texts = new Map(), marks = new Map();
const tip = document.createElement("div");
tip.id = "tip";
tip.hidden = true;
document.body.append(tip);

// The titles of marks become tooltips of the page: those of the browser come late, and not at all on a phone.
for (const title of document.querySelectorAll(".mark > title")) {
  texts.set(title.parentNode, title.textContent);
  title.remove();
}

function marksOf(svg) {
  if (!marks.has(svg))
    marks.set(svg, [...svg.querySelectorAll(".mark")].map(mark => {
      const points = mark.points ? [...mark.points] : [{ x: mark.cx.baseVal.value, y: mark.cy.baseVal.value }];
      return { mark, points };
    }));
  return marks.get(svg);
}

// Returns the square of the distance of a point to the line from `a` to `b`, and the nearest place on it.
function distance(at, a, b) {
  const dx = b.x - a.x, dy = b.y - a.y, length = dx * dx + dy * dy;
  const share = length ? Math.min(1, Math.max(0, ((at.x - a.x) * dx + (at.y - a.y) * dy) / length)) : 0;
  const place = { x: a.x + share * dx, y: a.y + share * dy };
  return [(at.x - place.x) ** 2 + (at.y - place.y) ** 2, place];
}

function nearest(svg, at, reach) {
  let found = null, least = reach * reach;
  for (const { mark, points } of marksOf(svg))
    for (let index = 0; index < points.length; index++) {
      const [far, place] = distance(at, points[index], points[Math.min(index + 1, points.length - 1)]);
      if (far < least) [found, least] = [{ mark, place }, far];
    }
  return found;
}

// Returns the numbers at a place of a chart of curves.
function numbersAt(svg, place) {
  if (!svg.dataset.axes) return "";
  const values = svg.dataset.axes.split(" ").map(Number);
  const number = (pixel, [start, end, low, high, log]) => {
    const value = low + (pixel - start) / (end - start) * (high - low);
    return Number((log ? 10 ** value : value).toPrecision(4));
  };
  return `\n${svg.dataset.across} ${Math.round(number(place.x, values))}: ${number(place.y, values.slice(5))}`;
}

let lit;
function highlight(key) {
  if (key === lit) return;
  for (const each of document.querySelectorAll(".on")) each.classList.remove("on");
  lit = key;
  if (key !== undefined)
    for (const each of document.querySelectorAll(`[data-key="${key}"]`)) each.classList.add("on");
}

function point(event) {
  const svg = event.target.closest("svg");
  let found = null;
  if (svg) {
    const matrix = svg.getScreenCTM();
    const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(matrix.inverse());
    found = nearest(svg, at, REACH / matrix.a);
  }
  highlight(found ? found.mark.dataset.key : event.target.closest("tr")?.dataset.key);
  tip.hidden = !found;
  if (!found) return;
  tip.textContent = texts.get(found.mark) + (found.mark.points ? numbersAt(svg, found.place) : "");
  const room = tip.getBoundingClientRect();
  const x = Math.min(event.clientX + 14, innerWidth - room.width - 6);
  const above = event.clientY + 18 + room.height > innerHeight;
  tip.style.left = `${Math.max(6, x)}px`;
  tip.style.top = `${above ? event.clientY - room.height - 12 : event.clientY + 18}px`;
}
addEventListener("pointermove", point);
addEventListener("pointerdown", point);
addEventListener("scroll", () => { tip.hidden = true; }, true);

// A click on a heading sorts by its column, empty cells last.
function sort(head, down) {
  const body = head.closest("table").tBodies[0];
  for (const each of head.parentNode.cells) each.ariaSort = null;
  head.ariaSort = down ? "descending" : "ascending";
  const value = row => row.cells[head.cellIndex].dataset.value;
  const compare = (a, b) => (a === "") - (b === "") ||
    (down ? -1 : 1) * (isNaN(a) || isNaN(b) ? a.localeCompare(b) : a - b);
  body.append(...[...body.rows].sort((a, b) => compare(value(a), value(b))));
}
const heads = [...document.querySelectorAll("th")];
function remember(head, down) {
  try { sessionStorage.setItem("sort", JSON.stringify([heads.indexOf(head), down])); } catch { /* not there */ }
}
for (const head of heads) {
  head.tabIndex = 0;
  const turn = () => {
    const down = head.ariaSort === "ascending";
    sort(head, down);
    remember(head, down);
  };
  head.addEventListener("click", turn);
  head.addEventListener("keydown", event => { if (event.key === "Enter") turn(); });
}

// The page of a sweep that runs is written again and again: it loads itself, and stays sorted.
if (document.body.dataset.live) {
  try {
    const [index, down] = JSON.parse(sessionStorage.getItem("sort") ?? "[-1, false]");
    if (heads[index]) sort(heads[index], down);
  } catch { /* not there */ }
  const again = () => { if (tip.hidden) location.reload(); };
  setInterval(again, 1000 * document.body.dataset.live);
}
