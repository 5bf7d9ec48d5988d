"""The studio behind its page, on a toy model: moves, edits, branches, what is kept."""

import base64
import gc
import json
import re
import threading
import tracemalloc

import numpy as np
import pytest

from lDM_jax.core import image
from lDM_jax.core.errors import UserError
from lDM_jax.sampling import edits
from lDM_jax.sampling import pixels as pixels_lib
from lDM_jax.studio import actions, files, fragments, tabs
from lDM_jax.studio import run as run_module
from lDM_jax.studio.player import Studio
from lDM_jax.studio.run import Run
from lDM_jax.studio.served import Served
from lDM_jax.studio.tabs import inpaint, regions
from lDM_jax.tools import studio as command
from tests.toys import PICTURE, difference, drawn, png

STEPS = 6
HALF = np.zeros((32, 32), np.int32)
HALF[:, :16] = 1
PAINTED = {"map": pixels_lib.to_uri(HALF), "boxes": []}
BOXES = {"map": "", "boxes": [[2, [0.1, 0.1, 0.5, 0.5]]]}
TWO = {
    "map": pixels_lib.to_uri(HALF + 1),
    "regions": [{"prompt": "pizza", "weight": 0.5}, {"prompt": "dog", "weight": 1}],
}


def controls(**changes) -> dict:
    return {
        **dict(tab="text", model="toy", prompt="red heart", negative="", guidance=3.0),
        **dict(steps=STEPS, seed=3, sampler="ddim", eta=0, size="32 x 32", pace=0),
        **dict(sharp=False, strength=0.6, mask=None, inpaint_strength=1.0),
        **dict(regions=TWO, regional="latent", boxes=None, labels=None, label=None),
        **changes,
    }


@pytest.fixture(scope="module")
def studio():
    return Studio({"toy": Served("toy", drawn("emoji"))})


@pytest.fixture
def session(studio):
    found = studio.sessions.get("somebody")
    yield found
    studio.sessions.drop("somebody")


def last(views):
    *_, view = views
    return view


def generated(studio, session, **changes):
    return last(actions.generate(studio, session, controls(**changes)))


def after(studio, session, steps: int, **changes):
    """Begin a picture and pause after that many steps."""
    session.pace_secs = 0
    views = actions.generate(studio, session, controls(**changes))
    for view in views:
        if view.step == steps:
            actions.halt(studio, session, "pause")
    return view


def test_a_view_for_every_step_and_the_picture_of_sample_in_the_end(studio, session):
    views = list(actions.generate(studio, session, controls()))
    playing = [view for view in views if view.state == "playing"]
    assert [view.step for view in playing] == list(range(1, STEPS + 1))
    assert playing[0].pixels.shape == (8, 8, 3) and playing[1].left_secs > 0
    assert views[-1].state == "done" and views[-1].kept
    pipe = studio.models["toy"].pipe
    common = dict(prompt="red heart", seeds=[3], steps=STEPS, guidance=3.0)
    assert difference(views[-1].pixels, pipe.sample(**common)[0]) <= 1
    record = session.current.record
    assert record.pop("model") == "toy"
    drawn_again = edits.replay(pipe, edits.from_record(record))
    np.testing.assert_array_equal(drawn_again[0], views[-1].pixels)


def test_an_edit_holds_from_the_next_step_on(studio, session):
    """The preview of the step after an edit is that of the library's own update."""
    assert after(studio, session, 2).state == "paused"
    said = actions.edit(studio, session, controls(prompt="pizza", guidance=2.0))
    assert said.startswith("From step 3 on") and "pizza" in said
    view = last(actions.resume(studio, session, controls(prompt="pizza", guidance=2.0)))
    assert view.state == "done"
    assert [edit.step for edit in session.run.edits] == [2]
    pipe = studio.models["toy"].pipe
    common = dict(prompt="red heart", seeds=[3], steps=STEPS, guidance=3.0)
    for step in pipe.stream(**common):
        if step.step == 2:
            pipe.update(step, prompt="pizza", guidance=2.0)
        mark = session.run.marks[step.step]
        np.testing.assert_array_equal(mark.preview, pipe.preview(step.z0_hat)[0])
    assert actions.edit(studio, session, controls(prompt="dog")) == ""  # it is done


def test_edits_of_another_thread_while_it_plays(studio, session):
    run = None
    for view in actions.generate(studio, session, controls()):
        run = session.run
        if view.step == 3:
            given = studio, session, controls(prompt="pizza")
            thread = threading.Thread(target=actions.edit, args=given)
            thread.start()
            thread.join()
    assert [tuple(edit) for edit in run.edits] == [(3, {"prompt": "pizza"})]


