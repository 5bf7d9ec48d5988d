// The page: files, keys, what is shown in which state.
window.STUDIO_MOST_BYTES = 16 * 2 ** 20;

// Send a file to the component's event "upload", as base64 and never through a disk.
window.studioSend = function (file, trigger) {
  if (file.size > STUDIO_MOST_BYTES) {
    trigger("upload", { name: file.name, size: file.size, data: "" });
    return;
  }
  const reader = new FileReader();
  reader.onload = () => {
    const data = reader.result.slice(reader.result.indexOf(",") + 1);
    trigger("upload", { name: file.name, size: file.size, data });
  };
  reader.readAsDataURL(file);
};

// A box to choose a file in, or to drop one on.
window.studioUpload = function (element, trigger) {
  const box = element.querySelector(".drop");
  const input = element.querySelector("input[type=file]");
  input.addEventListener("change", () => {
    if (input.files.length) studioSend(input.files[0], trigger);
    input.value = "";
  });
  for (const kind of ["dragover", "dragleave", "drop"])
    box.addEventListener(kind, (event) => {
      event.preventDefault();
      event.stopPropagation();
      box.classList.toggle("over", kind === "dragover");
      if (kind === "drop" && event.dataTransfer.files.length)
        studioSend(event.dataTransfer.files[0], trigger);
    });
};

// What is dropped elsewhere on the page is opened: the input of `open` takes it.
window.studioOpen = function (element, trigger) {
  studioUpload(element, trigger);
  document.addEventListener("dragover", (event) => event.preventDefault());
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    if (event.dataTransfer.files.length) studioSend(event.dataTransfer.files[0], trigger);
  });
};

// Clicks on the cells of a strip or a gallery become the event "select".
window.studioPick = function (element, trigger, field) {
  element.addEventListener("click", (event) => {
    const cell = event.target.closest(`[data-${field}]`);
    if (cell) trigger("select", { [field]: Number(cell.dataset[field]) });
  });
};

// The state of the picture decides which buttons there are (page.css).
window.studioStage = function (element) {
  const tell = () => {
    const figure = element.querySelector("#stage_figure");
    if (figure) document.body.dataset.state = figure.dataset.state;
  };
  const options = { subtree: true, childList: true, attributes: true };
  new MutationObserver(tell).observe(element, options);
  tell();
};

// A part that opens and closes at a click on its title.
window.studioFold = function (element, name, state) {
  const button = element.querySelector("button");
  const turn = (open) => {
    button.setAttribute("aria-expanded", open);
    document.getElementById(`${name}_fold`)?.classList.toggle("open", open);
  };
  button.addEventListener("click", () =>
    turn(button.getAttribute("aria-expanded") !== "true"));
  turn(false);
  if (state) setTimeout(() => turn(true), 0);
};

// The row of tabs: its value is the name of the one that is shown.
window.studioTabs = function (element, props, trigger, watch) {
  const buttons = [...element.querySelectorAll("[data-tab]")];
  const show = () => {
    for (const button of buttons) {
      const here = button.dataset.tab === props.value;
      button.setAttribute("aria-selected", here);
      const panel = document.getElementById(`tab_${button.dataset.tab}`);
      if (panel) panel.classList.toggle("shown", here);
    }
  };
  for (const button of buttons)
    button.addEventListener("click", () => {
      props.value = button.dataset.tab;
      show();
      trigger("select", {});
    });
  watch("value", show);
  const early = setInterval(() => {
    show();
    if (document.querySelector("div[id^='tab_'].shown")) clearInterval(early);
  }, 50);
};

document.addEventListener("keydown", (event) => {
  const press = (name) => document.getElementById(name)?.click();
  if (event.key === "Escape") press("stop");
  const field = event.target;
  const typed = field.closest?.("#seed, #steps, #guidance") && field.tagName === "INPUT";
  if (event.key === "Enter" && typed) {
    field.blur();
    setTimeout(() => press("generate"), 50);
  }
});
