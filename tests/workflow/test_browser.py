"""The report in headless Chromium, on a desktop's and a phone's screen; leaves screenshots in test-artifacts/."""

import shutil

import pytest
from helpers import REPOSITORY
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

SCREENSHOTS = REPOSITORY / "test-artifacts"
SCREENS = {"desktop": (1280, 900), "phone": (390, 844)}
FLAGS = ["headless", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", "no-first-run", "hide-scrollbars"]
# Chromium must not look up hosts of its vendor.
FLAGS += [f"disable-{part}" for part in ("background-networking", "component-update", "sync", "extensions")]
MISSING = [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]

pytestmark = pytest.mark.skipif(
    bool(MISSING), reason=f"{', '.join(MISSING)} not found: `apt-get install chromium chromium-driver` has them"
)


@pytest.fixture(scope="module")
def page(finished) -> str:
    workflow, config = finished
    return (workflow.folder / "results" / "reports" / config["name"] / "report.html").as_uri()


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for flag in [*FLAGS, f"user-data-dir={tmp_path_factory.mktemp('chromium')}"]:
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
    yield driver
    driver.quit()


@pytest.fixture(params=SCREENS)
def driver(chromium, page, request) -> webdriver.Chrome:
    """The report on one of the screens, of which a screenshot is left."""
    width, height = SCREENS[request.param]
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": request.param == "phone"}
    chromium.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    chromium.get(page)
    SCREENSHOTS.mkdir(exist_ok=True)
    chromium.save_screenshot(str(SCREENSHOTS / f"report-{request.param}.png"))
    return chromium


def test_the_page_fits_the_screen_can_be_read_and_loads_nothing(driver):
    width, screen = driver.execute_script("return [document.documentElement.scrollWidth, innerWidth]")
    assert width == screen  # the page itself never scrolls sideways
    outside = driver.execute_script(
        "return [...document.querySelectorAll('body *')].filter(element => !element.closest('.scroll, .card, pre')"
        " && element.getBoundingClientRect().right > innerWidth + 0.5).map(element => element.outerHTML)"
    )
    assert outside == []  # wider elements scroll within a frame of their own
    sizes = driver.execute_script(
        "return [...document.querySelectorAll('td, th, p, li, dd, dt, figcaption, pre')]"
        ".map(element => parseFloat(getComputedStyle(element).fontSize))"
    )
    assert min(sizes) >= 12
    assert all(driver.execute_script("return [...document.images].map(image => image.naturalWidth)"))
    assert driver.execute_script("return performance.getEntriesByType('resource').map(entry => entry.name)") == []
    assert driver.get_log("browser") == []


@pytest.mark.parametrize("key", [None, Keys.ENTER], ids=["click", "enter"])
def test_a_heading_sorts_its_table(driver, key):
    table = driver.find_element(By.CSS_SELECTOR, "#layers table")
    headings = table.find_elements(By.CSS_SELECTOR, "th.sort")
    column = next(k for k, heading in enumerate(headings) if heading.text == "error reduction (%)")

    def values() -> list[float]:
        script = "return [...arguments[0].tBodies[0].rows].map(row => row.cells[arguments[1]].textContent)"
        return list(map(float, driver.execute_script(script, table, column)))

    def activate(heading) -> None:
        heading.send_keys(key) if key else heading.click()

    before = values()
    driver.execute_script("arguments[0].scrollIntoView({inline: 'center', block: 'center'})", headings[column])
    activate(headings[column])
    assert values() == sorted(before) != before
    activate(headings[column])
    assert values() == sorted(before, reverse=True)


def test_links_lead_to_their_sections(driver):
    links = [link.get_attribute("href").rpartition("#")[2] for link in driver.find_elements(By.CSS_SELECTOR, "nav a")]
    assert links
    for section in links:
        driver.execute_script("location.hash = arguments[0]", section)
        assert driver.find_element(By.ID, section).is_displayed()
