"""The page of `tools/studio`, where people steer a model while it draws.

limits      what a stranger may ask for; uploads and records -> checked requests
served      a loaded model: its extents, the names of its labels
painter     what the painters of the page hold
tabs/       one file a tab: its components, its events, controls <-> request
run         one trajectory: steps, edits, back to an earlier step
session     what one person has: run, gallery, uploads; all of it bounded
player      draws a run step by step, as the session commands; who draws when
actions     what a person does: generate, edit, go back, vary, draw a part anew
files       uploads, opened files and presets
fragments   the page's moving parts as HTML with images inside
middleware  what the server refuses and what it tells the browser
page/       components, events and the server; alone in importing the web toolkit
painter.js, page.js, page.css   what runs in the browser
"""
