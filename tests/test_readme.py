"""The README and the pages that it links: every command and every Python block in them is run, or, where it needs weights, data
or a pod, its flags are shown to be accepted.
"""

import argparse
import configparser
import importlib.metadata
import importlib.util
import json
import pathlib
import re
import shlex
import subprocess
import sys
from typing import Any

import cv2
import jax
import numpy as np
import pytest
from absl.testing import flagsaver
from array_record.python import array_record_data_source  # noqa: F401  its flags, which flagsaver would remove
from PIL import Image

from fcclip_jax import checkpoint, cli, main
from fcclip_jax.checkpoint import Checkpoint, Origin, text_fingerprint
from fcclip_jax.checkpoint.directory import PACKAGED_WORLD
from fcclip_jax.models.building import named_variables
from fcclip_jax.models.descriptions import SMALL
from fcclip_jax.models.random_weights import random_model
from fcclip_jax.text.vocabulary import Vocabulary

# ml_collections loads configuration files in a deprecated way.
pytestmark = pytest.mark.filterwarnings(r"ignore:the load_module\(\) method is deprecated:DeprecationWarning")

ROOT = pathlib.Path(__file__).parents[1]
FOLDERS = ("convert", "fcclip_jax", "launch", "pallas_kernels", "tests")
PAGES = [
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "fcclip_jax/inference/TROUBLESHOOTING.md",
    "fcclip_jax/inference/USING.md",
    *sorted(path.relative_to(ROOT).as_posix() for name in FOLDERS for path in (ROOT / name).rglob("README.md")),
]

