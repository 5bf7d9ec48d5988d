"""The page's moving parts as HTML, their images inside as data URIs.

Nothing is written to a disk and nothing is fetched: a fragment is complete. Texts of
people are escaped here, and only here.
"""

import base64
import html
import re
from collections.abc import Sequence

from lDM_jax.studio import limits
from lDM_jax.studio.painter import data_uri
from lDM_jax.studio.player import View, describe
from lDM_jax.studio.run import Run
from lDM_jax.studio.session import Drawing

THUMB_PX = 24  # a step in the strip
SMALL_PX = 96  # an image in the gallery
STRIP = 24  # steps that the strip shows while it grows


def stage(view: View) -> str:
    """The large image, how far it is, and the time it takes."""
    if view.pixels is None:
        screen = "<div class='empty'>Your picture appears here</div>"
    else:
        height, width = view.pixels.shape[:2]
        uri = data_uri(view.pixels, 1024)
        screen = (
            f"<img id='stage_image' alt='the picture' src='{uri}'"
            f" style='aspect-ratio:{width}/{height}'>"
        )
    share = 100 * view.step / view.total if view.total else 0
    return (
        f"<figure class='stage' id='stage_figure' data-state='{view.state}' "
        f"data-step='{view.step}' data-total='{view.total}'>"
        f"<div class='screen'>{screen}</div>"
        f"<div class='bar'><i style='width:{share:.1f}%'></i></div>"
        f"<figcaption id='stage_text'>{html.escape(caption(view))}</figcaption>"
        "</figure>"
    )


def caption(view: View) -> str:
    """State, step and times in words."""
    if view.state == "idle":
        return "Ready"
    if view.state == "preparing":
        return view.note or "Preparing …"
    parts = [view.state.capitalize()]
    if view.total:
        parts.append(f"step {view.step} of {view.total}")
    if view.spent_secs:
        parts.append(f"{view.spent_secs:.1f} s")
    if view.state == "playing":
        parts.append(f"{view.left_secs:.1f} s left")
    return " · ".join(parts + ([view.note] if view.note else []))


def message(text: str = "", *, error: bool = False) -> str:
    """One line under the controls."""
    if not text:
        return "<p id='message_text' class='line' data-kind='none'></p>"
    kind = "error" if error else "note"
    role = "alert" if error else "status"
    text = html.escape(text)
    return f"<p id='message_text' class='line {kind}' data-kind='{kind}' role='{role}'>{text}</p>"  # noqa: E501


def strip(run: Run | None, *, most: int = limits.MAX_STEPS) -> str:
    """The steps so far as small images to go back to, and the edits between them.

    most: how many steps are shown, at equal distances.
    """
    if run is None or len(run.marks) < 2:
        return "<div class='strip' id='strip_row'></div>"
    marks = run.marks
    every = -(-len(marks) // (most + 1))
    some = [*marks[:-1:every], marks[-1]]
    edited = sorted(edit.step for edit in run.edits)
    cells, before = [], -1
    for mark in some:
        number = mark.step.step
        changed = any(before <= step < number for step in edited)
        before = number
        cells.append(
            f"<button type='button' id='strip_{number}' data-step='{number}' "
            f"class='{'edited' if changed else ''}' title='back to step {number}'>"
            f"<img alt='step {number}' src='{data_uri(mark.preview, THUMB_PX)}'>"
            f"<span>{number}</span></button>"
        )
    edits = "".join(
        f"<li>after step {edit.step}: {html.escape(describe(edit.changes))}</li>"
        for edit in run.edits
    )
    edits = f"<ul class='edits' id='edits'>{edits}</ul>" if edits else ""
    return f"<div class='strip' id='strip_row'>{''.join(cells)}</div>{edits}"


def result(drawing: Drawing | None) -> str:
    """The link that downloads the current image with its request inside."""
    if drawing is None:
        return "<div id='result_none'></div>"
    words = re.sub(r"[^a-z0-9]+", "-", drawing.title.lower()).strip("-")[:40]
    name = f"{drawing.number:03d}-{words or 'picture'}.png"
    return link("download", name, "image/png", drawing.png(), "Download PNG")


def link(elem_id: str, name: str, kind: str, data: bytes, text: str) -> str:
    """A link that holds the file it downloads."""
    uri = f"data:{kind};base64,{base64.b64encode(data).decode()}"
    return (
        f"<a class='button' id='{elem_id}' download='{html.escape(name)}' "
        f"href='{uri}'>{html.escape(text)}</a>"
    )


def gallery(drawings: Sequence[Drawing], current: Drawing | None) -> str:
    """The session's images, the newest first."""
    if not drawings:
        return "<div class='gallery' id='gallery_grid'><p>Nothing yet</p></div>"
    cells = []
    for drawing in reversed(drawings):
        here = "current" if current and drawing.number == current.number else ""
        title = html.escape(f"{drawing.number}: {drawing.title}")
        cells.append(
            f"<button type='button' id='gallery_{drawing.number}' class='{here}' "
            f"data-number='{drawing.number}' title='{title}'>"
            f"<img alt='{title}' src='{data_uri(drawing.pixels, SMALL_PX)}'></button>"
        )
    return f"<div class='gallery' id='gallery_grid'>{''.join(cells)}</div>"
