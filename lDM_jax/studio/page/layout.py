"""What stands on the studio's page, and the ids by which tests and styles find it.

`components` makes everything inside an open gr.Blocks and returns it by its elem_id.
No event is wired here, and what a tab holds is said in its own file (`studio.tabs`).

| elem_id | what |
|---|---|
| prompt, negative | texts (`#prompt textarea`); Enter draws, or changes a running one |
| generate, pause, resume, step, stop | buttons; pause and resume take turns |
| stage | image: `#stage_figure[data-state data-step data-total]`, `#stage_image`, |
|       | `#stage_text`; states idle preparing playing paused stopped done |
| message | one line, `#message_text[data-kind=none/note/error]` |
| strip | `#strip_K` goes back to step K; `#edits` lists what was changed |
| result | `#download`, a link that holds the PNG |
| look, vary, vary_strength, more, undo | what can be done with the current image |
| fix, fix_prompt, fix_strength, fix_draw | painter `fix` and its button |
| gallery, sheet_make, sheet | `#gallery_N` chooses image N; `#sheet_link` |
| settings, fix_panel, files | open by `#NAME_title` |
| open | `#open_file`, a file input: PNG or JSON made here or by sample.py |
| preset_save, preset | `#preset_link` holds the request as JSON |
| tab | `#nav_text` ... `#nav_class` choose, `#tab_text` ... are what they show |
| model, size, guidance, steps, seed, new_seed, sampler, eta, pace, sharp | settings |

A painter P has `#P_canvas`, `#P_brush`, `#P_rect`, `#P_erase`, `#P_undo`, `#P_clear`,
`#P_size` and `#P_label_K`. A number or slider has its input inside its id.
"""

import gradio as gr

from lDM_jax.diffusion import samplers
from lDM_jax.studio import limits, tabs
from lDM_jax.studio.actions import Studio, View
from lDM_jax.studio.fragments import gallery, message, result, stage, strip
from lDM_jax.studio.page.builders import Builders
from lDM_jax.studio.served import Served
from lDM_jax.studio.tabs import TABS


def components(studio: Studio) -> dict:
    """Everything on the page by its elem_id."""
    ui = Builders()
    with gr.Row(elem_id="title_row"):
        ui.html(
            "<div id='title'><h1>Studio</h1><p>Steer the model while it draws</p></div>"
        )
    _prompts(ui, studio)
    with gr.Row(elem_id="work"):
        with gr.Column(scale=5, min_width=300, elem_id="right"):
            _stage(ui)
        with gr.Column(scale=6, min_width=300, elem_id="left"):
            _tabs(ui, studio)
            _settings(ui, studio)
            _files(ui)
    with ui.folded("gallery_panel", "Gallery of this session", "open"):
        ui.picker("gallery", gallery([], None), "number")
        with gr.Row():
            ui.button("sheet_make", "Contact sheet", size="sm")
            ui.fragment("sheet", "")
    return ui.components


def _prompts(ui: Builders, studio: Studio) -> None:
    text = any(served.task.field == "prompt" for served in studio.models.values())
    with gr.Row(elem_id="top", visible=text):
        example = "what to draw, e.g. red heart"
        ui.textbox("prompt", "Prompt", placeholder=example, scale=5)
        ui.textbox("negative", "Away from", placeholder="what to avoid", scale=2)
    with gr.Row(elem_id="transport"):
        ui.button("generate", "Generate", variant="primary")
        ui.button("pause", "Pause")
        ui.button("resume", "Resume", variant="primary")
        ui.button("step", "One step")
        ui.button("stop", "Stop", variant="stop")
    ui.fragment("message", message())


def first_tab(studio: Studio) -> str:
    """The first tab that a model serves."""
    served = (name for name in TABS if tabs.serving(name, studio.models))
    return next(served, next(iter(TABS)))


