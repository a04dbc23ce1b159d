// Draws the figures of a page from the JSON beside them; fetches plotly.min.js, which ships with the site, only where there are any.
(() => {
  const here = document.currentScript.src.replace(/[^/]*$/, "");
  const library = () => new Promise((done, failed) => {
    const script = document.createElement("script");
    script.src = here + "plotly.min.js";
    script.onload = done;
    script.onerror = failed;
    document.head.append(script);
  });
  // A title inside a drawing does not wrap, and on a narrow screen the legend lies over it: it goes above, as text. A figure that asks for width, or has several panels, gets it and scrolls.
  const frame = (place, layout) => {
    const plain = text => (text || "").replace(/<[^>]*>/g, " "), title = layout.title || {};
    const scroll = document.createElement("div");
    scroll.className = "sg-scroll";
    place.before(scroll);
    scroll.append(place);
    place.style.minWidth = `${layout.meta?.min_width || (layout.xaxis2 || layout.height > 480 ? 560 : 0)}px`;
    if (!(title.text || typeof title === "string")) return;
    const caption = document.createElement("p"), what = document.createElement("strong");
    caption.className = "sg-caption";
    what.textContent = plain(title.text || title);
    caption.append(what, " ", plain(title.subtitle?.text));
    scroll.before(caption);
    layout.title = undefined;
    layout.margin = { l: 50, r: 40, t: 44, b: 46, ...layout.margin };
    const spare = Math.max(layout.margin.t - (layout.updatemenus ? 70 : 44), 0);
    layout.margin.t -= spare;
    if (layout.height) layout.height -= spare;
  };
  const draw = async () => {
    const places = [...document.querySelectorAll(".sg-plotly")];
    if (!places.length) return;
    await library();
    for (const place of places) {
      const figure = JSON.parse(place.querySelector("script").textContent);
      frame(place, figure.layout ??= {});
      await Plotly.newPlot(place, figure.data, figure.layout, { responsive: true, displaylogo: false, ...figure.config });
      if (figure.frames?.length) Plotly.addFrames(place, figure.frames);
      place.dataset.drawn = "yes";
    }
  };
  document.readyState === "loading" ? document.addEventListener("DOMContentLoaded", draw) : draw();
})();
