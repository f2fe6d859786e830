/* L08: the evaluations of a training run, one after the other: the loss, what it recalls, and what it wrote then.
 *
 * It reads them from the lesson's table: <table data-floor="lowest possible loss"> with the columns step, loss, above
 * the floor, a share of recalls for each of some kinds, what the grammar finds wrong, and the story.
 */
"use strict";

LLMFS.widget("scrubber", (element, { content }) => {
  const { tag, svg, slider } = LLMFS;
  const TOP = 100; // height of the drawing, whose width is the steps

  const table = content.querySelector("table");
  const floor = Number(table.dataset.floor);
  const kinds = Array.from(table.tHead.rows[0].cells, (cell) => cell.textContent).slice(3, -2);
  const evaluations = Array.from(table.tBodies[0].rows, (row) => {
    const [step, loss, gap, ...rest] = Array.from(row.cells, (cell) => cell.textContent);
    const [wrong, story] = rest.splice(-2);
    return { step: Number(step.replace(",", "")), loss, gap, recalls: rest, wrong, story };
  });
  const steps = evaluations.map(({ step }) => step);
  const [first, last] = [steps[0], steps.at(-1)];

  const dial = slider({
    label: "Evaluation",
    min: 0,
    max: evaluations.length - 1,
    step: 1,
    value: 0,
    format: (i) => `step ${evaluations[i].step.toLocaleString("en")}`,
    change: show,
  });
  dial.element.classList.add("llmfs-long-value");
  const chart = tag("div.llmfs-chart", { "aria-hidden": "true", click: chooseByPlace });
  const numbers = tag("p.llmfs-score");
  const recalls = tag("tbody");
  const stories = tag(
    "div.llmfs-stack", // all in one place, so that the page does not jump
    {},
    ...evaluations.map(({ wrong, story }) =>
      tag("div", {}, tag("p.llmfs-text", {}, story), tag("p.llmfs-remark", {}, `What the grammar finds wrong: ${wrong}`))
    )
  );
  const spoken = LLMFS.announcer();

  element.append(
    tag("p.llmfs-title", {}, "Loss on held-out tales; dashed: the lowest possible"),
    chart,
    dial.element,
    numbers,
    tag("table.llmfs-counts", {}, tag("caption.llmfs-title", {}, "Recalled correctly"), recalls),
    tag("p.llmfs-title", {}, "What it wrote then, from nothing"),
    stories,
    spoken
  );
  draw();
  show();

  function draw() {
    const highest = Math.max(...evaluations.map(({ loss }) => Number(loss)));
    const height = (loss) => 6 + ((TOP - 12) * (highest - loss)) / (highest - floor || 1);
    const line = (name, d) => svg("path", { class: name, d, "vector-effect": "non-scaling-stroke" });
    const places = evaluations.map(({ step, loss }) => [step - first, height(Number(loss)).toFixed(2)]);
    chart.replaceChildren(
      svg(
        "svg",
        { viewBox: `0 0 ${last - first || 1} ${TOP}`, preserveAspectRatio: "none" },
        line("llmfs-here", `M0 ${height(floor)}H${last - first}`),
        line("llmfs-curve", `M${places.map((place) => place.join(" ")).join("L")}`),
        line("llmfs-dots", places.map(([x, y]) => `M${x} ${y}h0`).join("")),
        line("llmfs-point", "M0 0")
      ),
      tag("div.llmfs-ends", {}, ...[first, last].map((step) => tag("span", {}, `step ${step.toLocaleString("en")}`)))
    );
    chart.places = places;
  }

  function chooseByPlace(event) {
    const { left, width } = chart.getBoundingClientRect();
    const step = first + ((last - first) * (event.clientX - left)) / width;
    const distance = (i) => Math.abs(steps[i] - step);
    dial.set(steps.reduce((nearest, _, i) => (distance(i) < distance(nearest) ? i : nearest), 0));
    show();
  }

  function show() {
    const chosen = dial.value();
    const { step, loss, gap, recalls: shares } = evaluations[chosen];
    chart.querySelector(".llmfs-point").setAttribute("d", `M${chart.places[chosen].join(" ")}h0`);
    numbers.textContent = `Step ${step.toLocaleString("en")}: ${loss} nats per token, ${gap} above the lowest possible`;
    recalls.replaceChildren(
      ...kinds.map((kind, i) =>
        tag(
          "tr",
          {},
          tag("th", { scope: "row" }, kind),
          tag("td.llmfs-number", {}, shares[i]),
          tag(
            "td.llmfs-bar-cell",
            { "aria-hidden": "true" },
            tag("div.llmfs-bar", { style: `width: ${parseFloat(shares[i])}%` })
          )
        )
      )
    );
    Array.from(stories.children).forEach((story, i) => story.classList.toggle("llmfs-hidden", i !== chosen));
    spoken.say(`${numbers.textContent}. It wrote: ${evaluations[chosen].story}`);
  }
});
