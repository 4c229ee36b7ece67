"""The picture of the page in `docs/serving.md`: a real service, a real browser, real photos.

    knownot train photos/cats_dogs -o model/ && knownot export model/ -o model.onnx
    python -m benchmarks page_picture model.onnx

Needs chromium, and the photos of `benchmarks/tutorial_picture.py`, whose licences are named there; it
looks at the first as the page shows it. Writes `docs/images/page.png`.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

from cats_dogs import default_data
from tutorial_picture import PHOTOS

CHOSEN = (0, 1, 2, 3)  # in this order; the last one stays on the stage
COLOURS = 256  # of the PNG: a third of the bytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="exported classifier of cats and dogs")
    parser.add_argument("--data", type=Path, default=default_data(), help="photos")
    parser.add_argument("--output", type=Path, default=Path("docs/images/page.png"))
    parser.add_argument("--size", type=int, nargs=2, default=(1240, 1010), help="of the window")
    parser.add_argument("--dark", action="store_true", help="the dark theme")
    parser.add_argument("--language", default="en", help="en or ja")
    options = parser.parse_args()
    browser_path = shutil.which("chromium") or shutil.which("google-chrome")
    if browser_path is None:
        sys.exit("chromium: not found; install it")
    folder = options.data / "detection" / "ood_coco" / "images"
    with tempfile.TemporaryDirectory() as samples, sync_playwright() as playwright:
        for i, number in enumerate(PHOTOS):
            shutil.copy(folder / f"000000000{number}.jpg", Path(samples, f"{i}.jpg"))
        command = [sys.executable, "-m", "knownot", "serve", str(options.model)]
        command += ["--port", "0", "--samples", samples]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as service:
            assert service.stderr is not None
            address = json.loads(service.stderr.readline())["address"]
            browser = playwright.chromium.launch(
                executable_path=browser_path, args=["--no-sandbox"]
            )
            page = browser.new_page(
                viewport={"width": options.size[0], "height": options.size[1]},
                color_scheme="dark" if options.dark else "light",
                locale=options.language,
            )
            page.goto(address)
            for i in CHOSEN:
                before = page.locator(".card").count()
                page.locator("#samples button").nth(i).click()
                page.locator(".card").nth(before).wait_for()
            page.evaluate("document.activeElement.blur(); scrollTo(0, 0)")
            print(page.locator("#label").inner_text(), "|", page.locator("#sentence").inner_text())
            options.output.parent.mkdir(parents=True, exist_ok=True)
            page.screenshot(path=options.output)
            browser.close()
            service.terminate()
    with Image.open(options.output) as image:
        small = image.convert("RGB").quantize(COLOURS, kmeans=3)
        small.save(options.output, optimize=True)
    print(f"written: {options.output}, {options.output.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
