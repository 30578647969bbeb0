"""How long a person waits for the page: until it can be used, until the first sound, and beside others.

    pip install playwright && python -m benchmarks.studio_browser --browsers 8 --screenshot studio.png

Needs Chromium (Debian: `apt-get install chromium`). It starts `qamdt studio` itself, in a folder of its own.
"""

import argparse
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path


PATIENCE_IN_S = 600
PROMPT = "calm solo piano ballad in C major"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def open_page(browser, port: int, width: int = 1280):
    """Opens the page in a browser of its own and waits until it can be used."""
    page = browser.new_context(viewport={"width": width, "height": 1200}).new_page()
    page.set_default_timeout(1000 * PATIENCE_IN_S)
    page.goto(f"http://127.0.0.1:{port}/")
    page.get_by_role("button", name="Generate").wait_for()
    page.get_by_label("Describe the music").first.fill(PROMPT)
    return page


def wait_for_server(port: int) -> None:
    """Waits until something answers at a port."""
    until = time.monotonic() + PATIENCE_IN_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            if time.monotonic() > until:
                raise
            time.sleep(0.1)


class Watch:
    """Tells how long something took: on the clock, and of the server's CPU time, which other work does not lengthen.

    Args:
        pid: The server.
    """

    def __init__(self, pid: int):
        self.pid = pid
        self.start, self.cpu_start = time.monotonic(), self.cpu_seconds()

    def cpu_seconds(self) -> float:
        """What the server has used so far."""
        fields = Path(f"/proc/{self.pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def tell(self, what: str) -> None:
        """Prints both."""
        clock, cpu = time.monotonic() - self.start, self.cpu_seconds() - self.cpu_start
        print(f"{what}: {clock:.1f} s, {cpu:.1f} CPU-seconds of the server; load {os.getloadavg()[0]:.1f}", flush=True)


def generate(page, seconds: float) -> None:
    """Asks for a clip, and does not wait for it."""
    length = page.get_by_label("number input for Length in seconds").first
    length.fill(f"{seconds:g}")
    length.press("Tab")
    page.get_by_role("button", name="Generate").click()


def wait_for_sound(page) -> None:
    """Waits until the player has a sound."""
    page.get_by_role("status").filter(has_text="Done").first.wait_for()
    page.wait_for_function("[...document.querySelectorAll('time')].some(time => /0:0*[1-9]/.test(time.textContent))")


def try_flow(page) -> list[str]:
    """Sends a take to be continued and continues it; returns what went wrong."""
    page.get_by_role("button", name="Take A: continue").click()
    button = page.get_by_role("button", name="Make it", exact=True)
    button.wait_for()
    page.wait_for_timeout(1000)
    button.click()
    page.get_by_role("status").filter(has_text="Done").last.wait_for()
    return [error.inner_text() for error in page.locator(".toast-body.error").all()]


def ask_all(pages: list, seconds: float) -> tuple[int, int]:
    """Asks for a clip in every browser at once; returns how many saw a position, and how many got it."""
    start = time.monotonic()
    for page in pages:
        generate(page, seconds)
    seen, done = set(), set()
    while len(done) < len(pages) and time.monotonic() < start + PATIENCE_IN_S:
        for number, page in enumerate(pages):
            text = page.get_by_role("status").first.inner_text()
            if "in the queue" in text:
                seen.add(number)
            if text.startswith("Done"):
                done.add(number)
        time.sleep(0.1)
    return len(seen), len(done)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=7871)
    parser.add_argument("--seconds", type=float, default=10.0, help="length of the clips")
    parser.add_argument("--browsers", type=int, default=8)
    parser.add_argument("--screenshot", type=Path, help="picture of the page to write; others go beside it")
    arguments = parser.parse_args()
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        command = [sys.executable, "-m", "pipelines.cli", "studio", "--port", str(arguments.port), "--folder", folder]
        server = subprocess.Popen(command)
        try:
            watch = Watch(server.pid)
            wait_for_server(arguments.port)
            page = open_page(browser, arguments.port)
            watch.tell("from the start of the process to a usable page")
            watch = Watch(server.pid)
            generate(page, arguments.seconds)
            wait_for_sound(page)
            watch.tell(f"from the click to the first sound of {arguments.seconds:g} s")
            page.get_by_role("status").get_by_text("Done.", exact=True).first.wait_for()
            if arguments.screenshot:
                page.wait_for_timeout(2000)
                page.screenshot(path=arguments.screenshot, full_page=True)
            print(f"a take sent to be continued: {try_flow(page) or 'no error'}", flush=True)
            if arguments.screenshot:
                page.wait_for_timeout(2000)
                page.screenshot(
                    path=arguments.screenshot.with_stem(arguments.screenshot.stem + "-edit"), full_page=True
                )
                page.set_viewport_size({"width": 390, "height": 1200})
                page.screenshot(
                    path=arguments.screenshot.with_stem(arguments.screenshot.stem + "-390"), full_page=True
                )
            pages = [open_page(browser, arguments.port) for _ in range(arguments.browsers)]
            watch = Watch(server.pid)
            seen, done = ask_all(pages, arguments.seconds)
            watch.tell(
                f"{arguments.browsers} browsers at once, {done} got music, {seen} saw their position in the queue"
            )
        finally:
            server.terminate()
            server.wait(PATIENCE_IN_S)


if __name__ == "__main__":
    main()