RUN = {
    "fcclip vocabularies",
    "fcclip weights",
    'fcclip segment photos/ --classes "cat|kitten, remote control, sofa" --stuff sofa --weights checkpoint_dir --output out/photos/',
}
PARSED = {
    "launch/quickstart.sh": "continuous integration runs it",
    "launch/quickstart.sh --train": "trains for ten minutes; tests/world/test_end_to_end.py trains less",
    "launch/test.sh": "it is what runs this test",
    "pip install '.[demo]'": "installs packages",
    "fcclip demo": "serves until it is stopped; tests/demo/test_browser.py does it",
    "pip install '.[train]'": "installs packages",
    "pip install '.[weights]'": "installs packages",
    "fcclip weights get fcclip_convnext_large": "downloads weights; tests/weights does it with small ones",
    "fcclip weights get fcclip_convnext_large --file fcclip_cocopan.pth": "needs the official weights",
    "hf auth login": "needs an account",
    "fcclip weights push my_checkpoint me/my-model --licence apache-2.0 --report runs/ade20k/report.json": "uploads weights;"
    " tests/weights does it with small ones",
    'fcclip segment photo.jpg --classes "cat, sofa" --weights fcclip_convnext_large --output out/photo/': "downloads weights",
    "pip install '.[train,eval]'": "installs packages",
    "pip install 'jax[tpu]'": "installs packages",
    "pip install .": "installs packages",
    "pip install . 'jax[cuda13]'": "installs packages",
    "pip install . 'jax[tpu]'": "installs packages",
    "fcclip-convert fcclip --checkpoint fcclip_cocopan.pth --model convnext_large_d_320 --output fcclip_convnext_large": (
        "needs the official weights"
    ),
    "fcclip-convert openclip --model convnext_large_d_320 --pretrained laion2b_s29b_b131k_ft_soup --output clip_l": (
        "needs OpenCLIP's weights"
    ),
    "fcclip-convert run --run runs/coco --step best --output DIR": "needs a trained run",
    "python -m fcclip_jax.main --config=configs/coco.py --config.init=clip_l --config.data.root=DATASETS --workdir=runs/coco": (
        "needs COCO and weights"
    ),
    "python -m fcclip_jax.main --config=configs/coco.py:debug --config.data.root=DATASETS --workdir=runs/debug": "needs COCO",
    "python -m fcclip_jax.main --config=configs/coco.py --compile_only=v5e:4x4": "takes minutes; tests/test_main.py compiles less",
    "python -m fcclip_jax.main --config=configs/eval.py:ade20k --config.root=DATASETS --checkpoint=DIR --workdir=runs/ade20k": (
        "needs ADE20K and weights"
    ),
    "python -m fcclip_jax.main --config=configs/world_clip.py --workdir=runs/world_clip": (
        "takes long; tests/world/test_end_to_end.py trains less"
    ),
    "python -m fcclip_jax.main --config=configs/world.py --config.init=runs/world_clip/final --workdir=runs/world": (
        "takes long; tests/world/test_end_to_end.py trains less"
    ),
    "python -m fcclip_jax.main --config=configs/eval.py:world --checkpoint=runs/world/final --workdir=runs/world_eval": (
        "takes minutes; tests/world/test_end_to_end.py evaluates fewer scenes"
    ),
    "fcclip segment fcclip_jax/world/pictures --classes world --weights world --output out/world/": "launch/quickstart.sh does it",
    "python -m fcclip_jax.main --config=configs/world_clip.py --config.data.captions=captions.jsonl --config.model.clip=convnext_large_d_320 --config.init=clip_l --config.data.sizes='((320,64,1),)' --config.data.first_steps=0 --config.optim.learning_rate=1e-4 --config.optim.adam_learning_rate=1e-5 --workdir=runs/my_clip": (
        "needs OpenCLIP's weights"
    ),
    "fcclip prepare coco --root DATASETS --output PREPARED": "needs COCO",
    "fcclip annotate ade20k --root DATASETS": "needs ADE20K",
    "fcclip annotate ade20k_full --root DATASETS": "needs ADE20K",
    "fcclip annotate pascal_context --root DATASETS": "needs Pascal Context",
    "fcclip annotate pascal_voc --root DATASETS": "needs Pascal VOC",
    "fcclip annotate cityscapes --root DATASETS": "needs Cityscapes",
    "launch/tpu_pod.sh my-pod us-west4-a gs://my-bucket/runs/coco --config.init=clip_l --config.data.root=DATASETS": (
        "needs a TPU pod"
    ),
    "sbatch launch/slurm.sh runs/coco --config.init=clip_l --config.data.root=DATASETS": "needs a cluster",
    "python -m fcclip_jax.main --config=configs/coco.py --config.data.root=DATASETS --workdir=runs/coco --distributed --coordinator=HOST:PORT --process_count=2 --process_index=0": (
        "waits for the other processes; tests/training starts several"
    ),
    "python -m tests.parity tests/golden": "tests/test_parity.py runs it",
    "python -m tests.device.report": "needs an accelerator",
    "python -m tests.device.report --rest": "needs an accelerator",
    "JAX_PLATFORMS=cpu python -m tests.device.report --small": "takes minutes; tests/device runs less",
    "python -c \"from tests.device.machine import missing_packages as m; print(*m(), sep='\\n')\" > missing.txt": (
        "only the code runs, not the shell"
    ),
    "pip download --only-binary=:all: --python-version 3.12 --dest wheels -r missing.txt": "downloads packages",
    "pip install --no-index --find-links wheels -r missing.txt": "installs packages",
    "source .venv/bin/activate": "launch/quickstart.sh makes the environment",
    "source .venv-test/bin/activate": "launch/test.sh makes the environment",
    "python -m pytest tests/inference/test_segmenter.py": "launch/test.sh runs all tests",
    "ruff check . && ruff format --check . && mypy": "launch/test.sh does it",
    "python -m pallas_kernels.bench": "takes minutes",
    "python -m pallas_kernels.bench depthwise_norm": "takes minutes",
    "python -m pallas_kernels.roofline": "takes minutes",
    "python -m pallas_kernels.compile_tpu": "takes minutes; tests/pallas_kernels compiles less",
    "fcclip-convert fcclip --checkpoint ovrcoat.pth --model convnext_large_d_320 --as-official --output ovrcoat_official": (
        "needs the authors' weights"
    ),
    "python -m pallas_kernels.compile_gpu": "takes minutes; tests/pallas_kernels compiles less",
}
"""Commands that are not run as written, and the reason."""
IN_ORDER = "fcclip_jax/inference/USING.md"
"""A page whose commands all run, one after the other."""


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL)


def commands(page: str) -> list[str]:
    """Returns a page's command lines, without comments."""
    lines = "\n".join(blocks(page, "bash")).replace("\\\n", " ").splitlines()
    return [command for line in lines if (command := re.sub(r"\s+#.*", "", line).strip())]


