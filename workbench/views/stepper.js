// Draws one image with the boxes of teacher and student at the chosen evaluation and layer. No framework, nothing fetched.
const SVG = "http://www.w3.org/2000/svg";

function element(parent, kind, attributes = {}, text = "") {
  const made = kind in { svg: 1, rect: 1, line: 1, image: 1, title: 1 } ? document.createElementNS(SVG, kind) : document.createElement(kind);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.textContent = text; // names from the data are text, never markup
  parent.appendChild(made);
  return made;
}

function slider(parent, label, count, start) {
  const row = element(parent, "label", { class: "stepper-row" });
  element(row, "span", {}, label);
  const input = element(row, "input", { type: "range", min: 0, max: count - 1, value: start, step: 1, "aria-label": label });
  input.disabled = count < 2;
  return [input, element(row, "output")];
}

function render({ model, el }) {
  const scene = model.get("scene");
  el.classList.add("stepper");
  const controls = element(el, "div");
  const [step, stepText] = slider(controls, "step", scene.steps.length, scene.steps.length - 1);
  const [layer, layerText] = slider(controls, "layer", scene.layers, scene.layers - 1);
  const [score, scoreText] = slider(controls, "least score", 20, 6);
  const wide = Math.max(scene.width, 1), high = Math.max(scene.height, 1);
  const svg = element(el, "svg", { viewBox: `0 0 ${wide} ${high}`, class: "stepper-image", role: "img" });
  const legend = element(el, "div", { class: "stepper-legend" });
  const line = Math.max(wide, high) / 250;

  function box(found, colour, dash, words) {
    const [cx, cy, w, h] = found;
    const drawn = element(svg, "rect", {
      x: (cx - w / 2) * wide, y: (cy - h / 2) * high, width: Math.max(w, 0) * wide, height: Math.max(h, 0) * high,
      fill: "transparent", stroke: colour, "stroke-width": line, "stroke-dasharray": dash,
    });
    element(drawn, "title", {}, words);
    return drawn;
  }

  function draw() {
    const moment = scene.steps[step.value].layers[layer.value];
    const least = score.value / 20;
    svg.replaceChildren();
    element(svg, "image", { href: scene.image, width: wide, height: high, preserveAspectRatio: "none" });
    for (const target of scene.targets) box(target.box, scene.colours.target, `${3 * line} ${2 * line}`, target.words);
    for (const query of moment.teacher) if (query.score >= least) box(query.box, scene.colours.teacher, "none", query.words);
    let drawn = 0, pairs = 0;
    for (const query of moment.student) {
      if (query.score < least) continue;
      drawn += 1;
      box(query.box, scene.colours.student, "none", query.words).setAttribute("data-model", "student");
      if (query.mate === null) continue;
      pairs += 1;
      element(svg, "line", {
        x1: query.box[0] * wide, y1: query.box[1] * high, x2: query.mate[0] * wide, y2: query.mate[1] * high,
        stroke: scene.colours.mate, "stroke-width": line,
      });
    }
    stepText.textContent = scene.steps[step.value].step;
    layerText.textContent = `${layer.value} of ${scene.layers - 1}`;
    scoreText.textContent = least.toFixed(2);
    legend.replaceChildren();
    const seen = moment.teacher.filter((query) => query.score >= least).length;
    for (const [name, words] of [["target", `${scene.targets.length} targets`], ["teacher", `${seen} of the teacher`],
      ["student", `${drawn} of the student`], ["mate", `${pairs} pairs`]]) {
      const entry = element(legend, "span");
      element(entry, "i", { style: `background: ${scene.colours[name]}` });
      element(entry, "span", {}, words);
    }
  }

  for (const input of [step, layer, score]) input.addEventListener("input", draw);
  draw();
}

export default { render };
