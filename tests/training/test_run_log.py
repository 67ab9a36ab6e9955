"""A resumed run in Weights & Biases, by a client that only records how it is called."""

import sys
import types

from fcclip_jax.training.run_log import RunLog


def test_a_resumed_run_continues_its_run(tmp_path, monkeypatch):
    calls = []

    def init(**options):
        calls.append(options)
        return types.SimpleNamespace(id=options["id"] or "new1", log=lambda *_, **__: None, finish=lambda: None)

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    for first_step in (0, 5):
        RunLog(tmp_path, {"seed": 0}, first_step=first_step, wandb="project").close()
    assert [call["id"] for call in calls] == [None, "new1"]
    assert all(call["resume"] == "allow" and call["project"] == "project" for call in calls)