ALL = list(dict.fromkeys(command for page in PAGES for command in commands(page)))
SNIPPETS = [(page, block) for page in PAGES for block in blocks(page, "python")]
EVERY_PAGE = sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in ("*.md", *(f"{name}/**/*.md" for name in FOLDERS))
    for path in ROOT.glob(pattern)
)


def anchors(page: str) -> set[str]:
    """Returns the names that GitHub gives to a page's headings."""
    prose = re.sub(r"^```.*?^```$", "", (ROOT / page).read_text(), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", prose, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_command_is_run_or_has_a_reason():
    assert set(ALL) == RUN | PARSED.keys() | set(commands(IN_ORDER))
    assert {"README.md", "fcclip_jax/training/README.md", "fcclip_jax/evaluation/README.md"} <= set(PAGES)


def test_pages_hold_code_in_fences_only():
    """Ensures that these tests cover every command."""
    for page in PAGES:
        prose = re.sub(r"^```.*?^```$", "", (ROOT / page).read_text(), flags=re.MULTILINE | re.DOTALL)
        assert not re.search(r"^ {4}(fcclip|python|pip|from|import|launch)\b", prose, re.MULTILINE), page


def test_links_lead_to_files_and_headings():
    assert set(PAGES) < set(EVERY_PAGE)
    for page in EVERY_PAGE:
        for target, _, anchor in re.findall(r"\]\((?!https?://)([^)#]*)(#([^)]+))?\)", (ROOT / page).read_text()):
            path = (ROOT / page).parent / target if target else ROOT / page
            assert path.exists(), (page, target)
            if anchor:
                assert anchor in anchors(path.resolve().relative_to(ROOT).as_posix()), (page, target, anchor)


def test_the_readme_leads_to_every_page():
    reached, waiting = set(), ["README.md"]
    while waiting:
        page = waiting.pop()
        if page in reached:
            continue
        reached.add(page)
        for target in re.findall(r"\]\((?!https?://)([^)#]+\.md)", (ROOT / page).read_text()):
            waiting.append(((ROOT / page).parent / target).resolve().relative_to(ROOT).as_posix())
    assert reached == set(EVERY_PAGE)


def test_files_and_modules_exist():
    """Every path in backticks that names a file or folder of the project, and every module."""
    for page in EVERY_PAGE:
        text = (ROOT / page).read_text()
        for path in re.findall(r"`((?:fcclip_jax|configs|convert|launch|pallas_kernels|tests)/[\w./]+)`", text):
            assert (ROOT / path).exists(), (page, path)
        for module in re.findall(r"python -m ((?:fcclip_jax|tests|convert|pallas_kernels)[\w.]*)", text):
            assert importlib.util.find_spec(module), (page, module)


@pytest.fixture(scope="module")
def checkpoint_dir(tmp_path_factory) -> pathlib.Path:
    """Returns a checkpoint with random weights."""
    model = random_model(SMALL, 0)
    parameters = {name: np.asarray(value[...]) for name, value in named_variables(model).items()}
    text = text_fingerprint(SMALL, parameters)
    training = Vocabulary.load("coco_panoptic")
    contents = Checkpoint(SMALL, parameters, training, text, Origin("random weights", ""), None, {})
    folder = tmp_path_factory.mktemp("checkpoint") / "checkpoint_dir"
    checkpoint.save(folder, contents)
    return folder


@pytest.fixture
def folder(checkpoint_dir, tmp_path, monkeypatch) -> pathlib.Path:
    """Returns a working folder with the files that the README's examples name."""
    (tmp_path / "checkpoint_dir").symlink_to(checkpoint_dir)
    pixels = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
    (tmp_path / "photos").mkdir()
    for path in ("photo.jpg", "photos/a.jpg", "photos/b.png"):
        Image.fromarray(pixels).save(tmp_path / path)
    video = cv2.VideoWriter(str(tmp_path / "video.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 5, (320, 240))
    for _ in range(3):
        video.write(np.zeros((240, 320, 3), np.uint8))
    video.release()
    for name in ("configs", "fcclip_jax"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FCCLIP_JAX_CACHE", str(checkpoint_dir.parent / "cache"))  # tests share programs
    before = jax.config.jax_compilation_cache_dir
    yield tmp_path
    jax.config.update("jax_compilation_cache_dir", before)


@pytest.mark.parametrize(("page", "code"), SNIPPETS, ids=[page for page, _ in SNIPPETS])
def test_python_blocks_run(folder, page, code):
    if page == "pallas_kernels/depthwise/README.md":
        rng = np.random.default_rng(0)
        arrays = [(1, 5, 6, 8), (7, 7, 8), (8,), (8,), (8,)]
        values = dict(
            zip(
                ("x", "weight", "bias", "scale", "offset"),
                (rng.random(shape, np.float32) for shape in arrays),
                strict=True,
            )
        )
        names = {**values, "valid_hw": np.asarray([[5, 6]], np.int32)}
        exec(code, names)  # noqa: S102  the code is the README's
        assert names["out"].shape == (1, 5, 6, 8)
        return
    if page == "pallas_kernels/deform_attn/README.md":
        shapes = ((4, 4), (2, 2))
        rng = np.random.default_rng(0)
        arrays = [(1, 20, 2, 8), (1, 3, 2, 2, 4, 2), (1, 3, 2, 2, 4)]
        value, locations, weights = (rng.random(shape, np.float32) for shape in arrays)
        names = {"value": value, "locations": locations, "weights": weights, "shapes": shapes}
        exec(code, names)  # noqa: S102  the code is the README's
        assert names["out"].shape == (1, 3, 2, 8)
        return
    names = {}
    if page == "fcclip_jax/world/README.md":
        exec(code, names)  # noqa: S102  the code is the page's
        with Image.open(folder / "scene.png") as picture:
            assert picture.size == (384, 256)
        assert len(names["scene"].names) == names["scene"].segment_map.max() + 1
        return
    if page in ("README.md", IN_ORDER) and not PACKAGED_WORLD.exists():
        pytest.skip("the package has no trained checkpoint")
    exec(code, names)  # noqa: S102  the code is the page's
    if page == IN_ORDER:
        check_example(folder, names)
        return
    assert (folder / "out.png").stat().st_size > 1000
    result = names["result"]
    assert result.panoptic.id_map.shape == result.semantic.shape == (384, 384)
    assert [entry.name for entry in result.vocabulary.classes] == ["butterfly", "doughnut", "mailbox", "snow"]
    for instance in result.instances:
        assert instance.mask.sum() == instance.area and instance.name in ("butterfly", "doughnut", "mailbox")


def check_example(folder: pathlib.Path, names: dict[str, Any]) -> None:
    """Checks what one of the blocks of `IN_ORDER` has left."""
    if "drawn" in names:
        assert [picture.size for picture in names["drawn"]] == [(320, 240)] * 3
    elif "found" in names:
        assert len(names["found"]) == 6 and {"butterfly", "doughnut", "snow"} <= set(names["found"]["snow"])
    elif "exporter" in names:
        content = json.loads((folder / "out/coco/panoptic.json").read_text())
        assert [annotation["file_name"] for annotation in content["annotations"]] == [
            "shore.png",
            "snow.png",
            "station.png",
        ]
        assert (folder / "out/coco/overlays/snow.instances.jpg").exists()
    elif "results" in names:
        assert [result.image.shape for result in names["results"]] == [(384, 384, 3)] * 2
    else:
        assert {"butterfly", "doughnut", "socks", "snow"} >= set(names["names"]) > {"snow"}
        assert (folder / "instances.png").exists()


@pytest.mark.skipif(not PACKAGED_WORLD.exists(), reason="the package has no trained checkpoint")
def test_a_page_of_commands_runs_in_order(folder, capsys):
    outputs = {}
    for command in commands(IN_ORDER):
        assert cli.main(shlex.split(command)[1:]) == 0, capsys.readouterr().err
        output = re.search(r"--output out/(\w+)/", command).group(1)
        outputs[output] = sorted({path.name for path in (folder / "out" / output).rglob("*.png")})
        if output == "small":
            with Image.open(folder / "out/small/semantic/snow.png") as small:
                assert small.size == (200, 200) and not (folder / "out/small/overlays").exists()
    six = ["dusk.png", "floor.png", "night.png", "shore.png", "snow.png", "station.png"]
    assert outputs == {"one": ["snow.png"], "many": six, "small": six}
    content = json.loads((folder / "out/many/panoptic.json").read_text())
    assert [category["name"] for category in content["categories"]] == ["tractor", "snow"]


@pytest.mark.parametrize("command", sorted(RUN))
def test_commands_run(folder, capsys, command):
    program, *arguments = shlex.split(command)
    assert program == "fcclip" and cli.main(arguments) == 0
    if arguments[0] == "vocabularies":
        assert len(capsys.readouterr().out.splitlines()) == 11
    elif arguments[0] == "weights":
        assert capsys.readouterr().out.startswith("name ")
    else:
        out = folder / "out/photos"
        paths = (path.relative_to(out) for path in out.rglob("*") if path.is_file())
        written = {path.as_posix() for path in paths if path.parts[0] != ".run"}  # .run lists what is done
        names = [f"{kind}/{name}" for kind in ("panoptic", "semantic") for name in ("a.png", "b.png")]
        overlays = [f"overlays/{name}.{task}.jpg" for name in "ab" for task in ("panoptic", "semantic", "instances")]
        assert written == {"images.json", "panoptic.json", "instances.json", *names, *overlays}


class Accepted(Exception):
    """The parser has accepted all arguments; the program would now start."""


@pytest.fixture
def parse_only(monkeypatch):
    parse = argparse.ArgumentParser.parse_args

    def parse_and_stop(self, args=None, namespace=None):
        parse(self, args, namespace)
        raise Accepted

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_and_stop)


@pytest.mark.parametrize("command", sorted(PARSED))
def test_commands_parse(folder, parse_only, monkeypatch, command):
    program, *arguments = shlex.split(command.removeprefix("JAX_PLATFORMS=cpu "))
    if program == "pip":
        check_installable(arguments)
    elif program == "source":
        environment = arguments[0].removesuffix("/bin/activate")
        scripts = [path.read_text() for path in sorted((ROOT / "launch").glob("*.sh"))]
        assert any(f"venv=${{VENV:-{environment}}}" in script for script in scripts)
    elif program == "ruff":
        script = (ROOT / "launch/test.sh").read_text()
        assert all(part in script for part in ("/ruff", "format --check", "/mypy"))
    elif arguments[:2] == ["-m", "pytest"]:
        assert (ROOT / arguments[2]).exists()
    elif program == "hf":
        assert importlib.metadata.entry_points(group="console_scripts", name=program)
    elif program.startswith("launch/") or program == "sbatch":
        script = arguments.pop(0) if program == "sbatch" else program
        subprocess.run(["bash", "-n", ROOT / script], check=True)
        if flags := [argument for argument in arguments if argument.startswith("--config.")]:
            with flagsaver.flagsaver():
                assert main.parse(["main", "--config=configs/coco.py", "--workdir=run", *flags]).config.init == "clip_l"
    elif arguments[0] == "-c":
        exec(arguments[1], {})  # noqa: S102  the code is the page's
    elif arguments[:2] == ["-m", "fcclip_jax.main"]:
        monkeypatch.setattr(sys, "argv", ["fcclip_jax.main", *arguments[2:]])
        with flagsaver.flagsaver():
            assert main.parse(sys.argv).config.is_locked
    else:
        module = {"fcclip": "fcclip_jax.cli", "fcclip-convert": "convert"}.get(program) or arguments[1]
        if importlib.util.find_spec(module).submodule_search_locations is not None:
            module += ".__main__"
        given = arguments if program.startswith("fcclip") else arguments[2:]
        monkeypatch.setattr(sys, "argv", [module, *given])
        with pytest.raises(Accepted):
            importlib.import_module(module).main(given)


def check_installable(arguments: list[str]) -> None:
    """Checks that the extras exist."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    if "wheels" in arguments:
        assert arguments[-2:] == ["-r", "missing.txt"]
        return
    verb, *requirements = arguments
    assert verb == "install"
    for requirement in requirements:
        name, extras = re.fullmatch(r"(\.|jax)(?:\[(.+)\])?", requirement).groups()
        if name == "jax":
            assert extras in importlib.metadata.metadata("jax").get_all("Provides-Extra")
        elif extras:
            assert set(extras.split(",")) <= set(setup["options.extras_require"])
