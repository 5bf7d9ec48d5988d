"""What stands on the studio's page, and the ids by which tests and styles find it.

`components` makes everything inside an open gr.Blocks and returns it by name; the name
is the elem_id. No event is wired here (`tools.studio_events`).

| elem_id | what |
|---|---|
| prompt, negative | texts (`#prompt textarea`); Enter draws, or changes a running one |
| generate, pause, resume, step, stop | buttons; pause and resume take turns |
| stage | picture: `#stage_figure[data-state data-step data-total]`, `#stage_image`, |
|       | `#stage_text`; states idle preparing playing paused stopped done |
| message | one line, `#message_text[data-kind=none/note/error]` |
| strip | `#strip_K` goes back to step K; `#edits` lists what was changed |
| result | `#download`, a link that holds the PNG |
| look, vary, vary_strength, more, undo | what can be done with the current picture |
| fix, fix_prompt, fix_strength, fix_draw | painter `fix` and its button |
| gallery, sheet_make, sheet | `#gallery_N` chooses picture N; `#sheet_link` |
| settings, fix_panel, extend_panel, files | open by `#NAME_title` |
| open | `#open_file`, a file input: PNG or JSON made here or by sample.py |
| preset_save, preset | `#preset_link` holds the request as JSON |
| tab | `#nav_text` ... `#nav_class` choose, `#tab_text` ... are what they show |
| model, size, guidance, steps, seed, new_seed, sampler, eta, pace, sharp | settings |
| image, strength, image_use | image to image: `#image_file` |
| inpaint, inpaint_strength, inpaint_use, extend_sides, extend_share, extend | |
| mask | painter over the picture to complete |
| regions, regional, colours | painter; colours: `#colours_file`, a picture |
| boxes; labels, label_map; super_resolution; label | layout; semantic; super; class |

A painter P has `#P_canvas`, `#P_brush`, `#P_rect`, `#P_erase`, `#P_undo`, `#P_clear`,
`#P_size` and `#P_label_K`; regions also `#regions_prompt_K`, `#regions_weight_K` and
`#regions_add`. A number or slider has its input inside its id.
"""

import contextlib
from collections.abc import Iterator

import gradio as gr

from lDM_jax.diffusion import samplers
from lDM_jax.studio import limits, tabs
from lDM_jax.studio.actions import Studio, View
from lDM_jax.studio.fragments import gallery, message, result, stage, strip
from lDM_jax.studio.tabs import Served

UPLOAD = (
    "<label class='drop'><input type='file' id='NAME_file' aria-label='LABEL'>"
    "<span>${value}</span></label>"
)
SIDES = ("left", "right", "top", "bottom")


def components(studio: Studio) -> dict:
    """Everything on the page by its elem_id."""
    c: dict = {}
    with gr.Row(elem_id="title_row"):
        gr.HTML(
            "<div id='title'><h1>Studio</h1><p>Steer the model while it draws</p></div>"
        )
    _prompts(c, studio)
    with gr.Row(elem_id="work"):
        with gr.Column(scale=5, min_width=300, elem_id="right"):
            _stage(c)
        with gr.Column(scale=6, min_width=300, elem_id="left"):
            _tabs(c, studio)
            _settings(c, studio)
            _files(c)
    with folded("gallery_panel", "Gallery of this session", "open"):
        c["gallery"] = picker("gallery", gallery([], None), "number")
        with gr.Row():
            c["sheet_make"] = button("sheet_make", "Contact sheet", size="sm")
            c["sheet"] = fragment("sheet", "")
    return c


def button(name: str, text: str, **more) -> gr.Button:
    """A button with that id."""
    return gr.Button(text, elem_id=name, **more)


def fragment(name: str, value: str, **more) -> gr.HTML:
    """A part of the page that the server writes."""
    plain = {"js_on_load": None, "apply_default_css": False}
    return gr.HTML(value, elem_id=name, **{**plain, **more})


@contextlib.contextmanager
def folded(name: str, title: str, state: str = "") -> Iterator[None]:
    """A part that opens and closes; what it holds is on the page in both states."""
    template = (
        f"<button type='button' class='fold' id='{name}_title' "
        f"aria-controls='{name}'>{title}</button>"
    )
    script = f"studioFold(element, '{name}', '{state}')"
    with gr.Column(elem_id=f"{name}_fold"):
        fragment(f"{name}_head", "", html_template=template, js_on_load=script)
        with gr.Column(elem_id=name):
            yield


def picker(name: str, value: str, field: str) -> gr.HTML:
    """A fragment whose cells can be chosen: the event "select"."""
    script = f"studioPick(element, (n, d) => trigger('select', d), '{field}')"
    return fragment(name, value, js_on_load=script)


def upload(name: str, text: str, *, starter: str = "studioUpload") -> gr.HTML:
    """A box for a file: the event "upload" holds its bytes."""
    template = UPLOAD.replace("NAME", name).replace("LABEL", text)
    script = f"{starter}(element, (n, d) => trigger('upload', d))"
    return fragment(name, text, html_template=template, js_on_load=script)


