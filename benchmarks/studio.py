"""How the studio's page runs in a real browser: steps a second, edits, memory.

    python -m benchmarks.studio [--model emoji] [--steps 8] [--cancelled 200]

Starts the server and drives the page in headless Chromium (`chromium` and
`chromedriver` of the system, and selenium). Printed as JSON:

steps_a_second       of one image, previews included, from the page's own clock
previews             how many different images the page showed meanwhile
edit_step, seen_step where a new prompt was announced, and the first step whose preview
                     differs from the undisturbed run's
grown_mb             of the server's memory over that many generations that were
                     stopped at random, after `--warm` which are not counted
"""

import argparse
import contextlib
import json
import random
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

WATCH = """
window.seen = [];
new MutationObserver(() => {
  const figure = document.querySelector("#stage_figure");
  const picture = document.querySelector("#stage_image");
  if (figure && picture)
    window.seen.push([figure.dataset.state, +figure.dataset.step, picture.src,
                      performance.now()]);
}).observe(document.querySelector("#stage"),
           {subtree: true, childList: true, attributes: true});
"""


def start(model: str) -> tuple[subprocess.Popen, str]:
    """The server and its address."""
    command = ["-m", "lDM_jax.tools.studio", "--model", model, "--port", "0"]
    server = subprocess.Popen(
        [sys.executable, *command], stderr=subprocess.PIPE, text=True
    )
    for line in server.stderr:
        match = re.search(r"http://\S+", line)
        if match:
            return server, match[0].rstrip(";")
    raise SystemExit("the studio did not start")


def browser() -> webdriver.Chrome:
    """Headless Chromium."""
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu"):
        options.add_argument(flag)
    service = Service(shutil.which("chromedriver"))
    return webdriver.Chrome(options=options, service=service)


class Page:
    """The page in a browser."""

    def __init__(self, driver: webdriver.Chrome, address: str):
        self.driver = driver
        driver.get(address)
        self.wait(lambda: driver.find_element(By.ID, "stage_figure"))
        time.sleep(1)  # until the toolkit has wired its events

    def wait(self, check, secs: float = 180):
        """Until the check gives something true."""
        end = time.monotonic() + secs
        while time.monotonic() < end:
            with contextlib.suppress(Exception):
                if result := check():
                    return result
            time.sleep(0.01)
        raise TimeoutError

    def click(self, name: str) -> None:
        """Click without moving the page."""
        self.driver.execute_script(
            "document.getElementById(arguments[0]).click()", name
        )

    def stage(self, name: str) -> str:
        """What the stage says of itself: its state, step or total."""
        figure = self.driver.find_element(By.ID, "stage_figure")
        return figure.get_attribute(f"data-{name}")

    def write(self, text: str) -> None:
        """A new prompt; it counts at once if an image is being drawn."""
        field = self.driver.find_element(By.CSS_SELECTOR, "#prompt textarea")
        field.clear()
        field.send_keys(text, Keys.TAB)

    @property
    def message(self) -> str:
        """The kind of the message: none, note or error."""
        line = self.driver.find_element(By.ID, "message_text")
        return line.get_attribute("data-kind")

    def until(self, state: str) -> None:
        self.wait(lambda: self.stage("state") == state)


def watch(page: Page) -> list:
    """What the page shows while it draws: [state, step, image, milliseconds]."""
    page.driver.execute_script(WATCH)
    page.click("generate")
    ended = "const s = window.seen; return s.length > 2 && s.at(-1)[0] === 'done'"
    page.wait(lambda: page.driver.execute_script(ended))
    return page.driver.execute_script("return window.seen")


def speed(page: Page) -> dict:
    """Steps a second, and how many previews there were."""
    page.write("red heart")
    watch(page)  # once for whatever is done once
    seen = [entry for entry in watch(page) if entry[0] == "playing"]
    first, last = seen[0], seen[-1]
    rate = 1000 * (last[1] - first[1]) / (last[3] - first[3])
    return {
        "steps_a_second": round(rate, 2),
        "previews": len({entry[2] for entry in seen}),
    }


def edit(page: Page, steps: int) -> dict:
    """Where an edit was announced, and where it is seen first."""
    plain = step_previews(page, steps)
    changed = step_previews(page, steps, edit_after=steps // 2)
    different = [k for k in plain if k in changed and plain[k] != changed[k]]
    return {"edit_step": steps // 2, "seen_step": min(different)}


def step_previews(page: Page, steps: int, edit_after: int = 0) -> dict:
    """The previews of the first steps, one by one: step -> image."""
    page.write("red heart")
    page.click("stop")
    page.driver.refresh()
    page.__init__(page.driver, page.driver.current_url)
    page.write("red heart")
    previews = {}
    for step in range(1, steps + 1):
        page.click("step")
        page.wait(lambda step=step: page.stage("step") == str(step))
        page.until("paused")
        image = page.driver.find_element(By.ID, "stage_image")
        previews[step] = image.get_attribute("src")
        if step == edit_after:
            page.write("pizza")
            page.wait(
                lambda: "pizza" in page.driver.find_element(By.ID, "message_text").text
            )
    return previews


def memory_mb(process: subprocess.Popen) -> float:
    """Resident memory of a process."""
    text = Path(f"/proc/{process.pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+)", text)[1]) / 1024


def cancelled(page: Page, server: subprocess.Popen, count: int, warm: int) -> dict:
    """How much the server grows over pictures that are stopped at random."""
    draw = random.Random(0)
    for number in range(warm + count):
        if number == warm:
            before = memory_mb(server)
        page.click("generate")
        time.sleep(draw.uniform(0.1, 0.8))
        page.click("stop")
        page.wait(lambda: page.stage("state") in ("stopped", "done", "idle"))
    grown = memory_mb(server) - before
    return {"cancelled": count, "grown_mb": round(grown, 1)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="emoji")
    parser.add_argument("--steps", type=int, default=8, help="of the edit's test")
    parser.add_argument("--cancelled", type=int, default=200)
    parser.add_argument("--warm", type=int, default=30)
    args = parser.parse_args()
    server, address = start(args.model)
    driver = browser()
    try:
        page = Page(driver, address)
        result = {**speed(page), **edit(page, args.steps)}
        if args.cancelled:
            result |= cancelled(page, server, args.cancelled, args.warm)
    finally:
        driver.quit()
        server.terminate()
    sys.stdout.write(json.dumps(result) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
