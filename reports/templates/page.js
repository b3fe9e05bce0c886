"use strict";
(() => {
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const coarse = matchMedia("(pointer: coarse)");
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  // Figures come without colours of their own for text and grid, so that they follow the page's.
  const themed = (layout) => {
    const grid = { gridcolor: colour("--grid"), linecolor: colour("--line"), zerolinecolor: colour("--grid") };
    const axes = Object.keys(layout).filter((key) => /^[xy]axis/.test(key));
    return {
      ...layout,
      ...Object.fromEntries(axes.map((key) => [key, { ...layout[key], ...grid }])),
      font: { ...layout.font, color: colour("--ink") },
      hoverlabel: { bgcolor: colour("--raised"), bordercolor: colour("--line"), font: { color: colour("--ink") } },
      // A finger that scrolls the page must not zoom the plot.
      dragmode: coarse.matches ? false : "zoom",
    };
  };
  const draw = (element) => {
    const figure = JSON.parse(document.getElementById(element.dataset.figure).textContent);
    Plotly.react(element, figure.data, themed(figure.layout), { responsive: true, displayModeBar: false });
  };
  const plots = () => [...document.querySelectorAll(".plot")];
  // A plot in a closed block has no width to be drawn in.
  const hidden = (element) => element.closest("details:not([open])") !== null;

  if (typeof Plotly === "undefined") {
    plots().forEach((element) => { element.textContent = "assets/plotly.min.js is not beside this page, so there is no plot."; });
  } else {
    plots().filter((element) => !hidden(element)).forEach(draw);
    document.querySelectorAll("details").forEach((details) => details.addEventListener("toggle", () => {
      if (details.open) details.querySelectorAll(".plot:empty").forEach(draw);
    }));
    dark.addEventListener("change", () => plots().filter((element) => element.childElementCount).forEach(draw));
  }

  const open = () => document.getElementById(location.hash.slice(1))?.querySelector("details")?.setAttribute("open", "");
  addEventListener("hashchange", open);
  open();

  document.querySelectorAll("button[data-copy]").forEach((button) => button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(button.dataset.copy);
      button.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(button.previousElementSibling);
      button.textContent = "Selected";
    }
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  }));
})();
