"""The page in a real browser: its scripts run, keys work, and it fits on a phone."""

import json
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from showo_dist.report.gallery.cli import Gallery, GalleryServer
from tests.gallery.conftest import PROMPTS

# Actions of a visitor; the results are written into the document's title.
_VISIT = """
<script>
{
const seen = {};
const player = document.querySelector('.player');
const range = player.querySelector('input[type=range]');
const path = () => player.querySelector('.stack path').getAttribute('d');
const image = () => player.querySelector('.stack img').src;
const to = (round) => { range.value = round; range.dispatchEvent(new Event('input')); };
to(1); seen.first = [path(), image(), player.querySelector('output').textContent];
to(4); seen.last = [path(), image(), player.querySelector('output').textContent];
player.querySelector('input[type=checkbox]').click();
seen.bare = getComputedStyle(player.querySelector('.stack svg')).visibility;
const button = document.querySelector('.strip button');
button.click();
const dialog = document.querySelector('dialog');
seen.open = dialog.open;
dialog.dispatchEvent(new KeyboardEvent('keydown', { key: 'ArrowRight' }));
seen.second = dialog.querySelector('p').textContent;
dialog.dispatchEvent(new KeyboardEvent('keydown', { key: 'ArrowLeft' }));
seen.back = dialog.querySelector('p').textContent;
dialog.close();
player.querySelector('.play').click();
setTimeout(() => {
  seen.played = [range.value, player.querySelector('.play').textContent];
  seen.wide = document.documentElement.scrollWidth - innerWidth;
  seen.broken = [...document.images].filter((i) => i.complete && !i.naturalWidth && i.alt).length;
  seen.paper = getComputedStyle(document.body).backgroundColor;
  document.title = JSON.stringify(seen);
}, 2500);
}
</script></body>"""

Browse = Callable[..., str]


def _visit(gallery: Gallery, browse: Browse, *options: str) -> dict[str, Any]:
    page = gallery.out / "visited.html"
    page.write_text((gallery.out / "index.html").read_text().replace("</body>", _VISIT))
    document = browse(page.as_uri(), *options)
    title = re.search(r"<title>(\{.*\})</title>", document)
    assert title, document[-2000:]
    return json.loads(title[1].replace("&amp;", "&").replace("&lt;", "<").replace("&gt;", ">"))


def test_a_visit(gallery: Gallery, browse: Browse) -> None:
    seen = _visit(gallery, browse, "--window-size=1280,900")
    masks = gallery.generated[0].masks[0]
    first, last = seen["first"], seen["last"]
    assert first[0].count("M") == masks[0].count("1") > 0 and last[0] == ""
    assert first[1].endswith(gallery.generated[0].frames[0][0]) and first[1] != last[1]
    assert (first[2], last[2]) == ("round 1 of 4", "round 4 of 4")
    assert seen["bare"] == "hidden" and seen["open"]
    assert seen["back"] == f"{PROMPTS[0]} (one, step 3)"
    assert seen["second"] == f"{PROMPTS[0]} (one, step 6)"
    assert seen["played"] == ["4", "Play"]
    assert seen["broken"] == 0 and seen["wide"] <= 0


def test_a_phone_at_night(gallery: Gallery, browse: Browse, tmp_path: Path) -> None:
    day = _visit(gallery, browse, "--window-size=500,900")
    night = "--blink-settings=preferredColorScheme=0"
    seen = _visit(gallery, browse, "--window-size=500,900", night)
    assert seen["wide"] <= 0, "the page can be moved sideways"
    assert day["paper"] == "rgb(255, 255, 255)" and seen["paper"] == "rgb(21, 23, 28)"


def test_a_served_page_obeys_its_own_policy(
    gallery: Gallery, browse: Browse, tmp_path: Path
) -> None:
    shot = tmp_path / "shot.png"
    with GalleryServer(("127.0.0.1", 0), gallery.out, gallery.write) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        document = browse(server.url, "--window-size=1280,1600", f"--screenshot={shot}")
        server.shutdown()
        thread.join(timeout=30)
    assert re.search(r"<output>round \d of 4</output>", document), "its script did not run"
    assert document.count('<path d="M') == 2 * len(gallery.generated)
    with Image.open(shot) as image:
        colours = image.convert("RGB").resize((64, 80)).getcolors(64 * 80)
    assert colours is not None and len(colours) > 50, "the page is nearly empty"


@pytest.mark.parametrize("name", ["images", "rounds", "training"])
def test_links_have_targets(gallery: Gallery, name: str) -> None:
    text = (gallery.out / "index.html").read_text()
    assert f'href="#{name}"' in text and f'id="{name}"' in text
