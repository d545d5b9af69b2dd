// Puts the parts of the page together: they share the layer, and the pair that is pinned.

import { readScale } from "./colours.js";
import { el } from "./dom.js";
import { Gallery } from "./images.js";
import { Maps } from "./maps.js";
import { Pair } from "./pair.js";
import { Queries } from "./queries.js";
import { ServerSource, SiteSource } from "./site.js";
import { EmbeddedSource } from "./source.js";

const LARGE = 2000; // images of which a server ranks queries when somebody looks at them, and not before

const byId = (id) => document.getElementById(id);

/** Return a promise that an element is on the screen, or nearly. */
function whenSeen(element) {
  return new Promise((resolve) => {
    const observer = new IntersectionObserver(([{ isIntersecting }]) => {
      if (!isIntersecting) return;
      observer.disconnect();
      resolve();
    }, { rootMargin: "50%" });
    observer.observe(element);
  });
}

async function start() {
  const data = JSON.parse(byId("data").textContent);
  const isSite = data.layers.some((layer) => layer.tiles);
  const source = new (data.served ? ServerSource : isSite ? SiteSource : EmbeddedSource)(data);
  const scale = readScale(data.colours);
  const stops = [0, 64, 128, 192, 255].map((at) => `rgb(${[...scale.subarray(3 * at, 3 * at + 3)].join(" ")})`);
  document.documentElement.style.setProperty("--gradient", `linear-gradient(to right, ${stops.join(", ")})`);
  const gallery = new Gallery(data);
  const pair = new Pair(source, gallery, byId("pair"), byId("pair-app"));
  const select = byId("layer");
  let pinned = null;
  const pin = async (row, column, numbers) => {
    pinned = [row, column];
    maps.mark(row, column);
    await pair.show(select.value, row, column, numbers);
  };
  const pinAndGo = async (...chosen) => {
    await pin(...chosen);
    byId("pair").scrollIntoView({ behavior: matchMedia("(prefers-reduced-motion: reduce)").matches ? "auto" : "smooth" });
  };
  const maps = new Maps(source, gallery, scale, byId("maps-app"), pin);
  const queries = new Queries(source, gallery, byId("queries-app"), pinAndGo);
  if (!source.layers.length) return;
  select.append(...source.layers.map((name) => el("option", { value: name, textContent: name })));
  select.closest("label").hidden = false;
  select.value = data.first;
  const isLarge = data.served && Object.values(data.images).some((side) => side.count > LARGE);
  const seen = isLarge ? whenSeen(byId("retrieval")) : null;
  const showQueries = async (layer) => {
    await seen; // ranking takes all that a server has, maybe for minutes
    if (select.value === layer) await queries.show(layer);
  };
  const show = async () => {
    const shown = maps.show(select.value);
    const ranked = showQueries(select.value);
    await shown;
    if (!data.served) await ranked;
    pinned ??= await source.largest(select.value);
    if (!pinned) return;
    maps.mark(...pinned);
    await pair.show(select.value, ...pinned, null);
  };
  select.addEventListener("change", show);
  await show();
  document.documentElement.dataset.ready = "true";
}

// What a server or a site could not answer, where nothing else says so.
window.addEventListener("unhandledrejection", (event) => {
  document.querySelector(".notes").append(el("li", { role: "alert", textContent: event.reason?.message ?? String(event.reason) }));
});

start();