def test_a_change_that_cannot_be_made_is_told_and_forgotten(studio, session):
    after(studio, session, 2, tab="regions")
    fewer = {"map": pixels_lib.to_uri(HALF), "regions": TWO["regions"]}
    views = list(actions.resume(studio, session, controls(regions=fewer)))
    assert "only its content" in next(v.error for v in views if v.error)
    assert views[-1].state == "done" and session.run.edits == []
    with pytest.raises(UserError, match="prompt is empty"):
        after(studio, session, 2)
        actions.edit(studio, session, controls(prompt="  "))


def test_back_to_a_step_and_on_with_other_words(studio, session):
    plain = generated(studio, session).pixels
    view = actions.rewind(session, 2)
    assert (view.state, view.step) == ("paused", 2) and len(session.run.marks) == 3
    other = controls(prompt="pizza", guidance=12.0)
    branch = last(actions.resume(studio, session, other)).pixels
    assert difference(branch, plain) > 1 and session.run.edits[0].step == 2
    # back again: the words that the page shows hold from there on, as a new edit
    actions.rewind(session, 1)
    assert session.run.edits == []
    last(actions.resume(studio, session, other))
    change = {"prompt": "pizza", "guidance": 12.0}
    assert [tuple(edit) for edit in session.run.edits] == [(1, change)]
    # back before everything, with the first words: the first picture bit for bit
    actions.rewind(session, 0)
    same = last(actions.resume(studio, session, controls()))
    np.testing.assert_array_equal(same.pixels, plain)
    assert session.run.edits == []


def test_single_steps_pause_stop_and_resume(studio, session):
    for count in (1, 2):
        view = last(actions.resume(studio, session, controls(), steps=1))
        assert (view.state, view.step) == ("paused", count)
    view = actions.halt(studio, session, "stop")
    assert view.state == "stopped" and view.pixels.shape == (32, 32, 3)
    assert session.current.record["until"] == 2 and session.gallery == []
    assert actions.look(studio, session).pixels.shape == (32, 32, 3)
    assert last(actions.resume(studio, session, controls())).state == "done"
    with pytest.raises(UserError, match="finished"):
        list(actions.resume(studio, session, controls()))
    view = last(actions.resume(studio, session, controls(), steps=1))
    assert (view.state, view.step) == ("paused", 1)  # of a new picture


def test_stopped_midway_it_says_so_itself(studio, session):
    views = []
    for view in actions.generate(studio, session, controls()):
        views.append(view)
        if view.step == 3 and view.state == "playing":
            assert actions.halt(studio, session, "stop") is None
    assert views[-1].state == "stopped" and views[-1].step == 3


def test_a_new_picture_ends_the_old_player_silently(studio, session):
    old = actions.generate(studio, session, controls())
    while next(old).step < 2:
        pass
    assert generated(studio, session, seed=5).state == "done"
    assert list(old) == [] and session.run.done


def test_a_closed_tab_ends_its_player_and_lets_go(studio):
    own = studio.sessions.get("closing")
    views = actions.generate(studio, own, controls())
    while next(views).step < 2:
        pass
    studio.sessions.drop("closing")
    assert list(views) == [] and own.run is None and own.gallery == []


def test_strength_changed_midway_begins_anew_from_there(studio, session):
    session.inputs["image"] = PICTURE
    after(studio, session, 3, tab="image", strength=1.0)
    view = last(actions.resume(studio, session, controls(strength=0.5), steps=1))
    assert view.step == STEPS - round(0.5 * STEPS) + 1
    end = last(actions.resume(studio, session, controls(strength=0.5)))
    direct = generated(studio, session, tab="image", strength=0.5)
    np.testing.assert_array_equal(end.pixels, direct.pixels)


def test_only_the_marked_part_is_drawn_anew_and_it_can_be_undone(studio, session):
    first = generated(studio, session).pixels
    more = dict(mask=PAINTED, words="pizza", strength=1.0)
    second = last(actions.redraw(studio, session, controls(), **more)).pixels
    changed = (first != second).any(axis=-1)
    assert changed[:, :16].any() and not changed[:, 16:].any()
    third = last(actions.redraw(studio, session, controls(), **{**more, "words": ""}))
    assert difference(third.pixels, second) > 1
    assert session.current.record["prompt"] == "pizza"
    np.testing.assert_array_equal(actions.undo(session).pixels, second)
    np.testing.assert_array_equal(actions.undo(session).pixels, first)
    with pytest.raises(UserError, match="nothing to undo"):
        actions.undo(session)
    with pytest.raises(UserError, match="mark the part"):
        more = dict(mask=None, words="", strength=1)
        list(actions.redraw(studio, session, controls(), **more))