def painter(name: str, mode: str, side: int, labels=(), **more) -> gr.HTML:
    """A painter (studio/painter.js): its value is what was drawn."""
    return gr.HTML(
        {"map": "", "boxes": []},
        elem_id=name,
        html_template=f"<div class='painter' id='{name}_painter'></div>",
        js_on_load="studioPainter(element, props, (n) => trigger('input'), watch)",
        apply_default_css=False,
        name=name,
        mode=mode,
        extent=[side, side],
        background="",
        labels=list(labels),
        most=limits.MAX_REGIONS,
        **more,
    )


def _prompts(c: dict, studio: Studio) -> None:
    text = any(served.task == "text" for served in studio.models.values())
    with gr.Row(elem_id="top", visible=text) as c["top"]:
        c["prompt"] = gr.Textbox(
            label="Prompt",
            placeholder="what to draw, e.g. red heart",
            elem_id="prompt",
            scale=5,
            max_length=limits.MAX_TEXT,
        )
        c["negative"] = gr.Textbox(
            label="Away from",
            placeholder="what to avoid",
            elem_id="negative",
            scale=2,
            max_length=limits.MAX_TEXT,
        )
    with gr.Row(elem_id="transport"):
        c["generate"] = button("generate", "Generate", variant="primary")
        c["pause"] = button("pause", "Pause")
        c["resume"] = button("resume", "Resume", variant="primary")
        c["step"] = button("step", "One step")
        c["stop"] = button("stop", "Stop", variant="stop")
    c["message"] = fragment("message", message())


def first_tab(studio: Studio) -> str:
    """The first tab that a model serves."""
    served = [name for name in tabs.TABS if tabs.serving(name, studio.models)]
    return served[0] if served else "text"


def _stage(c: dict) -> None:
    script = "studioStage(element)"
    c["stage"] = fragment("stage", stage(View("idle")), js_on_load=script)
    c["strip"] = picker("strip", strip(None), "step")
    with gr.Row(elem_id="actions"):
        c["look"] = button("look", "Look closely", size="sm")
        c["vary"] = button("vary", "Vary", size="sm")
        c["more"] = button("more", "More like this", size="sm")
        c["undo"] = button("undo", "Undo", size="sm")
    c["result"] = fragment("result", result(None))
    c["vary_strength"] = gr.Slider(
        0.05, 1, 0.5, step=0.05, label="How much Vary changes", elem_id="vary_strength"
    )
    with folded("fix_panel", "Draw a part anew"):
        gr.HTML("<p>Mark what is wrong, say what should be there.</p>")
        c["fix"] = painter("fix", "mask", 64)
        c["fix_prompt"] = gr.Textbox(
            label="What should be there (empty: the same words)",
            elem_id="fix_prompt",
            max_length=limits.MAX_TEXT,
        )
        c["fix_strength"] = gr.Slider(
            0.05, 1, 1, step=0.05, label="How much may change", elem_id="fix_strength"
        )
        c["fix_draw"] = button("fix_draw", "Draw this part anew", variant="primary")


def _tabs(c: dict, studio: Studio) -> None:
    makers = {
        "text": _text,
        "image": _image,
        "inpaint": _inpaint,
        "regions": _regions,
        "layout": _layout,
        "semantic": _semantic,
        "super_resolution": _enlarge,
        "class": _class,
    }
    c["tab"] = _tab_row(studio)
    for name, tab in tabs.TABS.items():
        with gr.Column(elem_id=f"tab_{name}"):
            names = tabs.serving(name, studio.models)
            if not names:
                gr.HTML(
                    "<p>No loaded model does this. Get one with</p>"
                    f"<pre id='command_{name}'><code>{tabs.command(tab)}</code></pre>"
                )
            makers[name](c, studio.models[names[0]] if names else None)


def _tab_row(studio: Studio) -> gr.HTML:
    """The buttons of the tabs; the value is the name of the one that is shown."""
    buttons = "".join(
        f"<button type='button' role='tab' id='nav_{name}' data-tab='{name}' "
        f"class='{'' if tabs.serving(name, studio.models) else 'unserved'}'>"
        f"{tab.title}</button>"
        for name, tab in tabs.TABS.items()
    )
    script = "studioTabs(element, props, (n, d) => trigger('select', d), watch)"
    template = f"<div class='nav' role='tablist'>{buttons}</div>"
    value = first_tab(studio)
    return fragment("tab", value, html_template=template, js_on_load=script)


def _text(c: dict, served: Served | None) -> None:
    gr.HTML("<p>Write a prompt above. Change it while the picture forms.</p>")


def _image(c: dict, served: Served | None) -> None:
    shown = served is not None
    with gr.Column(visible=shown):
        c["image"] = upload("image", "Choose a picture to change, or drop one here")
        c["image_use"] = button("image_use", "Take the current picture", size="sm")
        c["strength"] = gr.Slider(
            0.05, 1, 0.6, step=0.05, label="Strength", elem_id="strength"
        )


