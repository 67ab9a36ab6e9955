"""The Colab notebook: runs from top to bottom on a CPU without network, and its committed outputs are those of its cells."""

import json
import os
import pathlib

import pytest

pytest.importorskip("ipykernel", reason="the notebook needs a kernel: pip install ipykernel")
nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")

# Jupyter's client and kernel leave sockets for the garbage collector, and warn of settings that are theirs.
pytestmark = pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::DeprecationWarning", "ignore::RuntimeWarning"
)

ROOT = pathlib.Path(__file__).parents[1]
PATH = ROOT / "launch/colab.ipynb"

NO_NETWORK = """
import socket
_connect = socket.socket.connect
def connect(self, address):
    if isinstance(address, tuple) and address[0] not in ("127.0.0.1", "localhost", "::1"):
        raise OSError(f"no network in this test: {address}")
    return _connect(self, address)
socket.socket.connect = connect
"""
READ_VALUES = """
import json
print(json.dumps({
    "found": found, "grouped": [segment.name for segment in grouped.panoptic.segments], "new": [names[index] for index in new],
    "masks": list(masks.shape), "classes": inside.mixed.shape[1], "chosen": chosen, "tasks": list(result.tasks),
    "probs": [float(part[query, word]) for part in inside[1:]], "sizes": [size for size, _ in maps],
    "grids": [list(labels.shape) for _, labels in maps], "ways": [[segment.name for segment in way.panoptic.segments]
    for way in mixtures], "seconds": len(seconds), "device": jax.devices()[0].platform,
}))
"""


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """The notebook with its outputs, after a run in an empty cache, and the values of its names."""
    notebook = nbformat.read(PATH, 4)
    # The official weights are asked for, which fails without network.
    [cell] = [cell for cell in notebook.cells if "DOWNLOAD = IN_COLAB" in cell.source]
    photo = ROOT / "fcclip_jax/world/pictures/snow.jpg"
    cell.source = cell.source.replace("DOWNLOAD = IN_COLAB", "DOWNLOAD = True").replace(
        'PHOTO = ""', f'PHOTO = "{photo}"'
    )
    last = len(notebook.cells)
    notebook.cells = [
        nbformat.v4.new_code_cell(NO_NETWORK),
        *notebook.cells,
        nbformat.v4.new_code_cell(READ_VALUES),
    ]
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": str(ROOT),
        "FCCLIP_JAX_CACHE": str(tmp_path_factory.mktemp("cache")),
    }
    folder = tmp_path_factory.mktemp("working")
    client = nbclient.NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    )
    client.execute(env=environment)
    values = json.loads(notebook.cells[-1].outputs[0].text)
    notebook.cells = notebook.cells[1 : last + 1]
    assert list(folder.iterdir()) == []  # the notebook leaves no files
    return notebook, values


def pictures(notebook) -> int:
    data = [output.get("data", {}) for cell in notebook.cells for output in cell.get("outputs", [])]
    return sum(key.startswith("image/") for each in data for key in each)


def printed(notebook) -> str:
    return "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []))


def test_every_cell_runs(executed):
    notebook, values = executed
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(2, len(cells) + 2))  # after the cell of this test
    assert pictures(notebook) == 7
    assert "The official weights or the photograph are left out: fcclip_convnext_large is not here yet" in printed(
        notebook
    )
    assert "The cells below use the miniature and its scene." in printed(notebook)
    assert values["device"] == "cpu" and values["seconds"] == 5


def test_the_values_that_it_shows(executed):
    _, values = executed
    # What the scene shows, apart from what the model misses; see fcclip_jax/world/pictures/pictures.json.
    scene = {"snow", "sea", "fire engine", "socks", "skateboard", "tractor", "sunflower"}
    assert {"tractor", "sea", "snow", "sunflower"} <= set(values["found"]) <= scene
    assert "tractor" not in values["grouped"] and "skateboard" not in values["grouped"]  # each is the second synonym
    assert set(values["new"]) == {"tractor", "sea"}
    assert values["masks"] == [64, 64, 40] and values["classes"] == 11
    assert values["tasks"] == ["panoptic", "semantic", "instances"]
    in_vocab, out_vocab, mixed = values["probs"]
    assert values["chosen"] == "tractor" and in_vocab < mixed < out_vocab and out_vocab > 0.9
    # 384 x 384 pixels, so that both sides have the size.
    assert values["sizes"] == [128, 256, 512] and values["grids"] == [[4, 4], [8, 8], [16, 16]]
    without_clip, with_clip = values["ways"][0], values["ways"][2]
    assert "sea" not in without_clip and "sea" in with_clip


def test_the_committed_outputs():
    """They are of a run from top to bottom, contain the pictures, name no folder of a user's, and are small."""
    notebook = nbformat.read(PATH, 4)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert pictures(notebook) == 7
    assert "The official weights are left out: this is not Colab" in printed(notebook)
    assert "/home/" not in printed(notebook) and "Warning" not in printed(notebook)
    assert PATH.stat().st_size < 3 * 2**20


def test_each_code_cell_says_what_to_look_at():
    notebook = nbformat.read(PATH, 4)
    for above, cell in zip(notebook.cells, notebook.cells[1:], strict=False):
        if cell.cell_type == "code" and above.cell_type == "markdown":
            assert "Look at" in above.source, cell.source
