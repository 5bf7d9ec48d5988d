"""Draw docs/studio/*.png: the studio's tabs in headless Chromium.

    python -m lDM_jax.tools.studio --model emoji --model runs/emoji_layout ...
    PYTHONPATH=. python docs/make_studio_figures.py http://127.0.0.1:7860

A tab whose model the running studio lacks is shown as it says so.
"""

import base64
import sys
import tempfile
import time
from pathlib import Path

from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from benchmarks.studio import Page, browser

OUT = Path(__file__).parent / "studio"


def drag(page: Page, name: str, start: tuple, end: tuple) -> None:
    """From one point of a canvas to another, in fractions of it."""
    canvas = page.driver.find_element(By.ID, name)
    page.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", canvas)
    time.sleep(0.2)
    width, height = canvas.size["width"], canvas.size["height"]
    points = [
        (round((u - 0.5) * width), round((v - 0.5) * height)) for u, v in (start, end)
    ]
    move = ActionChains(page.driver, duration=60)
    move.move_to_element_with_offset(canvas, *points[0]).click_and_hold()
    move.move_to_element_with_offset(canvas, *points[1]).release().perform()


def tab(page: Page, name: str) -> None:
    page.click(f"nav_{name}")
    time.sleep(0.8)


def draw(page: Page) -> None:
    """Generate, if the tab has a model, and wait for the end."""
    page.click("generate")
    time.sleep(0.5)
    ended = lambda: page.stage("state") == "done" or page.message == "error"  # noqa: E731
    page.wait(ended, secs=120)
    time.sleep(0.5)


def shot(page: Page, name: str) -> None:
    page.driver.execute_script("window.scrollTo(0, 0)")
    time.sleep(0.3)
    page.driver.save_screenshot(str(OUT / f"{name}.png"))


def upload(page: Page, name: str, path: Path) -> None:
    page.driver.find_element(By.ID, f"{name}_file").send_keys(str(path))
    time.sleep(0.8)


def words(page: Page, name: str, text: str) -> None:
    page.driver.find_element(By.ID, name).send_keys(text, Keys.TAB)


def texts(page: Page, folder: Path) -> None:
    """The tabs of a text model."""
    page.write("red apple")
    for _ in range(9):
        page.click("step")
        page.until("paused")
        time.sleep(0.15)
    page.write("green apple")
    page.click("resume")
    page.until("done")
    time.sleep(0.6)
    shot(page, "text")
    link = page.driver.find_element(By.ID, "download").get_attribute("href")
    (folder / "apple.png").write_bytes(base64.b64decode(link.partition(",")[2]))
    tab(page, "image")
    upload(page, "image", folder / "apple.png")
    page.write("soccer ball")
    draw(page)
    shot(page, "image")
    tab(page, "regions")
    page.write("pizza")
    drag(page, "regions_canvas", (0.02, 0.02), (0.48, 0.98))
    words(page, "regions_prompt_1", "red heart")
    page.click("regions_label_2")
    drag(page, "regions_canvas", (0.52, 0.02), (0.98, 0.98))
    words(page, "regions_prompt_2", "soccer ball")
    draw(page)
    shot(page, "regions")


def others(page: Page, folder: Path) -> None:
    """The tabs of the other tasks."""
    apple = folder / "apple.png"
    tab(page, "inpaint")
    upload(page, "inpaint", apple)
    drag(page, "mask_canvas", (0.3, 0.3), (0.7, 0.7))
    draw(page)
    shot(page, "inpaint")
    tab(page, "layout")
    page.click("boxes_label_3")
    drag(page, "boxes_canvas", (0.1, 0.1), (0.5, 0.55))
    page.click("boxes_label_1")
    drag(page, "boxes_canvas", (0.55, 0.4), (0.95, 0.9))
    draw(page)
    shot(page, "layout")
    tab(page, "semantic")
    page.click("labels_label_4")
    drag(page, "labels_canvas", (0.3, 0.4), (0.6, 0.6))
    page.click("labels_rect")
    page.click("labels_label_2")
    drag(page, "labels_canvas", (0.65, 0.05), (0.95, 0.4))
    draw(page)
    shot(page, "semantic")
    tab(page, "super_resolution")
    upload(page, "super_resolution", apple)
    draw(page)
    shot(page, "super_resolution")
    tab(page, "class")
    page.click("generate")
    time.sleep(3)
    shot(page, "class")


def main(address: str) -> int:
    OUT.mkdir(exist_ok=True)
    driver = browser()
    try:
        driver.set_window_size(1240, 1120)
        with tempfile.TemporaryDirectory() as folder:
            page = Page(driver, address)
            texts(page, Path(folder))
            others(page, Path(folder))
        narrow = dict(width=390, height=844, deviceScaleFactor=2, mobile=True)
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", narrow)
        page = Page(driver, address)
        page.write("red heart")
        draw(page)
        shot(page, "phone")
    finally:
        driver.quit()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
