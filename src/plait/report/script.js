(() => {
  "use strict";

  const { palette, charts } = JSON.parse(document.getElementById("charts").textContent);
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const PRINT_WIDTH = 660; // pixels between the margins of a sheet of A4 or Letter

  // Put a theme's colours in the place of their roles.
  function painted(value, colours, key = "") {
    if (Array.isArray(value)) return value.map((item) => painted(item, colours, key));
    if (value !== null && typeof value === "object") {
      return Object.fromEntries(Object.entries(value).map(([name, item]) => [name, painted(item, colours, name)]));
    }
    return key.endsWith("color") && Object.hasOwn(colours, value) ? colours[value] : value;
  }

  const hidden = new Map(charts.map((chart) => [chart.name, { mixer: new Set(), ratio: new Set() }]));
  const figureOf = (chart) => document.querySelector(`figure[data-chart="${CSS.escape(chart.name)}"]`);

  function draw(chart, theme, width) {
    const off = hidden.get(chart.name);
    const data = painted(chart.data, palette[theme]).map((trace) => ({
      ...trace,
      visible: !off.mixer.has(trace.meta.mixer) && !off.ratio.has(trace.meta.ratio),
    }));
    const layout = painted(chart.layout, palette[theme]);
    const place = figureOf(chart).querySelector(".chart");
    if (width) Object.assign(layout, { autosize: false, width, height: 320 });
    return Plotly.react(place, data, layout, { responsive: !width, displayModeBar: false, showTips: false });
  }

  const theme = () => (dark.matches ? "dark" : "light");
  const drawAll = () => charts.forEach((chart) => draw(chart, theme()));

  function connectLegend(chart) {
    for (const button of figureOf(chart).querySelectorAll(".legend button")) {
      button.addEventListener("click", () => {
        const { kind, value } = button.dataset;
        const off = hidden.get(chart.name)[kind];
        const show = off.delete(value);
        if (!show) off.add(value);
        button.setAttribute("aria-pressed", String(show));
        draw(chart, theme());
      });
    }
  }

  // Missing values stand last in both directions; equal ones keep their order.
  function compare(a, b, numeric, sign) {
    if (a === undefined || b === undefined) return (a === undefined) - (b === undefined);
    return sign * (numeric ? Number(a) - Number(b) : a.localeCompare(b, "en", { numeric: true }));
  }

  function connectTable(table) {
    const headings = [...table.tHead.rows[0].cells];
    headings.forEach((heading, column) => {
      heading.querySelector("button").addEventListener("click", () => {
        const direction = heading.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending";
        headings.forEach((other) => other.removeAttribute("aria-sort"));
        heading.setAttribute("aria-sort", direction);
        const numeric = heading.classList.contains("number");
        const sign = direction === "ascending" ? 1 : -1;
        const value = (row) => row.cells[column].dataset.value;
        const body = table.tBodies[0];
        body.append(...[...body.rows].sort((a, b) => compare(value(a), value(b), numeric, sign)));
        document.getElementById("sorted").textContent = `Sorted by ${heading.innerText.trim()}, ${direction}.`;
      });
    });
  }

  let reopened = [];
  window.addEventListener("beforeprint", () => {
    reopened = [...document.querySelectorAll("details:not([open])")];
    reopened.forEach((details) => (details.open = true));
    charts.forEach((chart) => draw(chart, "light", PRINT_WIDTH));
  });
  window.addEventListener("afterprint", () => {
    reopened.forEach((details) => (details.open = false));
    drawAll();
  });

  dark.addEventListener("change", drawAll);
  charts.forEach(connectLegend);
  document.querySelectorAll("table.sortable").forEach(connectTable);
  drawAll();
})();