def test_variations_go_less_far_the_weaker_they_are(studio, session):
    first = generated(studio, session)
    number = session.current.number

    clean = np.ravel(studio.models["toy"].pipe.encode(first.pixels[None]))

    def likeness(strength: float) -> float:
        """Of the latents that it begins with to those of the picture (cosine)."""
        actions.choose(session, number)
        last(actions.vary(studio, session, controls(), strength=strength))
        assert session.current.parent == number
        begun = np.ravel(session.run.marks[0].step.z)
        return float(begun @ clean / np.linalg.norm(begun) / np.linalg.norm(clean))

    # The seeds are free. The last of six steps adds noise of 0.055, 0.3 of these small
    # latents; the first leaves 0.05 of them in noise, whose 64 numbers have a cosine
    # of 0.125 (one standard deviation) with anything.
    assert likeness(0.2) > 0.9
    assert abs(likeness(1.0)) < 0.75
    actions.choose(session, number)
    list(actions.vary(studio, session, controls(), strength=0.5, count=3))
    seeds = {picture.record["seeds"][0] for picture in session.gallery[-3:]}
    assert len(seeds) == 3


def opened(studio, session, data: bytes):
    text = base64.b64encode(data).decode()
    return files.opened(studio, session, {"name": "a", "size": len(data), "data": text})


def test_a_steered_picture_is_opened_and_drawn_again(studio, session):
    after(studio, session, 2, tab="regions")
    view = last(actions.resume(studio, session, controls(guidance=1.5)))
    data = session.current.png()
    other = studio.sessions.get("other")
    found = opened(studio, other, data)
    assert found.draw and found.controls["guidance"] == 1.5
    assert found.controls["tab"] == "regions"
    shown = controls(**found.controls)
    end = last(actions.reopen(studio, other, found.served, found.edited, shown))
    np.testing.assert_array_equal(end.pixels, view.pixels)
    # what the page shows now asks for the same regions
    np.testing.assert_array_equal(
        tabs.request(shown, found.served, {}).regions[1][1],
        tabs.request(controls(tab="regions"), found.served, {}).regions[1][1],
    )
    studio.sessions.drop("other")


def test_a_preset_is_drawn_by_the_page_and_by_the_library(studio, session):
    wanted = controls(tab="regions")
    data = files.preset(studio, session, wanted)
    view = generated(studio, session, tab="regions")
    found = opened(studio, session, data)
    assert not found.draw
    drawn_again = last(actions.generate(studio, session, controls(**found.controls)))
    np.testing.assert_array_equal(drawn_again.pixels, view.pixels)
    fields = json.loads(data)
    assert fields.pop("model") == "toy"
    pipe = studio.models["toy"].pipe
    resolved = pipe.resolve(edits.from_record(fields).request)
    assert difference(next(pipe.run(resolved)), view.pixels) <= 1


def test_files_of_others_are_refused(studio, session):
    with pytest.raises(UserError, match="without a request"):
        opened(studio, session, png())
    with pytest.raises(UserError, match="not loaded: start with --model other"):
        opened(studio, session, png(request={"model": "other", "prompt": "a"}))


def test_people_do_not_see_each_others_pictures(studio):
    one, two = (studio.sessions.get(name) for name in ("one", "two"))
    ends = {}

    def draw(own, prompt: str) -> None:
        ends[prompt] = generated(studio, own, prompt=prompt)

    work = [(one, "pizza"), (two, "red heart")]
    people = [threading.Thread(target=draw, args=each) for each in work]
    for each in people:
        each.start()
    for each in people:
        each.join()
    assert len(one.gallery) == len(two.gallery) == 1
    assert one.current.record["prompt"] == "pizza"
    alone = generated(studio, one, prompt="red heart")
    np.testing.assert_array_equal(alone.pixels, ends["red heart"].pixels)


def test_regions_of_a_picture_with_colours():
    colours = np.full((32, 32, 3), 255, np.uint8)
    colours[:, :20] = (200, 0, 0)
    colours[:, 20:28] = (0, 0, 200)
    colours[0, 0] = (190, 10, 0)  # a stray pixel belongs to the nearest
    labels = regions.color_regions(colours, (16, 16))
    np.testing.assert_array_equal(labels[3], [1] * 10 + [2] * 4 + [0] * 2)
    assert labels[0, 0] == 1
    with pytest.raises(UserError, match="single colour"):
        regions.color_regions(np.zeros((8, 8, 3), np.uint8), (8, 8))


def test_more_canvas_for_outpainting(studio):
    cell_px = studio.models["toy"].cell_px
    wide, mask = inpaint.extend_canvas(PICTURE, ["right", "top"], 0.5, cell_px)
    assert wide.shape == (48, 48, 3) and mask.shape == (48, 48)
    np.testing.assert_array_equal(wide[16:, :32], PICTURE)
    assert mask[16:, :32].sum() == 0 and mask.sum() == 48 * 48 - 32 * 32


