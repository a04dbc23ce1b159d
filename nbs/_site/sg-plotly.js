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
  const draw = async () => {
    const places = [...document.querySelectorAll(".sg-plotly")];
    if (!places.length) return;
    await library();
    for (const place of places) {
      const figure = JSON.parse(place.querySelector("script").textContent);
      await Plotly.newPlot(place, figure.data, figure.layout, { responsive: true, displaylogo: false, ...figure.config });
      if (figure.frames?.length) Plotly.addFrames(place, figure.frames);
      place.dataset.drawn = "yes";
    }
  };
  document.readyState === "loading" ? document.addEventListener("DOMContentLoaded", draw) : draw();
})();
