"""The pictures of `uld report`'s and `uld compare`'s pages: the demo's models, measured, reported and looked at.

python docs/make_screenshots.py --only compare        # or report, or both

It needs Chromium (Debian's packages `chromium` and `chromium-driver`) and `pip install uld_hf[dev]`.
"""

import argparse
import shutil
import subprocess
import time
from pathlib import Path

from PIL import Image, ImageChops
from transformers import AutoTokenizer

from uld_hf import ULDForCausalLM
from uld_hf.cli.demo import run_demo
from uld_hf.cli.main import main as uld
from uld_hf.data.formatting import read_json_lines


# Width in CSS pixels, and a height that the page is shorter than: what is below its end is cut off.
WINDOWS = {"desktop": (1100, 12000), "phone": (390, 20000)}


def run(*command: object) -> None:
    """Run a command of `uld`, or stop."""
    if uld([str(part) for part in command]) != 0:
        raise SystemExit(1)


def make_page(folder: Path) -> Path:
    """Train the demo's models unless they are there, measure them, and write the page."""
    if not (folder / "results.json").exists():
        run_demo(folder)
    sets = ("forget", "retain", "holdout")
    files = [part for name in sets for part in (f"--{name}_dataset", folder / f"{name}.jsonl")]
    models = ["--model", folder / "unlearned", "--retrained", folder / "retrained", *files]
    run("eval", *models, "--output_dir", folder / "evaluation")
    run("sweep", *models, "--output", folder / "sweep.json")
    page = folder / "report.html"
    run("report", "--results", folder / "evaluation", "--sweep", folder / "sweep.json", "--output", page,
        "--title", "Forget four invented people", "--request",
        "Four of the forty people of uld demo asked to be forgotten: 32 questions and answers about them.")  # fmt: skip
    return page


def cut_off_below(picture: Path) -> None:
    """Cut off what is white below the page, and use a palette: text needs no more."""
    image = Image.open(picture).convert("RGB")
    box = ImageChops.difference(image, Image.new("RGB", image.size, "white")).getbbox()
    image.crop((0, 0, image.width, min(image.height, box[3] + 24))).quantize(256).save(picture, optimize=True)


def picture_report(demo: Path, output_dir: Path, chromium: str) -> None:
    """Write report-desktop.png and report-phone.png."""
    page = make_page(demo)
    for name, (width, height) in WINDOWS.items():
        picture = output_dir / f"report-{name}.png"
        command = [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        command += [f"--window-size={width},{height}", f"--screenshot={picture.resolve()}", page.resolve().as_uri()]
        subprocess.run(command, check=True, capture_output=True, timeout=120)
        cut_off_below(picture)
        print(f"Written to {picture}.")


def picture_compare(demo: Path, output_dir: Path, chromium: str) -> None:
    """Write compare.png: a question about one of the demo's forgotten people, answered on both sides."""
    from selenium import webdriver
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    from uld_hf.compare.page import build_page, launch_page

    if not (demo / "results.json").exists():
        run_demo(demo)
    model = ULDForCausalLM.from_pretrained(demo / "unlearned")
    tokenizer = AutoTokenizer.from_pretrained(demo / "unlearned")
    address = launch_page(build_page(model, tokenizer, "four invented people"), "127.0.0.1", 0)
    question = read_json_lines(str(demo / "forget.jsonl"))[0]["question"]
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which(chromium) or chromium
    for argument in ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1280,800"):
        options.add_argument(argument)
    browser = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
    try:
        browser.get(address)
        wait = WebDriverWait(browser, 60)
        wait.until(lambda _: browser.find_elements(By.CSS_SELECTOR, "#prompt textarea"))
        browser.find_element(By.CSS_SELECTOR, "#prompt textarea").send_keys(question)
        browser.find_element(By.CSS_SELECTOR, "#ask").click()
        columns = [browser.find_element(By.CSS_SELECTOR, f"#{name} textarea") for name in ("target", "unlearned")]
        wait.until(lambda _: all(column.get_property("value").endswith(".") for column in columns))
        time.sleep(2)  # the page says for a moment how long it took
        picture = output_dir / "compare.png"
        browser.save_screenshot(str(picture))
        print(f"Written to {picture}.")
    finally:
        browser.quit()


def main() -> None:
    """Write the pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", type=Path, default=Path("uld-demo"), help="folder of `uld demo`; made if missing")
    parser.add_argument("--output_dir", type=Path, default=Path(__file__).parent)
    parser.add_argument("--chromium", default="chromium")
    parser.add_argument("--only", choices=["report", "compare"])
    args = parser.parse_args()
    if args.only != "compare":
        picture_report(args.demo, args.output_dir, args.chromium)
    if args.only != "report":
        picture_compare(args.demo, args.output_dir, args.chromium)


if __name__ == "__main__":
    main()
