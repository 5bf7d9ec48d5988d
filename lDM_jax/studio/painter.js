// The painter: a label map or boxes drawn over a picture.
//
// Started by a gr.HTML component: studioPainter(element, props, trigger, watch).
// props: name (of all ids), mode ("mask", "regions", "labels" or "boxes"), extent
// [height, width], background (a data URI or ""), labels (names; from 1 in a mask and
// in regions, from 0 elsewhere). props.value, what the server reads and may set: map (a
// PNG whose red channel is the label, as data URI, or ""), boxes [[label, [left, top,
// width, height]]] in fractions, regions [{prompt, weight}].
window.STUDIO_COLOURS = [
  "#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#00a5a5", "#d33cc0",
  "#8a9a00", "#9a6324", "#000075", "#808000", "#c2185b", "#00796b", "#5d4037",
];

window.studioPainter = function (element, props, trigger, watch) {
  const { name, mode } = props;
  const boxed = mode === "boxes";
  const first = mode === "labels" || boxed ? 0 : 1;
  const state = {
    height: 1, width: 1, map: new Uint8Array(1), past: [], boxes: [], label: first,
    tool: boxed || mode === "regions" ? "rect" : "brush", sent: null, radius: 0.06,
    regions: [{ prompt: "", weight: 1 }, { prompt: "", weight: 1 }],
  };
  const root = element.querySelector(".painter") || element;
  const make = (tag, fields, parent) => {
    const node = Object.assign(document.createElement(tag), fields);
    (parent || root).append(node);
    return node;
  };
  const board = make("div", { className: "board" });
  const under = make("img", { className: "under", alt: "" }, board);
  const canvas = make("canvas", { id: `${name}_canvas` }, board);
  const bar = make("div", { className: "tools" });
  const chips = make("div", { className: "chips" });
  const pen = canvas.getContext("2d");
  const colour = (label) =>
    STUDIO_COLOURS[(label - 1 + STUDIO_COLOURS.length) % STUDIO_COLOURS.length];
  const channels = (label) =>
    [1, 3, 5].map((at) => parseInt(colour(label).slice(at, at + 2), 16));

  function draw() {
    if (boxed) return drawBoxes();
    if (canvas.width !== state.width || canvas.height !== state.height) {
      canvas.width = state.width;
      canvas.height = state.height;
    }
    const pixels = pen.createImageData(state.width, state.height);
    for (let i = 0; i < state.map.length; i++) {
      const label = state.map[i];
      if (!label) continue;
      pixels.data.set([...channels(label), 165], 4 * i);
    }
    pen.putImageData(pixels, 0, 0);
  }

  function drawBoxes() {
    canvas.width = 480;
    canvas.height = Math.round((480 * state.height) / state.width);
    pen.lineWidth = 4;
    pen.font = "bold 20px system-ui, sans-serif";
    for (const [label, [left, top, width, height]] of state.boxes) {
      const at = [left * canvas.width, top * canvas.height];
      const size = [width * canvas.width, height * canvas.height];
      pen.strokeStyle = pen.fillStyle = colour(label + 1);
      pen.strokeRect(...at, ...size);
      pen.globalAlpha = 0.18;
      pen.fillRect(...at, ...size);
      pen.globalAlpha = 1;
      pen.fillText((props.labels || [])[label] || label, at[0] + 6, at[1] + 22);
    }
  }

  function uri() {
    if (boxed || !state.map.some((label) => label)) return "";
    const flat = document.createElement("canvas");
    flat.width = state.width;
    flat.height = state.height;
    const ink = flat.getContext("2d");
    const pixels = ink.createImageData(state.width, state.height);
    for (let i = 0; i < state.map.length; i++) {
      const label = state.map[i];
      pixels.data.set([label, label, label, 255], 4 * i);
    }
    ink.putImageData(pixels, 0, 0);
    return flat.toDataURL("image/png");
  }

  function emit() {
    const value = { map: uri(), boxes: state.boxes.map((b) => [b[0], [...b[1]]]) };
    if (mode === "regions") value.regions = state.regions.map((r) => ({ ...r }));
    state.sent = JSON.stringify(value);
    props.value = value;
    trigger("input");
    share();
  }

  function share() {
    if (mode !== "regions") return;
    chips.querySelectorAll("[data-label]").forEach((row) => {
      const label = Number(row.dataset.label);
      const own = state.map.reduce((sum, at) => sum + (at === label), 0);
      const percent = Math.round((100 * own) / state.map.length);
      row.querySelector(".share").textContent = `${percent} %`;
    });
  }

  function resize(height, width) {
    if (height === state.height && width === state.width) return;
    const map = new Uint8Array(height * width);
    for (let y = 0; y < height; y++)
      for (let x = 0; x < width; x++) {
        const row = Math.floor((y * state.height) / height);
        const column = Math.floor((x * state.width) / width);
        map[y * width + x] = state.map[row * state.width + column];
      }
    Object.assign(state, { height, width, map, past: [] });
    board.style.aspectRatio = `${width} / ${height}`;
  }

  function read(value) {
    state.boxes = (value.boxes || []).map((box) => [box[0], [...box[1]]]);
    if (mode === "regions" && value.regions && value.regions.length)
      state.regions = value.regions.map((r) => ({ prompt: r.prompt, weight: r.weight }));
    palette();
    if (!value.map) {
      state.map.fill(0);
      draw();
      share();
      return;
    }
    const picture = new Image();
    picture.onload = () => {
      resize(picture.height, picture.width);
      const flat = document.createElement("canvas");
      flat.width = picture.width;
      flat.height = picture.height;
      const ink = flat.getContext("2d", { willReadFrequently: true });
      ink.drawImage(picture, 0, 0);
      const pixels = ink.getImageData(0, 0, flat.width, flat.height).data;
      for (let i = 0; i < state.map.length; i++) state.map[i] = pixels[4 * i];
      draw();
      share();
    };
    picture.src = value.map;
  }

  function sync() {
    const [height, width] = props.extent || [64, 64];
    resize(height, width);
    under.style.display = props.background ? "" : "none";
    if (props.background && under.src !== props.background)
      under.src = props.background;
    const value = props.value || {};
    const text = JSON.stringify(value);
    if (text !== state.sent) {
      state.sent = text;
      read(value);
    } else {
      palette();
      draw();
    }
  }

  function remember() {
    state.past.push([state.map.slice(), state.boxes.slice()]);
    if (state.past.length > 20) state.past.shift();
  }

  function undo() {
    if (!state.past.length) return;
    [state.map, state.boxes] = state.past.pop();
    draw();
    emit();
  }

  function clear() {
    remember();
    state.map.fill(0);
    state.boxes = [];
    draw();
    emit();
  }

  function place(event) {
    const box = canvas.getBoundingClientRect();
    const inside = (part) => Math.min(1, Math.max(0, part));
    return [
      inside((event.clientX - box.left) / box.width),
      inside((event.clientY - box.top) / box.height),
    ];
  }

  function ink() {
    return state.tool === "erase" ? 0 : state.label;
  }

  function dab([u, v]) {
    const radius = Math.max(0.5, state.radius * Math.max(state.width, state.height));
    const [cx, cy] = [u * state.width, v * state.height];
    for (let y = Math.floor(cy - radius); y <= cy + radius; y++)
      for (let x = Math.floor(cx - radius); x <= cx + radius; x++) {
        if (x < 0 || y < 0 || x >= state.width || y >= state.height) continue;
        if (Math.hypot(x + 0.5 - cx, y + 0.5 - cy) <= radius)
          state.map[y * state.width + x] = ink();
      }
  }

  function line(from, to) {
    const length = Math.hypot(to[0] - from[0], to[1] - from[1]);
    const dabs = Math.max(1, Math.ceil(length / (state.radius / 3)));
    for (let i = 0; i <= dabs; i++)
      dab(from.map((start, axis) => start + ((to[axis] - start) * i) / dabs));
  }

  function fill([x0, y0], [x1, y1]) {
    const columns = [x0, x1].map((u) => Math.round(u * state.width)).sort((a, b) => a - b);
    const rows = [y0, y1].map((v) => Math.round(v * state.height)).sort((a, b) => a - b);
    for (let y = rows[0]; y < rows[1]; y++)
      state.map.fill(ink(), y * state.width + columns[0], y * state.width + columns[1]);
  }

  let start = null, before = null, last = null;
  canvas.addEventListener("pointerdown", (event) => {
    event.preventDefault();
    canvas.setPointerCapture(event.pointerId);
    remember();
    start = last = place(event);
    before = state.map.slice();
    if (boxed && state.tool === "erase") eraseBox(start);
    else if (!boxed && state.tool !== "rect") dab(start);
    draw();
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!start) return;
    const here = place(event);
    if (boxed) {
      if (state.tool === "erase") return;
      draw();
      pen.strokeStyle = colour(state.label + 1);
      pen.strokeRect(
        start[0] * canvas.width, start[1] * canvas.height,
        (here[0] - start[0]) * canvas.width, (here[1] - start[1]) * canvas.height);
      last = here;
      return;
    }
    if (state.tool === "rect") {
      state.map.set(before);
      fill(start, here);
    } else line(last, here);
    last = here;
    draw();
  });
  const finish = (event) => {
    if (!start) return;
    const here = place(event);
    if (boxed && state.tool !== "erase") addBox(start, here);
    else if (!boxed && state.tool === "rect") {
      state.map.set(before);
      fill(start, here);
    }
    start = null;
    draw();
    emit();
  };
  canvas.addEventListener("pointerup", finish);
  canvas.addEventListener("pointercancel", () => (start = null));

  function addBox(from, to) {
    const left = Math.min(from[0], to[0]), top = Math.min(from[1], to[1]);
    const width = Math.abs(to[0] - from[0]), height = Math.abs(to[1] - from[1]);
    if (width < 0.02 || height < 0.02) return;
    const round = (part) => Math.round(part * 1e4) / 1e4;
    state.boxes = [...state.boxes, [state.label, [left, top, width, height].map(round)]];
  }

  function eraseBox([u, v]) {
    for (let i = state.boxes.length - 1; i >= 0; i--) {
      const [left, top, width, height] = state.boxes[i][1];
      if (u >= left && v >= top && u <= left + width && v <= top + height) {
        state.boxes = state.boxes.filter((_, at) => at !== i);
        return;
      }
    }
  }

  function tools() {
    const names = boxed
      ? [["rect", "Box"], ["erase", "Erase"]]
      : [["brush", "Brush"], ["rect", "Rectangle"], ["erase", "Erase"]];
    for (const [tool, text] of names) {
      const button = make("button", { type: "button", id: `${name}_${tool}` }, bar);
      button.textContent = text;
      button.onclick = () => {
        state.tool = tool;
        marks();
      };
      button.dataset.tool = tool;
    }
    for (const [what, text, act] of [["undo", "Undo", undo], ["clear", "Clear", clear]]) {
      const button = make("button", { type: "button", id: `${name}_${what}` }, bar);
      button.textContent = text;
      button.onclick = act;
    }
    if (boxed) return;
    const size = make("input", { type: "range", id: `${name}_size` }, bar);
    Object.assign(size, { min: 1, max: 25, value: 6, title: "size of the brush" });
    size.setAttribute("aria-label", "size of the brush");
    size.oninput = () => (state.radius = size.value / 100);
  }

  function marks() {
    bar.querySelectorAll("[data-tool]").forEach((button) =>
      button.classList.toggle("on", button.dataset.tool === state.tool));
    chips.querySelectorAll("[data-label]").forEach((chip) =>
      chip.classList.toggle("on", Number(chip.dataset.label) === state.label));
  }

  function choose(label) {
    state.label = label;
    if (state.tool === "erase") state.tool = boxed ? "rect" : "brush";
    marks();
  }

  let shownAs = "";
  const key = () => JSON.stringify([props.labels, mode === "regions" && state.regions]);
  function palette() {
    if (mode === "mask") return;
    if (key() === shownAs) return;
    shownAs = key();
    const count = mode === "regions" ? state.regions.length : (props.labels || []).length;
    chips.replaceChildren();
    for (let at = 0; at < count; at++)
      if (mode === "regions") regionRow(at);
      else chip(at);
    if (mode === "regions" && count < (props.most || 8)) {
      const add = make("button", { type: "button", id: `${name}_add` }, chips);
      add.textContent = "Add a region";
      add.onclick = () => {
        state.regions.push({ prompt: "", weight: 1 });
        state.label = state.regions.length;
        palette();
        share();
      };
    }
    marks();
  }

  function chip(label) {
    const button = make("button", { type: "button", id: `${name}_label_${label}` }, chips);
    button.dataset.label = label;
    const dot = make("i", {}, button);
    dot.style.background = mode === "labels" && !label ? "#fff" : colour(label + boxed);
    button.append(props.labels[label]);
    button.onclick = () => choose(label);
  }

  function regionRow(at) {
    const label = at + 1, region = state.regions[at];
    const row = make("div", { className: "region" }, chips);
    row.dataset.label = label;
    const pick = make("button", { type: "button", id: `${name}_label_${label}` }, row);
    pick.title = `paint region ${label}`;
    make("i", {}, pick).style.background = colour(label);
    pick.append(label);
    pick.onclick = () => choose(label);
    const words = make("input", { id: `${name}_prompt_${label}`, maxLength: 500 }, row);
    Object.assign(words, { value: region.prompt, placeholder: "what goes here" });
    words.onfocus = () => choose(label);
    words.onchange = () => {
      region.prompt = words.value;
      shownAs = key();
      emit();
    };
    const weight = make("input", { type: "number", id: `${name}_weight_${label}` }, row);
    Object.assign(weight, { min: 0, max: 1, step: 0.05, value: region.weight });
    weight.title = "weight: 1 this prompt alone, below it shares with the base prompt";
    weight.onchange = () => {
      region.weight = Math.min(1, Math.max(0, Number(weight.value) || 0));
      shownAs = key();
      emit();
    };
    make("span", { className: "share", textContent: "0 %" }, row);
  }

  tools();
  sync();
  watch(["value", "extent", "background", "labels"], sync);
  marks();
};
