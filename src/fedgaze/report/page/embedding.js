"use strict";
// A picture and its heatmap beside the spot that somebody points at, or reaches with the arrow keys.
{
  const points = JSON.parse(document.getElementById("points-data").textContent);

  const tip = document.createElement("div");
  tip.className = "tip seen-tip";
  tip.hidden = true;
  const picture = document.createElement("img");
  picture.alt = "";
  const words = document.createElement("span");
  tip.append(picture, words);

  const said = (point) => point.predicted === point.label
    ? `${point.label} (${point.name})`
    : `${point.label}, taken for ${point.predicted} (${point.name})`;

  for (const cloud of document.querySelectorAll(".cloud")) {
    const spots = [...cloud.querySelector("svg").children];
    const spoken = cloud.parentElement.querySelector(".spoken");
    let now = -1;

    const hide = () => {
      tip.hidden = true;
      spots[now]?.classList.remove("chosen");
      now = -1;
    };

    const show = (index) => {
      spots[now]?.classList.remove("chosen");
      now = index;
      spots[now].classList.add("chosen");
      picture.src = points[now].picture;
      words.textContent = said(points[now]);
      cloud.append(tip);
      tip.hidden = false;
      const box = cloud.getBoundingClientRect();
      const spot = spots[now].getBoundingClientRect();
      const left = spot.left - box.left + spot.width / 2 - tip.offsetWidth / 2;
      tip.style.left = `${Math.max(0, Math.min(box.width - tip.offsetWidth, left))}px`;
      const above = spot.top - box.top - tip.offsetHeight - 8;
      tip.style.top = `${above < 0 ? spot.bottom - box.top + 8 : above}px`;
    };

    // The nearest spot within reach, so that nobody has to hit a spot of a few pixels.
    cloud.addEventListener("pointermove", (event) => {
      let nearest = -1;
      let least = 14 ** 2;
      spots.forEach((spot, index) => {
        const box = spot.getBoundingClientRect();
        const far = (box.left + box.width / 2 - event.clientX) ** 2
          + (box.top + box.height / 2 - event.clientY) ** 2;
        if (far < least) [least, nearest] = [far, index];
      });
      if (nearest < 0) hide();
      else if (nearest !== now) show(nearest);
    });
    cloud.addEventListener("pointerleave", hide);
    cloud.addEventListener("blur", hide);
    cloud.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (event.key === "Escape") hide();
      if (!step) return;
      event.preventDefault();
      show((now + step + spots.length) % spots.length);
      spoken.textContent = said(points[now]);
    });
  }
}
