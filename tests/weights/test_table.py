"""The table of published weights: complete, and consistent with the rest of the project."""

import re

import pytest

from fcclip_jax import weights
from fcclip_jax.evaluation.paper_tables import REPORTED
from fcclip_jax.models.descriptions import CLIP_MODELS
from fcclip_jax.text import vocabulary
from fcclip_jax.weights import table
from fcclip_jax.weights.table import Drive, Hub

ENTRIES = table.entries()
PUBLISHED = [entry for entry in ENTRIES.values() if entry.source is not None]


@pytest.mark.parametrize("entry", PUBLISHED, ids=lambda entry: entry.name)
def test_an_entry_says_what_its_conversion_needs(entry):
    assert entry.model in CLIP_MODELS and entry.quick_gelu == entry.model.startswith("RN")
    assert entry.kind in ("fcclip", "heads_only", "clip")
    assert (entry.vocabulary in vocabulary.shipped()) == (entry.kind != "clip")
    assert (entry.clip is not None) == (entry.kind == "heads_only")
    if entry.clip is not None:
        assert (ENTRIES[entry.clip].kind, ENTRIES[entry.clip].model) == ("clip", entry.model)
    assert entry.licence and entry.page.startswith("https://") and entry.title
    assert (entry.sha256 is None) == (entry.sha256_from is None)
    assert entry.sha256 is None or re.fullmatch("[0-9a-f]{64}", entry.sha256)
    assert re.fullmatch(r"[\w.]+\.(pth|safetensors)", entry.file)
    if isinstance(entry.source, Drive):
        assert re.fullmatch(r"[\w-]{33}", entry.source.id)


def test_names_and_files_are_distinct():
    assert len({entry.source for entry in PUBLISHED}) == len(PUBLISHED) == 11
    assert ENTRIES["fcclip_convnext_large"].source == Drive("1-91PIns86vyNaL3CzMmDD39zKGnPMtvj")
    assert ENTRIES["clip_convnext_large_d_320"].source == Hub(
        "laion/CLIP-convnext_large_d_320.laion2B-s29B-b131K-ft-soup", "main", "open_clip_pytorch_model.safetensors"
    )
    assert ENTRIES["world"].source is None and "2025/0045929" in table.method_note()


def test_reported_scores_are_those_that_evaluation_prints():
    for entry in PUBLISHED:
        if entry.name.startswith(("fcclip_rn", "fcclip_convnext")) and entry.reported:
            known = REPORTED[entry.model, "coco_panoptic"].scores
            assert {"ade20k", "coco"} <= entry.reported.keys()
            for benchmark, scores in entry.reported.items():
                assert scores == {name: known[benchmark][name] for name in scores}, (entry.name, benchmark)
    assert ENTRIES["fcclip_coconut_b"].reported == {"ade20k": {"pq": 27.4, "ap": 17.4, "miou": 33.7}}


def test_hints(tmp_path):
    assert table.did_you_mean(" FCCLIP_RN50 ") == " (did you mean fcclip_rn50?)"
    with pytest.raises(
        ValueError, match="world is inside this package and is not converted from a file; remove --file"
    ):
        weights.get("world", file=tmp_path)
