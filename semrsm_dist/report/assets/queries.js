// Queries and their most similar images, by each way to compare: sorted by what matching gains, searched by id and label.

import { choices, count, el, similarity } from "./dom.js";

const AT_ONCE = 8;
const SORTS = [["gain", "largest gain first"], ["loss", "largest loss first"], ["given", "as given"]];

export class Queries {
  /** `pin(row, column, numbers)` is called with a query and a hit that was chosen. */
  constructor(source, gallery, root, pin) {
    Object.assign(this, { source, gallery, root, pin });
    this.sort = "gain";
    this.k = null;
    this.text = "";
  }

  async show(layer) {
    const news = el("p", { className: "muted", role: "status" });
    this.root.replaceChildren(news);
    this.layer = layer;
    let found = null;
    try {
      found = await this.source.queries(layer, (share) => (news.textContent = `The queries are being ranked: ${Math.floor(100 * share)} % done.`));
    } catch (error) {
      const again = el("button", { type: "button", textContent: "Try again", onclick: () => this.show(layer) });
      const text = el("p", { className: "note", role: "alert", textContent: `The queries could not be ranked: ${error.message}` });
      news.replaceWith(text, again); // nothing, if another has been chosen meanwhile
      return;
    }
    if (this.layer !== layer) return; // another has been chosen meanwhile
    this.found = found;
    this.root.replaceChildren();
    if (!this.found) return;
    const { ks, rankings } = this.found;
    this.shown = AT_ONCE;
    this.k ??= ks[0];
    this.hasGain = rankings.length > 1;
    this.scores = rankings.map((ranking) => Array.from(this.found.rows, (_, query) => this.#overlaps(ranking, query)));
    const width = rankings[0].shown;
    const search = el("input", { type: "search", id: "search", placeholder: "id or label", value: this.text, oninput: (event) => this.#change({ text: event.target.value }) });
    this.summary = el("p", { className: "muted", id: "queries-count", "aria-live": "polite" });
    this.list = el("ol", { className: "queries" });
    this.more = el("button", { type: "button", textContent: "Show more", onclick: () => this.#more() });
    const judged = this.found.judged;
    this.root.append(
      el("div", { className: "controls" },
        this.hasGain ? choices("Sort", "sort", SORTS, this.sort, (sort) => this.#change({ sort })) : null,
        choices("F1 of the best", "k", Array.from({ length: width }, (_, at) => [String(at + 1), String(at + 1)]), String(this.k), (k) => this.#change({ k: Number(k) })),
        el("label", { className: "choice" }, "Search ", search)),
      judged ? el("p", { className: "key" }, el("span", { className: "hit full" }), " same labels ", el("span", { className: "hit part" }), " some in common ", el("span", { className: "hit none" }), " none") : el("p", { className: "muted", textContent: "The images have no labels, so nothing says which hits are right. Queries are sorted by how many of their hits change." }),
      this.summary, this.list, this.more);
    this.#render();
  }

  /** Return the F1 of each hit of a query, or NaN. */
  #overlaps(ranking, query) {
    const own = new Set(this.gallery.labels(this.source.rowSide, this.found.rows[query]));
    return Array.from(ranking.indices.subarray(query * ranking.shown, (query + 1) * ranking.shown), (hit) => {
      if (hit === ranking.none) return NaN;
      const labels = this.gallery.labels("images", hit);
      return own.size + labels.length ? (2 * labels.filter((label) => own.has(label)).length) / (own.size + labels.length) : 0;
    });
  }

  /** Return the mean F1 of a query's best k hits. */
  #score(method, query) {
    const overlaps = this.scores[method][query].slice(0, this.k).filter((value) => !Number.isNaN(value));
    return overlaps.length ? overlaps.reduce((sum, value) => sum + value, 0) / overlaps.length : NaN;
  }

  #gain(query) {
    const { rankings, judged } = this.found;
    const at = (name) => rankings.findIndex((ranking) => ranking.method === name);
    if (judged) return this.#score(at("semantic"), query) - this.#score(at("spatio-semantic"), query);
    const hits = (name) => Array.from(rankings[at(name)].indices.subarray(query * rankings[0].shown, query * rankings[0].shown + this.k));
    const others = new Set(hits("spatio-semantic"));
    return hits("semantic").filter((hit) => !others.has(hit)).length;
  }

  #change(settings) {
    Object.assign(this, settings);
    this.shown = AT_ONCE;
    this.#render();
  }

  #more() {
    const before = this.shown;
    this.shown += AT_ONCE;
    this.#render();
    this.list.children[before]?.querySelector("button")?.focus();
  }

  #selected() {
    const { rowSide } = this.source;
    const wanted = this.text.trim().toLowerCase();
    const queries = Array.from(this.found.rows, (_, query) => query).filter((query) => {
      const image = this.found.rows[query];
      return !wanted || this.gallery.id(rowSide, image).toLowerCase().includes(wanted)
        || this.gallery.labels(rowSide, image).some((label) => this.gallery.vocabulary[label].toLowerCase() === wanted)
        || this.gallery.labelText(rowSide, image).toLowerCase().includes(wanted);
    });
    if (!this.hasGain || this.sort === "given") return queries;
    const sign = this.sort === "gain" ? -1 : 1;
    const gains = new Map(queries.map((query) => [query, this.#gain(query)]));
    const value = (query) => (Number.isNaN(gains.get(query)) ? Infinity : sign * gains.get(query));
    return queries.sort((a, b) => value(a) - value(b) || a - b);
  }

  #render() {
    const queries = this.#selected();
    this.summary.textContent = `${count(queries.length, "query", "queries")} listed. ${this.found.note}`.trim();
    this.list.replaceChildren(...queries.slice(0, this.shown).map((query) => this.#row(query)));
    this.more.hidden = queries.length <= this.shown;
  }

  #row(query) {
    const { rowSide } = this.source;
    const { rankings, judged } = this.found;
    const image = this.found.rows[query];
    const gain = this.hasGain ? this.#gain(query) : NaN;
    const gainText = !this.hasGain || Number.isNaN(gain) ? "" : judged ? `F1@${this.k} ${gain < 0 ? "\u2212" : "+"}${Math.abs(gain).toFixed(2)}` : `${count(gain, "new hit")}`;
    const head = el("div", { className: "query" },
      this.gallery.thumbnail(rowSide, image, 1.25),
      el("p", {}, el("strong", { textContent: this.gallery.id(rowSide, image) }),
        el("span", { className: "muted", textContent: this.gallery.labelText(rowSide, image) }),
        el("span", { className: `gain ${gain > 0 ? "up" : gain < 0 ? "down" : ""}`, textContent: gainText })));
    return el("li", {}, head, el("div", { className: "rankings" }, ...rankings.map((ranking, method) => this.#hits(ranking, method, query))));
  }

  #hits(ranking, method, query) {
    const score = this.#score(method, query);
    const image = this.found.rows[query];
    const items = [];
    for (let rank = 0; rank < ranking.shown; rank++) {
      const at = query * ranking.shown + rank;
      const hit = ranking.indices[at];
      if (hit === ranking.none) continue;
      const overlap = this.scores[method][query][rank];
      const kind = this.found.judged ? (overlap === 1 ? "full" : overlap > 0 ? "part" : "none") : "";
      const words = { full: "same labels", part: "some labels in common", none: "no label in common" }[kind] ?? "";
      const numbers = { semantic: ranking.semantic[at], spatial: ranking.spatial[at], gap: ranking.gap[at] };
      const label = [`hit ${rank + 1}: ${this.gallery.id("images", hit)}`, words, similarity(ranking.score[at])].filter(Boolean).join(", ");
      items.push(el("li", {}, el("button", { type: "button", className: `hit ${kind} ${rank < this.k ? "" : "beyond"}`, "aria-label": label, onclick: () => this.pin(image, hit, numbers) },
        this.gallery.thumbnail("images", hit), el("span", { className: "score", textContent: ranking.score[at].toFixed(3) }))));
    }
    const title = this.found.judged && !Number.isNaN(score) ? `${ranking.method}, F1@${this.k} ${score.toFixed(2)}` : ranking.method;
    return el("div", { className: "ranking" }, el("p", { textContent: title }), el("ol", {}, ...items));
  }
}
