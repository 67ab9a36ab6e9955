"""The page in a browser, served as a user serves it: uploads, hover text, two visitors at once, phones, a bad file."""

import numpy as np
import pytest
from PIL import Image

from fcclip_jax.inference.segmenter import Segmenter
from tests.demo.answers_known import SNOW_STUFF, SNOW_WORDS
from tests.demo.visiting import NEEDS_BROWSER, Server, names, segment

pytestmark = NEEDS_BROWSER


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with Server(tmp_path_factory.mktemp("server"), "fcclip_jax.cli", "demo") as server:
        yield server


def point_at(visitor, name, act):
    """Points into the middle of a segment and returns the text that appears."""
    # The segment's pixel that lies deepest inside it, as shares of the picture.
    where = visitor.evaluate(
        f"""(async () => {{
            const image = document.querySelector("#result .numbers");
            await image.decode();
            const canvas = document.createElement("canvas");
            [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
            canvas.getContext("2d").drawImage(image, 0, 0);
            const {{data}} = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
            const row = [...document.querySelectorAll("#result tbody tr")].find((row) => row.cells[0].innerText.trim() === "{name}");
            const inside = [];
            for (let i = 0; i < data.length / 4; i++) if (data[4 * i] === Number(row.dataset.number)) inside.push(i);
            const middle = inside[Math.floor(inside.length / 2)];
            return [(middle % canvas.width + 0.5) / canvas.width, (Math.floor(middle / canvas.width) + 0.5) / canvas.height];
        }})()"""
    )
    left, top, width, height = visitor.place("#result .picture")
    act(left + where[0] * width, top + where[1] * height)
    return visitor.wait_for(
        "!document.querySelector('#result .hover').hidden && document.querySelector('#result .hover').innerText"
    )


def test_an_upload_is_segmented_and_pointing_names_its_segments(server, chromium, photo, tmp_path):
    visitor = chromium.visit(server.url)
    segment(visitor, photo, SNOW_WORDS, SNOW_STUFF)
    found = names(visitor)
    segmenter = Segmenter.load("world")
    segmenter.set_classes(SNOW_WORDS.split(", "), stuff=SNOW_STUFF.split(", "))
    expected = segmenter(photo)
    by_area = sorted(expected.panoptic.segments, key=lambda segment: -segment.area)
    assert found == [segment.name for segment in by_area]
    butterfly = next(segment for segment in by_area if segment.name == "butterfly")
    text = point_at(visitor, "butterfly", visitor.hover)
    assert text.startswith(f"butterfly, score {butterfly.score:.2f}, "), text
    area = int(text.split(", ", 2)[2].split(" px")[0].replace(",", ""))
    # The page pads photographs into another bucket, which may move pixels on the borders of segments.
    assert abs(area - butterfly.area) <= 0.005 * butterfly.area
    assert visitor.evaluate("document.querySelector('tr.lit').cells[0].innerText.trim()") == "butterfly"
    visitor.screenshot(tmp_path / "desktop.png")
    with Image.open(tmp_path / "desktop.png") as shown:
        assert np.asarray(shown).std() > 10  # not blank
    visitor.hover(2, 2)
    assert visitor.wait_for("document.querySelector('#result .hover').hidden")


def test_the_page_loads_nothing_from_elsewhere(server, chromium):
    visitor = chromium.visit(server.url)
    visitor.wait_for("!!document.querySelector('input[type=file]')")
    requests = visitor.requests()
    assert len(requests) > 5
    assert not [url for url in requests if not url.startswith((server.url, "data:", "blob:"))]


def test_two_visitors_at_once_get_answers_in_their_own_words(server, chromium, photo):
    first, second = (chromium.visit(server.url) for _ in range(2))
    segment(first, photo, "snow, mailbox", "snow")
    segment(second, photo, "snow, butterfly, doughnut", "snow")
    assert set(names(first)) == {"snow", "mailbox"}
    assert set(names(second)) == {"snow", "butterfly", "doughnut"}


def test_a_phone(server, chromium, photo, tmp_path):
    visitor = chromium.visit(server.url, width=390, height=844, phone=True)
    segment(visitor, photo, SNOW_WORDS, SNOW_STUFF)
    assert "doughnut" in names(visitor)
    assert point_at(visitor, "doughnut", visitor.tap).startswith("doughnut, score 0.")
    assert visitor.evaluate("document.documentElement.scrollWidth") <= 390
    visitor.screenshot(tmp_path / "phone.png")
    with Image.open(tmp_path / "phone.png") as shown:
        assert shown.width == 390


def test_a_bad_file_gets_a_sentence(server, chromium, tmp_path):
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"not a picture")
    visitor = chromium.visit(server.url)
    visitor.upload(bad)
    sentence = visitor.wait_for("document.querySelector('#sentence .sentence')?.innerText || false")
    assert sentence == "The file bad.png cannot be read: it is not an image in a known format."


def test_an_example(server, chromium):
    visitor = chromium.visit(server.url)
    visitor.wait_for(
        "(() => { const row = [...document.querySelectorAll('tr')].find((row) => row.innerText.includes('crescent moon'));"
        " row?.click(); return !!row; })()"
    )
    assert {"night sky", "brick wall", "skull"} <= set(names(visitor))


def test_ctrl_c_ends_the_server_and_deletes_uploads(server):
    """Runs last: it stops the server of the other tests."""
    assert {path.name for path in server.uploads()} == {"my_photo.png", "bad.png"}
    assert server.stop() == 130
    assert not list(server.temporary.glob("fcclip_demo_*"))
    assert server.output().splitlines()[-1] == "interrupted"