def _inpaint(c: dict, served: Served | None) -> None:
    with gr.Column(visible=served is not None):
        c["inpaint"] = upload("inpaint", "Choose a picture to complete, or drop one")
        c["inpaint_use"] = button("inpaint_use", "Take the current picture", size="sm")
        c["mask"] = painter("mask", "mask", served.side_px if served else 64)
        c["inpaint_strength"] = gr.Slider(
            0.05, 1, 1, step=0.05, label="Strength", elem_id="inpaint_strength"
        )
        with folded("extend_panel", "Outpaint: more canvas"):
            c["extend_sides"] = gr.CheckboxGroup(
                list(SIDES), value=["right"], label="On", elem_id="extend_sides"
            )
            c["extend_share"] = gr.Slider(
                0.25, 1, 0.5, step=0.25, label="How much", elem_id="extend_share"
            )
            c["extend"] = button("extend", "Extend the canvas", size="sm")


def _regions(c: dict, served: Served | None) -> None:
    with gr.Column(visible=served is not None):
        gr.HTML(
            "<p>Draw regions, the later ones over the earlier, and say what goes into "
            "each. The prompt above is for the rest.</p>"
        )
        c["regions"] = painter("regions", "regions", served.side_px if served else 64)
        c["regional"] = gr.Radio(
            ["attention", "latent"],
            value="latent",
            label="How regions act",
            info="attention: each place reads its own words; latent: a prediction each",
            elem_id="regional",
        )
        c["colours"] = upload("colours", "Or a picture whose colours are regions")


def _layout(c: dict, served: Served | None) -> None:
    with gr.Column(visible=served is not None):
        side, names = (served.side_px, served.labels) if served else (64, [])
        c["boxes"] = painter("boxes", "boxes", side, names)


def _semantic(c: dict, served: Served | None) -> None:
    with gr.Column(visible=served is not None):
        side, names = (served.side_px, served.labels) if served else (64, [])
        c["labels"] = painter("labels", "labels", side, names)
        c["label_map"] = upload("label_map", "Or a grey PNG whose values are labels")


def _enlarge(c: dict, served: Served | None) -> None:
    with gr.Column(visible=served is not None):
        text = "Choose a small picture to enlarge, or drop one here"
        c["super_resolution"] = upload("super_resolution", text)


def _class(c: dict, served: Served | None) -> None:
    names = served.labels if served else []
    c["label"] = gr.Dropdown(
        names,
        value=names[0] if names else None,
        label="Class",
        elem_id="label",
        visible=served is not None,
    )


def _settings(c: dict, studio: Studio) -> None:
    names = tabs.serving(first_tab(studio), studio.models)
    served = studio.models[names[0]]
    d = defaults(served)
    with folded("settings", "Settings"):
        with gr.Row():
            c["model"] = choice("model", "Model", names, names[0])
            c["size"] = choice("size", "Size", *d["size"])
        with gr.Row():
            c["guidance"] = gr.Slider(
                0, 15, d["guidance"], step=0.1, label="Guidance", elem_id="guidance"
            )
            c["steps"] = gr.Slider(
                1, limits.MAX_STEPS, d["steps"], step=1, label="Steps", elem_id="steps"
            )
        with gr.Row():
            c["seed"] = gr.Number(0, label="Seed", precision=0, elem_id="seed")
            c["new_seed"] = button("new_seed", "Another seed", size="sm")
        with gr.Row():
            every = list(samplers.SAMPLERS)
            c["sampler"] = choice("sampler", "Sampler", every, d["sampler"])
            c["eta"] = gr.Slider(
                0, 1, 0, step=0.05, label="Noise (ddim's eta)", elem_id="eta"
            )
        with gr.Row():
            c["pace"] = gr.Slider(
                0, 1, 0, step=0.05, label="Seconds a step, at least", elem_id="pace"
            )
            c["sharp"] = gr.Checkbox(
                False, label="Decode every step in full", elem_id="sharp"
            )


def choice(name: str, label: str, choices: list, value) -> gr.Dropdown:
    """A drop-down list with that id."""
    return gr.Dropdown(choices, value=value, label=label, elem_id=name)


def defaults(served: Served) -> dict:
    """What the settings show for a model: value, or (choices, value)."""
    sample, sizes = served.pipe.config.sample, list(served.sizes)
    return {
        "guidance": float(sample.guidance),
        "steps": min(int(sample.steps), limits.MAX_STEPS),
        "sampler": sample.sampler,
        "size": (sizes, sizes[0]),
    }


def _files(c: dict) -> None:
    with folded("files", "Open and save"):
        text = "Open a PNG or a preset made here: drop it anywhere on the page"
        c["open"] = upload("open", text, starter="studioOpen")
        with gr.Row():
            c["preset_save"] = button("preset_save", "Save as a preset", size="sm")
            c["preset"] = fragment("preset", "")
