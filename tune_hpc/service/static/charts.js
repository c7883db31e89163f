// Learning curves and response curves, drawn by uPlot from the JSON of the API.
"use strict";
(() => {
  const HEIGHT = 320;
  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const colour = (index) => css(`--s${index % 10}`);
  const digits = (value) => (value === null || value === undefined ? "–" : Number(value).toPrecision(4).replace(/\.?0+$/, "").replace(/\.?0+e/, "e"));
  const words = (name) => name.replace(/^valid_/, "validation_").replace(/^train_/, "training_").replaceAll("_", " ");
  const plural = (count, noun) => `${count} ${noun}${count === 1 ? "" : "s"}`;

  class Chart {
    constructor(figure) {
      this.figure = figure;
      this.kind = figure.dataset.chart;
      this.box = figure.querySelector(".plot");
      this.caption = figure.querySelector("figcaption");
      this.legend = figure.querySelector(".legend");
      this.text = null;
      this.content = null;
      this.plot = null;
      figure.querySelectorAll("select").forEach((one) => one.addEventListener("change", () => this.load()));
      const log = figure.querySelector('[data-role="log"]');
      if (log) log.addEventListener("change", () => { this.isChosen = true; this.draw(); });
      document.body.addEventListener("tick", () => this.load());
      matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
      new ResizeObserver(() => {
        if (this.plot && Math.abs(this.plot.width - this.box.clientWidth) > 1) this.plot.setSize({ width: this.box.clientWidth, height: HEIGHT });
      }).observe(this.box);
      this.load();
    }

    role(name) { return this.figure.querySelector(`[data-role="${name}"]`); }

    async load() {
      const address = new URL(this.figure.dataset.url, location.href);
      for (const name of ["metric", "parameter"]) {
        const select = this.role(name);
        if (select && select.value) address.searchParams.set(name, select.value);
      }
      let answer;
      try {
        answer = await fetch(address, { cache: "no-cache", headers: { Accept: "application/json" } });
      } catch {
        window.tuneHpc.unanswered();
        return;
      }
      window.tuneHpc.answered();
      const text = await answer.text();
      if (!answer.ok) {
        let message = `The service answered ${answer.status}.`;
        try { message = JSON.parse(text).detail || message; } catch { /* not JSON */ }
        this.showMessage(message);
        return;
      }
      if (text === this.text) return;
      this.text = text;
      this.content = JSON.parse(text);
      this.fill("metric", this.content.metrics, this.content.metric);
      this.fill("parameter", this.content.parameters, this.content.parameter);
      this.draw();
    }

    fill(role, names, chosen) {
      const select = this.role(role);
      if (!select || !names || document.activeElement === select) return;
      if ([...select.options].map((one) => one.value).join() !== names.join()) {
        select.replaceChildren(...names.map((name) => new Option(words(name), name)));
      }
      if (chosen) select.value = chosen;
    }

    showMessage(text) {
      if (this.plot) this.plot.destroy();
      this.plot = null;
      this.box.replaceChildren(Object.assign(document.createElement("p"), { className: "empty", textContent: text }));
      this.caption.textContent = "";
      this.legend.replaceChildren();
    }

    axis(label, values) {
      return { label, labelSize: 22, labelFont: "13px system-ui, sans-serif", font: "12px system-ui, sans-serif", stroke: css("--quiet"),
        grid: { stroke: css("--rule"), width: 1 }, ticks: { stroke: css("--rule"), width: 1 }, ...values };
    }

    // Tick labels; some are null on logarithmic axes.
    ticks(values) { return values.map((value) => (value === null ? "" : digits(value))); }

    draw() {
      if (!this.content) return;
      if (this.kind === "curves") this.drawCurves(); else this.drawResponse();
    }

    make(options, data, rest) {
      this.rest = rest;
      this.box.replaceChildren();
      if (this.plot) this.plot.destroy();
      const full = {
        width: this.box.clientWidth, height: HEIGHT, legend: { show: false }, padding: [10, 24, 0, 0],
        focus: { alpha: 0.25 }, ...options,
        cursor: { focus: { prox: 24 }, points: { size: 7 }, drag: { x: true, y: false } },
        hooks: { setSeries: [(plot, index) => this.showPoint(plot, index)], setCursor: [(plot) => this.showPoint(plot, this.focused)] },
      };
      this.plot = new uPlot(full, data, this.box);
      this.caption.textContent = rest;
    }

    showPoint(plot, index) {
      this.focused = index;
      const place = plot.cursor.idx;
      const series = index ? plot.series[index] : null;
      if (!series || place === null || place === undefined) { this.caption.textContent = this.rest; return; }
      let at = place;
      while (at > 0 && (plot.data[index][at] === null || plot.data[index][at] === undefined)) at -= 1;
      this.caption.textContent = `${series.caption}: ${digits(plot.data[index][at])} at ${this.xName} ${digits(plot.data[0][at])}`;
    }

    groups(labels) {
      const names = [...new Set(labels.filter((one) => one))].sort((a, b) => a - b || a.localeCompare(b));
      this.legend.replaceChildren(...(names.length > 1 ? names : []).map((name, index) => {
        const item = document.createElement("li");
        const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
        svg.setAttribute("viewBox", "0 0 22 14");
        svg.setAttribute("aria-hidden", "true");
        const line = document.createElementNS("http://www.w3.org/2000/svg", "path");
        line.setAttribute("d", "M1 7H21");
        line.setAttribute("stroke", colour(index));
        line.setAttribute("stroke-width", "4");
        svg.append(line);
        item.append(svg, name);
        return item;
      }));
      return names;
    }

    drawCurves() {
      const content = this.content;
      if (!content.curves.length) { this.showMessage("No trial has reported a metric yet."); return; }
      const names = this.groups(content.curves.map((one) => one.group));
      const values = content.curves.flatMap((one) => one.values.filter((value) => value !== null));
      const lowest = Math.min(...values), highest = Math.max(...values);
      // On a linear axis a few bad trials would squeeze all others.
      if (!this.isChosen) this.role("log").checked = lowest > 0 && highest / lowest > 20;
      const isLog = this.role("log").checked && lowest > 0;
      const data = uPlot.join(content.curves.map((one) => [one.steps, one.values]));
      const best = content.curves.length - 1;
      const series = [{}, ...content.curves.map((one, index) => ({
        caption: `${one.trial_id}${one.label ? ` (${one.label})` : ""}`,
        stroke: colour(Math.max(0, names.indexOf(one.group))),
        width: index === best && content.curves.length > 1 ? 3 : 1.3,
        dash: one.status === "running" ? [5, 3] : undefined,
        alpha: index === best || content.curves.length < 12 ? 1 : 0.7,
        spanGaps: true,
        points: { show: one.steps.length < 3 },
      }))];
      this.xName = "step";
      const left = content.num_trials > content.curves.length ? `${content.curves.length} of ${content.num_trials} trials: running ones and the best` : plural(content.num_trials, "trial");
      const thinned = content.is_thinned ? ", points thinned" : "";
      const group = names.length > 1 ? `; colored by ${words(content.group)}` : "";
      const rest = `${left}${thinned}${group}${content.curves.length > 1 ? "; the best is thick" : ""}${content.curves.some((one) => one.status === "running") ? ", running ones dashed" : ""}.`;
      this.make({
        series,
        scales: { x: { time: false }, y: !isLog ? {} : highest / lowest > 20 ? { distr: 3, range: () => [lowest / 1.15, highest * 1.15] } : { distr: 3 } },
        axes: [this.axis("step"), this.axis(words(content.metric), { size: 62, values: (plot, all) => this.ticks(all) })],
      }, data, rest);
    }

    drawResponse() {
      const content = this.content;
      if (!content.parameter || !content.lines.length) { this.showMessage("No trial has ended with this metric yet."); return; }
      const names = this.groups(content.lines.map((one) => one.label));
      const data = uPlot.join(content.lines.map((one) => [one.x, one.mean]));
      const series = [{}, ...content.lines.map((one) => {
        const stroke = colour(Math.max(0, names.indexOf(one.label)));
        return { caption: one.label || words(content.metric), stroke, width: 1.5, spanGaps: true, paths: one.is_joined ? undefined : () => null,
          points: { show: true, size: 7, fill: stroke, stroke } };
      })];
      this.xName = words(content.parameter);
      const group = names.length > 1 ? `; colored by ${words(content.group)}` : "";
      const shown = content.lines.reduce((sum, one) => sum + one.x.length, 0);
      const all = data[0], low = all[0], high = all[all.length - 1];
      const range = content.is_log ? [low / 1.3, high * 1.3] : [low - (high - low || 1) * 0.04, high + (high - low || 1) * 0.04];
      this.make({
        series,
        scales: { x: { time: false, distr: content.is_log ? 3 : 1, range: () => range } },
        axes: [this.axis(words(content.parameter), { values: (plot, ticks) => this.ticks(ticks) }), this.axis(words(content.metric), { size: 62, values: (plot, ticks) => this.ticks(ticks) })],
      }, data, `${shown < content.num_points ? `${shown} of ` : ""}${plural(content.num_points, "configuration")}${group}; averaged over seeds.`);
    }
  }

  document.querySelectorAll(".chart").forEach((one) => new Chart(one));
})();
