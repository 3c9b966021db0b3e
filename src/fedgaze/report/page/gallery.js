"use strict";
// The gallery: a slider chooses the round, buttons choose whose images. The page comes with the
// last round filled in, so that it reads without this script and prints as it stands.
{
  const data = JSON.parse(document.getElementById("gallery-data").textContent);
  const body = document.getElementById("gallery-rows");
  const slider = document.getElementById("round");
  const views = [...document.querySelectorAll("#view input")];

  const element = (name, className, text) => {
    const made = document.createElement(name);
    if (className) made.className = className;
    if (text !== undefined) made.textContent = text;
    return made;
  };

  const cellOf = (cell) => {
    const made = element("td");
    if (!cell) {
      made.append(element("span", "none", "no picture"));
      return made;
    }
    const picture = element("img");
    picture.src = data.pictures[cell.picture];
    picture.alt = cell.alt;
    made.append(picture, element("span", cell.wrong ? "says wrong" : "says", cell.says));
    return made;
  };

  const rowOf = (row, columns) => {
    const made = element("tr");
    const name = element("th");
    name.scope = "row";
    const who = element("span", `who slot-${row.slot}`);
    const dot = element("i", "dot");
    dot.setAttribute("aria-hidden", "true");
    who.append(dot, row.client);
    name.append(who);
    made.append(name);
    if (row.cells) {
      made.append(...row.cells.map(cellOf));
    } else {
      const reason = element("td");
      reason.colSpan = columns;
      reason.append(element("span", "none", row.reason));
      made.append(reason);
    }
    return made;
  };

  const show = () => {
    const view = views.find((each) => each.checked).value;
    const round = data.rounds[slider ? Number(slider.value) : data.rounds.length - 1];
    const columns = body.closest("table").tHead.rows[0].cells.length - 1;
    const rows = data.table[view][round] ?? [];
    body.replaceChildren(...rows.map((row) => rowOf(row, columns)));
    document.getElementById("view-note").textContent = data.notes[view];
    if (slider) {
      document.getElementById("round-shown").textContent = round;
      slider.setAttribute("aria-valuetext", `Round ${round}`);
    }
  };

  if (body) {
    for (const each of views) each.addEventListener("change", show);
    slider?.addEventListener("input", show);
  }
}
