"""What happens behind the page of `tools/studio`, without the web toolkit.

limits      what a stranger may ask for; uploads and records -> checked requests
tabs        the tabs, the models that serve them, controls -> request
turns       several people share the devices: first come, first served, step by step
run         one trajectory: steps, edits, back to an earlier step
session     what one person has: run, pictures, uploads; all of it bounded
conduct     moves that concern one trajectory: generate, edit, go on, go back
again       moves from a finished picture: vary, redraw a part, draw a file again
files       uploads, opened files and presets
guard       what the server refuses and what it tells the browser
fragments   the page's moving parts as HTML with pictures inside
painter.js, page.js, page.css   what runs in the browser
"""