@pytest.mark.parametrize(
    ("task", "fields"),
    [
        ("class", {}),
        pytest.param("layout", {"boxes": BOXES}, marks=pytest.mark.slow),
        pytest.param("semantic", {"labels": PAINTED}, marks=pytest.mark.slow),
        pytest.param("super_resolution", {}, marks=pytest.mark.slow),
        pytest.param("inpaint", {"mask": PAINTED}, marks=pytest.mark.slow),
    ],
)
def test_every_task_has_its_tab(task, fields):
    served = Served("toy", drawn(f"emoji_{task}"))
    studio = Studio({"toy": served})
    own = studio.sessions.get("a")
    own.inputs = {"super_resolution": PICTURE[:8, :8], "inpaint": PICTURE}
    if task == "class":
        fields = {"label": served.label_names(emoji="subgroups")[2]}
    given = controls(tab=task, steps=2, **fields)
    view = last(actions.generate(studio, own, given))
    assert view.state == "done" and view.pixels.shape == (32, 32, 3)
    found = opened(studio, own, own.current.png())
    assert found.controls["tab"] == task
    given = {**given, **found.controls}
    end = last(actions.reopen(studio, own, served, found.edited, given))
    np.testing.assert_array_equal(end.pixels, view.pixels)
    twice = last(actions.generate(studio, own, given))
    np.testing.assert_array_equal(twice.pixels, view.pixels)
    missing = "text" if task != "inpaint" else "class"
    with pytest.raises(UserError, match="no loaded model does this"):
        studio.served({"tab": missing, "model": "toy"})


def test_what_a_tab_lacks_is_said(studio, session):
    for tab, words in (
        ("image", "upload a picture"),
        ("inpaint", "upload a picture"),
        ("layout", "no loaded model does this: python train.py"),
        ("nowhere", "no loaded model"),
    ):
        with pytest.raises(UserError, match=words):
            generated(studio, session, tab=tab)
    with pytest.raises(UserError, match="at least one region"):
        generated(studio, session, tab="regions", regions={"map": ""})
    for name, value in (("steps", 10**6), ("seed", -1), ("sampler", "x"), ("pace", 99)):
        with pytest.raises(UserError, match=re.compile(name)):
            generated(studio, session, **{name: value})


def test_many_large_steps_are_thinned(studio, monkeypatch):
    served = studio.models["toy"]
    monkeypatch.setattr(run_module, "MARKS_BYTES", 4 * 2 * 8 * 8 * 8 * 10)
    request = tabs.request(controls(steps=40), served, {})
    run = Run(served.pipe, "toy", request)
    while not run.done:
        run.advance()
    assert len(run.marks) < 25 and run.marks[0].step.step == 0 and run.step == 40
    run.rewind(20)
    assert 10 < run.step <= 20


@pytest.mark.slow
def test_cancelled_generations_leave_nothing_behind(studio):
    """Two hundred, each ended after some steps, from ever new sessions."""

    def some(count: int) -> None:
        for number in range(count):
            own = studio.sessions.get(f"person {number}")
            session_views = actions.generate(studio, own, controls(seed=number))
            for view in session_views:
                if view.step > number % STEPS:
                    actions.halt(studio, own, "stop")
            if number % 3:
                studio.sessions.drop(own.key)
        gc.collect()

    some(60)  # all sessions there can be, and all programs
    tracemalloc.start()
    some(5)
    before = tracemalloc.get_traced_memory()[0]
    some(200)
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert grown < 2 * 2**20  # Python's share; a leaked session alone has 100 kB


def test_fragments_hold_their_pictures(studio, session):
    view = generated(studio, session)
    html = fragments.stage(view) + fragments.strip(session.run)
    html += fragments.gallery(session.gallery, session.current)
    sources = re.findall(r"src='([^']*)'", html)
    assert len(sources) == 1 + (STEPS + 1) + 1
    assert all(source.startswith(pixels_lib.URI) for source in sources)
    link = fragments.result(session.current)
    data = base64.b64decode(re.search(r"base64,([^']*)'", link)[1])
    assert json.loads(image.stored_text(data))["prompt"] == "red heart"
    sheet = files.contact_sheet(session.gallery * 3)
    assert image.decode(sheet).shape == (66, 66, 4)


def test_the_command_wants_a_password_for_others(monkeypatch, capsys):
    monkeypatch.delenv(command.PASSWORD, raising=False)
    assert command.main(["--host", "0.0.0.0"]) == 2
    assert "serves others: give --password" in capsys.readouterr().err
    assert command.main(["--host", "0.0.0.0", "--password", "short"]) == 2
    assert command.main(["--model", "nowhere"]) == 2
    args = command.parser().parse_args(["--host", "::", "--password", "long enough"])
    assert command.password_of(args) == "long enough"