def _stage(ui: Builders) -> None:
    ui.fragment("stage", stage(View("idle")), js_on_load="studioStage(element)")
    ui.picker("strip", strip(None), "step")
    with gr.Row(elem_id="actions"):
        ui.button("look", "Look closely", size="sm")
        ui.button("vary", "Vary", size="sm")
        ui.button("more", "More like this", size="sm")
        ui.button("undo", "Undo", size="sm")
    ui.fragment("result", result(None))
    ui.slider("vary_strength", "How much Vary changes", 0.05, 1, 0.5, step=0.05)
    with ui.folded("fix_panel", "Draw a part anew"):
        ui.html("<p>Mark what is wrong, say what should be there.</p>")
        ui.painter("fix", "mask")
        ui.textbox("fix_prompt", "What should be there (empty: the same words)")
        ui.slider("fix_strength", "How much may change", 0.05, 1, 1, step=0.05)
        ui.button("fix_draw", "Draw this part anew", variant="primary")


def _tabs(ui: Builders, studio: Studio) -> None:
    _tab_row(ui, studio)
    for name, tab in TABS.items():
        with gr.Column(elem_id=f"tab_{name}"):
            names = tabs.serving(name, studio.models)
            if not names:
                ui.html(
                    "<p>No loaded model does this. Get one with</p>"
                    f"<pre id='command_{name}'><code>{tab.command}</code></pre>"
                )
            with gr.Column(visible=bool(names)):
                tab.build(ui, studio.models[names[0]] if names else None)


def _tab_row(ui: Builders, studio: Studio) -> None:
    """The buttons of the tabs; the value is the name of the one that is shown."""
    buttons = "".join(
        f"<button type='button' role='tab' id='nav_{name}' data-tab='{name}' "
        f"class='{'' if tabs.serving(name, studio.models) else 'unserved'}'>"
        f"{tab.title}</button>"
        for name, tab in TABS.items()
    )
    script = "studioTabs(element, props, (n, d) => trigger('select', d), watch)"
    template = f"<div class='nav' role='tablist'>{buttons}</div>"
    value = first_tab(studio)
    ui.fragment("tab", value, html_template=template, js_on_load=script)


def _settings(ui: Builders, studio: Studio) -> None:
    names = tabs.serving(first_tab(studio), studio.models)
    own = defaults(studio.models[names[0]])
    with ui.folded("settings", "Settings"):
        with gr.Row():
            ui.add("Dropdown", "model", names, value=names[0], label="Model")
            ui.add("Dropdown", "size", **own["size"], label="Size")
        with gr.Row():
            value, most = own["guidance"]["value"], limits.MAX_STEPS
            ui.slider("guidance", "Guidance", 0, 15, value, step=0.1)
            ui.slider("steps", "Steps", 1, most, own["steps"]["value"], step=1)
        with gr.Row():
            ui.add("Number", "seed", 0, label="Seed", precision=0)
            ui.button("new_seed", "Another seed", size="sm")
        with gr.Row():
            names = list(samplers.SAMPLERS)
            ui.add("Dropdown", "sampler", names, **own["sampler"], label="Sampler")
            ui.slider("eta", "Noise (ddim's eta)", 0, 1, 0, step=0.05)
        with gr.Row():
            ui.slider("pace", "Seconds a step, at least", 0, 1, 0, step=0.05)
            ui.add("Checkbox", "sharp", False, label="Decode every step in full")


def defaults(served: Served) -> dict[str, dict]:
    """Properties of the settings, by elem_id, that a model begins with."""
    sample, sizes = served.pipe.config.sample, list(served.sizes)
    return {
        "guidance": {"value": float(sample.guidance)},
        "steps": {"value": min(int(sample.steps), limits.MAX_STEPS)},
        "sampler": {"value": sample.sampler},
        "size": {"choices": sizes, "value": sizes[0]},
    }


def _files(ui: Builders) -> None:
    with ui.folded("files", "Open and save"):
        text = "Open a PNG or a preset made here: drop it anywhere on the page"
        ui.upload("open", text, starter="studioOpen")
        with gr.Row():
            ui.button("preset_save", "Save as a preset", size="sm")
            ui.fragment("preset", "")
